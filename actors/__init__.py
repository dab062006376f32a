"""Ray actors: thin shells over the library that move blocks from extractors to head trainers."""
