"""The actors of one stream, and what is done when one of them dies."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfDiskError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import get_with_notice
from actors.extractor import ExtractorSpec
from actors.faults import MAX_ATTEMPTS
from actors.records import EpochEnd, EpochReport
from actors.stream import FeatureStream
from actors.trainer import HeadTrainer
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import Placement
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.utils.errors import BertvisionError, StreamError, TrainerLostError

_log = logging.getLogger("bertvision_stream")

T = TypeVar("T")

Attachment = tuple[TaskSettings, Checkpoint | None]
"""A head's settings, and where it goes on; None starts it."""


@dataclass(frozen=True)
class TrainerSpec:
    """How to start a head trainer, the first one and one that takes the place of a lost one.

    Attributes:
        name: Begins the actor's name.
        corpus: Ref of the `Corpus`.
        task: What is learned.
        shape: What heads read and write.
        precision: `train.precision`.
        stack_heads: `train.stack_heads`.
        num_gpus: GPUs, a fraction allowed.
        num_threads: CPU threads.
        tags: Of its metrics.
    """

    name: str
    corpus: ray.ObjectRef
    task: Task
    shape: HeadShape
    precision: str
    stack_heads: bool
    num_gpus: float
    num_threads: int
    tags: Mapping[str, str]

    def start(
        self, number: int, heads: Mapping[str, TaskSettings], checkpoint: Checkpoint | None
    ) -> ActorHandle:
        """Start a trainer; it answers once it is ready."""
        actor: Any = ray.remote(HeadTrainer).options(
            name=f"{self.name}-{number}",
            num_cpus=0,
            num_gpus=self.num_gpus,
            # Without a GPU to look for: where the driver is, as nothing goes on without that node.
            scheduling_strategy="DEFAULT" if self.num_gpus else on_this_node(),
        )
        handle: ActorHandle = actor.remote(
            self.corpus,
            self.task,
            heads,
            self.shape,
            precision=self.precision,
            stack_heads=self.stack_heads,
            num_threads=self.num_threads,
            tags=self.tags,
            checkpoint=checkpoint,
        )
        return handle


class StreamActors:
    """A feature stream with its extractors, and the trainers that it feeds.

    The driver holds what is needed to go on: the plan, and each trainer's state at the end of the
    last epoch. A trainer that dies is started again from there, a stream that dies is replaced by
    one that asks the trainers for their positions.

    Args:
        plan: What to deliver.
        placement: Who gets what.
        extractors: How to start extractors.
        trainers: How to start trainers.
        heads: Settings of the heads by name, for each trainer.
        checkpoints: Where trainers go on, one for each; None starts them.
        stats: Totals so far.
        show_progress: Whether to draw bars.
    """

    def __init__(
        self,
        plan: StreamPlan,
        placement: Placement,
        extractors: ExtractorSpec,
        trainers: TrainerSpec,
        heads: Sequence[Mapping[str, TaskSettings]],
        *,
        checkpoints: list[Checkpoint | None],
        stats: StreamStats,
        show_progress: bool,
    ):
        self._plan = plan
        self._placement = placement
        self._extractor_spec = extractors
        self._trainer_spec = trainers
        self._heads = [dict(settings) for settings in heads]
        self._show_progress = show_progress
        self._num_trainers = self._num_streams = 0  # started so far, for names
        self.name = extractors.run
        self.checkpoints = checkpoints
        self.stats = stats
        self.deaths: list[str] = []
        self.last_ends: tuple[EpochEnd, ...] = ()
        self.trainers = [self._start_trainer(i) for i in range(len(heads))]
        self.stream = self._start_stream()

    def ready(self) -> tuple[DeviceInfo, DeviceInfo]:
        """What extractors and trainers run on, once all are ready.

        Raises:
            StreamError: One of them could not be started.
        """
        started = self.stream.start.remote()  # it speaks of extractors that wait
        wanted = f"a head trainer ({self._trainer_spec.num_gpus:g} GPU)"
        infos = [trainer.info.remote() for trainer in self.trainers]
        with _our_errors():
            trainer = get_with_notice(infos, wanted)[0]
        (extractor,) = self.call(started)
        return extractor, trainer

    def run_epoch(self, epoch: int, last_epoch: int) -> None:
        """Run one epoch, whatever dies, in bounded attempts.

        Leaves its reports in `last_ends` and the trainers' states in `checkpoints`, in the order
        of the trainers.

        Raises:
            StreamError: A block could not be made, or an actor died again and again.
        """

        def run() -> None:
            report: EpochReport = self.call(self.stream.run_epoch.remote(epoch, last_epoch))[0]
            self.stats = report.stats
            self.last_ends = report.ends
            self.checkpoints = self.call(*(t.checkpoint.remote() for t in self.trainers))

        self.retry_on_death(run, f"epoch {epoch + 1}")

    def update(self, attach: Mapping[str, Attachment], detach: Sequence[str]) -> None:
        """Let heads come and go, between two epochs; a new one goes where the fewest are.

        Args:
            attach: Settings, and where to go on, by name; a head of the same name is replaced.
            detach: Names.

        Raises:
            StreamError: A trainer died again and again.
        """
        for name in (*detach, *attach):
            for heads in self._heads:
                heads.pop(name, None)
        changes: list[dict[str, Attachment]] = [{} for _ in self._heads]
        for name, attachment in attach.items():
            i = min(range(len(self._heads)), key=lambda i: len(self._heads[i]))
            self._heads[i][name] = attachment[0]
            changes[i][name] = attachment
        gone = [*detach, *attach]

        def apply() -> None:
            for trainer, change in zip(self.trainers, changes, strict=True):
                self.call(trainer.update.remote(change, gone))
            self.checkpoints = self.call(*(t.checkpoint.remote() for t in self.trainers))

        self.retry_on_death(apply, "a change of heads")

    def results(self) -> list[tuple[dict[str, HeadResult], dict[str, np.ndarray]]]:
        """Of each trainer: every head's result by name, and BERT's validation logits by split.

        Raises:
            StreamError: An actor died again and again.
        """
        return self.retry_on_death(
            lambda: self.call(*(t.results.remote() for t in self.trainers)), "the end of training"
        )

    def retry_on_death(self, action: Callable[[], T], what: str) -> T:
        """Do it, and again with new actors where one dies, in bounded attempts."""
        deaths: list[str] = []
        while True:
            try:
                return action()
            except (TrainerLostError, RayActorError) as error:
                deaths.append(str(error).splitlines()[0])
            if len(deaths) > MAX_ATTEMPTS:
                raise StreamError(
                    f"{what} was given up after {len(deaths)} deaths of its actors; the causes, in "
                    f"order: {' | '.join(deaths)}. The epochs before are kept: resume=true goes on "
                    f"from them."
                )
            self.deaths.append(deaths[-1])
            _log.warning("%s; what was lost is started again", deaths[-1])
            self._revive()

    def call(self, *refs: ray.ObjectRef) -> list[Any]:
        """Wait for answers.

        Raises:
            BertvisionError: What an actor raised of ours.
            StreamError: What else it raised.
            RayActorError: It died.
        """
        with _our_errors():
            return list(ray.get(list(refs)))

    def stop(self) -> None:
        """End all actors; extractors are the stream's own and end with it."""
        for actor in (self.stream, *self.trainers):
            ray.kill(actor)

    def _revive(self) -> None:
        """Start again whatever does not answer."""
        for i, trainer in enumerate(self.trainers):
            if not _alive(trainer.position.remote()):
                ray.kill(trainer)
                self.trainers[i] = self._start_trainer(i)
        if _alive(self.stream.stats.remote()):
            self.call(self.stream.set_trainers.remote(self.trainers))
        else:
            ray.kill(self.stream)
            self.stream = self._start_stream()
            self.call(self.stream.start.remote())

    def _start_trainer(self, i: int) -> ActorHandle:
        self._num_trainers += 1
        return self._trainer_spec.start(self._num_trainers - 1, self._heads[i], self.checkpoints[i])

    def _start_stream(self) -> Any:
        # Extractors of a dead stream may be about to end, and names are unique.
        again = f"-again-{self._num_streams}" if self._num_streams else ""
        self._num_streams += 1
        spec = replace(self._extractor_spec, run=f"{self.name}{again}")
        actor: Any = ray.remote(FeatureStream).options(
            name=f"{spec.run}-feature-stream", num_cpus=0, scheduling_strategy=on_this_node()
        )
        return actor.remote(
            self._plan,
            spec,
            self._placement.num_extractors,
            self.trainers,
            stats=self.stats,
            tags=self._trainer_spec.tags,
            show_progress=self._show_progress,
        )


def start_stream_actors(
    plan: StreamPlan,
    placement: Placement,
    *,
    settings: TaskSettings,
    task: Task,
    corpus: Corpus,
    weights: BackboneWeights,
    shape: HeadShape,
    heads: Sequence[Mapping[str, TaskSettings]],
    show_progress: bool,
    checkpoints: Sequence[Checkpoint | None] = (),
    stats: StreamStats | None = None,
) -> StreamActors:
    """Start the actors of a stream.

    Args:
        plan: What is streamed.
        placement: Who gets what.
        settings: Of the task.
        task: What is learned.
        corpus: Tokens, labels and blocks.
        weights: The frozen backbone.
        shape: What heads read and write.
        heads: Settings of the heads by name, for each trainer.
        show_progress: Whether to draw bars.
        checkpoints: Where the trainers go on; none starts them.
        stats: Totals of an interrupted run that is gone on with.

    Raises:
        StreamError: Tokens or weights do not fit into the object store.
    """
    run = f"{task.name}-{uuid.uuid4().hex[:6]}"  # names of actors are unique in a job
    corpus_ref = put("the corpus", corpus)
    return StreamActors(
        plan,
        placement,
        ExtractorSpec(
            run=run,
            weights=put("the backbone", weights),
            corpus=corpus_ref,
            codec=settings.extract.codec,
            dtype=settings.backbone.dtype,
            num_cpus=placement.extractor_cpus,
            num_gpus=placement.extractor_gpus,
            num_threads=placement.extractor_threads,
        ),
        TrainerSpec(
            name=f"{run}-head-trainer",
            corpus=corpus_ref,
            task=task,
            shape=shape,
            precision=settings.train.precision,
            stack_heads=settings.train.stack_heads,
            num_gpus=placement.trainer_gpus,
            num_threads=placement.trainer_threads,
            tags={"task": task.name, "run": run},
        ),
        heads,
        checkpoints=list(checkpoints) or [None for _ in heads],
        stats=stats or StreamStats(),
        show_progress=show_progress,
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """On the node of whoever calls."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def put(what: str, value: object) -> ray.ObjectRef:
    """`ray.put` that says what did not fit.

    Raises:
        StreamError: The object store is full.
    """
    try:
        return ray.put(value)
    except OutOfDiskError:
        raise StreamError(
            f"{what} does not fit into Ray's object store beside what is in it; give Ray a larger "
            f"object store"
        ) from None


@contextmanager
def _our_errors() -> Iterator[None]:
    """What an actor raised of ours is raised as such."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BertvisionError):
            raise error.cause from None
        raise StreamError(f"an actor failed: {error}") from error


def _alive(answer: ray.ObjectRef) -> bool:
    try:
        ray.get(answer)
    except RayActorError:
        return False
    return True
