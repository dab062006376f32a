"""Token ids of a split as flat arrays, which Ray ships without copying them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.splits import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS_AT_A_TIME = 1000  # bounds the tokenizer's Python objects, which dwarf the arrays


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of all examples of a split, end to end; the arrays may be read-only.

    Attributes:
        input_ids: int32 `[T]`, special tokens included, no padding.
        token_type_ids: uint8 `[T]`; zeros where the tokenizer has none.
        offsets: int64 `[N + 1]`; example `i` is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: `[N]`, as in `Split`; of windows `[N, 2]` (see `spans.windows`).
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
        """Tokens of each example, int64 `[N]`."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the store holds, to be counted and hashed."""
        return self.input_ids, self.token_type_ids, self.offsets, self.labels

    def describe(self, max_length: int) -> str:
        """What it holds, for people; `max_length` is the limit that examples were cut to."""
        cut = f"; {self.num_truncated:,} were cut to {max_length}" if self.num_truncated else ""
        return f"{self.num_examples:,} examples, {self.num_tokens:,} tokens{cut}"

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """The rows of examples (ascending int64), which are themselves unless there are windows."""
        return examples

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of example `i`, int32; a view."""
        return self.input_ids[self.offsets[i] : self.offsets[i + 1]]


def tokenize(split: Split, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TokenStore:
    """Tokenizes a split, without padding.

    Args:
        split: Its examples are one text or a pair of texts.
        tokenizer: A fast tokenizer.
        max_length: Most tokens of an example, special tokens included. Longer ones are cut, from a
            pair's longer text first.
    """
    ids, type_ids, lengths = [], [], []
    num_truncated = 0
    for start in range(0, len(split), _ROWS_AT_A_TIME):
        columns = zip(*split.texts[start : start + _ROWS_AT_A_TIME], strict=True)
        encoded = tokenizer(
            *(list(column) for column in columns),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        ids.append(_flat(encoded["input_ids"], np.int32))
        type_ids.append(
            _flat(encoded["token_type_ids"], np.uint8)
            if "token_type_ids" in encoded
            else np.zeros(len(ids[-1]), dtype=np.uint8)
        )
        lengths += [len(example) for example in encoded["input_ids"]]
        num_truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return TokenStore(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(type_ids),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        labels=split.labels,
        num_truncated=num_truncated,
    )


def _flat(sequences: list[list[int]], dtype: type[np.generic]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequences), dtype=dtype)
