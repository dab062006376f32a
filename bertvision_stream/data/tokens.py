"""Token ids of a split as flat arrays, which Ray ships without copying them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_CHARACTERS_AT_A_TIME = 1_000_000


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of all examples of a split, end to end; the arrays may be read-only.

    Attributes:
        input_ids: int32 `[T]`, special tokens included, no padding.
        token_type_ids: uint8 `[T]`; zeros where the tokenizer has none.
        offsets: int64 `[N + 1]`; example `i` is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: `[N]`, as in `Split`; of windows `[N, 2]`, see `WindowStore`.
        num_truncated: How many examples were longer than the limit and were cut to it.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    num_truncated: int = 0

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, int64 `[N]`."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays of the store, to be counted and hashed."""
        return self.input_ids, self.token_type_ids, self.offsets, self.labels

    def describe(self, max_length: int) -> str:
        """Says what the store holds; `max_length` is the limit that examples were cut to."""
        cut = f"; {self.num_truncated:,} were cut to {max_length}" if self.num_truncated else ""
        return f"{self.num_examples:,} examples, {self.num_tokens:,} tokens{cut}"

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """The rows of some examples (ascending int64): the same, unless examples have windows."""
        return examples

    def tokens(self, i: int) -> np.ndarray:
        """The token ids of example `i`, int32: a view."""
        return self.input_ids[self.offsets[i] : self.offsets[i + 1]]


def batches_of_texts(
    texts: Sequence[tuple[str, ...]], max_rows: int
) -> Iterator[Sequence[tuple[str, ...]]]:
    """Yields the rows in order, few at a time.

    A tokenizer's objects dwarf the arrays that are made from them, so a batch holds at most
    `max_rows` rows, and at most a million characters unless a single row has more.
    """
    start = num_characters = 0
    for end, row in enumerate(texts):
        length = sum(map(len, row))
        is_full = end - start == max_rows or num_characters + length > _CHARACTERS_AT_A_TIME
        if is_full and end > start:
            yield texts[start:end]
            start, num_characters = end, 0
        num_characters += length
    if start < len(texts):
        yield texts[start:]
