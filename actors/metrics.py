"""What a running stream shows of itself: Ray's metrics, and the progress bar of an epoch.

The metrics are for Ray's dashboard, Prometheus and Grafana; `docs/grafana.json` shows them all. The
name of each ends with its unit. Ray serves them on every node under `ray_NAME`, and under
`ray_NAME_total` those that only grow.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ray.experimental import tqdm_ray
from ray.util.metrics import Counter, Gauge

from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StreamStats

# The time between two updates of the metrics, which are not updated with each block. More often
# would show no more: Ray exports them every ten seconds. It drops a gauge that was not set for
# twenty seconds, so that longer pauses would leave gaps.
PUBLISH_SECONDS = 5.0

STREAM_TAGS = ("task", "run")
"""The tags of every metric; the run is named as its actors are, for example `cola-1f2e3d`."""
HEAD_TAGS = (*STREAM_TAGS, "head")

COUNTERS = {
    "bertvision_extracted_tokens": "Tokens of the blocks made by forward passes.",
    "bertvision_extracted_blocks": "Blocks made by forward passes.",
    "bertvision_cache_hit_blocks": "Blocks delivered without a forward pass.",
    "bertvision_trainer_wait_seconds": "Time in which head trainers waited for a block, summed.",
    "bertvision_extractor_wait_seconds": "Time in which extractors had no block to make, summed.",
}
STREAM_GAUGES = {
    "bertvision_in_flight_blocks": "Blocks being made, waiting or delivered, without the cache.",
    "bertvision_in_flight_bytes": "Bytes of the blocks in flight.",
    "bertvision_cached_blocks": "Blocks kept for later epochs.",
    "bertvision_cached_bytes": "Bytes of the blocks kept for later epochs.",
}
ATTACHED = "bertvision_attached_heads"
LOSS = "bertvision_head_loss"
HEAD_GAUGES = {
    ATTACHED: "Heads on this trainer.",
    LOSS: "Mean training loss of a head in its epoch so far; squared error for a regression.",
}


def counter_values(stats: StreamStats) -> dict[str, float]:
    """The values of all `COUNTERS`, by name."""
    return {
        "bertvision_extracted_tokens": stats.tokens_extracted,
        "bertvision_extracted_blocks": stats.blocks_extracted,
        "bertvision_cache_hit_blocks": stats.blocks_from_cache,
        "bertvision_trainer_wait_seconds": stats.train_wait_seconds,
        "bertvision_extractor_wait_seconds": stats.extract_wait_seconds,
    }


def gauge_values(stats: StreamStats) -> dict[str, float]:
    """The values of all `STREAM_GAUGES`, by name."""
    return {
        "bertvision_in_flight_blocks": stats.held_blocks - stats.cached_blocks,
        "bertvision_in_flight_bytes": stats.held_bytes - stats.cache_bytes,
        "bertvision_cached_blocks": stats.cached_blocks,
        "bertvision_cached_bytes": stats.cache_bytes,
    }


class StreamMetrics:
    """The metrics that a feature stream publishes.

    Args:
        tags: The values of `STREAM_TAGS`.
        stats: The totals when the stream starts. The streams before this one have published them
            already, so that only what comes on top is added to the counters.
    """

    def __init__(self, tags: Mapping[str, str], stats: StreamStats):
        self._counters = {
            name: Counter(name, text, STREAM_TAGS).set_default_tags(dict(tags))
            for name, text in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(name, text, STREAM_TAGS).set_default_tags(dict(tags))
            for name, text in STREAM_GAUGES.items()
        }
        self._published = counter_values(stats)

    def publish(self, stats: StreamStats) -> None:
        """Add to the counters what was counted since the last call, and set the gauges."""
        now = counter_values(stats)
        for name, counter in self._counters.items():
            if now[name] > self._published[name]:
                counter.inc(now[name] - self._published[name])
        for name, value in gauge_values(stats).items():
            self._gauges[name].set(value)
        self._published = now


class HeadMetrics:
    """The metrics that a head trainer publishes.

    A thread publishes them: a trainer may be busy for longer than Ray remembers a gauge, and one
    that waits for a block gets no call in which it could set them.

    Args:
        tags: The values of `STREAM_TAGS`.
    """

    def __init__(self, tags: Mapping[str, str]):
        self._attached = Gauge(ATTACHED, HEAD_GAUGES[ATTACHED], STREAM_TAGS)
        self._loss = Gauge(LOSS, HEAD_GAUGES[LOSS], HEAD_TAGS)
        for gauge in (self._attached, self._loss):
            gauge.set_default_tags(dict(tags))
        self._losses: dict[str, float | None] = {}
        threading.Thread(target=self._publish, daemon=True, name="head-metrics").start()

    def set_heads(self, names: Iterable[str]) -> None:
        """Set which heads the trainer holds from now on; a new head has no loss yet."""
        self._losses = {name: self._losses.get(name) for name in names}

    def set_losses(self, losses: Mapping[str, float]) -> None:
        """Set the losses of all heads, by name."""
        self._losses = dict(losses)

    def _publish(self) -> None:
        """Set the gauges again and again, for as long as the process lives."""
        while True:
            # The setters replace the whole dictionary, so that this thread needs no lock.
            losses = self._losses
            self._attached.set(len(losses))
            for name, loss in losses.items():
                self._loss.set(loss, {"head": name})  # Ray ignores None
            time.sleep(PUBLISH_SECONDS)


class Progress:
    """The progress bar of one epoch, which Ray draws on the driver's console.

    Args:
        plan: The blocks of the epoch.
        epoch: The epoch, counted from 0.
        stats: The totals of the stream, which the bar reads while they grow.
        shown: Whether to draw the bar.
    """

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
        """Count one more consumed block, and show the loss and the rates so far."""
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
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
