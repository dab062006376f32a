"""The actors of one stream: how they start, and how the driver replaces those that die."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from actors.cluster import get_with_notice, on_this_node
from actors.extractor import ExtractorSpec
from actors.object_store import put
from actors.records import MAX_ATTEMPTS, EpochEnd, EpochReport, death_of
from actors.stream import FeatureStream
from actors.trainer import Attachment, TrainerSpec
from bertvision_stream.models.job import Job
from bertvision_stream.stream.placement import Placement
from bertvision_stream.stream.plan import Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.utils.errors import BertvisionError, StreamError, TrainerLostError
from bertvision_stream.utils.log import log, show_progress

T = TypeVar("T")

# The time between two looks at what the stream has to tell.
FOLLOW_SECONDS = 1.0


class StreamActors:
    """A feature stream with its extractors, and the trainers that it delivers to.

    The driver holds what is needed to go on after a fault: the plan, and the state of each trainer
    at the end of the last epoch. A trainer that dies is started again from that state. A stream
    that dies is replaced by one that asks the trainers for their positions.

    Args:
        plan: The blocks to deliver, their order and the limits.
        placement: The number of extractors.
        extractors: How to start an extractor.
        trainers: How to start a trainer.
        heads: What each head is and learns from, by its name, for each trainer.
        checkpoints: The state from which each trainer resumes; None starts it.
        stats: The totals of the interrupted run that is resumed.

    Attributes:
        name: The name of the stream, with which the names of its actors begin.
        checkpoints: The state of each trainer at the end of the last epoch.
        stats: The totals at the end of the last epoch.
        deaths: The actors that died, one sentence each.
        last_ends: The report of each trainer on the last epoch.
        trainers: The handles of the trainers.
        stream: The handle of the feature stream.
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
        self._num_trainers = self._num_streams = 0  # started so far: they make names unique
        self.name = extractors.run
        self.checkpoints = checkpoints
        self.stats = stats
        self.deaths: list[str] = []
        self.last_ends: tuple[EpochEnd, ...] = ()
        self.trainers = [self._start_trainer(i) for i in range(len(heads))]
        self.stream = self._start_stream()

    def ready(self) -> tuple[DeviceInfo, DeviceInfo]:
        """Wait until all actors are ready.

        Returns:
            What the extractors run on, and what the trainers run on.

        Raises:
            StreamError: One of them could not be started.
        """
        wanted = f"a head trainer ({self._trainer_spec.num_gpus:g} GPU)"

        def wait() -> tuple[DeviceInfo, DeviceInfo]:
            # The stream itself warns of extractors that wait for resources; trainers are up to us.
            infos = [trainer.info.remote() for trainer in self.trainers]
            with _our_errors():
                trainer = get_with_notice(infos, self.trainers, wanted)[0]
            extractor = self._follow(self._stream_started)
            return extractor, trainer

        return self.retry_on_death(wait, "the start")

    def run_epoch(self, epoch: int, last_epoch: int) -> None:
        """Run one epoch, again if an actor dies, in a bounded number of attempts.

        The reports of the trainers are then in `last_ends`, and their states in `checkpoints`.

        Args:
            epoch: The epoch, counted from 0.
            last_epoch: The last epoch that blocks may be made for ahead of time.

        Raises:
            StreamError: A block could not be made, or an actor died again and again.
        """

        def run() -> None:
            report: EpochReport = self._follow(self.stream.run_epoch.remote(epoch, last_epoch))
            self.stats = report.stats
            self.last_ends = report.ends
            self.checkpoints = self.call(*(t.checkpoint.remote() for t in self.trainers))

        self.retry_on_death(run, f"epoch {epoch + 1}")

    def update(self, attach: Mapping[str, Attachment], detach: Sequence[str]) -> None:
        """Add and remove heads, between two epochs; a new head goes to the trainer with the fewest.

        Args:
            attach: The heads to add by name; a head of the same name is replaced.
            detach: The names of the heads to remove.

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
        """The results of all epochs.

        Returns:
            For each trainer the result of each head by name, and BERT's own validation logits by
            split.

        Raises:
            StreamError: An actor died again and again.
        """
        return self.retry_on_death(
            lambda: self.call(*(t.results.remote() for t in self.trainers)), "the end of training"
        )

    def retry_on_death(self, action: Callable[[], T], what: str) -> T:
        """Do something with the actors; where one dies, replace it and do it again.

        An actor may also die while others are being replaced: that is one more death, and the
        replacing begins anew. Deaths are counted against progress: once the trainers have consumed
        more than before, the count starts again, so that a run on machines that come and go ends.

        Args:
            action: What to do; it may be called several times.
            what: What that is, as the message of the error names it.

        Raises:
            StreamError: Actors died more than `MAX_ATTEMPTS` times without any progress.
        """
        deaths: list[str] = []
        furthest: Position | None = None
        while True:
            try:
                if deaths:
                    reached = self._revive()
                    if furthest is not None and reached > furthest:
                        del deaths[:-1]
                    furthest = reached if furthest is None else max(furthest, reached)
                return action()
            except TrainerLostError as error:
                deaths.append(str(error))
            except RayActorError as error:
                deaths.append(death_of(error))
            if len(deaths) > MAX_ATTEMPTS:
                raise StreamError(
                    f"{what} was given up after {len(deaths)} deaths of its actors; the causes, in "
                    f"order: {' | '.join(deaths)}. The epochs before are kept: resume=true goes on "
                    f"from them."
                )
            self.deaths.append(deaths[-1])
            log.warning("%s; what was lost is started again", deaths[-1])

    def call(self, *refs: ray.ObjectRef) -> list[Any]:
        """Wait for what actors return.

        Args:
            refs: The refs that calls of their methods have returned.

        Raises:
            BertvisionError: The actor raised an error of ours, which is raised as it is.
            StreamError: The actor raised any other error.
            RayActorError: The actor died.
        """
        with _our_errors():
            return list(ray.get(list(refs)))

    def _follow(self, ref: ray.ObjectRef) -> Any:
        """Call `call` for a method of the stream that takes long, and log what it tells meanwhile.

        So the lines of the stream and its extractors are in `run.log`, and have no prefix of Ray's.
        """
        while True:
            is_done = bool(ray.wait([ref], timeout=FOLLOW_SECONDS)[0])
            with suppress(RayActorError):  # `call` raises it
                for notice in ray.get(self.stream.take_notices.remote()):
                    log.warning("%s", notice)
            if is_done:
                return self.call(ref)[0]

    def stop(self) -> None:
        """End all actors; the stream owns its extractors, which end with it."""
        for actor in (self.stream, *self.trainers):
            ray.kill(actor)

    def _revive(self) -> Position:
        """Replace the actors that no longer respond.

        Returns:
            The first delivery that some trainer still wants.

        Raises:
            RayActorError: A further actor died meanwhile.
        """
        for i, trainer in enumerate(self.trainers):
            if not _alive(trainer.position.remote()):
                ray.kill(trainer)  # one that was only out of reach must not come back
                self.trainers[i] = self._start_trainer(i)
        if _alive(self.stream.stats.remote()):
            self.call(self.stream.set_trainers.remote(self.trainers))
        else:
            ray.kill(self.stream)
            self.stream = self._start_stream()
            self._follow(self._stream_started)
        return min(self.call(*(trainer.position.remote() for trainer in self.trainers)))

    def _start_trainer(self, i: int) -> ActorHandle:
        """Start trainer `i` from its last checkpoint."""
        self._num_trainers += 1
        return self._trainer_spec.start(self._num_trainers - 1, self._heads[i], self.checkpoints[i])

    def _start_stream(self) -> Any:
        """Start a stream that delivers to the trainers, and its extractors: `_stream_started`."""
        # The extractors of a dead stream may still be ending, and Ray refuses a name that is taken.
        again = f"-again-{self._num_streams}" if self._num_streams else ""
        self._num_streams += 1
        spec = replace(self._extractor_spec, run=f"{self.name}{again}")
        actor: Any = ray.remote(FeatureStream).options(
            name=f"{spec.run}-feature-stream", num_cpus=0, scheduling_strategy=on_this_node()
        )
        stream = actor.remote(
            self._plan,
            spec,
            self._placement.num_extractors,
            self.trainers,
            stats=self.stats,
            tags=self._trainer_spec.tags,
            show_progress=show_progress(),
        )
        self._stream_started = stream.start.remote()
        return stream


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
        heads: What each head is and learns from, by its name, for each trainer.
        checkpoint: The state from which every trainer resumes; None starts the trainers.
        stats: The totals of the interrupted run that is resumed.

    Raises:
        StreamError: Tokens or weights do not fit into the object store.
    """
    settings, task, placement = job.settings, job.task, job.placement
    run = f"{task.name}-{uuid.uuid4().hex[:6]}"  # as the names of actors must be unique
    corpus = put("the corpus", job.corpus, job.resident_bytes)
    return StreamActors(
        job.plan,
        placement,
        ExtractorSpec(
            run=run,
            weights=put("the backbone", job.backbone.weights, job.resident_bytes),
            corpus=corpus,
            codec=settings.extract.codec,
            dtype=settings.backbone.dtype,
            num_cpus=placement.extractor_cpus,
            num_gpus=placement.extractor_gpus,
            num_threads=placement.extractor_threads,
            resident_bytes=job.resident_bytes,
            layers=job.layers,
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


@contextmanager
def _our_errors() -> Iterator[None]:
    """Raise an error of ours that an actor raised as it is, and any other as a `StreamError`."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BertvisionError):
            raise error.cause from None
        raise StreamError(f"an actor failed: {error}") from error


def _alive(ref: ray.ObjectRef) -> bool:
    """Whether the actor that was called for `ref` lives long enough to return it."""
    try:
        ray.get(ref)
    except RayActorError:
        return False
    return True
