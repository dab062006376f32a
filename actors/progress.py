"""The bar of an epoch, drawn by Ray on the driver's console."""

import time
from typing import Any

from ray.experimental import tqdm_ray

from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StreamStats


class Progress:
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
