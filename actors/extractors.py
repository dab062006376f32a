"""The extractors of a feature stream: started, given blocks to make, and replaced."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from actors.extractor import ExtractorSpec
from actors.faults import MAX_ATTEMPTS, cause_of
from actors.records import BlockReceipt
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.pool import ExtractorPool, Lease
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.units import format_seconds

_log = logging.getLogger(__name__)

# An extractor works on one block while the next one waits at its door.
CALLS_PER_EXTRACTOR = 2

# A new extractor that is not ready after so long is spoken of, and again each time.
NOTICE_SECONDS = 30.0

# What is freed in a full object store is gone after at most about this long.
FREEING_SECONDS = 1.0


@dataclass(frozen=True)
class MadeBlock:
    """A block in some object store. The feature stream, as the caller, owns it."""

    ref: ray.ObjectRef
    lease: Lease[ActorHandle]


class ExtractorGroup:
    """Has blocks made by extractors, in bounded attempts; lost extractors are replaced.

    Args:
        plan: Blocks, their sizes, and which are to stay.
        spec: How to start an extractor.
        num_extractors: How many to start with.
        stats: Totals of the stream, which are kept up to date.
    """

    def __init__(
        self, plan: StreamPlan, spec: ExtractorSpec, num_extractors: int, stats: StreamStats
    ):
        self._plan = plan
        self._spec = spec
        self._num_first = num_extractors
        self._num_started = 0
        self._stats = stats
        self._pool: ExtractorPool[ActorHandle] = ExtractorPool(
            CALLS_PER_EXTRACTOR, plan.largest_bytes
        )
        self._replacing: set[asyncio.Task[None]] = set()  # asyncio itself keeps tasks only weakly

    @property
    def num_extractors(self) -> int:
        return self._pool.num_extractors

    @property
    def idle_seconds(self) -> float:
        """Sum of the time in which extractors were there and had no block to make."""
        return self._pool.idle_seconds

    async def start(self) -> list[DeviceInfo]:
        """Start the first extractors.

        Raises:
            StreamError: One of them could not be started.
        """
        return await asyncio.gather(*(self.add_extractor() for _ in range(self._num_first)))

    async def add_extractor(self) -> DeviceInfo:
        """Start one more; blocks are given to it from the moment when it is ready.

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
            return info
        raise StreamError(
            f"an extractor could not be started in {MAX_ATTEMPTS} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    async def make(self, epoch: int, key: BlockKey) -> MadeBlock:
        """Have a block made, after those that were asked for before.

        Raises:
            StreamError: It could not be made, in bounded attempts.
        """
        self._stats.hold(self._plan.block_bytes[key])
        with self._pool.turn() as turn:
            return await self._make(epoch, key, turn)

    def free(self, lease: Lease[ActorHandle]) -> None:
        """A block is gone, and its place with it."""
        self._pool.free(lease)

    def drop_nodes(self, alive: Iterable[str]) -> None:
        """Forget nodes that are gone; their extractors are replaced."""
        for _ in range(self._pool.drop_nodes(set(alive))):
            self._replace()

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

    async def _make(self, epoch: int, key: BlockKey, turn: int) -> MadeBlock:
        num_bytes = self._plan.block_bytes[key]
        causes: list[str] = []
        errors_left = MAX_ATTEMPTS
        # A death may be none of the block's doing, and extractors can die all at once.
        deaths_left = MAX_ATTEMPTS + self._num_first
        while errors_left and deaths_left:
            pin = key in self._plan.budget.pinned
            lease = await self._pool.acquire(turn, num_bytes, pin=pin)
            # Nothing is fetched here: the receipt is small, and stands for its block.
            block: ray.ObjectRef
            receipt_ref: ray.ObjectRef
            block, receipt_ref = lease.extractor.extract.remote(key)
            try:
                receipt: BlockReceipt = await receipt_ref
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
            return MadeBlock(block, lease)
        raise StreamError(
            f"block {key} could not be made in {len(causes)} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    def _after_failure(self, lease: Lease[ActorHandle], error: RayError) -> None:
        """An extractor that raised goes on; one that died is replaced, once."""
        if isinstance(error, RayTaskError):
            self._pool.done(lease)
        elif self._pool.remove(lease.extractor):
            self._replace()

    def _replace(self) -> None:
        task = asyncio.create_task(self._start_again())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _start_again(self) -> None:
        try:
            await self.add_extractor()
        except StreamError as error:
            self._pool.fail(error)
