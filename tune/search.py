"""The search over heads with Ray Tune: one stream feeds the heads of all trials."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
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
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.errors import SearchError
from bertvision_stream.utils.log import log
from tune.epoch_barrier import EpochBarrier, HeadReport
from tune.space import make_searcher, tune_domains
from tune.trial import HeadTrial
from tune.trial_results import MODE, SCORE, epoch_result

EXPERIMENT = "tune"

# The share of trials that ASHA lets pass at each rung is one of so many.
REDUCTION_FACTOR = 3

# A trial whose process dies goes on from its checkpoint so many times.
MAX_FAILURES = 3

# Heads that one trainer is given at once, where memory allows more: their products still take less
# time than one forward pass on the same CPU core (see benchmarks/stacked_heads.py).
HEADS_PER_TRAINER = 32

# And at least, however little there is to share: fewer leave it idle while trials change places.
LEAST_PER_TRAINER = 4

# What the process of a trial takes to start, on one core: most of it imports Tune.
START_CORE_SECONDS = 1.4

# Bytes of hidden states a second, whose order of magnitude is enough: what a core or a GPU makes,
# and what a trainer reads, however many heads it has.
CORE_MAKES, GPU_MAKES, TRAINER_READS = 50e6, 5e9, 2e9

# Of each parameter: itself, its gradient, two moments, the chosen epoch's, two checkpoints.
COPIES = 7

# Share of a machine's memory that heads of `search.max_concurrent=auto` may take.
MEMORY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search leaves behind, beside Tune's folder.

    Attributes:
        seconds: Wall time.
        max_concurrent: Trials at once.
        epochs: Epochs that the stream ran for all trials together.
        tokens_extracted: Tokens of the blocks that it made.
        blocks_extracted: Blocks made.
        blocks_from_cache: Blocks delivered without making them again.
    """

    seconds: float
    max_concurrent: int
    epochs: int = 0
    tokens_extracted: int = 0
    blocks_extracted: int = 0
    blocks_from_cache: int = 0


def search_heads(job: Job, folder: Path, *, resume: bool) -> SearchOutcome:
    """Run the trials of `search.*`; `tune.analysis` reads what they found.

    Extractors and trainers are started first, and trials take no CPU: a search cannot wait for
    itself.

    Args:
        job: The task.
        folder: The folder of the run; Tune's experiment goes into `tune/` there.
        resume: Whether to resume an interrupted search, if there is one.

    Raises:
        SearchError: The search itself failed.
        StreamError: A block could not be made, an actor died again and again.
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
        # After an error or an interruption trials are left to wait at their barrier, until Ray ends
        # with this process: Tune then knows them as running, and can go on with them.
        stream_actors.stop()
    return SearchOutcome(
        seconds=time.perf_counter() - start,
        max_concurrent=max_concurrent,
        epochs=epochs,
        tokens_extracted=stream_actors.stats.tokens_extracted,
        blocks_extracted=stream_actors.stats.blocks_extracted,
        blocks_from_cache=stream_actors.stats.blocks_from_cache,
    )


def make_tuner(
    settings: TaskSettings, folder: Path, trainable: Any, *, max_concurrent: int, resume: bool
) -> tune.Tuner:
    """A new search in `folder`, or the interrupted one that is there.

    Args:
        settings: `search.*`, `train.epochs` and the seed.
        folder: Of the run.
        trainable: A trial, with its parameters.
        max_concurrent: Trials at once.
        resume: Whether to go on with an interrupted search.
    """
    search, path = settings.search, folder / EXPERIMENT
    # What trials wait for has its resources already; they are light, and run beside the driver.
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
            reuse_actors=search.target == "head",
        ),
        run_config=RunConfig(
            name=EXPERIMENT,
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_frequency=int(search.target == "head")
            ),
            verbose=0,
        ),
    )


def _num_ended(folder: Path, resume: bool) -> int:
    """Trials that had ended before an interruption."""
    if not (resume and tune.Tuner.can_restore(str(folder / EXPERIMENT))):
        return 0
    from tune.trials import read_search

    return sum(t.status not in ("unfinished", "waiting") for t in read_search(folder).trials)


def _scheduler(settings: TaskSettings) -> TrialScheduler:
    if settings.search.scheduler == "fifo" or settings.search.target == "backbone":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="training_iteration",
        max_t=settings.train.epochs,
        grace_period=1,
        reduction_factor=REDUCTION_FACTOR,
    )


def pick_max_concurrent(job: Job) -> int:
    """`search.max_concurrent`: `auto` is as many heads as make the search short.

    Heads share every forward pass, so the more of them are on the stream at once, the cheaper each
    of them is. What is cached needs none: then the start of a process for each trial costs more
    than there is to share, and processes are better used again. A trainer's time and memory are
    the other bounds.
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
    """Of an epoch after the first: what takes the same time for any number of heads, roughly."""
    budget = job.plan.budget
    makes = GPU_MAKES if job.placement.extractor_gpus else CORE_MAKES
    fresh = budget.epoch_bytes - budget.pinned_bytes
    return fresh / makes / job.placement.num_extractors + budget.epoch_bytes / TRAINER_READS


def _serve(stream_actors: StreamActors, barrier: Any, trials: "Future[tune.ResultGrid]") -> int:
    """Run epochs for as long as there are trials; returns how many."""
    epoch = 0
    while not trials.done():
        asked = ray.get(barrier.next_request.remote(1.0))
        if asked is None:
            continue
        stream_actors.update(
            {
                name: Attachment(
                    HeadJob(settings, with_report=False),
                    None if state is None else Checkpoint.from_bytes(state),
                )
                for name, (settings, state) in asked.attach.items()
            },
            asked.detach,
        )
        stream_actors.run_epoch(epoch, last_epoch=epoch + asked.epochs_left - 1)
        reports = _reports(stream_actors)
        log.info("%s", _line(epoch, reports))
        ray.get(barrier.publish.remote(reports))
        epoch += 1
    return epoch


def _reports(stream_actors: StreamActors) -> dict[str, HeadReport]:
    """What the last epoch made of each head; one that had nothing left to do is told so too."""
    reports = {}
    for end, state in zip(stream_actors.last_ends, stream_actors.checkpoints, strict=True):
        assert state is not None
        for part in state.facts["parts"]:
            kind, _, name = part.partition(":")
            if kind != "head":
                continue
            head = state.part(part)
            reports[name] = HeadReport(
                history=tuple(EpochRecord(**record) for record in head.facts["history"]),
                chosen_epoch=head.facts["chosen_epoch"],
                failure=head.facts["failure"],
                active=name in end.active,
                checkpoint=head.to_bytes(),
            )
    return reports


def _line(epoch: int, reports: dict[str, HeadReport]) -> str:
    """One line an epoch, however many trials there are."""
    scores = [
        epoch_result(r.history[-1], kept=r.history[r.chosen_epoch - 1])[SCORE]
        for r in reports.values()
        if not r.failure
    ]
    failed = f", {len(reports) - len(scores)} diverged" if len(scores) < len(reports) else ""
    best = f", scores {min(scores):.4f} to {max(scores):.4f}" if scores else ""
    return f"search: epoch {epoch + 1} of the stream, {len(reports)} heads{failed}{best}"


def largest_head_bytes(job: Job) -> int:
    """Memory of the largest head that the space allows: weights, gradients, moments, copies."""
    space = read_space(job.settings.search.space)
    choices = {
        key.removeprefix("head."): max(_values(dimension), key=lambda v: (v == "flatten", v))
        for key, dimension in space.items()
        if key in ("head.adapter_dim", "head.pool")
    }
    values = {**job.settings.head.model_dump(), **choices, "kind": "adapter_pooler"}
    with torch.device("meta"):
        head = Head(HeadSettings.model_validate(values), job.shape, seed=0)
    return COPIES * 4 * head.num_parameters


def _values(dimension: Dimension) -> tuple[Any, ...]:
    return dimension.values if isinstance(dimension, Choice) else (int(dimension.high),)
