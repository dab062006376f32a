"""A search read from its folder: the trials, the best of them, plots and the command."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from bertvision_stream.config import load_settings
from bertvision_stream.errors import ConfigError, SearchError
from bertvision_stream.search_dimensions import Choice, Range
from bertvision_stream.trial_results import BEST_RULE, MODE, SCORE, failure_result
from tune.analysis import (
    Search,
    Status,
    Trial,
    best_trial,
    main,
    read_search,
    render_trials,
    trial_table,
    write_analysis,
)
from tune.plots import draw_best_so_far, draw_hyperparameters, draw_learning_curves

# Ray's workers cannot import tests: the trainables travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

NAN = math.nan
PNG = b"\x89PNG\r\n\x1a\n"
LOST = "the training loss became nan in epoch 2"

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
    """A trial that reports `SCORES` and does what is written there."""

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
            return failure_result(LOST) | {"done": True}
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
    """A search that Tune has run: the folder of its run, and Tune's own view."""

    folder: Path
    grid: tune.ResultGrid


@pytest.fixture(scope="module")
def searched(cluster, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Six trials, each with another fate."""
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


def trial(number: int, *scores: float, status: Status = "finished", **config: object) -> Trial:
    """A trial without Tune."""
    history = pd.DataFrame(
        {
            SCORE: scores,
            "validation_loss": [1 - score for score in scores],
            "timestamp": 100 - number,
            "time_total_s": 2.0,
        },
        index=range(1, len(scores) + 1),
    )
    failure = LOST if status in ("diverged", "failed") else ""
    return Trial(
        number=number,
        trial_id=f"t{number}",
        status=status,
        config=config or {"train.lr": 10.0**-number, "head.kind": "cls"},
        history=history if scores else pd.DataFrame(),
        failure=failure,
    )


def search(*trials: Trial) -> Search:
    return Search(name="cola", space={}, trials=trials)


# --- the best trial


def test_the_best_trial_is_judged_by_its_last_report():
    rose, fell = trial(1, 0.1, 0.6), trial(2, 0.9, 0.5)
    assert best_trial(search(rose, fell)) is rose
    assert best_trial(search(fell, rose)) is rose


@pytest.mark.parametrize("status", ["finished", "stopped", "unfinished"])
def test_stopped_and_running_trials_are_judged_alike(status):
    ahead = trial(2, 0.7, status=status)
    assert best_trial(search(trial(1, 0.6, 0.6), ahead)) is ahead


def test_lost_trials_are_never_the_best():
    lost = [trial(1, 0.9, NAN, status="diverged"), trial(2, 0.8, status="failed")]
    last = trial(3, -0.5)
    assert best_trial(search(*lost, trial(4, status="waiting"), last)) is last


def test_of_equals_the_first_is_the_best():
    equal = [trial(number, 0.5) for number in (1, 2, 3)]
    assert best_trial(search(*equal)) is equal[0]


def test_without_a_best_trial_the_reason_is_given():
    lost = [trial(n, NAN, status="diverged") for n in (1, 2)]
    with pytest.raises(SearchError) as caught:
        best_trial(search(*lost))
    assert str(caught.value) == (
        f"there is no best trial: all 2 diverged or failed. The first: {LOST}. Lower learning "
        f"rates may help: search.space.train.lr=log:1e-5..1e-3"
    )
    assert "best: there is no best trial: all 2" in render_trials(search(*lost))
    with pytest.raises(SearchError, match=r"^no trial has reported a score yet$"):
        best_trial(search(trial(1, status="waiting")))
    with pytest.raises(SearchError, match=r"^2 of 3 trials diverged or failed, and no"):
        best_trial(search(*lost, trial(3, status="waiting")))


# --- the table


def test_the_table_ranks_the_trials():
    low, high = trial(1, 0.2, 0.1), trial(2, 0.2, status="stopped")
    lost, waiting = trial(3, 0.9, NAN, status="diverged"), trial(4, status="waiting")
    table = trial_table(search(low, high, lost, waiting))
    assert table["trial"].tolist() == [2, 1, 3, 4]
    assert table["status"].tolist() == ["stopped", "finished", "diverged", "waiting"]
    assert table["epochs"].tolist() == [1, 2, 2, 0]
    assert table["score"].fillna(9).tolist() == [0.2, 0.1, 9, 9]
    assert table["train.lr"].tolist() == [1e-2, 1e-1, 1e-3, 1e-4]
    assert table["failure"].tolist() == ["", "", LOST, ""]


def test_the_console_shows_one_table():
    shown = render_trials(search(trial(1, 0.25), trial(2, 0.5), trial(3, NAN, status="diverged")))
    lines = shown.splitlines()
    assert lines[0] == "cola: 3 trials, 2 finished, 1 diverged"
    assert lines[2].split() == [
        "trial",
        "status",
        "score",
        "epochs",
        "time",
        "train.lr",
        "head.kind",
    ]
    assert lines[4].split() == ["2", "finished", "0.5000", "1", "2.0", "s", "0.01", "cls"]
    assert lines[6].split() == ["3", "diverged", "-", "1", "2.0", "s", "0.001", "cls"]
    assert lines[8] == f"trial 3 diverged: {LOST}"
    assert lines[10] == "best: trial 2, score 0.5000, with train.lr=0.01 head.kind=cls"
    assert " ".join(lines[11:]) == BEST_RULE
    assert max(map(len, lines)) <= 100


# --- plots


def test_score_against_each_hyperparameter():
    space = {
        "train.lr": Range(low=1e-4, high=1e-2, log=True),
        "head.dropout": Range(low=0.0, high=0.5),
        "head.adapter_dim": Choice((8, 16, 64)),
        "head.share_layers": Choice((True, False)),
    }
    samples = [(1e-3, 0.1, 8, True), (3e-3, 0.2, 64, False), (9e-3, 0.3, 16, True)]
    trials = [
        trial(number, 0.3 * number, **dict(zip(space, sample, strict=True)))
        for number, sample in enumerate(samples, start=1)
    ]
    trials[2] = replace(trials[2], status="diverged", failure=LOST)
    figure = draw_hyperparameters(Search(name="cola", space=space, trials=tuple(trials)))
    axes = [a for a in figure.axes if a.get_visible()]
    assert [a.get_xlabel() for a in axes] == list(space)
    assert [a.get_xscale() for a in axes] == ["log", "linear", "linear", "linear"]
    assert axes[0].get_ylabel() == "score"
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["8", "16", "64"]
    assert [label.get_text() for label in axes[3].get_xticklabels()] == ["true", "false"]
    points = [tuple(c.get_offsets()[0]) for c in axes[0].collections]
    assert points[:2] == [(1e-3, 0.3), (3e-3, 0.6)]
    assert points[2][0] == 9e-3  # on the edge, for it has no score
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["finished", "diverged", "best: trial 2, 0.6000"]


def test_learning_curves_of_all_trials():
    figure = draw_learning_curves(search(trial(1, 0.1, 0.3), trial(2, 0.2, NAN, status="diverged")))
    score, loss = figure.axes
    assert (score.get_xlabel(), score.get_ylabel()) == ("epoch", "score")
    assert loss.get_ylabel() == "validation loss (mean per example)"
    assert loss.get_ylim()[1] < 1
    for axes, ends in ((score, {0.3, 0.2}), (loss, {0.7, 0.8})):
        assert {round(float(line.get_ydata()[-1]), 6) for line in axes.lines} == ends
    assert score.get_yscale() == loss.get_yscale() == "linear"


def test_a_loss_that_exploded_does_not_flatten_the_others():
    exploded, lost = trial(1, 0.5, 0.5), trial(2, 0.5, 0.5, status="diverged")
    for t in (exploded, lost):
        t.history["validation_loss"] = [0.5, 500.0]
    with_lost = draw_learning_curves(search(trial(3, 0.2, 0.6), lost)).axes[1]
    assert with_lost.get_yscale() == "linear"
    assert with_lost.get_ylim() == pytest.approx((0.38, 0.82))
    assert draw_learning_curves(search(exploded, lost)).axes[1].get_yscale() == "log"


def test_best_so_far_follows_the_last_reports():
    # By their time stamps trial 3 was the first to end.
    figure = draw_best_so_far(
        search(trial(1, 0.4), trial(2, 0.9, NAN, status="diverged"), trial(3, 0.3), trial(4))
    )
    (axes,) = figure.axes
    (steps,) = axes.lines
    assert list(steps.get_ydata()) == [0.3, 0.3, 0.4]


@pytest.mark.parametrize(
    "trials", [(), (trial(1, status="waiting"),), (trial(1, NAN, status="diverged"),)]
)
def test_there_is_something_to_see_of_any_search(tmp_path: Path, trials: tuple[Trial, ...]):
    files = write_analysis(search(*trials), tmp_path)
    assert [file.name for file in files] == [
        "trials.csv",
        "hyperparameters.png",
        "learning_curves.png",
        "best_so_far.png",
    ]
    assert all(file.read_bytes().startswith(PNG) for file in files[1:])
    assert render_trials(search(*trials))


# --- a search that Tune has run


@pytest.mark.ray
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
    assert by_lr[1e-2].failure == LOST
    assert by_lr[3e-3].failure == "RuntimeError: no more of this"
    assert by_lr[5e-3].failure == ""


@pytest.mark.ray
def test_the_best_is_the_one_that_tune_calls_the_best(searched: Searched):
    best = best_trial(read_search(searched.folder))
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


@pytest.mark.ray
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


@pytest.mark.ray
def test_the_experiment_itself_may_be_named(searched: Searched):
    experiment = Path(searched.grid.experiment_path)
    assert experiment != searched.folder
    found = read_search(experiment)
    assert (found.name, len(found.trials)) == ("demo", 6)


class ReadsMeanwhile(Callback):
    """Reads the search while it runs, and lets the trial go on once it has seen it report."""

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
    """Goes into its second epoch only when it is told to."""

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


@pytest.mark.ray
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


# --- what cannot be read


def test_paths_without_a_search(tmp_path: Path, capsys, monkeypatch):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: python -m tune.analysis PATH")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/nowhere does not exist\n"
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} holds no search: there is no experiment_state-*.json in it, nor two folders "
        "down. Give the folder of a run with mode=search, outputs/TASK/RUN_NAME\n"
    )
    for name in ("a", "b"):
        (tmp_path / name / "tune").mkdir(parents=True)
        (tmp_path / name / "tune" / "experiment_state-1.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} holds 2 searches; give one of {tmp_path}/a/tune, {tmp_path}/b/tune\n"
    )
    monkeypatch.setattr("tune.analysis.time.sleep", lambda seconds: None)
    with pytest.raises(ConfigError, match="/a/tune: the state of the search cannot be read: "):
        read_search(tmp_path / "a")
    assert main(["--help"]) == 0
    assert "trials.csv" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        write_analysis(search(trial(1, 0.5)), tmp_path)
