"""Several tasks or seeds as one: failures, means, spreads, published scores, going on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from bertvision_stream import run
from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.modes.inputs import TaskInputs, read_all_inputs
from bertvision_stream.report.suite import (
    PUBLISHED,
    Entry,
    glue_means,
    metric_rows,
    published_means,
    read_metrics,
    render_suite,
    render_suite_markdown,
    size_of,
    suite_json,
)
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS
from bertvision_stream.utils.errors import BertvisionError, ConfigError, StreamError

SPLITS = {"mnli": ("validation_matched", "validation_mismatched")}


def score_of(task: str, seed: int, split: str, metric: str, contestant: str) -> float:
    """Made up, and different for all."""
    rng = np.random.default_rng([seed, *f"{task} {split} {metric} {contestant}".encode()])
    return float(rng.uniform(0.3, 0.9))


def metrics_of(task: str, seed: int = 42, backbone: str = "minilm") -> dict[str, Any]:
    """As much of a `metrics.json` as a suite reads."""
    metrics = TASKS[task].metrics if task in TASKS else ("accuracy",)
    splits = {
        split: {"examples": 10}
        | {
            who: {
                **{m: score_of(task, seed, split, m, who) for m in metrics},
                **({"something_else": 99.0} if task in TASKS else {}),
            }
            for who in ("bert", "head", "ensemble")
        }
        for split in SPLITS.get(task, ("validation",))
    }
    return {"task": task, "seed": seed, "backbone": backbone, "splits": splits}


def entry(task: str, seed: int = 42, *, backbone: str = "minilm") -> Entry:
    return Entry(task, seed, f"outputs/{task}/x", metrics_of(task, seed, backbone))


class Runs:
    """Stands in for `run_task`: leaves scores in the run's folder, or fails."""

    def __init__(self, folder: Path, failures: dict[tuple[str, int], BaseException]):
        self.folder = folder
        self.failures = failures
        self.ran: list[tuple[str, int]] = []

    def __call__(self, inputs: TaskInputs, command: str, runtime: object) -> Path:
        task, seed = inputs.settings.task, inputs.settings.seed
        self.ran.append((task, seed))
        if error := self.failures.get((task, seed)):
            raise error
        name = inputs.settings.run_name or f"seed{seed}"
        folder = self.folder / "outputs" / task / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics_of(task, seed)))
        return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    def read(settings: TaskSettings) -> TaskInputs:
        none = Split("train", [], np.zeros(0, dtype=np.int64))
        return TaskInputs(settings, TaskData(TASKS[settings.task], none, (), ()), "")

    def make(**failures: BaseException) -> Runs:
        wrong = {(name.split("_")[0], int(name.split("_")[1])): e for name, e in failures.items()}
        made = Runs(tmp_path, wrong)
        monkeypatch.setattr("bertvision_stream.modes.suite.run_task", made)
        monkeypatch.setattr("bertvision_stream.modes.train.run_task", made)
        monkeypatch.setattr("bertvision_stream.modes.inputs.read_inputs", read)
        monkeypatch.chdir(tmp_path)
        return made

    return make


def suite_of(folder: Path, name: str = "night") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (folder / "outputs/glue" / name / "metrics.json").read_text()
    )
    return content


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StreamError("a block could\nnot be made"), "a block could"),
        (ZeroDivisionError("division by zero"), "division by zero"),
    ],
)
def test_a_failed_task_stops_no_other(
    runs: Callable[..., Runs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
):
    made = runs(rte_42=error)
    assert run.main(["task=[cola,rte,wnli]", "run_name=night"]) == 1
    assert [task for task, _ in made.ran] == ["cola", "rte", "wnli"]
    out, err = capsys.readouterr()
    assert f"rte, seed 42, failed: {said}" in err
    assert err.rstrip().endswith("1 of 3 runs failed: rte, seed 42")
    assert ("Traceback" in err) == (not isinstance(error, BertvisionError))
    (row,) = [line for line in out.splitlines() if line.startswith("rte")]
    assert row.split()[1] == "failed"
    assert f"failed: rte, seed 42: {' '.join(str(error).split())}" in out
    assert "means are of 2 of 3 tasks: others failed" in out
    content = suite_of(tmp_path)
    assert [one.get("failed") for one in content["runs"]] == [None, str(error), None]
    assert content["runs"][0]["metrics"] == metrics_of("cola")
    assert content["summary"].keys() == {"cola", "wnli"}
    summary = (tmp_path / "outputs/glue/night/summary.md").read_text()
    assert "python -m bertvision_stream.run 'task=[cola,rte,wnli]'\n" in summary
    assert f"rte, seed 42: {' '.join(str(error).split())}" in summary


def test_an_interruption_stops_all_and_keeps_what_is_finished(
    runs: Callable[..., Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = runs(rte_42=KeyboardInterrupt())
    assert run.main(["task=[cola,rte,wnli]", "run_name=night"]) == 130
    assert [task for task, _ in made.ran] == ["cola", "rte"]
    assert "resume=true" in capsys.readouterr().err
    assert [one["task"] for one in suite_of(tmp_path)["runs"]] == ["cola"]


def test_a_suite_is_gone_on_with_in_its_folder(runs: Callable[..., Runs], tmp_path: Path):
    runs(rte_42=StreamError("no"))
    assert run.main(["task=[cola,rte]"]) == 1
    (folder,) = (tmp_path / "outputs/glue").iterdir()
    runs()
    assert run.main(["task=[cola,rte]", "resume=true"]) == 0
    assert [*(tmp_path / "outputs/glue").iterdir()] == [folder]
    content = suite_of(tmp_path, folder.name)
    assert (content["failed"], [*content["summary"]]) == (0, ["cola", "rte"])


def test_names_that_are_taken_are_found_before_anything_runs(
    runs: Callable[..., Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = runs()
    taken = tmp_path / "outputs/rte/night"
    taken.mkdir(parents=True)
    (taken / "metrics.json").write_text("{}")
    assert run.main(["task=[cola,rte]", "run_name=night"]) == 2
    assert "outputs/rte/night holds the results of a finished run" in capsys.readouterr().err
    assert made.ran == []
    assert not (tmp_path / "outputs/glue").exists()


def test_seeds_share_rows_and_have_folders_of_their_own(runs: Callable[..., Runs], tmp_path: Path):
    made = runs(cola_3=StreamError("no"))
    assert run.main(["task=[cola,rte]", "seeds=[1,2,3]", "run_name=night"]) == 1
    assert made.ran == [(task, seed) for task in ("cola", "rte") for seed in (1, 2, 3)]
    content = suite_of(tmp_path)
    assert Path(content["runs"][1]["folder"]) == tmp_path / "outputs/cola/night-seed2"
    scores = [score_of("cola", seed, "validation", "matthews", "head") for seed in (1, 2)]
    assert content["summary"]["cola"]["validation"]["matthews"]["head"] == {
        "mean": pytest.approx(fmean(scores)),
        "deviation": pytest.approx(stdev(scores)),
        "seeds": 2,
    }


def test_which_seeds_share_their_rows(runs: Callable[..., Runs]):
    runs()

    def rows_of(*arguments: str) -> int:
        settings = load_settings(["task=[cola,rte]", "seeds=[1,2]", *arguments])
        inputs = read_all_inputs(settings)
        assert [(each.settings.task, each.settings.seed) for each in inputs] == [
            ("cola", 1),
            ("cola", 2),
            ("rte", 1),
            ("rte", 2),
        ]
        return len({id(each.data) for each in inputs})

    assert rows_of() == 2
    assert rows_of("data.train_fraction=0.5") == 4


# --- the numbers


def brute_mean(tasks: list[str], seed: int, who: str) -> float:
    """GLUE's mean, written out."""
    of_tasks = []
    for task in tasks:
        of_splits = []
        for split in SPLITS.get(task, ("validation",)):
            of_splits.append(
                fmean(score_of(task, seed, split, m, who) for m in TASKS[task].metrics)
            )
        of_tasks.append(fmean(of_splits))
    return fmean(of_tasks)


def test_what_the_head_gains_is_compared_seed_by_seed():
    seeds = (1, 2, 3)
    entries = [entry("rte", seed) for seed in seeds]
    gains = [
        score_of("rte", seed, "validation", "accuracy", "head")
        - score_of("rte", seed, "validation", "accuracy", "bert")
        for seed in seeds
    ]
    (row,) = metric_rows(entries)
    assert row.difference.mean == pytest.approx(fmean(gains))
    assert row.difference.deviation == pytest.approx(stdev(gains))
    markdown = render_suite_markdown(entries, "the command")
    error = f"{stdev(gains) / 3**0.5:.4f}".removeprefix("0")
    assert f"| {fmean(gains):+.4f} ±{error} |" in markdown
    assert "its standard error" in markdown
    of_split = suite_json(entries, "the command")["summary"]["rte"]["validation"]["accuracy"]
    assert of_split["head_minus_bert"]["mean"] == pytest.approx(fmean(gains))


def test_the_mean_is_glues():
    tasks = [*GLUE_TASKS]
    entries = [entry(task, seed) for task in tasks for seed in (1, 2, 3)]
    means = glue_means(entries)
    for who in ("bert", "head", "ensemble"):
        values = [brute_mean(tasks, seed, who) for seed in (1, 2, 3)]
        assert means[who] == pytest.approx(values)


def test_seeds_that_lack_a_task_are_left_out_of_the_mean():
    entries = [entry("cola", 1), entry("rte", 1), entry("cola", 2), Entry("rte", 2, failure="no")]
    means = glue_means(entries)
    assert means["head"] == [pytest.approx(brute_mean(["cola", "rte"], 1, "head"))]
    assert glue_means([Entry("rte", 1, failure="no")]) == {}
    one_each = [entry("cola", 1), entry("rte", 2)]
    assert glue_means(one_each) == {}, "no seed has both"


def test_published_scores_are_compared_on_their_own_metrics():
    rows = metric_rows([entry("mnli"), entry("mrpc"), entry("wnli")])
    means = published_means(rows)
    assert means["tasks"] == 2
    mnli = fmean(score_of("mnli", 42, split, "accuracy", "head") for split in SPLITS["mnli"])
    mrpc = score_of("mrpc", 42, "validation", "accuracy", "head")
    assert means["head"] == pytest.approx(fmean([mnli, mrpc]))
    assert means["head_base"] == pytest.approx(fmean([fmean([0.8220, 0.8290]), 0.8400]))
    assert means["bert_large"] == pytest.approx(fmean([fmean([0.8530, 0.8510]), 0.7680]))
    assert published_means(metric_rows([entry("wnli")])) == {}


def test_published_scores_are_of_metrics_and_splits_that_there_are():
    for (task, split), figures in PUBLISHED.items():
        assert split in SPLITS.get(task, ("validation",))
        assert {figure.metric for figure in figures} <= {*TASKS[task].metrics}
        assert all(0 < v < 1 for figure in figures for v in (*figure.bert, *figure.head))
    assert {task for task, _ in PUBLISHED} == {*GLUE_TASKS, "squad_v2"} - {"wnli"}


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("bert-base-uncased", "base"),
        ("google-bert/bert-large-uncased", "large"),
        ("/models/bert-base-uncased", "base"),
        ("minilm", None),
        ("FacebookAI/roberta-base", None),
        ("distilbert-base-uncased", None),
        ("bert-base-cased", None),
    ],
)
def test_another_backbone_is_marked_as_one(backbone: str, size: str | None):
    assert size_of(backbone) == size
    text = render_suite([entry("cola", backbone=backbone), entry("rte", backbone=backbone)])
    text = " ".join(text.split())
    assert (f"ANOTHER BACKBONE: these runs used {backbone}" in text) == (size is None)
    assert (f"{backbone} is BERTVision's BERT-{size}" in text) == (size is not None)


def test_the_table():
    entries = [entry(task, seed) for task in GLUE_TASKS for seed in (1, 2, 3)]
    text = render_suite(entries)
    table = text[: text.index("* best")].splitlines()
    assert max(map(len, text.splitlines())) <= 100
    (row,) = [line for line in table if line.startswith("mnli-mm")]
    values = [score_of("mnli", s, "validation_mismatched", "accuracy", "bert") for s in (1, 2, 3)]
    assert f"{fmean(values):.4f} ±{stdev(values):.4f}".replace("±0", "±") in row
    assert row.split()[-4:] == ["0.8290", "0.8290", "0.8510", "0.8500"]
    (wnli,) = [line for line in table if line.startswith("wnli")]
    assert wnli.split()[-4:] == ["-", "-", "-", "-"]
    markdown = render_suite_markdown(entries, "python -m bertvision_stream.run task=glue")
    assert "| mnli-mm | accuracy |" in markdown
    assert len([line for line in markdown.splitlines() if "outputs/cola/x" in line]) == 3


@pytest.mark.parametrize(
    ("tasks", "mean", "theirs"),
    [
        (["custom"], "", False),
        (["demo"], "", False),
        (["custom", "demo"], "mean ", False),
        (["cola", "custom"], "mean ", True),
        (["wnli"], "mean, GLUE", False),
        (["squad_v2"], "", True),
        (["cola", "rte"], "mean, GLUE", True),
    ],
)
def test_only_glue_has_a_mean_of_glue_and_bertvision_only_what_it_published(
    tasks: list[str], mean: str, theirs: bool
):
    entries = [entry(task, seed) for task in tasks for seed in (1, 2)]
    for text in (render_suite(entries), render_suite_markdown(entries, "the command")):
        lines = [line.removeprefix("| ") for line in text.splitlines()]
        means = [line for line in lines if line.startswith("mean") and "both" not in line]
        assert [line.startswith(mean) for line in means[:1]] == [True] * bool(mean)
        assert ("GLUE" in text) == (mean == "mean, GLUE" or len(tasks) > 1)
        for word in ("BERTVision", "mean, both", "base", "ANOTHER"):
            assert (word in text) == theirs


def test_everything_is_json():
    entries = [entry("cola", 1), entry("cola", 2), Entry("rte", 1, failure="no"), entry("squad_v2")]
    content = json.loads(json.dumps(suite_json(entries, "the command"), allow_nan=False))
    assert content["command"] == "the command"
    assert content["summary"]["squad_v2"]["validation"].keys() == {"exact", "f1"}
    assert {row["task"] for row in content["published"]["scores"]} == {"cola", "rte", "squad_v2"}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"splits": 3}', '{"backbone": "x", "splits": {"validation": {}}}']
)
def test_damaged_metrics_of_a_run_name_the_file(tmp_path: Path, content: str):
    assert read_metrics(tmp_path) is None
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "metrics.json"))):
        read_metrics(tmp_path)
