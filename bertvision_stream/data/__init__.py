"""Rows, labels and tokens: from files and the hub to arrays of token ids."""
