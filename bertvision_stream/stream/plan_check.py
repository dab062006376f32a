"""What a plan said in advance, against what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bertvision_stream.stream.cost_model import Speeds, epoch_seconds, epoch_work, forecast
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StreamStats


@dataclass(frozen=True)
class Compared:
    """One quantity, predicted and actual."""

    predicted: float
    actual: float


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """Predictions and what became of them.

    Tokens, blocks and bytes are predicted before the first block is made, for the epochs that ran;
    they come true to the last one unless something died, or heads stopped early while the stream
    was ahead of them. Seconds are an estimate, from the first epoch's speeds.

    Attributes:
        epochs: How many ran.
        tokens_extracted: Tokens that took a forward pass.
        blocks_extracted: Blocks made by one.
        blocks_from_cache: Blocks delivered without one.
        cache_bytes: Bytes kept between epochs.
        later_epoch_seconds: Mean of all epochs after the first; None where there was none, or where
            an interrupted run was gone on with.
    """

    epochs: int
    tokens_extracted: Compared
    blocks_extracted: Compared
    blocks_from_cache: Compared
    cache_bytes: Compared
    later_epoch_seconds: Compared | None


def check_plan(
    plan: StreamPlan,
    stats: StreamStats,
    seconds: Sequence[float],
    *,
    first: StreamStats | None,
    num_extractors: int,
) -> PlanCheck:
    """Compare.

    Args:
        plan: What was to be done.
        stats: What was.
        seconds: Of each epoch that ran.
        first: The totals after the first epoch; None where it was not seen.
        num_extractors: Who made the blocks.
    """
    expected = forecast(plan, epochs=len(seconds))
    later = None
    if first is not None and len(seconds) > 1 and first.extract_seconds and first.train_seconds:
        # Busy times were measured while everybody else was busy, so nothing is shared twice.
        speeds = Speeds(
            extractors=num_extractors,
            extract_tokens_per_second=first.tokens_extracted / first.extract_seconds,
            train_tokens_per_second=sum(plan.block_tokens.values()) / first.train_seconds,
        )
        estimate = epoch_seconds(epoch_work(plan, first=False), speeds)
        later = Compared(estimate.total, sum(seconds[1:]) / (len(seconds) - 1))
    return PlanCheck(
        epochs=len(seconds),
        tokens_extracted=Compared(expected.tokens_extracted, stats.tokens_extracted),
        blocks_extracted=Compared(expected.blocks_extracted, stats.blocks_extracted),
        blocks_from_cache=Compared(expected.blocks_from_cache, stats.blocks_from_cache),
        cache_bytes=Compared(expected.cache_bytes, stats.cache_bytes),
        later_epoch_seconds=later,
    )
