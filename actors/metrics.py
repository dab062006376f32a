"""Numbers for Ray's dashboard, Prometheus and Grafana; `docs/grafana.json` shows them all.

Each says its unit at the end of its name. Ray serves them on every node, with `ray_` before the
name and, for what only grows, `_total` after it.
"""

import threading
import time
from collections.abc import Iterable, Mapping

from ray.util.metrics import Counter, Gauge

from bertvision_stream.stream.stats import StreamStats

# Metrics are told so often, and not with each block. Ray passes on every ten seconds what it was
# told since, and forgets a gauge of which it heard nothing for twenty.
PUBLISH_SECONDS = 5.0

STREAM_TAGS = ("task", "run")
"""The run is named as its actors are, say `cola-1f2e3d`."""
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


def totals(stats: StreamStats) -> dict[str, float]:
    """The values of all counters."""
    return {
        "bertvision_extracted_tokens": stats.tokens_extracted,
        "bertvision_extracted_blocks": stats.blocks_extracted,
        "bertvision_cache_hit_blocks": stats.blocks_from_cache,
        "bertvision_trainer_wait_seconds": stats.train_wait_seconds,
        "bertvision_extractor_wait_seconds": stats.extract_wait_seconds,
    }


def levels(stats: StreamStats) -> dict[str, float]:
    """The values of all gauges of a stream."""
    return {
        "bertvision_in_flight_blocks": stats.held_blocks - stats.cached_blocks,
        "bertvision_in_flight_bytes": stats.held_bytes - stats.cache_bytes,
        "bertvision_cached_blocks": stats.cached_blocks,
        "bertvision_cached_bytes": stats.cache_bytes,
    }


class StreamMetrics:
    """What a feature stream tells of itself.

    Args:
        tags: Values of `STREAM_TAGS`.
        stats: Totals at its start, which streams before it have told.
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
        self._published = totals(stats)

    def publish(self, stats: StreamStats) -> None:
        """Tell what has been counted since the last time, and what is there now."""
        now = totals(stats)
        for name, counter in self._counters.items():
            if now[name] > self._published[name]:
                counter.inc(now[name] - self._published[name])
        for name, level in levels(stats).items():
            self._gauges[name].set(level)
        self._published = now


class HeadMetrics:
    """What a head trainer tells of itself, in a thread of its own: it may be busy, or wait.

    Args:
        tags: Values of `STREAM_TAGS`.
    """

    def __init__(self, tags: Mapping[str, str]):
        self._attached = Gauge(ATTACHED, HEAD_GAUGES[ATTACHED], STREAM_TAGS)
        self._loss = Gauge(LOSS, HEAD_GAUGES[LOSS], HEAD_TAGS)
        for gauge in (self._attached, self._loss):
            gauge.set_default_tags(dict(tags))
        self._losses: dict[str, float | None] = {}
        threading.Thread(target=self._publish, daemon=True, name="head-metrics").start()

    def set_heads(self, names: Iterable[str]) -> None:
        """These are the heads from now on; new ones have no loss yet."""
        self._losses = {name: self._losses.get(name) for name in names}

    def set_losses(self, losses: Mapping[str, float]) -> None:
        """The losses of all heads by name."""
        self._losses = dict(losses)

    def _publish(self) -> None:
        while True:
            losses = self._losses
            self._attached.set(len(losses))
            for name, loss in losses.items():
                self._loss.set(loss, {"head": name})  # None is not told
            time.sleep(PUBLISH_SECONDS)
