"""Blocks of hidden states: how they are cut, ordered, encoded, budgeted and cached."""
