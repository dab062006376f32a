"""The keys of the command line, their types, defaults and rules. Imports neither torch nor Ray."""
