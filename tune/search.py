"""The search over heads with Ray Tune, in which one stream serves the heads of all trials."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from actors.cluster import in_thread, on_this_node
from actors.stream_actors import StreamActors, start_stream_actors
from actors.trainer import Attachment
from bertvision_stream.heads.head import Head
from bertvision_stream.models.job import Job
from bertvision_stream.settings.groups import HeadSettings
from bertvision_stream.settings.search_dimensions import Choice, Dimension
from bertvision_stream.settings.search_space import read_space
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.cost_model import trials_at_once
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.metrics import main_score
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.errors import SearchError
from bertvision_stream.utils.log import log
from tune.epoch_barrier import EpochBarrier, HeadReport
from tune.space import make_searcher, tune_domains
from tune.trial import HeadTrial
from tune.trial_results import MODE, SCORE
from tune.trials import number_of, read_search

# The folder of Tune's experiment in the folder of the run.
EXPERIMENT = "tune"

# At each rung ASHA lets one in this many trials go on.
REDUCTION_FACTOR = 3

# How often a trial whose process dies is restored from its checkpoint.
MAX_FAILURES = 3

# The most heads that one trainer is given at once, where memory allows more. The matrix products of
# this many still take less time than one forward pass on the same CPU core (see
# benchmarks/stacked_heads.py).
HEADS_PER_TRAINER = 32

# The fewest heads for one trainer, however little there is to share: with fewer it would be idle
# while one trial ends and the next one begins.
LEAST_PER_TRAINER = 4

# The time that the process of a trial takes to start, on one core; most of it goes into importing
# Tune.
START_CORE_SECONDS = 1.4

# Bytes of hidden states a second: what a core or a GPU extracts, and what a trainer reads, however
# many heads it has. They serve to choose a number of heads, for which orders of magnitude suffice.
CORE_MAKES, GPU_MAKES, TRAINER_READS = 50e6, 5e9, 2e9

# The copies of each parameter of a head in memory: itself, its gradient, the two moments of AdamW,
# the weights of the chosen epoch, and two checkpoints.
COPIES = 7

# The share of the cluster's memory that heads may take with `search.max_concurrent=auto`.
MEMORY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search leaves behind, beside Tune's folder.

    A search over backbones has no stream of its own, and leaves all after `max_concurrent` empty.

    Attributes:
        seconds: The wall time.
        max_concurrent: The most trials that ran at once.
        epochs: The epochs that the stream ran for all trials together.
        tokens_extracted: The tokens of the blocks that were extracted.
        blocks_extracted: The blocks that were extracted.
        blocks_from_cache: The blocks that were delivered from the cache.
        extractors_lost: The extractors that died and were replaced.
        deaths: The trainers and streams that died and were started again, one sentence each.
    """

    seconds: float
    max_concurrent: int
    epochs: int = 0
    tokens_extracted: int = 0
    blocks_extracted: int = 0
    blocks_from_cache: int = 0
    extractors_lost: int = 0
    deaths: tuple[str, ...] = ()


def search_heads(job: Job, folder: Path, *, resume: bool) -> SearchOutcome:
    """Run the trials of `search.target=head`; `tune.analysis` reads what they found.

    Extractors and trainers are started first, and extractors may reserve all cores. So trials take
    no CPU: if they needed one, they would wait for ever, and the stream would wait for them.

    Args:
        job: The task, with the backbone that all trials share.
        folder: The folder of the run; Tune's experiment goes into `tune/` there.
        resume: Whether to resume an interrupted search, if there is one.

    Raises:
        SearchError: The search itself failed.
        StreamError: A block could not be made, or an actor died again and again.
    """
    start = time.perf_counter()
    settings = job.settings
    max_concurrent = pick_max_concurrent(job)
    stream_actors = start_stream_actors(job, [{} for _ in range(settings.train.num_trainers)])
    try:
        extractor, trainer = stream_actors.ready()
        log.info(
            f"search: {settings.search.num_trials} trials, {max_concurrent} heads at once; "
            f"{job.placement.num_extractors} extractors on {extractor}, "
            f"{settings.train.num_trainers} head trainers on {trainer}"
        )
        barrier: Any = (
            ray.remote(EpochBarrier)
            .options(
                num_cpus=0,
                name=f"{stream_actors.name}-epoch-barrier",
                scheduling_strategy=on_this_node(),
            )
            .remote(settings.search.num_trials - _num_ended(folder, resume), max_concurrent)
        )
        trainable = tune.with_parameters(HeadTrial, barrier=barrier, base=settings)
        tuner = make_tuner(
            settings, folder, trainable, max_concurrent=max_concurrent, resume=resume
        )
        trials = in_thread(tuner.fit, "ray-tune")
        epochs = _serve(stream_actors, barrier, trials)
        trials.result()
        ray.kill(barrier)
    except (tune.TuneError, OSError) as error:
        raise SearchError(f"the search failed: {error}") from error
    finally:
        # After an error or an interruption the barrier is left, and the trials wait at it until Ray
        # ends with this process: Tune then knows them as running, and can resume them.
        stream_actors.stop()
    return SearchOutcome(
        seconds=time.perf_counter() - start,
        max_concurrent=max_concurrent,
        epochs=epochs,
        tokens_extracted=stream_actors.stats.tokens_extracted,
        blocks_extracted=stream_actors.stats.blocks_extracted,
        blocks_from_cache=stream_actors.stats.blocks_from_cache,
        extractors_lost=stream_actors.stats.extractors_lost,
        deaths=tuple(stream_actors.deaths),
    )


def make_tuner(
    settings: TaskSettings, folder: Path, trainable: Any, *, max_concurrent: int, resume: bool
) -> tune.Tuner:
    """The Tuner of a new search, or of the interrupted one in the folder.

    Args:
        settings: `search.*`, `train.epochs` and the seed.
        folder: The folder of the run.
        trainable: A trial, with its parameters.
        max_concurrent: The most trials that run at once.
        resume: Whether to resume an interrupted search, if there is one.
    """
    search, path = settings.search, folder / EXPERIMENT
    # A trial itself does little: it waits for actors or workers with resources of their own. So it
    # reserves no CPU, but a bit of a resource that only the node of the driver has, to run there.
    node = f"node:{ray.util.get_node_ip_address()}"
    placed = tune.with_resources(trainable, tune.PlacementGroupFactory([{node: 0.001}]))
    if resume and tune.Tuner.can_restore(str(path)):
        return tune.Tuner.restore(str(path), trainable=placed, resume_errored=True)
    return tune.Tuner(
        placed,
        param_space=tune_domains(read_space(search.space)),
        tune_config=TuneConfig(
            metric=SCORE,
            mode=MODE,
            search_alg=make_searcher(
                search.searcher, seed=settings.seed, num_concurrent=max_concurrent
            ),
            scheduler=_scheduler(settings),
            num_samples=search.num_trials,
            max_concurrent_trials=max_concurrent,
            reuse_actors=search.target == "head",  # one process for several trials, in turn
        ),
        run_config=RunConfig(
            name=EXPERIMENT,
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_frequency=int(search.target == "head")
            ),
            verbose=0,
            callbacks=[TrialNotices()],
        ),
    )


class TrialNotices(tune.Callback):
    """Logs trials that die, in a line each where Tune would print a traceback."""

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tune starts the trial again, from its last checkpoint if it has one."""
        died = f"search: trial {number_of(trial)} died and is started again"
        log.info("%s (death %d; at most %d)", died, trial.num_failures, MAX_FAILURES)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tune gives the trial up; the other trials go on."""
        log.info("search: trial %d died too often and is given up", number_of(trial))


def _num_ended(folder: Path, resume: bool) -> int:
    """The number of trials that had ended before an interruption, and will not come again."""
    if not (resume and tune.Tuner.can_restore(str(folder / EXPERIMENT))):
        return 0
    return sum(t.status not in ("unfinished", "waiting") for t in read_search(folder).trials)


def _scheduler(settings: TaskSettings) -> TrialScheduler:
    """What decides which trials are stopped early; a fine-tuning reports only once, at its end."""
    if settings.search.scheduler == "fifo" or settings.search.target == "backbone":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="training_iteration",
        max_t=settings.train.epochs,
        grace_period=1,
        reduction_factor=REDUCTION_FACTOR,
    )


def pick_max_concurrent(job: Job) -> int:
    """The most trials that run at once: `search.max_concurrent`, or with `auto` a good number.

    Heads share every forward pass, so that each of them is the cheaper the more of them are on the
    stream at once. Blocks from the cache need no forward pass: then the start of a process for each
    trial costs more than there is to share, and it is better that trials use processes in turn. The
    time and the memory of a trainer are the other bounds.

    Args:
        job: The task with its plan and the cluster's resources.
    """
    search, num_trainers = job.settings.search, job.settings.train.num_trainers
    if search.max_concurrent != "auto":
        return min(search.max_concurrent, search.num_trials)
    by_memory = int(MEMORY_SHARE * job.cluster.memory_bytes / largest_head_bytes(job))
    by_cost = trials_at_once(
        num_trials=search.num_trials,
        epochs=job.settings.train.epochs,
        shared_seconds=_shared_seconds(job),
        start_seconds=START_CORE_SECONDS * job.cluster.num_nodes / job.cluster.num_cpus,
    )
    least, most = LEAST_PER_TRAINER * num_trainers, HEADS_PER_TRAINER * num_trainers
    by_time = min(max(by_cost, least), most)
    return max(1, min(search.num_trials, by_time, by_memory))


def _shared_seconds(job: Job) -> float:
    """The part of the time of an epoch, after the first, that any number of heads shares."""
    budget = job.plan.budget
    makes = GPU_MAKES if job.placement.extractor_gpus else CORE_MAKES
    fresh = budget.epoch_bytes - budget.pinned_bytes
    return fresh / makes / job.placement.num_extractors + budget.epoch_bytes / TRAINER_READS


def _serve(stream_actors: StreamActors, barrier: Any, trials: "Future[tune.ResultGrid]") -> int:
    """Run epochs for as long as there are trials.

    Args:
        stream_actors: The stream and its trainers.
        barrier: The handle of the `EpochBarrier`.
        trials: Is done when Tune has run all trials, or has failed.

    Returns:
        The number of epochs.
    """
    epoch = 0
    while not trials.done():
        request = ray.get(barrier.next_request.remote(1.0))
        if request is None:  # nothing to do yet; look again whether there are trials
            continue
        stream_actors.update(
            {
                name: Attachment(
                    HeadJob(settings, with_report=False),
                    None if state is None else Checkpoint.from_bytes(state),
                )
                for name, (settings, state) in request.attach.items()
            },
            request.detach,
        )
        stream_actors.run_epoch(epoch, last_epoch=epoch + request.epochs_left - 1)
        reports = _reports(stream_actors)
        log.info("%s", _line(epoch, reports))
        ray.get(barrier.publish.remote(reports))
        epoch += 1
    return epoch


def _reports(stream_actors: StreamActors) -> dict[str, HeadReport]:
    """The report of each head on the last epoch, by name.

    A head that had no epoch left has a report too, as its trial waits for one.
    """
    reports = {}
    for end, state in zip(stream_actors.last_ends, stream_actors.checkpoints, strict=True):
        assert state is not None
        for part in state.facts["parts"]:
            kind, _, name = part.partition(":")
            if kind != "head":
                continue
            head = state.part(part)
            records = [*filter(None, [head.facts["start"]]), *head.facts["history"]]
            by_epoch = {record["epoch"]: EpochRecord(**record) for record in records}
            reports[name] = HeadReport(
                history=tuple(by_epoch[record["epoch"]] for record in head.facts["history"]),
                kept=by_epoch.get(head.facts["chosen_epoch"]),
                failure=head.facts["failure"],
                active=name in end.active,
                checkpoint=head.to_bytes(),
            )
    return reports


def _line(epoch: int, reports: dict[str, HeadReport]) -> str:
    """One line for people about an epoch of the stream, however many trials there are."""
    scores = [
        main_score(r.kept.scores) for r in reports.values() if r.kept is not None and not r.failure
    ]
    failed = f", {len(reports) - len(scores)} diverged" if len(scores) < len(reports) else ""
    best = f", scores {min(scores):.4f} to {max(scores):.4f}" if scores else ""
    return f"search: epoch {epoch + 1} of the stream, {len(reports)} heads{failed}{best}"


def largest_head_bytes(job: Job) -> int:
    """The memory of the largest head that the space allows, in bytes.

    It counts all `COPIES` of the float32 parameters.

    Args:
        job: The task, with the space of its search.
    """
    space = read_space(job.settings.search.space)
    choices = {
        key.removeprefix("head."): max(_values(dimension), key=lambda v: (v == "flatten", v))
        for key, dimension in space.items()
        if key in ("head.adapter_dim", "head.pool")
    }
    values = {**job.settings.head.model_dump(), **choices, "kind": "adapter_pooler"}
    with torch.device("meta"):  # which has shapes and no memory
        head = Head(HeadSettings.model_validate(values), job.shape, seed=0)
    return COPIES * 4 * head.num_parameters


def _values(dimension: Dimension) -> tuple[Any, ...]:
    """The values of a choice; for a range of integers its upper end, which alone matters here."""
    return dimension.values if isinstance(dimension, Choice) else (int(dimension.high),)
