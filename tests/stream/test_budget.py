"""Bytes never pass the budget; what a budget is spent on, and what is said of one too small."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import STORE_SHARE, Budget, max_blocks, plan_budget
from bertvision_stream.utils.errors import ConfigError

SEED = 5
MIB = 2**20


def block_sizes(
    num_train: int, num_validation: int, *, even: bool = True
) -> tuple[dict[BlockKey, int], list[BlockKey]]:
    """Bytes of each block (1 MiB, or between 0.5 and 1), and the validation blocks."""
    rng = np.random.default_rng(0)
    validation = [BlockKey("validation", i) for i in range(num_validation)]
    keys = [BlockKey(TRAIN, i) for i in range(num_train)] + validation
    sizes = np.full(len(keys), MIB) if even else rng.integers(MIB // 2, MIB + 1, len(keys))
    return dict(zip(keys, sizes.tolist(), strict=True)), validation


def plan(sizes: Mapping[BlockKey, int], validation: Sequence[BlockKey], **changed: Any) -> Budget:
    settings = StreamSettings.model_construct(  # a cache above its budget among them
        budget=changed.pop("budget", "auto"), cache=changed.pop("cache", "auto")
    )
    options = {
        "settings": settings,
        "store_bytes": 10_000 * MIB,
        "num_nodes": 1,
        "num_extractors": 2,
        "seed": SEED,
    }
    num_train = len(sizes) - len(validation)
    return plan_budget(sizes, validation, num_train=num_train, **(options | changed))


def assert_sound(budget: Budget, sizes: Mapping[BlockKey, int]) -> None:
    """What holds of every budget."""
    assert budget.epoch_bytes == sum(sizes.values())
    assert budget.pinned_bytes == sum(sizes[key] for key in budget.pinned)
    assert budget.window_bytes + budget.pinned_bytes == budget.total_bytes
    assert budget.window_bytes >= 2 * max(sizes.values())  # two blocks: making and training overlap
    assert budget.cached_share == budget.pinned_bytes / budget.epoch_bytes


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("cache", ["auto", 0, 7 * MIB, 1000 * MIB])
@pytest.mark.parametrize("budget", ["auto", 2 * MIB, 9 * MIB, 40 * MIB, 1000 * MIB])
@pytest.mark.parametrize("store_bytes", [1001 * MIB, 10_000 * MIB])
def test_bytes_never_pass_the_budget(budget: Any, cache: Any, store_bytes: int, even: bool):
    sizes, validation = block_sizes(50, 6, even=even)
    planned = plan(sizes, validation, budget=budget, cache=cache, store_bytes=store_bytes)
    assert_sound(planned, sizes)
    if budget == "auto":
        assert planned.total_bytes <= STORE_SHARE * store_bytes
    else:
        assert planned.total_bytes == budget
    if cache != "auto":
        assert planned.pinned_bytes <= cache


def test_auto_keeps_everything_where_the_store_has_room():
    sizes, validation = block_sizes(50, 6)
    planned = plan(sizes, validation)
    assert planned.pinned == set(sizes)
    assert planned.cached_share == 1
    # No more is claimed than that and a window that keeps all extractors busy.
    assert planned.total_bytes == sum(sizes.values()) + max_blocks(2) * MIB


def test_auto_takes_its_share_of_a_small_store():
    sizes, validation = block_sizes(50, 6)
    planned = plan(sizes, validation, store_bytes=40 * MIB)
    assert planned.total_bytes == 28 * MIB
    assert planned.window_bytes == max_blocks(2) * MIB
    assert planned.pinned_bytes == 20 * MIB


def test_a_cache_does_not_starve_the_window_unless_told_to():
    sizes, validation = block_sizes(50, 6)
    assert plan(sizes, validation, budget=8 * MIB).window_bytes == 4 * MIB
    told = plan(sizes, validation, budget=8 * MIB, cache=8 * MIB)
    assert (told.window_bytes, told.pinned_bytes) == (2 * MIB, 6 * MIB)


@pytest.mark.parametrize("cache", ["auto", 1000 * MIB])
def test_on_several_nodes_only_what_finds_a_place_on_one_is_pinned(cache: Any):
    sizes, validation = block_sizes(50, 6)
    one, four = (
        plan(sizes, validation, cache=cache, store_bytes=60 * MIB, num_nodes=n) for n in (1, 4)
    )
    assert one.total_bytes == four.total_bytes == 42 * MIB
    assert one.pinned_bytes == (34 if cache == "auto" else 40) * MIB
    assert four.pinned_bytes == (42 - 3 * 4) * MIB


def test_no_cache_keeps_nothing():
    sizes, validation = block_sizes(50, 6)
    planned = plan(sizes, validation, cache=0)
    assert planned.pinned == frozenset()
    assert planned.total_bytes == max_blocks(2) * MIB


def test_more_extractors_need_a_wider_window():
    sizes, validation = block_sizes(50, 6)
    windows = [plan(sizes, validation, num_extractors=n, cache=0).window_bytes for n in (1, 2, 8)]
    assert windows == [5 * MIB, 8 * MIB, 26 * MIB]


def test_a_budget_below_two_blocks_is_refused_with_the_smallest_that_would_do():
    sizes, validation = block_sizes(50, 6, even=False)
    smallest = 2 * max(sizes.values())
    expected = (
        "stream.budget=1000000 (977 KiB) is too small for two blocks, the least that lets "
        f"extraction and training overlap. The smallest that would do is {smallest} (2.0 MiB); or "
        "lower extract.block_tokens, or take extract.codec=int8."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        plan(sizes, validation, budget=1_000_000)
    with pytest.raises(ConfigError):
        plan(sizes, validation, budget=smallest - 1)
    assert_sound(plan(sizes, validation, budget=smallest), sizes)


def test_a_budget_above_the_store_is_refused():
    sizes, validation = block_sizes(50, 6)
    expected = (
        "stream.budget=1073741824 (1.0 GiB) is more than Ray's object store holds: 536870912 "
        "(512 MiB). Lower it or leave it out."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        plan(sizes, validation, budget=1024 * MIB, store_bytes=512 * MIB)


def test_a_store_below_two_blocks_is_refused():
    sizes, validation = block_sizes(50, 6)
    expected = (
        "the object store of 2.0 MiB is too small: two blocks of 1.0 MiB must fit into 70% of it. "
        "Lower extract.block_tokens, or give Ray a larger object store."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        plan(sizes, validation, store_bytes=2 * MIB)
