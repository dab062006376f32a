"""Train small heads on a frozen BERT from a stream of hidden states, with nothing on disk."""

__version__ = "0.1.0"
