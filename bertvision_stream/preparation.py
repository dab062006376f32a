"""Between rows and stream: tokens, blocks of a suitable size, and words for what was decided."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from bertvision_stream.blocks import TRAIN, pick_block_tokens
from bertvision_stream.budget import STORE_SHARE, max_blocks
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.corpus import Corpus
from bertvision_stream.data import Split, TaskData, TokenStore, tokenize
from bertvision_stream.errors import ConfigError
from bertvision_stream.plan import StreamPlan
from bertvision_stream.settings import ResolvedData, TaskSettings
from bertvision_stream.spans.windows import tokenize_windows
from bertvision_stream.units import format_bytes

# By rows, and by tokenizer and settings: they live as long as the rows.
_tokens: WeakKeyDictionary[TaskData, dict[Hashable, dict[str, TokenStore]]] = WeakKeyDictionary()


def tokenize_splits(
    data: TaskData,
    tokenizer: Any,
    settings: ResolvedData,
    config: Any,
    say: Callable[[str], None],
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
        say(f"{name}: {store.describe(max_length)}")
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


def choose_block_tokens(
    settings: TaskSettings,
    stores: Mapping[str, TokenStore],
    block_format: BlockFormat,
    *,
    store_bytes: int,
    num_extractors: int,
    on_gpu: bool,
) -> int:
    """The block size that is asked for, or one that suits the data and the memory.

    Args:
        settings: `extract.block_tokens` and `stream.budget`.
        stores: Tokens of every split.
        block_format: What fixes a token's bytes.
        store_bytes: Room in the object store.
        num_extractors: How many blocks are in flight.
        on_gpu: Whether extractors have GPUs.

    Raises:
        ConfigError: It is less than the longest example.
    """
    longest = max(int(store.lengths.max()) for store in stores.values())
    budget = settings.stream.budget
    total = int(store_bytes * STORE_SHARE) if budget == "auto" else budget
    block_tokens = settings.extract.block_tokens
    if block_tokens == "auto":
        return pick_block_tokens(
            num_tokens=stores[TRAIN].num_tokens,
            longest=longest,
            token_bytes=block_format.token_bytes,
            most_bytes=total // max_blocks(num_extractors),
            on_gpu=on_gpu,
        )
    if block_tokens < longest:
        raise ConfigError(
            f"extract.block_tokens={block_tokens} is less than the longest example's {longest}"
        )
    return block_tokens


def describe_budget(plan: StreamPlan, *, store_bytes: int, codec: str) -> str:
    """What was decided about memory, in one line for people.

    Args:
        plan: The decision.
        store_bytes: Room in the object store.
        codec: `extract.codec`.
    """
    budget, num_blocks, later = plan.budget, len(plan.block_bytes), plan.num_epochs - 1
    text = (
        f"memory: an epoch delivers {format_bytes(budget.epoch_bytes)} in {num_blocks} blocks; "
        f"Ray's object store has room for {format_bytes(store_bytes)}, the budget is "
        f"{format_bytes(budget.total_bytes)}, of which {format_bytes(budget.pinned_bytes)} "
        f"({budget.cached_share:.0%} of an epoch) are kept for later epochs"
    )
    if later and budget.pinned:
        spared = sum(plan.block_tokens[key] for key in budget.pinned) * later
        share = len(budget.pinned) * later / (num_blocks * plan.num_epochs)
        text += f": {share:.0%} of all blocks need no forward pass, which spares {spared:,} tokens"
    if later and budget.cached_share < 1 and codec != "int8":
        text += "; extract.codec=int8 would " + ("halve" if codec == "bf16" else "quarter")
        text += " the bytes of an epoch"
    return text


def resume_facts(corpus: Corpus, weights_fingerprint: str, block_tokens: int) -> dict[str, Any]:
    """What a checkpoint says of the run, so that it is not taken up with anything else."""
    return {
        "block_tokens": block_tokens,
        "corpus": corpus.fingerprint(),
        "backbone": weights_fingerprint,
    }


def check_unchanged(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the `resume_facts` of an interrupted run with those of now.

    Raises:
        ConfigError: Going on would not give the numbers of an uninterrupted run.
    """
    causes = {
        "corpus": "the rows, the tokenizer or the blocks are not those that it began with",
        "backbone": "the fine-tuned backbone is not the one that it began with",
    }
    changed = [cause for key, cause in causes.items() if then[key] != now[key]]
    if changed:
        raise ConfigError(
            f"resume=true cannot go on with the interrupted run: {'; '.join(changed)}. Leave "
            f"resume out to begin anew."
        )
