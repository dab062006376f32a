"""From the rows of a split to its token ids, and from questions on contexts to windows."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.data.windows import tokenize_windows
from bertvision_stream.settings.settings import ResolvedData
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS_AT_A_TIME = 1000  # bounds the tokenizer's Python objects, which dwarf the arrays

# Runs with several seeds share their rows, and so their tokens: kept by tokenizer and settings for
# as long as the rows live.
_tokens: WeakKeyDictionary[TaskData, dict[Hashable, dict[str, TokenStore]]] = WeakKeyDictionary()


def tokenize_splits(
    data: TaskData, tokenizer: Any, settings: ResolvedData, config: Any
) -> dict[str, TokenStore]:
    """Returns the tokens of every split by its name, and logs how many there are.

    The tokens of the same `data` are made once for the same tokenizer and settings.

    Args:
        data: The rows of a task.
        tokenizer: A fast tokenizer.
        settings: The settings `data.*`.
        config: The backbone's configuration.

    Raises:
        ConfigError: `data.max_length` is more than the backbone has positions.
    """
    max_length = settings.max_length
    positions = min(tokenizer.model_max_length, config.max_position_embeddings)
    if max_length > positions:
        raise ConfigError(
            f"data.max_length={max_length} is more than the {positions} positions of the backbone"
        )
    known = _tokens.setdefault(data, {})
    key = (tokenizer.name_or_path, settings)
    if key not in known:
        stores = {data.train.name: tokens_of(data.train, tokenizer, settings, evaluated=False)}
        stores |= {s.name: tokens_of(s, tokenizer, settings) for s in data.validation}
        known[key] = stores
    for name, store in known[key].items():
        log.info("%s: %s", name, store.describe(max_length))
    return known[key]


def tokens_of(
    split: Split, tokenizer: Any, settings: ResolvedData, *, evaluated: bool = True
) -> TokenStore:
    """Returns the tokens of one split: of its examples, or of the windows of its questions.

    Args:
        split: The rows.
        tokenizer: A fast tokenizer.
        settings: The settings `data.*`.
        evaluated: Whether predictions are made of the rows; to be trained on takes less.
    """
    if split.questions is None:
        return tokenize(split, tokenizer, settings.max_length)
    assert settings.stride is not None
    return tokenize_windows(
        split,
        tokenizer,
        max_length=settings.max_length,
        stride=settings.stride,
        keep_layout=evaluated,
    )


def tokenize(split: Split, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TokenStore:
    """Tokenizes a split, without padding.

    Args:
        split: Its examples are one text or a pair of texts.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of an example, special tokens included. A longer
            example is cut, from the longer text of a pair first.
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
