"""Between rows and stream: tokens, blocks of a suitable size, and words for what was decided."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.data.tokens import TokenStore, tokenize
from bertvision_stream.data.windows import tokenize_windows
from bertvision_stream.settings.settings import ResolvedData
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log

# By rows, and by tokenizer and settings: they live as long as the rows.
_tokens: WeakKeyDictionary[TaskData, dict[Hashable, dict[str, TokenStore]]] = WeakKeyDictionary()


def tokenize_splits(
    data: TaskData,
    tokenizer: Any,
    settings: ResolvedData,
    config: Any,
) -> dict[str, TokenStore]:
    """Tokens of every split by name; those of the same rows are kept for runs with other seeds.

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
    stores = known[key]
    for name, store in stores.items():
        log.info("%s: %s", name, store.describe(max_length))
    return stores


def tokens_of(
    split: Split, tokenizer: Any, settings: ResolvedData, *, evaluated: bool = True
) -> TokenStore:
    """Tokens of one split: its examples, or the windows of its questions.

    Args:
        split: The rows.
        tokenizer: A fast tokenizer.
        settings: `data.*`.
        evaluated: Whether predictions are made of them, and not only trained on.
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
