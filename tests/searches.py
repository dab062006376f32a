"""What tests of the search share: a job of small blocks, and each trial by itself as the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import listening, make_job
from streams import SHAPE, TASK, extractor_of, plan_of
from tiny import CPU, task_settings

from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.job import Job
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.units import format_value
from tune.search import SearchOutcome, search_heads
from tune.space import trial_settings
from tune.trials import Search, read_search

# Two trials after two others, of three epochs each.
IN_PAIRS = (
    "search.num_trials=4",
    "search.max_concurrent=2",
    "search.scheduler=fifo",
    "train.epochs=3",
    "train.stack_heads=false",
)


def job_of(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, *overrides: str
) -> Job:
    settings = task_settings(TASK.name, "mode=search", "search.searcher=random", *overrides)
    return make_job(
        settings,
        TASK,
        corpus,
        weights,
        SHAPE,
        plan=plan_of(settings, corpus, cluster, num_extractors=1),
        placement=Placement(1, 0.5, 0, 1, 0, 1),
        cluster=cluster,
    )


def search(
    job: Job, folder: Path, *, resume: bool = False, say: Callable[[str], object] = print
) -> tuple[SearchOutcome, Search]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(job.settings.model_dump()))
    with listening(say):
        return search_heads(job, folder, resume=resume), read_search(folder)


def alone(job: Job, settings: TaskSettings) -> HeadResult:
    """A head trained in this process, on the order that a search has in every epoch."""
    extractor = extractor_of(settings, job.corpus, job.backbone.weights)
    training = make_training(
        job.corpus, TASK, {"head": HeadJob(settings, with_report=False)}, SHAPE, device=CPU
    )
    epoch = 0
    while training.active:
        for index, key in enumerate(job.plan.sequence(0)):
            training.consume(Position(epoch, index), key, extractor.extract(key))
        training.end_epoch(epoch)
        epoch += 1
    return training.results()["head"]


def assert_as_if_alone(job: Job, found: Search) -> None:
    """What each trial reported, bit for bit, up to where it was stopped."""
    for trial in found.trials:
        result = alone(job, trial_settings(job.settings, trial.config))
        reported = trial.history[["loss", "validation_loss", "validation_matthews"]].to_numpy()
        expected = [
            (r.loss, r.validation_loss, r.scores["validation"]["matthews"]) for r in result.history
        ]
        np.testing.assert_array_equal(reported, expected[: len(reported)])


def assert_searched(results: Path, target: str) -> None:
    """What a search of two trials leaves in its folder, of which none was lost."""
    search = json.loads((results / "metrics.json").read_text())["search"]
    assert (search["target"], search["trials"], search["lost"]) == (target, 2, 0)
    trials = pd.read_csv(results / "trials.csv")
    assert search["best_score"] == pytest.approx(trials["score"].max())
    plots = {path.name for path in (results / "plots").iterdir()}
    assert plots > {"best_so_far.png", "hyperparameters.png", "learning_curves.png"}
    assert (results / "report.html").read_text().count("data:image/png") == len(plots)
    for key, value in search["best_config"].items():
        assert f"{key}={format_value(value)}" in (results / "results.md").read_text()
    analysis = subprocess.run(
        [sys.executable, "-m", "tune.analysis", str(results)], capture_output=True, text=True
    )
    assert analysis.returncode == 0, analysis.stderr
    assert f"best: trial {search['best_trial']}, " in analysis.stdout
