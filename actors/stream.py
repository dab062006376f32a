"""The feature stream: the actor that turns epoch plans into blocks delivered to trainers."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.extractor import ExtractorSpec
from actors.extractors import ExtractorGroup, MadeBlock
from actors.faults import MAX_ATTEMPTS, LostBlockError, cause_of, delivery_fault
from actors.metrics import PUBLISH_SECONDS, StreamMetrics
from actors.progress import Progress
from actors.records import DeliveryReply, EpochReport
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.stream.window import ByteWindow
from bertvision_stream.utils.errors import StreamError, TrainerLostError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Delivery:
    """One step of the plan, and the making of its block."""

    position: Position
    key: BlockKey
    making: asyncio.Task[MadeBlock]


class FeatureStream:
    """Pushes blocks to trainers within a byte budget. Holds refs and counts, no tensor.

    A producer walks through the plan, over the borders of epochs. For each block it waits until the
    window has room, then has it made by an idle extractor, or takes it from the cache. A consumer
    follows in the same order: once a block is made, every trainer is told to consume it, with those
    behind it that are made as well, and the stream's own refs are dropped. A block's bytes count
    from before it is made until all trainers have acknowledged it. This actor, as the caller, owns
    the blocks: they survive their extractor.

    Trainers know the position that they have reached. After any fault the stream asks them, and
    delivers from the earliest position on; who has consumed a delivery before recognises it. A
    stream that takes the place of a dead one begins in the same way.

    Args:
        plan: What to deliver.
        spec: How to start extractors, who make blocks.
        num_extractors: How many to start with.
        trainers: Who consumes blocks; all get every block, in the same order.
        stats: Totals of the streams before this one.
        tags: Of its metrics.
        show_progress: Whether to draw a bar on the driver's console.
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
        self._makers = ExtractorGroup(plan, spec, num_extractors, stats)
        self._trainers = trainers
        self._show_progress = show_progress
        self._stats = stats
        stats.reset_held_blocks()
        self._metrics = StreamMetrics(tags, stats)
        self._waited_before = stats.extract_wait_seconds
        self._pinned: dict[BlockKey, asyncio.Task[MadeBlock]] = {}
        self._window = ByteWindow(plan.budget.window_bytes, plan.most_in_flight(num_extractors))
        self._blocks_at_once = plan.blocks_at_once  # looks at all blocks
        self._producer: asyncio.Task[None] | None = None
        self._produced_until = -1  # the last epoch that the producer is to make blocks for
        self._upcoming: deque[_Delivery] = deque()
        self._produced = asyncio.Event()  # of some delivery
        self._next = Position(0, 0)  # of the first one in `_upcoming`
        self._released = asyncio.Event()  # of some delivery
        self._fault: Exception | None = None
        self._publishing: asyncio.Task[None] | None = None

    async def start(self) -> DeviceInfo:
        """Start the extractors.

        Returns:
            What the first one runs on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        self._publishing = asyncio.create_task(self._publish())
        return (await self._makers.start())[0]

    async def add_extractor(self) -> DeviceInfo:
        """Start one more extractor; blocks are given to it from the moment when it is ready.

        Raises:
            StreamError: It could not be started, in bounded attempts.
        """
        info = await self._makers.add_extractor()
        most = self._plan.most_in_flight(self._makers.num_extractors)
        self._window.max_blocks = max(self._window.max_blocks, most)
        return info

    async def run_epoch(self, epoch: int, last_epoch: int) -> EpochReport:
        """Deliver one epoch, each after the one before; blocks of the next are made meanwhile.

        Args:
            epoch: Counted from 0. Deliveries that all trainers have consumed are left out.
            last_epoch: Up to where blocks may be made ahead.

        Raises:
            StreamError: A block could not be made or delivered, or a trainer failed.
            TrainerLostError: A trainer died; with another in its place the epoch can be run again.
        """
        causes: list[str] = []
        furthest = Position(epoch, -1)
        while True:
            start = min(await self._ask("position"))
            if start.epoch > epoch:  # closed already, before a fault
                break
            assert start.epoch == epoch, (start, epoch)
            if start > furthest:
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
                _log.warning("%s; blocks are delivered again", fault)
                self._produced_until = -1
            except BaseException:
                self._produced_until = -1
                raise
        return EpochReport(tuple(await self._ask("end_epoch", epoch)), await self.stats())

    async def set_trainers(self, trainers: list[ActorHandle]) -> None:
        """Feed these from now on: between epochs, or after a `TrainerLostError`."""
        self._trainers = trainers

    async def stats(self) -> StreamStats:
        """Totals so far; answers while an epoch runs."""
        self._stats.extract_wait_seconds = self._waited_before + self._makers.idle_seconds
        return self._stats

    async def _publish(self) -> None:
        """Keep Ray's metrics up to date."""
        while True:
            self._metrics.publish(await self.stats())
            await asyncio.sleep(PUBLISH_SECONDS)

    async def _ask(self, method: str, *args: object) -> list[Any]:
        """Call a method of every trainer."""
        calls = [getattr(trainer, method).remote(*args) for trainer in self._trainers]
        try:
            return list(await asyncio.gather(*calls))
        except RayActorError as error:
            raise TrainerLostError(f"a head trainer was lost: {cause_of(error)}") from None

    async def _produce_from(self, start: Position, last_epoch: int) -> None:
        """Make sure that the producer's next delivery is `start`."""
        if self._next == start and self._produced_until >= start.epoch:
            return
        if self._producer is not None:
            self._producer.cancel()
        while self._upcoming:
            await self._discard(self._upcoming.popleft())
        self._drop_lost_nodes()
        self._fault = None
        self._next = start
        self._produced_until = last_epoch
        self._producer = asyncio.create_task(self._produce(start, last_epoch))

    async def _produce(self, start: Position, last_epoch: int) -> None:
        """Have blocks made, in the order of the plan, as far ahead as the window allows."""
        for position, key in self._plan.deliveries(start, last_epoch):
            # A block that is to stay is made once. Whether it does stay is not known before it is
            # made; where it does not, it is gone before it is made again.
            while key in self._pinned and not _stays(self._pinned[key]):
                self._released.clear()
                await self._released.wait()
            await self._window.acquire(self._window_bytes(key))
            self._upcoming.append(_Delivery(position, key, self._making(position.epoch, key)))
            self._produced.set()

    def _making(self, epoch: int, key: BlockKey) -> asyncio.Task[MadeBlock]:
        """The making of a block, begun now or, for one that stays, in an earlier epoch."""
        making = self._pinned.get(key)
        if making is not None:
            self._stats.blocks_from_cache += 1
            return making
        making = asyncio.create_task(self._makers.make(epoch, key))
        if key in self._plan.budget.pinned:
            self._pinned[key] = making
        return making

    async def _deliver(self, epoch: int) -> None:
        """Push what is left of an epoch's blocks, and wait until all are acknowledged."""
        progress = Progress(self._plan, epoch, self._stats, shown=self._show_progress)
        settling: set[asyncio.Task[None]] = set()
        end = Position(epoch, len(self._plan.sequence(epoch)))
        try:
            while self._next < end and self._fault is None:
                settling.add(await self._push(end, progress))
                settling = {task for task in settling if not task.done()}
        finally:
            await asyncio.gather(*settling, return_exceptions=True)
            progress.close()
        if self._fault is not None:
            raise self._fault
        self._next = Position(epoch + 1, 0)

    async def _push(self, end: Position, progress: Progress) -> asyncio.Task[None]:
        """Tell every trainer to consume the next block, with those behind it that are made as well.

        In a method so that no local outlives it, which would keep blocks.

        Args:
            end: Where to stop.
            progress: Is told what was consumed.

        Returns:
            What waits for their acknowledgements.
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
        acks: list[ray.ObjectRef] = [
            trainer.consume_all.remote(names, *refs) for trainer in self._trainers
        ]
        return asyncio.create_task(self._settle(deliveries, acks, progress))

    async def _settle(
        self, deliveries: Sequence[_Delivery], acks: list[ray.ObjectRef], progress: Progress
    ) -> None:
        """Wait for all trainers, then give the blocks' bytes back; keep the first fault."""
        answers: list[list[DeliveryReply] | BaseException]
        answers = await asyncio.gather(*acks, return_exceptions=True)
        for delivery in deliveries:
            self._release(delivery)
        keys = [delivery.key for delivery in deliveries]
        consumed = []
        for answer in answers:
            if isinstance(answer, BaseException):
                self._fault = self._fault or delivery_fault(keys, answer)
            else:
                consumed.append(answer)
        for key, *of_trainers in zip(keys, *consumed, strict=True):
            for ack in of_trainers:
                if ack.reception is DeliveryStatus.TOO_EARLY:
                    why = f"block {key} was {ack.reception.value}"
                    self._fault = self._fault or LostBlockError(why)
                self._stats.train_seconds += ack.busy_seconds
                self._stats.train_wait_seconds += ack.wait_seconds
            if of_trainers:
                progress.advance(key, sum(ack.mean_loss for ack in of_trainers) / len(of_trainers))

    async def _discard(self, delivery: _Delivery) -> None:
        """A block made ahead that nobody is to be given."""
        with contextlib.suppress(StreamError):  # when the block is made again, it is told
            await delivery.making
            if delivery.key not in self._pinned:
                self._stats.blocks_lost += 1
        self._release(delivery)

    def _release(self, delivery: _Delivery) -> None:
        """Give a delivery's bytes back, unless its block is one that stays."""
        key, making = delivery.key, delivery.making
        if not _stays(making):
            if self._pinned.get(key) is making:
                del self._pinned[key]
            self._forget(key, making)
        self._window.release(self._window_bytes(key))
        self._released.set()

    def _forget(self, key: BlockKey, making: asyncio.Task[MadeBlock]) -> None:
        """The last ref of a block goes."""
        kept = False
        if _is_made(making):
            lease = making.result().lease
            self._makers.free(lease)
            kept = lease.pinned
        self._stats.drop(self._plan.block_bytes[key], kept=kept)

    def _drop_lost_nodes(self) -> None:
        """Forget what lay on nodes that are gone: it is made again when it is next needed."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._makers.drop_nodes(alive)
        for key, making in list(self._pinned.items()):
            if _is_made(making) and making.result().lease.node not in alive:
                del self._pinned[key]
                self._forget(key, making)
                self._stats.blocks_lost += 1

    def _window_bytes(self, key: BlockKey) -> int:
        """Pinned blocks have bytes of their own in the budget; the others share the window."""
        return 0 if key in self._plan.budget.pinned else self._plan.block_bytes[key]


def _stays(making: asyncio.Task[MadeBlock]) -> bool:
    """Whether a block is there, and kept for later epochs."""
    return _is_made(making) and making.result().lease.pinned


def _is_made(making: asyncio.Task[MadeBlock]) -> bool:
    return making.done() and making.exception() is None
