"""Answers as spans of a context, and questions without an answer: SQuAD 2.0."""
