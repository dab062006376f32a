"""A search read from its folder: the trials, the best of them, plots and the command."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import bertvision_stream
from bertvision_stream.settings.search_dimensions import Choice, Range
from bertvision_stream.utils.errors import ConfigError, SearchError
from tune.analysis import main, render_trials, trial_table, write_analysis
from tune.plots import draw_best_so_far, draw_hyperparameters, draw_learning_curves
from tune.trial_results import BEST_RULE, SCORE
from tune.trials import Search, Status, Trial, best_trial, read_search

NAN = math.nan
PNG = b"\x89PNG\r\n\x1a\n"
DIVERGED = "the training loss became nan in epoch 2"


def trial(number: int, *scores: float, status: Status = "finished", **config: object) -> Trial:
    """A trial with these scores, made without Tune."""
    history = pd.DataFrame(
        {
            SCORE: scores,
            "validation_loss": [1 - score for score in scores],
            "timestamp": 100 - number,
            "time_total_s": 2.0,
        },
        index=range(1, len(scores) + 1),
    )
    failure = DIVERGED if status in ("diverged", "failed") else ""
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


def test_failed_trials_are_never_the_best():
    failed = [trial(1, 0.9, NAN, status="diverged"), trial(2, 0.8, status="failed")]
    last = trial(3, -0.5)
    assert best_trial(search(*failed, trial(4, status="waiting"), last)) is last


def test_of_equals_the_first_is_the_best():
    equal = [trial(number, 0.5) for number in (1, 2, 3)]
    assert best_trial(search(*equal)) is equal[0]


def test_without_a_best_trial_the_reason_is_given():
    lost = [trial(n, NAN, status="diverged") for n in (1, 2)]
    with pytest.raises(SearchError) as caught:
        best_trial(search(*lost))
    assert str(caught.value) == (
        f"there is no best trial: all 2 diverged or failed. The first: {DIVERGED}. Lower learning "
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
    assert table["failure"].tolist() == ["", "", DIVERGED, ""]


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
    assert lines[8] == f"trial 3 diverged: {DIVERGED}"
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
    trials[2] = replace(trials[2], status="diverged", failure=DIVERGED)
    figure = draw_hyperparameters(Search(name="cola", space=space, trials=tuple(trials)))
    axes = [a for a in figure.axes if a.get_visible()]
    assert [a.get_xlabel().partition("\n")[0] for a in axes] == list(space)
    # Only choices are drawn beside their places, and the axis says so.
    assert ["spread sideways" in a.get_xlabel() for a in axes] == [False, False, True, True]
    assert [a.get_xscale() for a in axes] == ["log", "linear", "linear", "linear"]
    assert axes[0].get_ylabel() == "score"
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["8", "16", "64"]
    assert [label.get_text() for label in axes[3].get_xticklabels()] == ["true", "false"]
    points = [tuple(c.get_offsets()[0]) for c in axes[0].collections]
    assert points[:2] == [(1e-3, 0.3), (3e-3, 0.6)]
    assert points[2][0] == 9e-3  # it has no score, and stands on the lower edge
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
    monkeypatch.setattr("tune.trials.time.sleep", lambda seconds: None)
    with pytest.raises(ConfigError, match="/a/tune: the state of the search cannot be read: "):
        read_search(tmp_path / "a")
    assert main(["--help"]) == 0
    assert "trials.csv" in capsys.readouterr().out


def test_people_read_which_class_f1_is_of():
    history = trial(1, 0.5).history.assign(validation_accuracy=0.4, validation_f1=0.6)
    found = replace(search(replace(trial(1, 0.5), history=history)), f1_class="spam")
    assert "score: the mean of validation accuracy, validation f1 (spam)\n" in render_trials(found)
    (axes, _) = draw_learning_curves(found).axes
    assert axes.get_ylabel() == "score (mean of\nvalidation accuracy,\nvalidation f1 (spam))"
    assert "validation_f1" in trial_table(found).columns


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        write_analysis(search(trial(1, 0.5)), tmp_path)


def test_the_library_has_the_analysis_under_its_own_name(tmp_path: Path):
    # In a notebook `from ray import tune` takes the name of our package.
    assert bertvision_stream.read_search is read_search
    assert bertvision_stream.trial_table is trial_table
    assert bertvision_stream.best_trial is best_trial
    assert bertvision_stream.write_analysis is write_analysis
    with pytest.raises(AttributeError, match="'bertvision_stream' has no attribute 'read_serch'"):
        _ = bertvision_stream.read_serch


def test_paths_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path}/nothing does not exist"):
        read_search("~/nothing")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no search"):
        read_search(str(tmp_path))
    write_analysis(search(trial(1, 0.5)), "~")
    assert (tmp_path / "trials.csv").is_file()
