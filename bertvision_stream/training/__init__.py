"""Heads, optimisers and objectives on a stream of blocks, without Ray."""
