"""The pool of extractors: who makes the next block, and on which node it may lie."""

import asyncio
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Extractor = TypeVar("Extractor", bound=Hashable)


@dataclass
class Node:
    """One node's share of the budget, in bytes. Blocks stay where they were made.

    Attributes:
        limit: The most bytes of blocks that may lie on the node.
        cache_limit: The most bytes of pinned blocks: there is always room for two others.
        held: The bytes of the blocks that lie on the node or are being made.
        cached: The bytes of the pinned blocks among them.
    """

    limit: int
    cache_limit: int
    held: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Lease(Generic[Extractor]):
    """An extractor, for one block, and the block's place on the extractor's node.

    Attributes:
        extractor: The extractor that is to make the block.
        node: The node on which the block will lie.
        num_bytes: The bytes of the block.
        pinned: Whether the block may stay there between epochs.
    """

    extractor: Extractor
    node: str
    num_bytes: int
    pinned: bool


@dataclass(frozen=True)
class _Waiting(Generic[Extractor]):
    """A block without an extractor, and the lease that it will be given."""

    turn: int
    num_bytes: int
    pin: bool
    lease: asyncio.Future[Lease[Extractor]]


class ExtractorPool(Generic[Extractor]):
    """Matches blocks, in the order of their turns, to idle extractors on nodes with room.

    Nobody overtakes: the blocks before the first one that waits are all made, hence consumed some
    time, and their room comes back. With overtaking, later blocks could take the room that the
    first one needs, and wait for it to be delivered. A block whose extractor died has been
    overtaken, and may have lost its room with a node. So each node keeps room for one block that
    only the first block that is not made yet may take: that one will be consumed without waiting
    for any other, and gives the room back.

    Args:
        calls_per_extractor: The number of blocks that one extractor may be given at once.
        largest_bytes: The bytes of the largest block.
        clock: Returns the time in seconds, counted from any moment.
    """

    def __init__(
        self,
        calls_per_extractor: int,
        largest_bytes: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._calls = calls_per_extractor
        self._largest_bytes = largest_bytes
        self._nodes: dict[str, Node] = {}
        self._node_of: dict[Extractor, str] = {}
        self._idle: deque[Extractor] = deque()
        self._num_turns = 0
        self._not_made: set[int] = set()
        self._last_leased = -1
        self._waiting: list[_Waiting[Extractor]] = []
        self._error: Exception | None = None
        self._idleness = IdleTime(clock)

    @property
    def idle_seconds(self) -> float:
        """The time in which extractors had no block to make, summed over extractors."""
        return self._idleness.seconds

    @property
    def num_extractors(self) -> int:
        """The number of extractors that are alive."""
        return len(self._node_of)

    @property
    def idle(self) -> list[Extractor]:
        """The extractors that have no block to make."""
        return [extractor for extractor, n in Counter(self._idle).items() if n == self._calls]

    def add(self, extractor: Extractor, node: str, *, limit: int) -> None:
        """An extractor is ready, on a node that may hold `limit` bytes of blocks."""
        self._nodes.setdefault(node, Node(limit, cache_limit=limit - 2 * self._largest_bytes))
        self._node_of[extractor] = node
        self._idle.extend([extractor] * self._calls)
        self._match()

    def remove(self, extractor: Extractor) -> bool:
        """Forget an extractor that is lost. Returns whether it was known until now."""
        known = extractor in self._node_of
        self._remove({extractor})
        return known

    def drop_nodes(self, alive: set[str]) -> int:
        """Forget nodes that are gone, with all that lay there. Returns how many extractors did."""
        lost = {extractor for extractor, node in self._node_of.items() if node not in alive}
        self._nodes = {name: node for name, node in self._nodes.items() if name in alive}
        self._remove(lost)
        return len(lost)

    def _remove(self, lost: set[Extractor]) -> None:
        self._node_of = {e: node for e, node in self._node_of.items() if e not in lost}
        self._idle = deque(e for e in self._idle if e not in lost)
        self._match()  # a block need not wait for their nodes any longer

    def fail(self, error: Exception) -> None:
        """No extractor can be had any more: `acquire` raises `error`, now and later."""
        self._error = error
        for waiting in self._waiting:
            if not waiting.lease.done():
                waiting.lease.set_exception(error)
        self._waiting.clear()

    @contextmanager
    def turn(self) -> Iterator[int]:
        """A block's place in the order, until it is made or given up, in however many attempts."""
        turn = self._num_turns
        self._num_turns += 1
        self._not_made.add(turn)
        try:
            yield turn
        finally:
            self._not_made.remove(turn)
            self._match()

    async def acquire(self, turn: int, num_bytes: int, *, pin: bool) -> Lease[Extractor]:
        """Wait for an idle extractor on a node with room for a block.

        Args:
            turn: The block's place in the order.
            num_bytes: The bytes of the block.
            pin: Whether the block is to stay between epochs. Where no node has room for that, it
                does not stay, and is made again when it is next needed.
        """
        if self._error is not None:
            raise self._error
        lease: asyncio.Future[Lease[Extractor]] = asyncio.get_running_loop().create_future()
        insort(self._waiting, _Waiting(turn, num_bytes, pin, lease), key=lambda w: w.turn)
        self._match()
        return await lease

    def done(self, lease: Lease[Extractor]) -> None:
        """The extractor has answered, and may be given the next block."""
        if lease.extractor in self._node_of:
            self._idle.append(lease.extractor)
        self._match()

    def free(self, lease: Lease[Extractor]) -> None:
        """The block is gone, or was never made."""
        if node := self._nodes.get(lease.node):
            node.held -= lease.num_bytes
            node.cached -= lease.num_bytes * lease.pinned
        self._match()

    def _match(self) -> None:
        self._hand_out()
        self._idleness.set(len(self.idle))

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            waiting = self._waiting[0]
            if not waiting.lease.done():  # or else it was cancelled
                lease = self._lease(waiting)
                if lease is None:
                    return
                self._last_leased = max(self._last_leased, waiting.turn)
                waiting.lease.set_result(lease)
            del self._waiting[0]

    def _lease(self, waiting: _Waiting[Extractor]) -> Lease[Extractor] | None:
        staffed = [self._nodes[name] for name in set(self._node_of.values())]
        first = waiting.turn == min(self._not_made)
        if waiting.pin and any(
            node.cached + waiting.num_bytes <= node.cache_limit for node in staffed
        ):
            lease = self._place(waiting, pin=True, spare=self._largest_bytes)
            # Those before it are consumed some time, and it gets its place. Unless the place is
            # taken by those that have overtaken it, which wait for it.
            if lease is not None or not first or waiting.turn > self._last_leased:
                return lease
        return self._place(waiting, pin=False, spare=0 if first else self._largest_bytes)

    def _place(
        self, waiting: _Waiting[Extractor], *, pin: bool, spare: int
    ) -> Lease[Extractor] | None:
        """The first idle extractor on a node with room for the block and `spare` bytes."""
        num_bytes = waiting.num_bytes
        for extractor in self._idle:
            name = self._node_of[extractor]
            node = self._nodes[name]
            if node.held + num_bytes + spare > node.limit:
                continue
            if pin and node.cached + num_bytes > node.cache_limit:
                continue
            self._idle.remove(extractor)  # the first of its places in the queue
            node.held += num_bytes
            node.cached += num_bytes * pin
            return Lease(extractor, name, num_bytes, pin)
        return None


class IdleTime:
    """The time that extractors are idle, summed over extractors.

    Args:
        clock: Returns the time in seconds, counted from any moment.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._since = clock()
        self._num_idle = 0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """The sum up to now: two extractors that are idle for a second make two seconds."""
        now = self._clock()
        self._seconds += self._num_idle * (now - self._since)
        self._since = now
        return self._seconds

    def set(self, num_idle: int) -> None:
        """From now on so many extractors are idle."""
        _ = self.seconds  # adds the time until now
        self._num_idle = num_idle
