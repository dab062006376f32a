"""Plan the stream of a run, run all its epochs, and bring home what came of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from ray.exceptions import RayActorError

from actors.cluster import Placement, StoreStats, store_stats
from actors.crew import make_crew
from actors.records import DeviceInfo, EpochEnd
from bertvision_stream.backbone import BackboneWeights
from bertvision_stream.blocks import TRAIN
from bertvision_stream.budget import Budget, plan_budget
from bertvision_stream.checkpoint import Checkpoint
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.corpus import Corpus
from bertvision_stream.errors import StreamError
from bertvision_stream.fit import HeadResult
from bertvision_stream.heads import HeadShape
from bertvision_stream.plan import StreamPlan, StreamStats
from bertvision_stream.plan_check import PlanCheck, check_plan
from bertvision_stream.settings import TaskSettings
from bertvision_stream.tasks import Task


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


def plan_stream(
    settings: TaskSettings,
    corpus: Corpus,
    block_format: BlockFormat,
    *,
    num_extractors: int,
    num_nodes: int,
    store_bytes: int,
) -> StreamPlan:
    """What is to be streamed, within which limits.

    Args:
        settings: Of the task.
        corpus: Blocks.
        block_format: What fixes their bytes.
        num_extractors: How many make them.
        num_nodes: Nodes of the cluster.
        store_bytes: Room in their object stores together.

    Raises:
        ConfigError: The budget or the object store is too small.
    """
    blocks = [block for split in corpus.blocks.values() for block in split]
    block_bytes = {
        block.key: block_format.block_bytes(block.num_tokens, block.num_examples)
        for block in blocks
    }
    validation = tuple(corpus.validation_keys)
    return StreamPlan(
        seed=corpus.seed,
        num_epochs=settings.train.epochs,
        same_order=settings.mode == "search",
        num_train=len(corpus.blocks[TRAIN]),
        validation=validation,
        block_bytes=block_bytes,
        block_tokens={block.key: block.num_tokens for block in blocks},
        budget=plan_budget(
            block_bytes,
            validation,
            num_train=len(corpus.blocks[TRAIN]),
            seed=corpus.seed,
            budget=settings.stream.budget,
            cache=settings.stream.cache,
            store_bytes=store_bytes,
            num_nodes=num_nodes,
            num_extractors=num_extractors,
        ),
    )


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
    crew = make_crew(
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
        extractor_info, trainer_info = crew.ready()
        start_seconds = time.perf_counter() - start
        say(
            f"streaming: {placement.num_extractors} extractors on {extractor_info}, a head trainer "
            f"on {trainer_info}"
        )
        while state.active and (epoch := len(state.epoch_seconds)) < plan.num_epochs:
            epoch_start = time.perf_counter()
            crew.run_epoch(epoch, last_epoch=plan.num_epochs - 1)
            first_epoch = crew.stats if epoch == 0 else first_epoch
            state = _StreamState(
                stats=crew.stats,
                epoch_seconds=(*state.epoch_seconds, time.perf_counter() - epoch_start),
                active=any(end.active for end in crew.last_ends),
            )
            keep(state.beside(crew.checkpoints[0]))  # what is said to be finished is kept
            for line in _epoch_lines(crew.last_ends, plan.num_epochs):
                say(line)
        results, bert_logits = crew.results()[0]
    except RayActorError as error:
        raise StreamError(f"an actor was lost: {error}") from error
    finally:
        crew.stop()
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
        deaths=tuple(crew.deaths),
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

    def beside(self, checkpoint: Checkpoint | None) -> Checkpoint:
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
