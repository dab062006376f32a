"""The search over heads: all trials share one stream, and each scores as if it were alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from conftest import REPOSITORY
from ray.util.state import list_actors
from searches import IN_PAIRS, assert_as_if_alone, job_of, search
from streams import (  # noqa: F401
    SHAPE,
    TASK,
    corpus,
    extractor_of,
    nothing_is_left,
    plan_of,
    weights,
)
from tiny import CPU, one_thread, task_settings, tiny_tokenizer  # noqa: F401

from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.utils.errors import SearchError
from tune.epoch_barrier import EpochBarrier
from tune.search import pick_max_concurrent
from tune.trials import best_trial, read_search

pytestmark = pytest.mark.ray

# Actors that are no trials; of those Tune makes classes of its own.
OURS = ("FeatureStream", "FeatureExtractor", "HeadTrainer", "EpochBarrier")
CACHE = "stream.cache=2MiB"  # less than an epoch


def test_all_trials_share_one_stream_and_none_notices(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, tmp_path: Path
) -> None:
    job = job_of(
        corpus,
        weights,
        cluster,
        CACHE,
        "search.num_trials=6",
        "search.max_concurrent=6",
        "search.scheduler=fifo",
        "train.epochs=3",
        "train.stack_heads=false",
        "search.space.train.batch_size=[8,16]",
        "search.space.head.dropout=0.0..0.5",
        "search.space.head.kind=[adapter_pooler,scalar_mix,cls]",
        "search.space.train.warmup_ratio=0.0..0.3",
    )
    outcome, found = search(job, tmp_path)
    assert outcome.max_concurrent == 6
    assert outcome.epochs == 3
    assert [trial.status for trial in found.trials] == ["finished"] * 6
    # What one head would have cost, not six.
    plan = job.plan
    pinned = sum(plan.block_tokens[key] for key in plan.budget.pinned)
    assert 0 < pinned < sum(plan.block_tokens.values())
    assert outcome.tokens_extracted == 3 * sum(plan.block_tokens.values()) - 2 * pinned
    assert_as_if_alone(job, found)
    assert best_trial(found).score == max(trial.score for trial in found.trials)


def test_trials_that_come_late_and_trials_that_are_stopped(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, tmp_path: Path
) -> None:
    job = job_of(
        corpus,
        weights,
        cluster,
        "search.num_trials=8",
        "search.max_concurrent=3",
        "train.epochs=4",
        "train.stack_heads=false",
        "train.num_trainers=2",
    )
    lines: list[str] = []
    outcome, found = search(job, tmp_path, say=lines.append)
    statuses = [trial.status for trial in found.trials]
    assert statuses.count("stopped") >= 2
    assert statuses.count("finished") + statuses.count("stopped") == 8
    assert 4 <= outcome.epochs < 8 * 4
    assert outcome.tokens_extracted == sum(job.plan.block_tokens.values())  # all is cached
    assert_as_if_alone(job, found)
    heads = [int(line.split(" heads")[0].split()[-1]) for line in lines if " heads, scores" in line]
    assert len(heads) == outcome.epochs
    assert max(heads) <= 3


@pytest.mark.parametrize("searcher", ["hyperopt", "optuna"])
def test_searchers(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    searcher: str,
) -> None:
    job = job_of(
        corpus,
        weights,
        cluster,
        "search.num_trials=4",
        "search.max_concurrent=2",
        "train.epochs=1",
    )
    settings = job.settings.model_copy(
        update={"search": job.settings.search.model_copy(update={"searcher": searcher})}
    )
    _, found = search(replace(job, settings=settings), tmp_path)
    assert [trial.status for trial in found.trials] == ["finished"] * 4
    assert len({str(trial.config) for trial in found.trials}) == 4
    for trial in found.trials:
        assert set(trial.config) == {"train.lr", "head.adapter_dim", "seed"}
        assert 1e-4 <= trial.config["train.lr"] <= 1e-2


def test_a_trial_that_dies_is_restored_and_harms_nobody(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = job_of(
        corpus,
        weights,
        cluster,
        "search.num_trials=3",
        "search.scheduler=fifo",
        "train.epochs=4",
        "train.stack_heads=false",
    )
    killed: list[int] = []
    lines: list[str] = []
    address = ray.get_runtime_context().gcs_address

    def kill_one(line: str) -> None:
        """Kill a trial in the middle of the search, when it has checkpoints of two epochs."""
        lines.append(line)
        if line.startswith("search: epoch 2 "):
            actors = list_actors(address, filters=[("state", "=", "ALIVE")])
            killed.append(next(a.pid for a in actors if a.class_name not in OURS))
            os.kill(killed[0], signal.SIGKILL)

    _, found = search(job, tmp_path, say=kill_one)
    assert killed
    (died,) = [line for line in lines if " died " in line]
    assert died.startswith("search: trial ")
    assert died.endswith(" died and is started again (death 1; at most 3)")
    assert "Traceback" not in capfd.readouterr().err
    assert [trial.status for trial in found.trials] == ["finished"] * 3
    assert_as_if_alone(job, found)


def test_a_search_in_which_every_trial_diverges(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, tmp_path: Path
) -> None:
    job = job_of(
        corpus,
        weights,
        cluster,
        "search.num_trials=2",
        "train.epochs=2",
        "search.space.train.lr=log:1e29..1e30",
        "search.space.head.adapter_dim=null",
    )
    _, found = search(job, tmp_path)
    assert [trial.status for trial in found.trials] == ["diverged"] * 2
    with pytest.raises(SearchError, match="there is no best trial: all 2 diverged or failed"):
        best_trial(found)


def test_a_search_that_is_interrupted_goes_on(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, tmp_path: Path
) -> None:
    """It is interrupted in a process and a cluster of its own, and resumed in another cluster."""
    script = REPOSITORY / "tests" / "interrupted_search.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "interrupted" in done.stdout.splitlines(), done.stdout  # Ray may print after it
    assert [trial.status for trial in read_search(tmp_path).trials[:2]] == ["finished"] * 2
    job = job_of(corpus, weights, cluster, *IN_PAIRS)
    outcome, found = search(job, tmp_path, resume=True)
    assert [trial.status for trial in found.trials] == ["finished"] * 4
    assert outcome.epochs <= 6
    assert_as_if_alone(job, found)


def test_how_many_heads_at_once(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    def most(*overrides: str, epoch_bytes: int | None = None, cached: float = 1.0) -> int:
        job = job_of(corpus, weights, cluster, *overrides)
        if epoch_bytes is not None:
            pinned_bytes = int(cached * epoch_bytes)
            budget = replace(job.plan.budget, epoch_bytes=epoch_bytes, pinned_bytes=pinned_bytes)
            job = replace(job, plan=replace(job.plan, budget=budget))
        return pick_max_concurrent(job)

    # Forward passes are shared by as many as there can be.
    gib = 2**30
    assert most("search.num_trials=20", epoch_bytes=10 * gib, cached=0) == 20
    assert most("search.num_trials=500", epoch_bytes=10 * gib, cached=0) == 32
    assert most("search.num_trials=500", "train.num_trainers=2", epoch_bytes=gib, cached=0) == 64
    # What is cached has little to share, and the less of it there is the less.
    assert most("search.num_trials=20") == 4
    assert most("search.num_trials=20", "train.num_trainers=2") == 8
    at_once = [most("search.num_trials=20", epoch_bytes=b * gib) for b in (1, 100)]
    assert 4 < at_once[0] < at_once[1] == 20
    assert most("search.num_trials=500", "search.max_concurrent=100") == 100
    assert most("search.num_trials=3", "search.max_concurrent=100") == 3


def test_a_silent_trial_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This needs no Ray, as the methods of the barrier are coroutines."""
    import asyncio

    monkeypatch.setattr("tune.epoch_barrier.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("tune.epoch_barrier.PATIENCE_SECONDS", 0.1)

    async def scene() -> None:
        barrier = EpochBarrier(num_trials=2, max_concurrent=2)
        settings = task_settings("cola")
        for name in ("alive", "dead"):
            await barrier.attach(name, settings, None, 0)
        report = asyncio.create_task(barrier.next_report("alive"))
        assert await barrier.next_request(0.05) is None  # the other one has not asked

        async def heartbeat() -> None:
            while True:
                await barrier.heartbeat("alive")
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(heartbeat())
        begun = await barrier.next_request(20)
        assert begun is not None
        assert list(begun.attach) == ["alive"]
        beating.cancel()
        report.cancel()

    asyncio.run(scene())
