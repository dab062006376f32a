"""Bytes and blocks in flight: bounds, order, refusal."""

import asyncio
import re
from random import Random

import pytest
from tiny import run_bounded, settle

from bertvision_stream.stream.window import ByteWindow


class Admissions:
    """Starts acquisitions and records the order in which they are admitted."""

    def __init__(self, window: ByteWindow):
        self.window = window
        self.admitted: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, num_bytes: int) -> None:
        async def wait() -> None:
            await self.window.acquire(num_bytes)
            self.admitted.append(name)

        self.tasks[name] = asyncio.create_task(wait())
        await settle()


def test_blocks_enter_while_their_bytes_fit():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=10)
        asked = Admissions(window)
        await asked.ask("a", 60)
        await asked.ask("b", 40)
        await asked.ask("c", 1)
        assert asked.admitted == ["a", "b"]
        assert (window.bytes, window.blocks) == (100, 2)
        window.release(40)
        await settle()
        assert asked.admitted == ["a", "b", "c"]
        assert (window.bytes, window.blocks) == (61, 2)

    run_bounded(test)


def test_a_small_block_does_not_overtake_a_large_one():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=10)
        asked = Admissions(window)
        for name, num_bytes in (("a", 60), ("large", 90), ("small", 10)):
            await asked.ask(name, num_bytes)
        assert asked.admitted == ["a"]
        window.release(60)
        await settle()
        assert asked.admitted == ["a", "large", "small"]

    run_bounded(test)


def test_blocks_of_no_bytes_are_counted_too():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=2)
        asked = Admissions(window)
        for name in ("a", "b", "c"):
            await asked.ask(name, 0)
        assert asked.admitted == ["a", "b"]
        window.release(0)
        await settle()
        assert asked.admitted == ["a", "b", "c"]

    run_bounded(test)


def test_one_release_may_admit_several():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=10)
        asked = Admissions(window)
        for name, num_bytes in (("a", 100), ("b", 50), ("c", 50), ("d", 1)):
            await asked.ask(name, num_bytes)
        window.release(100)
        await settle()
        assert asked.admitted == ["a", "b", "c"]

    run_bounded(test)


def test_a_block_larger_than_the_window_is_refused():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=10)
        expected = "a block of 101 bytes, but the window has 100"
        with pytest.raises(ValueError, match=re.escape(expected)):
            await window.acquire(101)
        await window.acquire(100)  # the refused one holds nothing and stands in nobody's way

    run_bounded(test)


def test_one_that_gave_up_waiting_takes_nothing():
    async def test() -> None:
        window = ByteWindow(max_bytes=100, max_blocks=10)
        asked = Admissions(window)
        for name, num_bytes in (("a", 60), ("gone", 90), ("c", 50)):
            await asked.ask(name, num_bytes)
        asked.tasks["gone"].cancel()
        window.release(60)
        await settle()
        assert asked.admitted == ["a", "c"]
        assert (window.bytes, window.blocks) == (50, 1)

    run_bounded(test)


def test_bounds_hold_in_any_order_of_releases():
    async def test() -> None:
        random = Random(0)
        window = ByteWindow(max_bytes=1000, max_blocks=7)
        held: list[int] = []
        fullest = 0

        async def produce() -> None:
            for _ in range(300):
                num_bytes = random.randint(0, 400)
                await window.acquire(num_bytes)
                held.append(num_bytes)

        producer = asyncio.create_task(produce())
        while not producer.done() or held:
            await settle()
            assert window.bytes == sum(held) <= 1000
            assert window.blocks == len(held) <= 7
            fullest = max(fullest, window.bytes)
            window.release(held.pop(random.randrange(len(held))))
        assert (window.bytes, window.blocks) == (0, 0)
        assert fullest > 900

    run_bounded(test)
