"""What users would do instead of streaming: the same backbone, rows, head, epochs and threads."""
