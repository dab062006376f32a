"""The actors of one stream, and what is done when one of them dies."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfDiskError, RayActorError, RayTaskError

from actors.cluster import get_with_notice, on_this_node
from actors.extractor import ExtractorSpec
from actors.faults import MAX_ATTEMPTS
from actors.records import EpochEnd, EpochReport
from actors.stream import FeatureStream
from actors.trainer import Attachment, TrainerSpec
from bertvision_stream.models.job import Job
from bertvision_stream.stream.placement import Placement
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.utils.errors import BertvisionError, StreamError, TrainerLostError
from bertvision_stream.utils.log import show_progress

_log = logging.getLogger("bertvision_stream")

T = TypeVar("T")


class StreamActors:
    """A feature stream with its extractors, and the trainers that it feeds.

    The driver holds what is needed to go on: the plan, and each trainer's state at the end of the
    last epoch. A trainer that dies is started again from there, a stream that dies is replaced by
    one that asks the trainers for their positions.

    Args:
        plan: What is delivered, and within which limits.
        placement: How many extractors there are.
        extractors: How to start an extractor.
        trainers: How to start a trainer.
        heads: The heads by name, for each trainer.
        checkpoints: Where each trainer resumes; None starts it.
        stats: The totals so far.
    """

    def __init__(
        self,
        plan: StreamPlan,
        placement: Placement,
        extractors: ExtractorSpec,
        trainers: TrainerSpec,
        heads: Sequence[Mapping[str, HeadJob]],
        *,
        checkpoints: list[Checkpoint | None],
        stats: StreamStats,
    ):
        self._plan = plan
        self._placement = placement
        self._extractor_spec = extractors
        self._trainer_spec = trainers
        self._heads = [dict(of_trainer) for of_trainer in heads]
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
            attach: The new heads by name; a head of the same name is replaced.
            detach: The names of the heads to let go.

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
            show_progress=show_progress(),
        )


def start_stream_actors(
    job: Job,
    heads: Sequence[Mapping[str, HeadJob]],
    *,
    checkpoint: Checkpoint | None = None,
    stats: StreamStats | None = None,
) -> StreamActors:
    """Start the actors of a stream.

    Args:
        job: The task, ready to have heads trained on it.
        heads: The heads by name, for each trainer.
        checkpoint: Where the only trainer resumes; None starts the trainers.
        stats: The totals of the interrupted run that is resumed.

    Raises:
        StreamError: Tokens or weights do not fit into the object store.
    """
    settings, task, placement = job.settings, job.task, job.placement
    run = f"{task.name}-{uuid.uuid4().hex[:6]}"  # names of actors are unique in a job
    corpus = put("the corpus", job.corpus)
    return StreamActors(
        job.plan,
        placement,
        ExtractorSpec(
            run=run,
            weights=put("the backbone", job.backbone.weights),
            corpus=corpus,
            codec=settings.extract.codec,
            dtype=settings.backbone.dtype,
            num_cpus=placement.extractor_cpus,
            num_gpus=placement.extractor_gpus,
            num_threads=placement.extractor_threads,
        ),
        TrainerSpec(
            name=f"{run}-head-trainer",
            corpus=corpus,
            task=task,
            shape=job.shape,
            precision=settings.train.precision,
            stack_heads=settings.train.stack_heads,
            num_gpus=placement.trainer_gpus,
            num_threads=placement.trainer_threads,
            tags={"task": task.name, "run": run},
        ),
        heads,
        checkpoints=[checkpoint for _ in heads],
        stats=stats or StreamStats(),
    )


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
