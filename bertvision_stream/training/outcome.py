"""What the training of heads on a stream leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bertvision_stream.stream.budget import Budget
from bertvision_stream.stream.plan_check import PlanCheck
from bertvision_stream.stream.stats import DeviceInfo, StoreStats, StreamStats
from bertvision_stream.training.fit import HeadResult


@dataclass(frozen=True)
class StreamOutcome:
    """What a stream leaves behind.

    Attributes:
        heads: Results by name.
        bert_logits: BERT's own validation logits by split: float32 [N, C].
        stats: Totals, those of the interrupted run that it went on with included.
        budget: The decision on bytes.
        store: Bytes that went to disk while it ran.
        extractor: What extractors ran on.
        trainer: What trainers ran on.
        deaths: Trainers and streams that died and were started again.
        began: When it was begun, by `time.perf_counter`.
        start_seconds: Until all actors were ready.
        epoch_seconds: Of each epoch.
        check: What the plan said in advance, against what happened.
    """

    heads: Mapping[str, HeadResult]
    bert_logits: Mapping[str, np.ndarray]
    stats: StreamStats
    budget: Budget
    store: StoreStats
    extractor: DeviceInfo
    trainer: DeviceInfo
    deaths: tuple[str, ...]
    began: float
    start_seconds: float
    epoch_seconds: tuple[float, ...]
    check: PlanCheck

    @property
    def seconds(self) -> float:
        """All epochs together."""
        return sum(self.epoch_seconds)
