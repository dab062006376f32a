"""From the rows of a split to its token ids, and from questions on contexts to windows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.data.tokens import TokenStore, batches_of_texts
from bertvision_stream.data.windows import tokenize_windows
from bertvision_stream.settings.settings import ResolvedData
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS_AT_A_TIME = 1000

# Runs with several seeds share their rows, and so their tokens: kept by tokenizer and settings for
# as long as the rows live.
_tokens: WeakKeyDictionary[TaskData, dict[Hashable, dict[str, TokenStore]]] = WeakKeyDictionary()


def tokenize_splits(
    data: TaskData, tokenizer: Any, settings: ResolvedData, num_positions: int
) -> dict[str, TokenStore]:
    """Returns the tokens of every split by its name, and logs how many there are.

    The tokens of the same `data` are made once for the same tokenizer and settings.

    Args:
        data: The rows of a task.
        tokenizer: A fast tokenizer.
        settings: The settings `data.*`.
        num_positions: The most tokens of an example that the backbone has positions for.

    Raises:
        ConfigError: `data.max_length` is more than the backbone has positions.
    """
    max_length = settings.max_length
    positions = min(tokenizer.model_max_length, num_positions)
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
    """Tokenizes a split, without padding; takes time and memory linear in the texts' lengths.

    The tokens are those of `tokenizer(*texts, truncation="longest_first", max_length=max_length)`.
    That call also makes an encoding of every pair of pieces that it cuts off, hundreds of
    thousands for two long texts, so texts are tokenized alone here and cut afterwards.

    Args:
        split: Its examples are one text or a pair of texts.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of an example, special tokens included. A longer
            example is cut, from the longer text of a pair first.
    """
    num_texts = len(split.texts[0])
    frame = _Frame.of(tokenizer, num_texts)
    limit = max_length - tokenizer.num_special_tokens_to_add(pair=num_texts == 2)
    keep = _last if tokenizer.truncation_side == "left" else _first
    ids, type_ids, lengths = [], [], []
    num_truncated = 0
    for batch in batches_of_texts(split.texts, _ROWS_AT_A_TIME):
        batch_ids: list[int] = []
        batch_types: list[int] = []
        columns = [_tokens_of(column, tokenizer) for column in zip(*batch, strict=True)]
        for whole in zip(*columns, strict=True):
            counts = cut_longest_first([len(tokens) for tokens in whole], limit)
            parts = [keep(tokens, n) for tokens, n in zip(whole, counts, strict=True)]
            before = len(batch_ids)
            frame.fill(parts, batch_ids, batch_types)
            lengths.append(len(batch_ids) - before)
            num_truncated += sum(map(len, parts)) < sum(map(len, whole))
        ids.append(np.array(batch_ids, dtype=np.int32))
        type_ids.append(np.array(batch_types, dtype=np.uint8))
    all_types = np.concatenate(type_ids)
    has_types = "token_type_ids" in tokenizer.model_input_names
    return TokenStore(
        input_ids=np.concatenate(ids),
        token_type_ids=all_types if has_types else np.zeros_like(all_types),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        labels=split.labels,
        num_truncated=num_truncated,
    )


def cut_longest_first(lengths: Sequence[int], limit: int) -> list[int]:
    """How many tokens of each text stay, as `longest_first` of the tokenizers library has it.

    The longer of two texts is cut first, down to the shorter one and then both alike; where the
    limit is odd, the text that was longer (the second of two equal ones) has one token more.

    Args:
        lengths: The number of tokens of one text or two, without special tokens.
        limit: The largest sum of what stays.
    """
    if len(lengths) == 1:
        return [min(lengths[0], limit)]
    first, second = lengths
    shorter = min(first, second, limit // 2)
    longer = min(max(first, second), limit - shorter)
    return [longer, shorter] if first > second else [shorter, longer]


@dataclass(frozen=True)
class _Frame:
    """The special tokens around the texts of an example, which are the same for every example.

    Attributes:
        parts: In their order: the id of a special token, or the place of a text (0 or 1) as a
            negative number `-1 - place`; and the type id of either.
    """

    parts: list[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, num_texts: int) -> _Frame:
        encoded = tokenizer(*[["a"]] * num_texts, return_token_type_ids=True)
        (encoding,) = encoded.encodings
        parts = []
        for i, type_id, place in zip(
            encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
        ):
            part = (i if place is None else -1 - place, type_id)
            if place is None or part not in parts:  # "a" may be several tokens
                parts.append(part)
        assert sum(i < 0 for i, _ in parts) == num_texts
        return cls(parts)

    def fill(self, texts: Sequence[list[int]], ids: list[int], type_ids: list[int]) -> None:
        """Appends an example with the tokens of these texts to `ids`, and its types."""
        for i, type_id in self.parts:
            tokens = [i] if i >= 0 else texts[-1 - i]
            ids += tokens
            type_ids += [type_id] * len(tokens)


def _tokens_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _first(tokens: list[int], count: int) -> list[int]:
    return tokens[:count]


def _last(tokens: list[int], count: int) -> list[int]:
    return tokens[len(tokens) - count :]
