"""Pinned blocks against a least recently used cache, and their spread, on plans of real sizes."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest

from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import (
    NUM_STRATA,
    TRAIN,
    BlockFormat,
    BlockKey,
    pack_blocks,
    strata,
)
from bertvision_stream.stream.budget import choose_pinned, plan_budget
from bertvision_stream.stream.plan import StreamPlan

SEED = 5
NUM_EPOCHS = 12
SHARES = (0.25, 0.5, 0.75)


def plan_of(
    share: float, *, codec: Codec = "bf16", num_train: int = 6000, num_validation: int = 900
) -> StreamPlan:
    """Blocks of sentences with MiniLM's layers; a cache for `share` of an epoch's bytes."""
    rng = np.random.default_rng(0)
    block_format = BlockFormat(7, 384, 2, codec)
    block_bytes, block_tokens = {}, {}
    for split, count in ((TRAIN, num_train), ("validation", num_validation)):
        lengths = np.clip(rng.lognormal(2.8, 0.5, count), 4, 128).astype(np.int64)
        for block in pack_blocks(split, lengths, block_tokens=1024, seed=SEED):
            block_tokens[block.key] = block.num_tokens
            block_bytes[block.key] = block_format.block_bytes(block.num_tokens, block.num_examples)
    validation = tuple(key for key in block_bytes if key.split != TRAIN)
    num_blocks = len(block_bytes) - len(validation)
    epoch_bytes = sum(block_bytes.values())
    budget = plan_budget(
        block_bytes,
        validation,
        num_train=num_blocks,
        seed=SEED,
        settings=StreamSettings(budget=2 * epoch_bytes, cache=round(share * epoch_bytes)),
        store_bytes=3 * epoch_bytes,
        num_nodes=1,
        num_extractors=2,
    )
    return StreamPlan(
        seed=SEED,
        num_epochs=NUM_EPOCHS,
        same_order=False,
        num_train=num_blocks,
        validation=validation,
        block_bytes=block_bytes,
        block_tokens=block_tokens,
        budget=budget,
    )


class LeastRecentlyUsed:
    """The cache that the docstring of `choose_pinned` argues against."""

    def __init__(self, plan: StreamPlan):
        self._plan = plan
        self._left = plan.budget.pinned_bytes
        self._kept: OrderedDict[BlockKey, None] = OrderedDict()

    def read(self, key: BlockKey) -> bool:
        """Whether a block is there; it is, afterwards."""
        hit = key in self._kept
        if not hit:
            self._left -= self._plan.block_bytes[key]
        self._kept[key] = None
        self._kept.move_to_end(key)
        while self._left < 0:
            oldest, _ = self._kept.popitem(last=False)
            self._left += self._plan.block_bytes[oldest]
        return hit


def hit_rates(plan: StreamPlan) -> tuple[list[float], float]:
    """Of the pinned blocks in each later epoch, and of the other cache: shares of bytes read."""
    recent = LeastRecentlyUsed(plan)
    pinned_rates, recent_hits = [], 0
    for epoch in range(plan.num_epochs):
        hits = [(plan.block_bytes[key], recent.read(key), key) for key in plan.sequence(epoch)]
        if epoch:
            recent_hits += sum(num_bytes for num_bytes, hit, _ in hits if hit)
            pinned = sum(num_bytes for num_bytes, _, key in hits if key in plan.budget.pinned)
            pinned_rates.append(pinned / plan.budget.epoch_bytes)
    return pinned_rates, recent_hits / plan.budget.epoch_bytes / (plan.num_epochs - 1)


def recent_rate(share: float) -> float:
    """What the docstring says: a block read at p of an epoch and at q of the next one is still
    there if p (1 - q) > 1 - share.
    """
    return share + (1 - share) * math.log(1 - share)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_pinned_blocks_hit_their_share_and_recently_used_ones_as_the_formula_says(
    codec: Codec, share: float
):
    plan = plan_of(share, codec=codec, num_validation=0)
    pinned, recent = hit_rates(plan)
    assert set(pinned) == {plan.budget.cached_share}
    assert share - plan.largest_bytes / plan.budget.epoch_bytes < pinned[0] <= share
    assert recent == pytest.approx(recent_rate(share), abs=0.02)


@pytest.mark.parametrize("share", SHARES)
def test_recently_used_blocks_are_never_those_of_validation(share: float):
    """They come in the same order in every epoch: all others are read between two reads of one."""
    plan = plan_of(share)
    pinned, recent = hit_rates(plan)
    assert set(pinned) == {plan.budget.cached_share}
    validation = sum(plan.block_bytes[k] for k in plan.validation) / plan.budget.epoch_bytes
    left = (share - validation) / (1 - validation)
    assert recent == pytest.approx((1 - validation) * recent_rate(left), abs=0.02)
    assert recent < recent_rate(share) < pinned[0] - 0.09


def test_int8_doubles_what_is_kept():
    room = plan_of(0.3).budget.pinned_bytes
    wide, narrow = plan_of(0.3), plan_of(0.3, codec="int8")
    pinned = choose_pinned(
        narrow.block_bytes,
        narrow.validation,
        num_train=narrow.num_train,
        seed=SEED,
        cache_bytes=room,
    )
    tokens = [sum(wide.block_tokens[key] for key in kept) for kept in (wide.budget.pinned, pinned)]
    assert tokens[1] / tokens[0] == pytest.approx(2, rel=0.03)  # less a scale for each token


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.99, 1])
def test_pinned_blocks_fill_the_cache_and_no_more(share: float):
    plan = plan_of(share)
    left = round(share * plan.budget.epoch_bytes) - plan.budget.pinned_bytes
    assert left >= 0
    assert all(plan.block_bytes[key] > left for key in set(plan.block_bytes) - plan.budget.pinned)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.6])
def test_validation_blocks_are_pinned_first(share: float):
    plan = plan_of(share)
    validation, pinned = set(plan.validation), plan.budget.pinned
    if plan.budget.pinned_bytes > sum(plan.block_bytes[key] for key in validation):
        assert validation < pinned
    else:  # training blocks have what no other validation block fits into
        training = sum(plan.block_bytes[key] for key in pinned - validation)
        assert training < min(plan.block_bytes[key] for key in validation - pinned)


@pytest.mark.parametrize("share", [0.2, *SHARES, 0.9])
@pytest.mark.parametrize("num_train", [6000, 6111, 800])
def test_pinned_blocks_are_spread_evenly_through_every_epoch(num_train: int, share: float):
    """Bounds that hold for every seed; with chance alone runs would grow with the epoch."""
    plan = plan_of(share, num_train=num_train, num_validation=0)
    pinned = plan.budget.pinned
    dealt = strata(plan.num_train, seed=SEED)
    whole = sum(all(BlockKey(TRAIN, int(i)) in pinned for i in stratum) for stratum in dealt)
    assert whole >= math.floor(share * NUM_STRATA) - 1
    for epoch in range(NUM_EPOCHS):
        hits = [key in pinned for key in plan.sequence(epoch)]
        runs = [len(list(run)) for hit, run in itertools.groupby(hits) if not hit]
        assert max(runs) <= 2 * (NUM_STRATA - whole)
        for first in range(0, len(hits) - NUM_STRATA + 1, NUM_STRATA):
            assert sum(hits[first : first + NUM_STRATA]) >= whole
        # After any number of deliveries, as many pinned ones as there should be.
        even = np.arange(1, len(hits) + 1) * sum(hits) / len(hits)
        assert np.abs(np.cumsum(hits) - even).max() <= 2 + len(dealt[0]) / 4 + 1
