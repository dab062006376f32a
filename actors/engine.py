"""Plan the stream of a run, run all its epochs, and bring home what came of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from ray.exceptions import RayActorError

from actors.cluster import store_stats
from actors.records import EpochEnd
from actors.stream_actors import start_stream_actors
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import Placement
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.plan_check import check_plan
from bertvision_stream.stream.stats import StoreStats, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import StreamError


def run_stream(
    plan: StreamPlan,
    placement: Placement,
    *,
    settings: TaskSettings,
    task: Task,
    corpus: Corpus,
    weights: BackboneWeights,
    heads: Mapping[str, TaskSettings],
    shape: HeadShape,
    show_progress: bool,
    say: Callable[[str], None],
    checkpoint: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> StreamOutcome:
    """Start extractors, a trainer and the feature stream, run all epochs, and end the actors.

    Args:
        plan: What is streamed.
        placement: Who gets what.
        settings: Of the task.
        task: What is learned.
        corpus: Tokens, labels and blocks.
        weights: The frozen backbone.
        heads: Settings of the heads by name.
        shape: What they read and write.
        show_progress: Whether to draw bars.
        say: Prints a line.
        checkpoint: What `keep` was given by an interrupted run, to go on from; None starts anew.
        keep: Called after each epoch, with all that is needed to go on from there.

    Raises:
        StreamError: A block could not be made, an actor could not be started or died too often.
    """
    start = time.perf_counter()
    disk_before = store_stats()
    state = _StreamState.of(checkpoint)
    stream_actors = start_stream_actors(
        plan,
        placement,
        settings=settings,
        task=task,
        corpus=corpus,
        weights=weights,
        shape=shape,
        heads=[heads],
        show_progress=show_progress,
        checkpoints=[checkpoint],
        stats=state.stats,
    )
    first_epoch: StreamStats | None = None
    try:
        extractor_info, trainer_info = stream_actors.ready()
        start_seconds = time.perf_counter() - start
        say(
            f"streaming: {placement.num_extractors} extractors on {extractor_info}, a head trainer "
            f"on {trainer_info}"
        )
        while state.active and (epoch := len(state.epoch_seconds)) < plan.num_epochs:
            epoch_start = time.perf_counter()
            stream_actors.run_epoch(epoch, last_epoch=plan.num_epochs - 1)
            first_epoch = stream_actors.stats if epoch == 0 else first_epoch
            state = _StreamState(
                stats=stream_actors.stats,
                epoch_seconds=(*state.epoch_seconds, time.perf_counter() - epoch_start),
                active=any(end.active for end in stream_actors.last_ends),
            )
            # Kept before it is announced: a run can be resumed from whatever it calls finished.
            keep(state.with_stream_state(stream_actors.checkpoints[0]))
            for line in _epoch_lines(stream_actors.last_ends, plan.num_epochs):
                say(line)
        results, bert_logits = stream_actors.results()[0]
    except RayActorError as error:
        raise StreamError(f"an actor was lost: {error}") from error
    finally:
        stream_actors.stop()
    disk = store_stats()
    return StreamOutcome(
        heads=results,
        bert_logits=bert_logits,
        stats=state.stats,
        budget=plan.budget,
        store=StoreStats(
            disk.spilled_bytes - disk_before.spilled_bytes,
            disk.fallback_bytes - disk_before.fallback_bytes,
            disk.used_bytes,
        ),
        extractor=extractor_info,
        trainer=trainer_info,
        deaths=tuple(stream_actors.deaths),
        began=start,
        start_seconds=start_seconds,
        epoch_seconds=state.epoch_seconds,
        check=check_plan(
            plan,
            state.stats,
            state.epoch_seconds,
            first=first_epoch,
            num_extractors=placement.num_extractors,
        ),
    )


@dataclass(frozen=True)
class _StreamState:
    """What a checkpoint holds beside the trainer's state."""

    stats: StreamStats
    epoch_seconds: tuple[float, ...]
    active: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> "_StreamState":
        if checkpoint is None:
            return cls(StreamStats(), (), True)
        facts = checkpoint.facts["stream"]
        stats = StreamStats(**facts["stats"])
        # JSON has no keys but text.
        stats.tokens_by_epoch = {int(epoch): n for epoch, n in stats.tokens_by_epoch.items()}
        return cls(stats, tuple(facts["epoch_seconds"]), facts["active"])

    def with_stream_state(self, checkpoint: Checkpoint | None) -> Checkpoint:
        assert checkpoint is not None
        return checkpoint.with_facts(stream=asdict(self))


def _epoch_lines(ends: Sequence[EpochEnd], num_epochs: int) -> Iterator[str]:
    """One line for each head that trained in an epoch."""
    for end in ends:
        for name, record in end.records.items():
            if record is None:
                yield f"{name}: stopped"
                continue
            scores = ", ".join(
                f"{split} {metric} {value:.4f}"
                for split, metrics in record.scores.items()
                for metric, value in metrics.items()
            )
            whose = f"{name}: " if len(end.records) > 1 else ""
            yield (
                f"{whose}epoch {record.epoch}/{num_epochs}: loss {record.loss:.4f}, "
                f"validation loss {record.validation_loss:.4f}, {scores}"
            )
