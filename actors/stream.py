"""The feature stream: the actor that turns epoch plans into blocks delivered to trainers."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.extractor import ExtractorSpec
from actors.faults import LostBlockError, cause_of, delivery_fault
from actors.metrics import TELL_SECONDS, StreamMetrics
from actors.progress import Progress
from actors.records import Ack, DeviceInfo, EpochReport, Receipt
from bertvision_stream.blocks import BlockKey
from bertvision_stream.budget import max_blocks
from bertvision_stream.errors import StreamError, TrainerLostError
from bertvision_stream.plan import Position, Reception, StreamPlan, StreamStats
from bertvision_stream.pool import ExtractorPool, Lease
from bertvision_stream.units import format_seconds
from bertvision_stream.window import ByteWindow

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3

# An extractor works on one block while the next one waits at its door.
CALLS_PER_EXTRACTOR = 2

# A new extractor that is not ready after so long is spoken of, and again each time.
NOTICE_SECONDS = 30.0

# What is freed in a full object store is gone after at most about this long.
FREEING_SECONDS = 1.0


@dataclass(frozen=True)
class _Made:
    """A block in some object store. This actor, as the caller, owns it."""

    ref: ray.ObjectRef
    lease: Lease[ActorHandle]


@dataclass(frozen=True)
class _Delivery:
    """One step of the plan, and the making of its block."""

    position: Position
    key: BlockKey
    making: asyncio.Task[_Made]


class FeatureStream:
    """Pushes blocks to trainers within a byte budget. Holds refs and counts, no tensor.

    A producer walks through the plan, over the borders of epochs. For each block it waits until the
    window has room, then has it made by an idle extractor, or takes it from the cache. A consumer
    follows in the same order: once a block is made, every trainer is told to consume it, and the
    stream's own ref is dropped. A block's bytes count from before it is made until all trainers
    have acknowledged it. This actor, as the caller, owns the blocks: they survive their extractor.

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
        self._spec = spec
        self._num_extractors = num_extractors
        self._trainers = trainers
        self._show_progress = show_progress
        self._stats = stats
        stats.drop_all()
        self._metrics = StreamMetrics(tags, stats)
        self._waited_before = stats.extract_wait_seconds
        self._pinned: dict[BlockKey, asyncio.Task[_Made]] = {}
        self._window = ByteWindow(plan.budget.window_bytes, plan.max_blocks)
        self._pool: ExtractorPool[ActorHandle] = ExtractorPool(
            CALLS_PER_EXTRACTOR, plan.largest_bytes
        )
        self._num_started = 0
        self._producer: asyncio.Task[None] | None = None
        self._produced_until = -1  # the last epoch that the producer is to make blocks for
        self._upcoming: asyncio.Queue[_Delivery] = asyncio.Queue()
        self._next = Position(0, 0)  # of the first one in `_upcoming`
        self._released = asyncio.Event()  # of some delivery
        self._fault: Exception | None = None
        self._background: set[asyncio.Task[Any]] = set()  # asyncio itself keeps tasks only weakly

    async def start(self) -> DeviceInfo:
        """Start the extractors.

        Returns:
            What the first one runs on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        self._spawn(self._tell())
        infos = await asyncio.gather(*(self.add_extractor() for _ in range(self._num_extractors)))
        return infos[0]

    async def add_extractor(self) -> DeviceInfo:
        """Start one more extractor; blocks are given to it from the moment when it is ready.

        Raises:
            StreamError: It could not be started, in bounded attempts.
        """
        causes: list[str] = []
        while len(causes) < MAX_ATTEMPTS:
            number = self._num_started
            self._num_started += 1
            extractor = self._spec.start(number)
            try:
                info: DeviceInfo = await self._ready(extractor, number)
            except RayError as error:
                causes.append(cause_of(error))
                continue
            limit = int(info.store_bytes * self._plan.budget.store_share)
            self._pool.add(extractor, info.node, limit=limit)
            self._window.max_blocks = max(
                self._plan.max_blocks, max_blocks(self._pool.num_extractors)
            )
            return info
        raise StreamError(
            f"an extractor could not be started in {MAX_ATTEMPTS} attempts; the causes, in order: "
            + " | ".join(causes)
        )

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
                await self._deliver(epoch, start)
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
        self._stats.extract_wait_seconds = self._waited_before + self._pool.idle_seconds
        return self._stats

    async def _tell(self) -> None:
        """Keep Ray's metrics up to date."""
        while True:
            self._metrics.tell(await self.stats())
            await asyncio.sleep(TELL_SECONDS)

    async def _ready(self, extractor: ActorHandle, number: int) -> DeviceInfo:
        """Wait for a new extractor, and say so where it takes long."""
        start = time.perf_counter()
        answer: asyncio.Future[DeviceInfo] = asyncio.ensure_future(extractor.info.remote())
        while not (await asyncio.wait([answer], timeout=NOTICE_SECONDS))[0]:
            _log.warning(
                "extractor %d is not ready after %s; it wants %g CPU and %g GPU",
                number,
                format_seconds(time.perf_counter() - start),
                self._spec.num_cpus,
                self._spec.num_gpus,
            )
        return answer.result()

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
        while not self._upcoming.empty():
            await self._discard(self._upcoming.get_nowait())
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
            self._upcoming.put_nowait(_Delivery(position, key, self._making(position.epoch, key)))

    def _making(self, epoch: int, key: BlockKey) -> asyncio.Task[_Made]:
        """The making of a block, begun now or, for one that stays, in an earlier epoch."""
        making = self._pinned.get(key)
        if making is not None:
            self._stats.blocks_from_cache += 1
            return making
        making = asyncio.create_task(self._make_in_turn(epoch, key))
        if key in self._plan.budget.pinned:
            self._pinned[key] = making
        return making

    async def _deliver(self, epoch: int, start: Position) -> None:
        """Push an epoch's blocks from `start` on, and wait until all are acknowledged."""
        progress = Progress(self._plan, epoch, self._stats, shown=self._show_progress)
        settling: set[asyncio.Task[None]] = set()
        try:
            for _ in range(start.index, len(self._plan.sequence(epoch))):
                settling.add(await self._push(progress))
                settling = {task for task in settling if not task.done()}
                if self._fault is not None:
                    break
        finally:
            await asyncio.gather(*settling, return_exceptions=True)
            progress.close()
        if self._fault is not None:
            raise self._fault
        self._next = Position(epoch + 1, 0)

    async def _push(self, progress: Progress) -> asyncio.Task[None]:
        """Tell every trainer to consume the next block; in a method so that no local outlives it.

        Returns:
            What waits for their acknowledgements.
        """
        delivery = await self._upcoming.get()
        self._next = delivery.position.next
        made = await delivery.making
        acks: list[ray.ObjectRef] = [
            trainer.consume.remote(delivery.position, delivery.key, made.ref)
            for trainer in self._trainers
        ]
        return asyncio.create_task(self._settle(delivery, acks, progress))

    async def _settle(
        self, delivery: _Delivery, acks: list[ray.ObjectRef], progress: Progress
    ) -> None:
        """Wait for all trainers, then give the block's bytes back; keep the first fault."""
        answers: list[Ack | BaseException] = await asyncio.gather(*acks, return_exceptions=True)
        self._release(delivery)
        losses = []
        for answer in answers:
            if isinstance(answer, BaseException):
                self._fault = self._fault or delivery_fault(delivery.key, answer)
                continue
            if answer.reception is Reception.TOO_EARLY:
                why = f"block {delivery.key} was {answer.reception.value}"
                self._fault = self._fault or LostBlockError(why)
            self._stats.train_seconds += answer.busy_seconds
            self._stats.train_wait_seconds += answer.wait_seconds
            losses.append(answer.mean_loss)
        if losses:
            progress.advance(delivery.key, sum(losses) / len(losses))

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

    def _forget(self, key: BlockKey, making: asyncio.Task[_Made]) -> None:
        """The last ref of a block goes."""
        kept = False
        if making.exception() is None:
            lease = making.result().lease
            self._pool.free(lease)
            kept = lease.pinned
        self._stats.drop(self._plan.block_bytes[key], kept=kept)

    def _drop_lost_nodes(self) -> None:
        """Forget what lay on nodes that are gone: it is made again when it is next needed."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for _ in range(self._pool.drop_nodes(alive)):
            self._spawn(self._replace())
        for key, making in list(self._pinned.items()):
            if making.exception() is None and making.result().lease.node not in alive:
                del self._pinned[key]
                self._forget(key, making)
                self._stats.blocks_lost += 1

    def _window_bytes(self, key: BlockKey) -> int:
        """Pinned blocks have bytes of their own in the budget; the others share the window."""
        return 0 if key in self._plan.budget.pinned else self._plan.block_bytes[key]

    async def _make_in_turn(self, epoch: int, key: BlockKey) -> _Made:
        self._stats.hold(self._plan.block_bytes[key])
        with self._pool.turn() as turn:
            return await self._make(epoch, key, turn)

    async def _make(self, epoch: int, key: BlockKey, turn: int) -> _Made:
        """Have the block made by an extractor, in bounded attempts."""
        num_bytes = self._plan.block_bytes[key]
        causes: list[str] = []
        errors_left = MAX_ATTEMPTS
        # A death may be none of the block's doing, and extractors can die all at once.
        deaths_left = MAX_ATTEMPTS + self._num_extractors
        while errors_left and deaths_left:
            pin = key in self._plan.budget.pinned
            lease = await self._pool.acquire(turn, num_bytes, pin=pin)
            # Nothing is fetched here: the receipt is small, and stands for its block.
            block: ray.ObjectRef
            receipt_ref: ray.ObjectRef
            block, receipt_ref = lease.extractor.extract.remote(key)
            try:
                receipt: Receipt = await receipt_ref
            except RayError as error:
                causes.append(cause_of(error))
                _log.warning("block %s failed and is made again: %s", key, causes[-1])
                if isinstance(error, RayTaskError):
                    errors_left -= 1
                else:
                    deaths_left -= 1
                self._stats.blocks_failed += 1
                del block, receipt_ref
                if isinstance(error, OutOfDiskError | ObjectStoreFullError):
                    await asyncio.sleep(FREEING_SECONDS)
                self._pool.free(lease)
                self._after_failure(lease, error)
                continue
            self._pool.done(lease)
            self._stats.count_extracted(epoch, self._plan.block_tokens[key], receipt.seconds)
            if lease.pinned:
                self._stats.keep(num_bytes)
            return _Made(block, lease)
        raise StreamError(
            f"block {key} could not be made in {len(causes)} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    def _after_failure(self, lease: Lease[ActorHandle], error: RayError) -> None:
        """An extractor that raised goes on; one that died is replaced, once."""
        if isinstance(error, RayTaskError):
            self._pool.done(lease)
        elif self._pool.remove(lease.extractor):
            self._spawn(self._replace())

    async def _replace(self) -> None:
        try:
            await self.add_extractor()
        except StreamError as error:
            self._pool.fail(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _stays(making: asyncio.Task[_Made]) -> bool:
    """Whether a block is there, and kept for later epochs."""
    return making.done() and making.exception() is None and making.result().lease.pinned
