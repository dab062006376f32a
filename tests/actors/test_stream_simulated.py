"""The real feature stream in a simulated cluster: thousands of faults in seconds, without Ray."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import ray
from simulated import NUM_EPOCHS, NUM_EXTRACTORS, Trainer, World

from actors.records import DeliveryReply
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.budget import max_blocks
from bertvision_stream.stream.plan import BLOCKS_AT_ONCE, Position

FAULTS: dict[str, tuple[Callable[[World], None], ...]] = {
    "nothing": (),
    "a node": (World.change_nodes,),
    "nodes": (World.change_nodes,) * 4,
    "all nodes": (World.change_all_nodes,),
    "trainers": (World.kill_trainer,) * 3,
    "streams": (World.kill_stream,) * 3,
    "everything": (World.change_nodes, World.kill_trainer, World.kill_stream) * 2,
}


def simulate(
    patch: pytest.MonkeyPatch, seed: int, faults: str, *, deaths: float = 0, errors: float = 0
) -> World:
    random = Random(seed)
    world = World(
        seed,
        num_nodes=random.choice([1, 2, 3, 5]) if faults == "nothing" else 3,
        num_trainers=random.choice([1, 2]),
        share=random.choice([0, 0.25, 0.5, 0.75, 1]),
    )
    patch.setattr(ray, "nodes", world.nodes)
    world.run(list(FAULTS[faults]), deaths=deaths, errors=errors)
    return world


@pytest.mark.parametrize("seed", range(8))
def test_without_faults_just_the_planned_blocks_are_kept(
    monkeypatch: pytest.MonkeyPatch, seed: int
):
    world = simulate(monkeypatch, seed, "nothing")
    pinned, sizes, stats = world.plan.budget.pinned, world.plan.block_bytes, world.stats
    assert world.made == {key: 1 if key in pinned else NUM_EPOCHS for key in sizes}
    made_later = sum(size for key, size in sizes.items() if key not in pinned)
    assert stats.tokens_by_epoch[0] == sum(sizes.values())
    assert [stats.tokens_by_epoch.get(e, 0) for e in range(1, NUM_EPOCHS)] == [made_later] * 3
    assert stats.blocks_from_cache == len(pinned) * (NUM_EPOCHS - 1)
    assert stats.held_bytes == stats.cache_bytes == world.plan.budget.pinned_bytes
    assert stats.held_bytes < stats.peak_bytes <= world.plan.budget.total_bytes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", FAULTS)
def test_every_block_is_consumed_once_and_in_order_whatever_dies(
    monkeypatch: pytest.MonkeyPatch, faults: str, seed: int
):
    world = simulate(monkeypatch, seed, faults, deaths=0.05, errors=0.02)
    assert world.stats.held_bytes == world.stats.cache_bytes
    assert world.stats.peak_bytes <= world.plan.budget.total_bytes


def test_an_idle_extractor_that_dies_is_counted_and_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(World, "_store", lambda self: 10**6)
    world = World(0, num_nodes=1, num_trainers=1, share=1)  # everything is cached
    monkeypatch.setattr(ray, "nodes", world.nodes)

    def die_in_the_last_epoch(self: Trainer, position: Position, key: BlockKey) -> DeliveryReply:
        if position == Position(NUM_EPOCHS - 1, 0):
            world.extractors[1].die()
        return consume(self, position, key)

    consume = Trainer._consume
    monkeypatch.setattr(Trainer, "_consume", die_in_the_last_epoch)
    world.run([], deaths=0, errors=0)
    assert world.stats.extractors_lost == 1
    assert len(world.extractors) == NUM_EXTRACTORS + 1


def test_blocks_that_are_there_are_handed_over_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(World, "_store", lambda self: 10**6)
    world = World(0, num_nodes=1, num_trainers=2, share=1)
    monkeypatch.setattr(ray, "nodes", world.nodes)
    world.run([], deaths=0, errors=0)
    num_blocks = len(world.plan.block_bytes)
    assert len(world.plan.budget.pinned) == num_blocks > 2 * BLOCKS_AT_ONCE
    for trainer in world.trainers:
        assert max(count for _, count in trainer.handed) == BLOCKS_AT_ONCE
        for epoch in range(1, NUM_EPOCHS):  # all blocks are there, but none of the next epoch's
            counts = [count for first, count in trainer.handed if first.epoch == epoch]
            assert sum(counts) == num_blocks
            # One call has fewer, where the window was full.
            assert len(counts) <= math.ceil(num_blocks / BLOCKS_AT_ONCE) + 1


@pytest.mark.parametrize(("block_bytes", "expected"), [(10**6, 8), (40 * 2**20, 3), (10**9, 1)])
def test_large_blocks_are_handed_over_alone(block_bytes: int, expected: int):
    plan = World(0, num_nodes=1, num_trainers=1, share=0).plan
    plan = replace(plan, block_bytes=dict.fromkeys(plan.block_bytes, block_bytes))
    assert plan.blocks_at_once == expected
    # A trainer works on one call while the next one is queued.
    assert plan.most_in_flight(2) == max_blocks(2) + 2 * (expected - 1)
