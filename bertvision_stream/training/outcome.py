"""What the training of heads on a stream leaves behind, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.budget import Budget
from bertvision_stream.stream.stats import DeviceInfo, StoreStats, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.records import EpochRecord


@dataclass(frozen=True, kw_only=True)
class StreamOutcome:
    """What a stream leaves behind.

    Attributes:
        heads: The results of the heads by name.
        bert_logits: BERT's own validation logits by split: float32 [R, C].
        stats: The totals of the stream, those of the interrupted run that it resumed included.
        budget: The decision on bytes.
        store: The bytes that went to disk while the stream ran.
        extractor: What the extractors ran on.
        trainer: What the trainers ran on.
        deaths: The trainers and streams that died and were started again, one sentence each.
        began: When the stream began, by `time.perf_counter`.
        start_seconds: The time until all actors were ready.
        epoch_seconds: The wall time of each epoch.
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

    @property
    def store_file(self) -> str:
        """The file on disk that holds an object store of this stream; empty where memory does."""
        return self.extractor.store_file or self.trainer.store_file

    @property
    def seconds(self) -> float:
        """The wall time of all epochs together."""
        return sum(self.epoch_seconds)


@dataclass(frozen=True)
class StreamState:
    """What a checkpoint keeps of a stream beside the state of its trainer.

    Attributes:
        stats: The totals so far.
        epoch_seconds: The wall time of each epoch so far.
        active: Whether any head still trains.
    """

    stats: StreamStats
    epoch_seconds: tuple[float, ...] = ()
    active: bool = True

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> StreamState:
        """The state in a checkpoint; the state of a stream that begins where there is none."""
        if checkpoint is None:
            return cls(StreamStats())
        facts = checkpoint.facts["stream"]
        stats = StreamStats(**facts["stats"])
        # JSON has no keys but text.
        stats.tokens_by_epoch = {int(epoch): n for epoch, n in stats.tokens_by_epoch.items()}
        return cls(stats, tuple(facts["epoch_seconds"]), facts["active"])

    def after_epoch(self, stats: StreamStats, seconds: float, *, active: bool) -> StreamState:
        """The state once one more epoch is over."""
        return StreamState(stats, (*self.epoch_seconds, seconds), active)

    def saved_in(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint of a trainer with this state beside it."""
        return checkpoint.with_facts(stream=asdict(self))


def epoch_lines(
    records: Iterable[tuple[str, EpochRecord | None]], task: Task, num_epochs: int
) -> Iterator[str]:
    """One line for people about each head that trained in an epoch.

    Args:
        records: The record of each head by its name; None for one that was stopped.
        task: The task of the heads.
        num_epochs: The number of planned epochs.
    """
    records = list(records)
    for name, record in records:
        if record is None:
            yield f"{name}: stopped"
            continue
        scores = ", ".join(
            f"{split} {task.metric_title(metric)} {value:.4f}"
            for split, metrics in record.scores.items()
            for metric, value in metrics.items()
        )
        whose = f"{name}: " if len(records) > 1 else ""
        yield (
            f"{whose}epoch {record.epoch}/{num_epochs}: loss {record.loss:.4f}, "
            f"validation loss {record.validation_loss:.4f}, {scores}"
        )
