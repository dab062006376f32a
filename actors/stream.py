"""The feature stream: the actor that turns epoch plans into blocks delivered to trainers."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.extractor import ExtractorSpec
from actors.extractors import ExtractorGroup, MadeBlock
from actors.metrics import PUBLISH_SECONDS, Progress, StreamMetrics
from actors.records import (
    MAX_ATTEMPTS,
    DeliveryReply,
    EpochReport,
    LostBlockError,
    cause_of,
    delivery_fault,
)
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.stream.window import ByteWindow
from bertvision_stream.utils.errors import StreamError, TrainerLostError


@dataclass(frozen=True)
class _Delivery:
    """One step of the plan.

    Attributes:
        position: The place of the delivery in the plan.
        key: The block to deliver.
        making: The task that makes the block; it is done where the block comes from the cache.
    """

    position: Position
    key: BlockKey
    making: asyncio.Task[MadeBlock]


class FeatureStream:
    """Pushes blocks to trainers within a byte budget. It holds refs and counts, and no tensor.

    A producer task walks through the plan, from one epoch into the next. For each block it waits
    until the window has room, and then lets an idle extractor make the block or takes it from the
    cache. A consumer follows in the same order: once a block is made, it calls every trainer to
    consume it, together with the blocks after it that are made as well, and drops the stream's own
    refs. The bytes of a block count from before it is made until all trainers have replied.

    In Ray an object is lost when its owner dies. The stream owns all blocks, because it is what
    calls the extractors. If extractors owned their blocks, one that died would take with it the
    blocks that wait for the trainers and those of the cache.

    Each trainer knows the position in the plan that it has reached. After any fault the stream asks
    the trainers for their positions, and delivers again from the earliest of them. A trainer that
    has consumed a delivery before sees that by its position and skips it, so that duplicates are
    harmless: no row is trained on twice. A stream that replaces a dead one begins in the same way.

    Args:
        plan: The blocks to deliver, their order and the limits.
        spec: How to start an extractor.
        num_extractors: The number of extractors at the start.
        trainers: The trainers that consume the blocks; each gets every block, in the same order.
        stats: The totals of the streams that this one replaces or resumes.
        tags: The tags of the metrics.
        show_progress: Whether to draw a progress bar on the driver's console.
    """

    def __init__(
        self,
        plan: StreamPlan,
        spec: ExtractorSpec,
        num_extractors: int,
        trainers: list[ActorHandle],
        *,
        stats: StreamStats,
        tags: Mapping[str, str],
        show_progress: bool,
    ):
        self._plan = plan
        self._extractors = ExtractorGroup(plan, spec, num_extractors, stats)
        self._trainers = trainers
        self._show_progress = show_progress
        self._stats = stats
        stats.reset_held_blocks()
        self._metrics = StreamMetrics(tags, stats)
        self._waited_before = stats.extract_wait_seconds
        self._pinned: dict[BlockKey, asyncio.Task[MadeBlock]] = {}
        self._window = ByteWindow(plan.budget.window_bytes, plan.most_in_flight(num_extractors))
        self._blocks_at_once = plan.blocks_at_once  # kept, as the property looks at all blocks
        self._producer: asyncio.Task[None] | None = None
        self._produced_until = -1  # the last epoch that the producer is to make blocks for
        self._upcoming: deque[_Delivery] = deque()  # produced, and not pushed to trainers yet
        self._produced = asyncio.Event()  # set when a delivery is added to `_upcoming`
        self._next = Position(0, 0)  # of the next delivery to push, the first in `_upcoming`
        self._released = asyncio.Event()  # set when the bytes of a delivery are given back
        self._fault: Exception | None = None  # the first one since the producer was started
        self._publishing: asyncio.Task[None] | None = None

    async def start(self) -> DeviceInfo:
        """Start the extractors.

        Returns:
            What the first one runs on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        self._publishing = asyncio.create_task(self._publish())
        return (await self._extractors.start())[0]

    async def add_extractor(self) -> DeviceInfo:
        """Start one more extractor; it is given blocks from the moment that it is ready.

        Returns:
            What it runs on.

        Raises:
            StreamError: It could not be started in a bounded number of attempts.
        """
        info = await self._extractors.add_extractor()
        most = self._plan.most_in_flight(self._extractors.num_extractors)
        self._window.max_blocks = max(self._window.max_blocks, most)
        return info

    async def run_epoch(self, epoch: int, last_epoch: int) -> EpochReport:
        """Deliver one epoch; meanwhile extractors already make blocks of the next epochs.

        Args:
            epoch: The epoch, counted from 0; epochs run in order. Deliveries that all trainers have
                consumed already are left out.
            last_epoch: The last epoch that blocks may be made for.

        Raises:
            StreamError: A block could not be made or delivered, or a trainer failed.
            TrainerLostError: A trainer died; once another one has taken its place, the epoch can be
                run again.
        """
        causes: list[str] = []
        furthest = Position(epoch, -1)
        while True:
            start = min(await self._call_trainers("position"))
            if start.epoch > epoch:  # all trainers had closed it before a fault
                break
            assert start.epoch == epoch, (start, epoch)
            if start > furthest:  # it went on since the last fault: only standstill is bounded
                causes.clear()
            furthest = max(furthest, start)
            if len(causes) == MAX_ATTEMPTS:
                raise StreamError(
                    f"{start} failed {MAX_ATTEMPTS} times; the causes, in order: "
                    + " | ".join(causes)
                )
            await self._produce_from(start, last_epoch)
            try:
                await self._deliver(epoch)
                break
            except LostBlockError as fault:
                causes.append(str(fault))
                self._extractors.notices.append(f"{fault}; blocks are delivered again")
                self._produced_until = -1
            except BaseException:
                self._produced_until = -1
                raise
        ends, _ = await asyncio.gather(
            self._call_trainers("end_epoch", epoch), self._extractors.notice_deaths()
        )
        return EpochReport(tuple(ends), await self.stats())

    async def set_trainers(self, trainers: list[ActorHandle]) -> None:
        """Deliver to these trainers from now on; between epochs, or after a `TrainerLostError`."""
        self._trainers = trainers

    async def stats(self) -> StreamStats:
        """The totals so far; an actor of coroutines answers this while an epoch runs."""
        self._stats.extract_wait_seconds = self._waited_before + self._extractors.idle_seconds
        return self._stats

    async def take_notices(self) -> list[str]:
        """The lines for people since the last call."""
        taken = self._extractors.notices[:]
        self._extractors.notices.clear()
        return taken

    async def _publish(self) -> None:
        """Publish the metrics again and again."""
        while True:
            self._metrics.publish(await self.stats())
            await asyncio.sleep(PUBLISH_SECONDS)

    async def _call_trainers(self, method: str, *args: object) -> list[Any]:
        """Call a method of every trainer, and wait for all results."""
        calls = [getattr(trainer, method).remote(*args) for trainer in self._trainers]
        try:
            return list(await asyncio.gather(*calls))
        except RayActorError as error:
            raise TrainerLostError(f"a head trainer was lost: {cause_of(error)}") from None

    async def _produce_from(self, start: Position, last_epoch: int) -> None:
        """Make sure that the next delivery is `start`, by a new producer where it is not."""
        if self._next == start and self._produced_until >= start.epoch:
            return
        if self._producer is not None:
            self._producer.cancel()
        while self._upcoming:
            await self._discard(self._upcoming.popleft())
        self._forget_lost_nodes()
        self._fault = None
        self._next = start
        self._produced_until = last_epoch
        self._producer = asyncio.create_task(self._produce(start, last_epoch))

    async def _produce(self, start: Position, last_epoch: int) -> None:
        """Let blocks be made in the order of the plan, as far ahead as the window allows."""
        for position, key in self._plan.deliveries(start, last_epoch):
            # A block of the cache must not be made a second time while the first still exists. Only
            # when it is made is it known whether its node had room to keep it: if not, this waits
            # until it is delivered and freed.
            while key in self._pinned and not _is_kept(self._pinned[key]):
                self._released.clear()
                await self._released.wait()
            await self._window.acquire(self._window_bytes(key))
            self._upcoming.append(_Delivery(position, key, self._block_of(position.epoch, key)))
            self._produced.set()

    def _block_of(self, epoch: int, key: BlockKey) -> asyncio.Task[MadeBlock]:
        """The task that makes a block: a new one, or for a cached block that of its first epoch."""
        making = self._pinned.get(key)
        if making is not None:
            self._stats.blocks_from_cache += 1
            return making
        making = asyncio.create_task(self._extractors.make(epoch, key))
        if key in self._plan.budget.pinned:
            self._pinned[key] = making
        return making

    async def _deliver(self, epoch: int) -> None:
        """Push the blocks that are left of an epoch, and wait for the replies to all of them."""
        progress = Progress(self._plan, epoch, self._stats, shown=self._show_progress)
        waiting: set[asyncio.Task[None]] = set()
        end = Position(epoch, len(self._plan.sequence(epoch)))
        try:
            while self._next < end and self._fault is None:
                waiting.add(await self._push(end, progress))
                waiting = {task for task in waiting if not task.done()}
        finally:
            await asyncio.gather(*waiting, return_exceptions=True)
            progress.close()
        if self._fault is not None:
            raise self._fault
        self._next = Position(epoch + 1, 0)

    async def _push(self, end: Position, progress: Progress) -> asyncio.Task[None]:
        """Call every trainer to consume the next block, with those after it that are made as well.

        This is a method of its own so that its local variables, which hold refs, end with it: a ref
        that lives on would keep its block in the object store.

        Args:
            end: The position to stop at.
            progress: The bar that shows what was consumed.

        Returns:
            The task that waits for the replies of the trainers.
        """
        while not self._upcoming:
            self._produced.clear()
            await self._produced.wait()
        await self._upcoming[0].making
        deliveries: list[_Delivery] = []
        while self._next < end and len(deliveries) < self._blocks_at_once:
            if not (self._upcoming and _is_made(self._upcoming[0].making)):
                break
            deliveries.append(self._upcoming.popleft())
            self._next = deliveries[-1].position.next
        names = [(delivery.position, delivery.key) for delivery in deliveries]
        refs = [delivery.making.result().ref for delivery in deliveries]
        replies: list[ray.ObjectRef] = [
            trainer.consume_all.remote(names, *refs) for trainer in self._trainers
        ]
        return asyncio.create_task(self._await_replies(deliveries, replies, progress))

    async def _await_replies(
        self, deliveries: Sequence[_Delivery], replies: list[ray.ObjectRef], progress: Progress
    ) -> None:
        """Wait for the replies of all trainers, then give the bytes of the blocks back.

        The first fault is kept, for `_deliver` to raise.
        """
        results: list[list[DeliveryReply] | BaseException]
        results = await asyncio.gather(*replies, return_exceptions=True)
        for delivery in deliveries:
            self._release(delivery)
        keys = [delivery.key for delivery in deliveries]
        by_trainer = []
        for result in results:
            if isinstance(result, BaseException):
                self._fault = self._fault or delivery_fault(keys, result)
            else:
                by_trainer.append(result)
        for key, *of_block in zip(keys, *by_trainer, strict=True):
            for reply in of_block:
                if reply.status is DeliveryStatus.TOO_EARLY:
                    why = f"block {key} was {reply.status.value}"
                    self._fault = self._fault or LostBlockError(why)
                self._stats.train_seconds += reply.busy_seconds
                self._stats.train_wait_seconds += reply.wait_seconds
            if of_block:
                progress.advance(key, sum(reply.mean_loss for reply in of_block) / len(of_block))

    async def _discard(self, delivery: _Delivery) -> None:
        """Let a block go that was made ahead, and is not delivered because of a fault."""
        with contextlib.suppress(StreamError):  # making it again will raise the error if it lasts
            await delivery.making
            if delivery.key not in self._pinned:
                self._stats.blocks_lost += 1
        self._release(delivery)

    def _release(self, delivery: _Delivery) -> None:
        """Give the bytes of a delivery back to the window, and free its block unless it is kept."""
        key, making = delivery.key, delivery.making
        if not _is_kept(making):
            if self._pinned.get(key) is making:
                del self._pinned[key]
            self._forget(key, making)
        self._window.release(self._window_bytes(key))
        self._released.set()

    def _forget(self, key: BlockKey, making: asyncio.Task[MadeBlock]) -> None:
        """Give the room of a block back; its last ref is dropped with `making`."""
        kept = False
        if _is_made(making):
            lease = making.result().lease
            self._extractors.free(lease)
            kept = lease.pinned
        self._stats.drop(self._plan.block_bytes[key], kept=kept)

    def _forget_lost_nodes(self) -> None:
        """Forget the blocks on nodes that are gone; each is made again when it is next needed."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._extractors.drop_nodes(alive)
        for key, making in list(self._pinned.items()):
            if _is_made(making) and making.result().lease.node not in alive:
                del self._pinned[key]
                self._forget(key, making)
                self._stats.blocks_lost += 1

    def _window_bytes(self, key: BlockKey) -> int:
        """The bytes that a delivery takes of the window: none if the budget pins its block.

        Pinned blocks have bytes of their own in the budget, and the others share the window.
        """
        return 0 if key in self._plan.budget.pinned else self._plan.block_bytes[key]


def _is_kept(making: asyncio.Task[MadeBlock]) -> bool:
    """Whether a block is made, and kept for later epochs."""
    return _is_made(making) and making.result().lease.pinned


def _is_made(making: asyncio.Task[MadeBlock]) -> bool:
    """Whether a block is made, and not failed."""
    return making.done() and making.exception() is None
