"""The feature stream: the actor that turns epoch plans into blocks delivered to trainers."""

import asyncio
import logging
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.experimental import tqdm_ray

from actors.extractor import ExtractorSpec
from actors.records import Ack, DeviceInfo, EpochEnd, Receipt
from bertvision_stream.blocks import BlockKey
from bertvision_stream.errors import StreamError
from bertvision_stream.plan import StreamPlan, StreamStats
from bertvision_stream.window import ByteWindow

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3

# An extractor works on one block while the next one waits at its door.
CALLS_PER_EXTRACTOR = 2


class FeatureStream:
    """Pushes blocks to trainers within a byte budget. Holds refs and counts, no tensor.

    A producer walks through the plan, over the borders of epochs. For each block it waits until the
    window has room, then has it made by an idle extractor, or takes it from the cache. A consumer
    follows in the same order: once a block is made, every trainer is told to consume it, and the
    stream's own ref is dropped. A block's bytes count from before it is made until all trainers
    have acknowledged it. This actor, as the caller, owns the blocks: they survive their extractor.

    Args:
        plan: What to deliver.
        spec: How to start extractors, who make blocks.
        num_extractors: How many to start with.
        trainers: Who consumes blocks; all get every block, in the same order.
        show_progress: Whether to draw a bar on the driver's console.
    """

    def __init__(
        self,
        plan: StreamPlan,
        spec: ExtractorSpec,
        num_extractors: int,
        trainers: list[ActorHandle],
        *,
        show_progress: bool,
    ):
        self._plan = plan
        self._spec = spec
        self._num_extractors = num_extractors
        self._trainers = trainers
        self._show_progress = show_progress
        self._stats = StreamStats()
        self._pinned: dict[BlockKey, asyncio.Task[ray.ObjectRef]] = {}
        self._window = ByteWindow(plan.budget.window_bytes, plan.max_blocks)
        self._num_started = 0
        self._lost: set[ActorHandle] = set()
        # An idle extractor stands here once for each call that it may be given; an error, for all.
        self._idle: asyncio.Queue[ActorHandle | StreamError] = asyncio.Queue()
        self._made: asyncio.Queue[asyncio.Task[ray.ObjectRef]] = asyncio.Queue()
        self._producer: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()  # asyncio itself keeps tasks only weakly

    async def start(self) -> DeviceInfo:
        """Start the extractors.

        Returns:
            What the first one runs on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        infos = await asyncio.gather(*(self.add_extractor() for _ in range(self._num_extractors)))
        return infos[0]

    async def add_extractor(self) -> DeviceInfo:
        """Start one more extractor; blocks are given to it from the moment when it is ready.

        Raises:
            StreamError: It could not be started, in bounded attempts.
        """
        causes: list[str] = []
        while len(causes) < MAX_ATTEMPTS:
            extractor = self._spec.start(self._num_started)
            self._num_started += 1
            try:
                info: DeviceInfo = await extractor.info.remote()
            except RayError as error:
                causes.append(_cause(error))
                continue
            for _ in range(CALLS_PER_EXTRACTOR):
                self._idle.put_nowait(extractor)
            return info
        raise StreamError(
            f"an extractor could not be started in {MAX_ATTEMPTS} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    async def run_epoch(self, epoch: int) -> list[EpochEnd]:
        """Deliver one epoch, each after the one before; blocks of the next are made meanwhile.

        Args:
            epoch: Counted from 0.

        Returns:
            What each trainer reports at its end.

        Raises:
            StreamError: A block could not be made, or a trainer failed.
        """
        if self._producer is None:
            self._producer = asyncio.create_task(self._produce(epoch))
        progress = _Progress(self._plan, epoch, self._stats, shown=self._show_progress)
        try:
            async with asyncio.TaskGroup() as settling:
                for key in self._plan.sequence(epoch):
                    acks = await self._deliver(epoch, key)
                    settling.create_task(self._settle(key, acks, progress))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            progress.close()
        return await asyncio.gather(*(t.end_epoch.remote() for t in self._trainers))

    async def stats(self) -> StreamStats:
        """Totals so far; answers while an epoch runs."""
        return self._stats

    async def _produce(self, first_epoch: int) -> None:
        """Have blocks made, in the order of the plan, as far ahead as the window allows."""
        for epoch in range(first_epoch, self._plan.num_epochs):
            for key in self._plan.sequence(epoch):
                await self._window.acquire(self._window_bytes(key))
                self._made.put_nowait(self._making(key))

    def _making(self, key: BlockKey) -> asyncio.Task[ray.ObjectRef]:
        """The making of a block, begun now or, for a pinned block, in its first epoch.

        Pinned blocks are kept as tasks and not as refs: the next epoch may ask for one that is
        still being made, and it must not be made twice.
        """
        if key in self._pinned:
            self._stats.blocks_from_cache += 1
            return self._pinned[key]
        making = asyncio.create_task(self._make(key))
        if key in self._plan.budget.pinned:
            self._pinned[key] = making
        return making

    async def _deliver(self, epoch: int, key: BlockKey) -> list[ray.ObjectRef]:
        """Push the next block to every trainer; in a method so that no local outlives it."""
        making = await self._made.get()
        block = await making
        return [trainer.consume.remote(epoch, key, block) for trainer in self._trainers]

    async def _settle(
        self, key: BlockKey, acks: list[ray.ObjectRef], progress: "_Progress"
    ) -> None:
        """Wait for all trainers, then give the block's bytes back."""
        try:
            done: list[Ack] = await asyncio.gather(*acks)
        except RayError as error:
            raise StreamError(f"a head trainer failed on block {key}: {_cause(error)}") from None
        if key not in self._pinned:
            self._stats.held_bytes -= self._plan.block_bytes[key]
        self._window.release(self._window_bytes(key))
        self._stats.train_seconds += sum(ack.busy_seconds for ack in done)
        self._stats.train_wait_seconds += sum(ack.wait_seconds for ack in done)
        progress.advance(key, sum(ack.mean_loss for ack in done) / len(done))

    def _window_bytes(self, key: BlockKey) -> int:
        """Pinned blocks have bytes of their own in the budget; the others share the window."""
        return 0 if key in self._plan.budget.pinned else self._plan.block_bytes[key]

    async def _make(self, key: BlockKey) -> ray.ObjectRef:
        """Have the block made by an extractor, in bounded attempts."""
        self._stats.hold(self._plan.block_bytes[key])
        causes: list[str] = []
        errors_left = MAX_ATTEMPTS
        # A death may be none of the block's doing, and extractors can die all at once.
        deaths_left = MAX_ATTEMPTS + self._num_extractors
        while errors_left and deaths_left:
            extractor = await self._idle_extractor()
            # Nothing is fetched here: the receipt is small, and stands for its block.
            block: ray.ObjectRef
            receipt_ref: ray.ObjectRef
            block, receipt_ref = extractor.extract.remote(key)
            try:
                receipt: Receipt = await receipt_ref
            except RayError as error:
                causes.append(_cause(error))
                _log.warning("block %s failed and is made again: %s", key, causes[-1])
                if isinstance(error, RayTaskError):
                    errors_left -= 1
                else:
                    deaths_left -= 1
                self._stats.blocks_failed += 1
                del block, receipt_ref
                self._after_failure(extractor, error)
                continue
            self._idle.put_nowait(extractor)
            self._stats.blocks_extracted += 1
            self._stats.tokens_extracted += self._plan.block_tokens[key]
            self._stats.extract_seconds += receipt.seconds
            if key in self._plan.budget.pinned:
                self._stats.cache_bytes += self._plan.block_bytes[key]
            return block
        raise StreamError(
            f"block {key} could not be made in {len(causes)} attempts; the causes, in order: "
            + " | ".join(causes)
        )

    async def _idle_extractor(self) -> ActorHandle:
        extractor = await self._idle.get()
        if isinstance(extractor, StreamError):
            self._idle.put_nowait(extractor)  # whoever waits next is to know as well
            raise extractor
        if extractor in self._lost:
            return await self._idle_extractor()
        return extractor

    def _after_failure(self, extractor: ActorHandle, error: RayError) -> None:
        """An extractor that raised goes on; one that died is replaced, once."""
        if isinstance(error, RayTaskError):
            self._idle.put_nowait(extractor)
        elif extractor not in self._lost:
            self._lost.add(extractor)
            self._background.add(asyncio.create_task(self._replace()))

    async def _replace(self) -> None:
        try:
            await self.add_extractor()
        except StreamError as error:
            self._idle.put_nowait(error)


class _Progress:
    """The bar of one epoch, drawn by Ray on the driver's console."""

    def __init__(self, plan: StreamPlan, epoch: int, stats: StreamStats, *, shown: bool):
        self._plan = plan
        self._stats = stats
        self._start = time.perf_counter()
        self._tokens = 0
        self._at_start = (stats.tokens_extracted, stats.train_wait_seconds)
        self._title = f"epoch {epoch + 1}/{plan.num_epochs}"
        total = sum(plan.block_tokens[key] for key in plan.sequence(epoch))
        self._bar: Any = (
            tqdm_ray.tqdm(desc=self._title, total=total, unit="tokens") if shown else None
        )

    def advance(self, key: BlockKey, loss: float) -> None:
        """One more block is consumed."""
        self._tokens += self._plan.block_tokens[key]
        if self._bar is None:
            return
        seconds = time.perf_counter() - self._start
        tokens, waited = self._at_start
        self._bar.set_description(
            f"{self._title} · loss {loss:.3f} · extracted "
            f"{(self._stats.tokens_extracted - tokens) / seconds:,.0f} tok/s · trained "
            f"{self._tokens / seconds:,.0f} tok/s · trainer waits "
            f"{(self._stats.train_wait_seconds - waited) / seconds:.0%}"
        )
        self._bar.update(self._plan.block_tokens[key])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _cause(error: RayError) -> str:
    """One line: Ray's errors carry whole tracebacks, whose last line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    return last if isinstance(error, RayTaskError) else f"{type(error).__name__}: {last}"
