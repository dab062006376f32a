"""The extractors of a feature stream: how they start, are given blocks, and are replaced."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.cluster import NOTICE_SECONDS, describe_wait
from actors.extractor import ExtractorSpec
from actors.object_store import STORE_FULL, full_text, pauses, waiting_text
from actors.records import MAX_ATTEMPTS, BlockReceipt, cause_of
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.pool import ExtractorPool, Lease
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.utils.errors import StreamError

# While an extractor works on one block, the next call is already queued there.
CALLS_PER_EXTRACTOR = 2


@dataclass(frozen=True)
class MadeBlock:
    """A block that lies in the object store of some node.

    Attributes:
        ref: The ref of the block. The feature stream is its owner, as it has called the extractor:
            the block outlives its extractor, and is freed with its last ref.
        lease: The extractor that made the block, and the room on its node that the block takes.
    """

    ref: ray.ObjectRef
    lease: Lease[ActorHandle]


class ExtractorGroup:
    """Lets extractors make blocks, retries what fails, and replaces extractors that die.

    Args:
        plan: The blocks, their sizes, and which of them are kept for later epochs.
        spec: How to start an extractor.
        num_extractors: The number of extractors at the start.
        stats: The totals of the stream, which the group keeps up to date.

    Attributes:
        notices: Lines for people. The run's logger (`utils.log`) has its handlers in the driver
            alone, which fetches them from the stream (`FeatureStream.take_notices`).
    """

    def __init__(
        self, plan: StreamPlan, spec: ExtractorSpec, num_extractors: int, stats: StreamStats
    ):
        self._plan = plan
        self._spec = spec
        self._num_first = num_extractors
        self._num_started = 0
        self._stats = stats
        self.notices: list[str] = []
        self._pool: ExtractorPool[ActorHandle] = ExtractorPool(
            CALLS_PER_EXTRACTOR, plan.largest_bytes
        )
        self._store_full_said: float | None = None  # when it was last said that the store is full
        # asyncio holds only weak references: a task that nobody else holds can vanish midway.
        self._background: set[asyncio.Task[None]] = set()

    @property
    def num_extractors(self) -> int:
        """The number of extractors that are ready."""
        return self._pool.num_extractors

    @property
    def idle_seconds(self) -> float:
        """The time in which extractors were ready and had no block to make, summed over them."""
        return self._pool.idle_seconds

    async def start(self) -> list[DeviceInfo]:
        """Start the first extractors.

        Returns:
            What each of them runs on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        return await asyncio.gather(*(self.add_extractor() for _ in range(self._num_first)))

    async def add_extractor(self) -> DeviceInfo:
        """Start one more extractor; it is given blocks from the moment that it is ready.

        Returns:
            What it runs on.

        Raises:
            StreamError: It could not be started in `MAX_ATTEMPTS` attempts.
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
                self._stats.extractors_lost += 1
                self.notices.append(f"extractor {number} died while it started: {causes[-1]}")
                continue
            limit = int(info.store_bytes * self._plan.budget.store_share)
            self._pool.add(extractor, info.node, limit=limit)
            return info
        raise StreamError(
            f"an extractor could not be started in {MAX_ATTEMPTS} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    async def make(self, epoch: int, key: BlockKey) -> MadeBlock:
        """Let an extractor make a block; blocks that were requested earlier come first.

        Args:
            epoch: The epoch that the block is made for, counted from 0.
            key: The block.

        Raises:
            StreamError: The block could not be made in a bounded number of attempts.
        """
        self._stats.hold(self._plan.block_bytes[key])
        with self._pool.turn() as turn:
            return await self._make(epoch, key, turn)

    def free(self, lease: Lease[ActorHandle]) -> None:
        """Give the room of a block back, once its last ref is dropped."""
        self._pool.free(lease)

    def drop_nodes(self, alive: Iterable[str]) -> None:
        """Forget the nodes that are not among `alive`, and replace their extractors."""
        lost = self._pool.drop_nodes(set(alive))
        if lost:
            self.notices.append(f"{lost} extractors were lost with their node, and are replaced")
        for _ in range(lost):
            self._replace()

    async def notice_deaths(self) -> None:
        """Replace the extractors that died while they had no block to make, which nobody noticed.

        One that does not answer within a second is not waited for: its node may be out of reach.
        """
        asking = [self._in_background(self._notice_death(e)) for e in self._pool.idle]
        if asking:
            await asyncio.wait(asking, timeout=1.0)

    async def _notice_death(self, extractor: ActorHandle) -> None:
        """Replace an extractor if it does not live."""
        try:
            await extractor.info.remote()
        except RayError as error:
            if self._pool.remove(extractor):
                cause = cause_of(error)
                self.notices.append(f"an extractor without work died and is replaced: {cause}")
                self._replace()

    async def _ready(self, extractor: ActorHandle, number: int) -> DeviceInfo:
        """Wait until a new extractor is ready, with a notice each time that it takes long."""
        start = time.perf_counter()
        info: asyncio.Future[DeviceInfo] = asyncio.ensure_future(extractor.info.remote())
        what = f"extractor {number} ({self._spec.num_cpus:g} CPU and {self._spec.num_gpus:g} GPU)"
        while not (await asyncio.wait([info], timeout=NOTICE_SECONDS))[0]:
            passed = time.perf_counter() - start
            self.notices.append(describe_wait(what, [extractor], passed))
        return info.result()

    async def _make(self, epoch: int, key: BlockKey, turn: int) -> MadeBlock:
        """Make the block whose place in the order is `turn`, in a bounded number of attempts."""
        num_bytes = self._plan.block_bytes[key]
        causes: list[str] = []
        errors_left = MAX_ATTEMPTS
        # An error is most likely the block's own, and would come again. That an extractor dies may
        # have nothing to do with the block, and all of them can die at once: this allows for more.
        deaths_left = MAX_ATTEMPTS + self._num_first
        # A store that others have filled is no fault of the block: it has its minutes besides.
        waits = pauses()
        while errors_left and deaths_left:
            pin = key in self._plan.budget.pinned
            lease = await self._pool.acquire(turn, num_bytes, pin=pin)
            # The stream keeps only refs: it awaits the receipt, which is small, and not the block.
            block: ray.ObjectRef
            receipt_ref: ray.ObjectRef
            block, receipt_ref = lease.extractor.extract.remote(key)
            try:
                receipt: BlockReceipt = await receipt_ref
            except RayError as error:
                self._stats.blocks_failed += 1
                del block, receipt_ref  # what they hold must be freed before the next attempt
                if isinstance(error, STORE_FULL):
                    await self._wait_for_store(key, waits)
                    self._pool.free(lease)
                    self._after_failure(lease, error)
                    continue
                causes.append(cause_of(error))
                self.notices.append(f"block {key} failed and is made again: {causes[-1]}")
                if isinstance(error, RayTaskError):
                    errors_left -= 1
                else:
                    deaths_left -= 1
                self._pool.free(lease)
                self._after_failure(lease, error)
                continue
            self._pool.done(lease)
            self._stats.count_extracted(epoch, self._plan.block_tokens[key], receipt.seconds)
            if lease.pinned:
                self._stats.keep(num_bytes)
            return MadeBlock(block, lease)
        raise StreamError(
            f"block {key} could not be made in {len(causes)} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    async def _wait_for_store(self, key: BlockKey, waits: Iterator[float]) -> None:
        """Wait before the next attempt at a block that found the object store full.

        Raises:
            StreamError: It was waited for long enough.
        """
        our_bytes = self._stats.held_bytes + self._spec.resident_bytes
        pause = next(waits, None)
        if pause is None:
            raise StreamError(
                f"block {key} could not be made: {full_text(our_bytes)} "
                f"A lower stream.budget needs less."
            )
        now = time.perf_counter()
        if self._store_full_said is None or now - self._store_full_said > NOTICE_SECONDS:
            self._store_full_said = now
            self.notices.append(waiting_text(f"block {key} could not be made", our_bytes))
        await asyncio.sleep(pause)

    def _after_failure(self, lease: Lease[ActorHandle], error: RayError) -> None:
        """Give the extractor its next block if it raised an error; replace it if it died."""
        if isinstance(error, RayTaskError):
            self._pool.done(lease)
        elif self._pool.remove(lease.extractor):  # False if another of its calls came here first
            self._replace()

    def _replace(self) -> None:
        """Start an extractor in the background, in the place of one that was lost."""
        self._stats.extractors_lost += 1
        self._in_background(self._start_replacement())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that is kept until it is done."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _start_replacement(self) -> None:
        """Start an extractor; if none can be started, let all that wait for one fail."""
        try:
            await self.add_extractor()
        except StreamError as error:
            self._pool.fail(error)
