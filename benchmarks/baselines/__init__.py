"""What users would do instead of streaming, and streaming itself: each in a process of its own."""
