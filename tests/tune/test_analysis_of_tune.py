"""A search that Tune runs, read from its folder while it runs and afterwards."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from test_analysis import DIVERGED, NAN

from bertvision_stream.settings.command_line import load_settings
from tune.analysis import trial_table
from tune.trial_results import MODE, SCORE, failure_result
from tune.trials import Search, best_trial, read_search

pytestmark = pytest.mark.ray

# Ray's workers cannot import tests: the trainables travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

# By learning rate the scores of each epoch; what else happens stands in `Scripted`.
SCORES: Mapping[float, list[float]] = {
    1e-3: [0.5, 0.6, 0.7],
    2e-3: [0.9, 0.8, 0.65],  # once the best of all
    1e-4: [0.6, 0.75],  # stopped from outside after two epochs
    1e-2: [0.95, NAN],  # diverges
    3e-3: [0.99],  # fails, again and again
    5e-3: [0.1, 0.2, 0.3],  # dies in its second epoch and is restored
}


class Scripted(tune.Trainable):
    """A trial that reports its `SCORES`, and diverges, fails or dies as they say."""

    def setup(self, config):
        self.lr = config["train.lr"]
        self.folder = Path(config["folder"])

    def reset_config(self, config):
        self.setup(config)
        return True

    def step(self):
        epoch = self.iteration + 1
        died = self.folder / "died"
        if self.lr == 5e-3 and epoch == 2 and not died.exists():
            died.touch()
            raise RuntimeError("gone for a while")
        if epoch > len(SCORES[self.lr]):
            raise RuntimeError("no more of this")
        score = SCORES[self.lr][epoch - 1]
        if math.isnan(score):
            return failure_result(DIVERGED) | {"done": True}
        return {
            SCORE: score,
            "epoch": epoch,
            "loss": 1 - score,
            "validation_loss": 2 - score,
            "validation_accuracy": score,
            "done": epoch == 3,
        }

    def save_checkpoint(self, folder):
        (Path(folder) / "state").touch()

    def load_checkpoint(self, folder):
        assert (Path(folder) / "state").exists()


@dataclass(frozen=True)
class Searched:
    """A search that Tune has run: the folder of its run, and the results that Tune returns."""

    folder: Path
    grid: tune.ResultGrid


@pytest.fixture(scope="module")
def searched(cluster, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search of six trials, each of which ends in another way."""
    folder = tmp_path_factory.mktemp("run")
    argv = ["task=demo", "mode=search", "train.epochs=3", "head.adapter_dim=8"]
    settings = load_settings([*argv, "search.space.seed=null"]).for_task("demo")
    (folder / "config.json").write_text(json.dumps(settings.model_dump(mode="json")))
    tuner = Tuner(
        tune.with_resources(Scripted, {"cpu": 0.5}),
        param_space={"train.lr": tune.grid_search(list(SCORES)), "folder": str(folder)},
        tune_config=TuneConfig(metric=SCORE, mode=MODE, reuse_actors=True),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=lambda trial_id, result: result[SCORE] == 0.75,
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1),
        ),
    )
    return Searched(folder, tuner.fit())


def test_the_trials_of_a_search_are_read(searched: Searched):
    found = read_search(searched.folder)
    assert found.name == "demo"
    assert found.keys == ("train.lr",)  # what the run says, not all that Tune was given
    assert found.metrics == ("validation_accuracy",)
    assert [trial.config["train.lr"] for trial in found.trials] == list(SCORES)  # as proposed
    by_lr = {trial.config["train.lr"]: trial for trial in found.trials}
    assert {lr: trial.status for lr, trial in by_lr.items()} == {
        1e-3: "finished",
        2e-3: "finished",
        1e-4: "stopped",
        1e-2: "diverged",
        3e-3: "failed",
        5e-3: "finished",
    }
    for lr, scores in SCORES.items():
        assert by_lr[lr].history[SCORE].tolist() == pytest.approx(scores, nan_ok=True)
        assert by_lr[lr].history.index.tolist() == list(range(1, len(scores) + 1))
    assert by_lr[1e-2].failure == DIVERGED
    assert by_lr[3e-3].failure == "RuntimeError: no more of this"
    assert by_lr[5e-3].failure == ""


def test_the_best_is_the_one_that_tune_calls_the_best(searched: Searched):
    best = best_trial(read_search(str(searched.folder)))
    assert (best.config["train.lr"], best.score, best.status) == (1e-4, 0.75, "stopped")
    # Tune's own view, restored, and its choice among the trials that did not fail.
    grid = Tuner.restore(searched.grid.experiment_path, Scripted).get_results()
    frame = grid.get_dataframe()
    ours = trial_table(read_search(searched.folder)).set_index("trial_id")
    theirs = frame.set_index("trial_id")
    assert ours["score"].to_dict() == pytest.approx(theirs[SCORE].to_dict(), nan_ok=True)
    assert ours["train.lr"].to_dict() == theirs["config/train.lr"].to_dict()
    alive = theirs[ours["status"].reindex(theirs.index) != "failed"]
    assert alive[SCORE].idxmax() == best.trial_id


def test_the_command_prints_and_writes(searched: Searched):
    command = [sys.executable, "-m", "tune.analysis", str(searched.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo: 6 trials, 3 finished, 1 stopped, 1 diverged, 1 failed\n")
    assert "best: trial 3, score 0.7500, with train.lr=0.0001\n" in done.stdout
    assert "trial 5 failed: RuntimeError: no more of this" in done.stdout
    assert "Warning" not in done.stderr
    table = pd.read_csv(searched.folder / "trials.csv")
    assert table["trial"].tolist() == [3, 1, 2, 6, 4, 5]
    names = {file.name for file in (searched.folder / "plots").iterdir()}
    assert names == {"hyperparameters.png", "learning_curves.png", "best_so_far.png"}


def test_the_experiment_itself_may_be_named(searched: Searched):
    experiment = Path(searched.grid.experiment_path)
    assert experiment != searched.folder
    found = read_search(experiment)
    assert (found.name, len(found.trials)) == ("demo", 6)


class ReadsMeanwhile(Callback):
    """Reads the search while it runs, and lets the trial continue after its first report."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seen: list[Search] = []

    def on_step_end(self, iteration, trials, **info):
        if self.seen or not any(self.folder.glob("experiment_state-*.json")):
            return
        found = read_search(self.folder)
        if any(trial.epochs for trial in found.trials):
            self.seen.append(found)
            (self.folder.parent / "go").touch()


class Waits(tune.Trainable):
    """A trial that begins its second epoch only when it is told to."""

    def setup(self, config):
        self.go = Path(config["go"])

    def step(self):
        deadline = time.monotonic() + 60
        while self.iteration and not self.go.exists():
            assert time.monotonic() < deadline, "nobody said go"
            time.sleep(0.05)
        return {SCORE: 0.5, "validation_loss": 0.1, "done": self.iteration == 1}

    def save_checkpoint(self, folder):
        pass

    def load_checkpoint(self, folder):
        pass


def test_a_search_is_read_while_it_runs(cluster, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.1")
    reader = ReadsMeanwhile(tmp_path / "tune")
    grid = Tuner(
        tune.with_resources(Waits, {"cpu": 1}),
        param_space={"train.lr": tune.loguniform(1e-4, 1e-2), "go": str(tmp_path / "go")},
        tune_config=TuneConfig(metric=SCORE, mode=MODE, num_samples=2, max_concurrent_trials=1),
        run_config=RunConfig(
            name="tune", storage_path=str(tmp_path), verbose=0, callbacks=[reader]
        ),
    ).fit()
    assert not grid.errors
    (meanwhile,) = reader.seen
    assert meanwhile.trials[0].status == "unfinished"
    assert meanwhile.trials[0].epochs == 1
    assert best_trial(meanwhile) is meanwhile.trials[0]
    assert meanwhile.name == "tune"  # there is no config.json
    after = read_search(tmp_path / "tune")
    assert [trial.status for trial in after.trials] == ["finished", "finished"]
