"""Who makes the next block and where it lies: order, bounds, losses. More in a simulated stream."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from tiny import run_bounded, settle

from bertvision_stream.stream.pool import ExtractorPool, Lease

LARGEST = 100


class Blocks:
    """Blocks that ask a pool for a place, by name; each one's turn begins when it first asks."""

    def __init__(self, pool: ExtractorPool[str]):
        self.pool = pool
        self.leases: dict[str, Lease[str]] = {}
        self.errors: dict[str, Exception] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[str, tuple[ExitStack, int]] = {}

    async def ask(self, name: str, num_bytes: int, *, pin: bool = False) -> None:
        """A first time, or again after a failure."""
        if name not in self._turns:
            stack = ExitStack()
            self._turns[name] = stack, stack.enter_context(self.pool.turn())
        turn = self._turns[name][1]

        async def wait() -> None:
            try:
                self.leases[name] = await self.pool.acquire(turn, num_bytes, pin=pin)
            except ConnectionError as error:
                self.errors[name] = error

        self.tasks[name] = asyncio.create_task(wait())
        await settle()

    async def end_turn(self, name: str) -> None:
        """It is made, or given up."""
        self._turns[name][0].close()
        await settle()

    async def made(self, name: str) -> None:
        self.pool.done(self.leases[name])
        await self.end_turn(name)

    async def freed(self, name: str) -> None:
        self.pool.free(self.leases.pop(name))
        await settle()

    async def lost(self, name: str) -> None:
        """Its extractor died over it."""
        lease = self.leases.pop(name)
        self.pool.free(lease)
        self.pool.remove(lease.extractor)
        await settle()

    def places(self) -> dict[str, str]:
        return {name: lease.node for name, lease in self.leases.items()}


def pool_of(*extractors: str, calls: int = 9, limit: int = 1000) -> Blocks:
    """A pool with extractors such as `a1`, on node `a`."""
    pool: ExtractorPool[str] = ExtractorPool(calls, LARGEST)
    for extractor in extractors:
        pool.add(extractor, extractor[0], limit=limit)
    return Blocks(pool)


def test_blocks_are_given_to_idle_extractors_in_turn():
    async def test() -> None:
        blocks = pool_of("a1", "a2", calls=2)
        for name in "ABCDEF":
            await blocks.ask(name, 10)
        assert [lease.extractor for lease in blocks.leases.values()] == ["a1", "a1", "a2", "a2"]
        await blocks.made("C")
        await blocks.made("A")
        assert [blocks.leases[name].extractor for name in "EF"] == ["a2", "a1"]

    run_bounded(test)


def test_a_small_block_does_not_overtake_a_large_one():
    async def test() -> None:
        blocks = pool_of("a1", limit=300)
        for name, num_bytes in (("A", 100), ("B", 90), ("large", 100), ("small", 10)):
            await blocks.ask(name, num_bytes)
        assert list(blocks.leases) == ["A", "B"]
        await blocks.freed("A")
        assert list(blocks.leases) == ["B", "large", "small"]

    run_bounded(test)


def test_what_a_node_keeps_free_is_for_the_first_block_that_is_not_made():
    async def test() -> None:
        blocks = pool_of("a1", limit=300)
        for name in "ABCD":
            await blocks.ask(name, 100)
        assert list(blocks.leases) == ["A", "B"]  # and 100 bytes are free
        await blocks.made("B")
        assert list(blocks.leases) == ["A", "B"]
        await blocks.made("A")
        assert list(blocks.leases) == ["A", "B", "C"]
        await blocks.made("C")  # D is the first one then, but nothing is free
        assert "D" not in blocks.leases
        await blocks.freed("A")
        assert "D" in blocks.leases

    run_bounded(test)


def test_a_block_that_is_given_up_stands_in_nobodys_way():
    async def test() -> None:
        blocks = pool_of("a1", limit=200)
        for name in "ABC":
            await blocks.ask(name, 100)
        assert list(blocks.leases) == ["A"]
        await blocks.end_turn("A")
        assert list(blocks.leases) == ["A", "B"]

    run_bounded(test)


def test_a_block_whose_extractor_died_comes_before_those_that_overtook_it():
    async def test() -> None:
        blocks = pool_of("b1", calls=1, limit=300)
        await blocks.ask("A", 100)
        blocks.pool.add("a1", "a", limit=300)
        for name in "BCD":
            await blocks.ask(name, 100)
            if name in blocks.leases:
                await blocks.made(name)
        assert blocks.places() == {"A": "b", "B": "a", "C": "a"}
        await blocks.lost("A")
        assert blocks.pool.drop_nodes({"a"}) == 0  # its extractor is known to be lost
        await blocks.ask("A", 100)
        assert blocks.places() == {"B": "a", "C": "a", "A": "a"}  # B and C wait for it

    run_bounded(test)


def test_a_block_that_was_overtaken_does_not_wait_for_a_place_to_stay():
    async def test() -> None:
        blocks = pool_of("a1", limit=300)
        await blocks.ask("A", 100, pin=True)
        for name in "BC":
            await blocks.ask(name, 100)
            await blocks.made(name) if name in blocks.leases else None
        assert blocks.leases["A"].pinned
        assert "C" not in blocks.leases
        blocks.pool.add("a2", "a", limit=300)
        await blocks.lost("A")  # and C takes its place
        assert blocks.places() == {"B": "a", "C": "a"}
        await blocks.ask("A", 100, pin=True)
        assert not blocks.leases["A"].pinned

    run_bounded(test)


def test_a_block_to_stay_waits_for_the_node_that_can_keep_it():
    async def test() -> None:
        blocks = pool_of("a1", "b1", calls=1, limit=400)
        for name in "ABC":
            await blocks.ask(name, 100, pin=True)
            if name in blocks.leases:
                await blocks.made(name)
        await blocks.ask("D", 100)
        assert [blocks.leases[name].node for name in "ABCD"] == ["a", "b", "a", "b"]
        await blocks.ask("E", 100, pin=True)  # there is an idle extractor on a, and no room to stay
        assert "E" not in blocks.leases
        await blocks.made("D")
        assert blocks.leases["E"] == Lease("b1", "b", 100, True)

    run_bounded(test)


def test_a_block_that_no_node_can_keep_does_not_stay():
    async def test() -> None:
        blocks = pool_of("a1", "b1", limit=290)
        await blocks.ask("A", 90, pin=True)
        await blocks.ask("B", 90, pin=True)
        await blocks.ask("C", 90, pin=True)
        assert [blocks.leases[name].pinned for name in "ABC"] == [True, True, False]

    run_bounded(test)


@pytest.mark.parametrize("how", ["its extractor dies", "the node is known to be gone"])
def test_a_block_does_not_wait_for_a_node_without_extractors(how: str):
    async def test() -> None:
        blocks = pool_of("a1", calls=2, limit=300)
        await blocks.ask("A", 100, pin=True)
        await blocks.made("A")
        blocks.pool.add("b1", "b", limit=900)
        blocks.pool.remove("a1")
        await blocks.ask("B", 50)
        await blocks.ask("C", 50)
        blocks.pool.add("a2", "a", limit=300)
        await blocks.ask("D", 100, pin=True)
        assert blocks.places() == {"A": "a", "B": "b", "C": "b"}  # D waits for b
        if how == "its extractor dies":
            assert blocks.pool.remove("b1")
        else:
            assert blocks.pool.drop_nodes({"a"}) == 1
        await settle()
        assert blocks.leases["D"] == Lease("a2", "a", 100, False)

    run_bounded(test)


def test_what_is_heard_of_lost_extractors_and_nodes_changes_nothing():
    async def test() -> None:
        blocks = pool_of("a1", "b1", calls=1, limit=300)
        await blocks.ask("A", 100)
        await blocks.ask("B", 100)
        assert blocks.pool.drop_nodes({"b"}) == 1
        assert blocks.pool.num_extractors == 1
        assert not blocks.pool.remove("a1")
        await blocks.ask("C", 100)
        await blocks.made("A")
        await blocks.freed("A")
        assert blocks.places() == {"B": "b"}
        blocks.pool.add("a2", "a", limit=300)  # a node of the same name is a new one
        await settle()
        assert blocks.places() == {"B": "b", "C": "a"}

    run_bounded(test)


def test_all_are_told_that_no_extractor_can_be_had():
    async def test() -> None:
        blocks = pool_of("a1", calls=1)
        for name in "ABCD":
            await blocks.ask(name, 10)
        blocks.tasks["C"].cancel()
        error = ConnectionError("no more")
        blocks.pool.fail(error)
        await settle()
        await blocks.ask("E", 10)
        assert blocks.errors == dict.fromkeys("BDE", error)
        await blocks.made("A")
        assert list(blocks.leases) == ["A"]

    run_bounded(test)


def test_one_that_gave_up_waiting_takes_nothing():
    async def test() -> None:
        blocks = pool_of("a1", calls=1)
        for name in "ABC":
            await blocks.ask(name, 10)
        blocks.tasks["B"].cancel()
        await settle()
        await blocks.made("A")
        assert blocks.places() == {"A": "a", "C": "a"}

    run_bounded(test)
