"""What a run on SQuAD leaves behind: the metrics, the tables, the official files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from reports import report_on
from span_rows import generated_rows, row, split_of, wordpiece
from squad_rules import official_score

from bertvision_stream.data.splits import Split
from bertvision_stream.data.windows import SpanLayout, WindowStore, tokenize_windows
from bertvision_stream.report.html import render_html
from bertvision_stream.report.predictions import write_predictions
from bertvision_stream.report.records import SplitResult, metrics_json
from bertvision_stream.report.text import render_markdown, render_table
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.errors import BertvisionError

SQUAD = TASKS["squad_v2"]
ROWS = [
    *generated_rows(30, seed=3),
    row("long", "who won?", "in france rollo won the battle " * 25, "rollo"),
    row("日本", "who — won?", "“Édouard” won", "“Édouard”"),
]


@pytest.fixture(scope="module")
def split() -> Split:
    return split_of(ROWS)


@pytest.fixture(scope="module")
def store(split: Split) -> WindowStore:
    return tokenize_windows(split, wordpiece(), max_length=64, stride=21, keep_layout=True)


def layout_of(store: WindowStore) -> SpanLayout:
    assert store.layout is not None
    return store.layout


def scores_of(store: WindowStore, *, skill: float, seed: int) -> np.ndarray:
    """Noise, and something of what is right."""
    scores = np.random.default_rng(seed).normal(size=(store.num_tokens, 2))
    for w in range(store.num_examples):
        for side in range(2):
            scores[store.offsets[w] + store.labels[w, side], side] += skill
    return scores


@pytest.fixture(scope="module")
def predictor_scores(store: WindowStore) -> PredictorScores:
    objective = make_objective(SQUAD)
    bert, head = (scores_of(store, skill=skill, seed=i) for i, skill in enumerate((2.0, 4.0)))
    return PredictorScores(bert, head, objective.ensemble(bert, head, "max", store))


def test_the_files_agree_with_each_other_and_with_the_metrics(
    split, store, predictor_scores, tmp_path
):
    objective = make_objective(SQUAD)
    write_predictions(tmp_path, SQUAD, split, store, predictor_scores)
    lines = (tmp_path / "predictions_validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["id"] for r in rows] == [r["id"] for r in ROWS]
    assert [r["index"] for r in rows] == list(range(len(ROWS)))
    official = [
        f"{n}{who}" for n in ("null_odds", "predictions") for who in ("", "_bert", "_ensemble")
    ]
    files = {*(f"{name}.json" for name in official), "predictions_validation.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == files
    for line, given in zip(rows, ROWS, strict=True):
        assert line["texts"] == {"question": given["question"], "context": given["context"]}
        assert line["gold"] == given["answers"]["text"]
    for name, suffix in (("head", ""), ("bert", "_bert"), ("ensemble", "_ensemble")):
        predictions = json.loads((tmp_path / f"predictions{suffix}.json").read_text("utf-8"))
        odds = json.loads((tmp_path / f"null_odds{suffix}.json").read_text("utf-8"))
        assert list(predictions) == list(odds) == [r["id"] for r in ROWS]
        exact, f1 = [], []
        for line in rows:
            verdict = line[name]
            assert verdict["prediction"] == predictions[line["id"]]
            assert verdict["null_odds"] == odds[line["id"]]
            assert verdict["best_span"] in line["texts"]["context"]
            wanted = "" if verdict["null_odds"] > 0 else verdict["best_span"]
            assert verdict["prediction"] == wanted
            assert 0 < verdict["confidence"] <= 1
            score = official_score(verdict["prediction"], line["gold"])
            assert (verdict["exact"], verdict["f1"]) == (
                score[0],
                pytest.approx(score[1], abs=1e-6),
            )
            exact.append(score[0])
            f1.append(score[1])
        metrics = objective.all_metrics(predictor_scores.by_name()[name], store)
        assert metrics["exact"] == pytest.approx(np.mean(exact))
        assert metrics["f1"] == pytest.approx(np.mean(f1))
        few = objective.metrics(predictor_scores.by_name()[name], store)
        assert few == {key: metrics[key] for key in ("exact", "f1")}


def test_all_metrics_are_labelled(store, predictor_scores):
    metrics = make_objective(SQUAD).all_metrics(predictor_scores.head, store)
    kinds = ["", "_answerable", "_unanswerable"]
    names = [
        f"{m}{kind}{at}"
        for at in ("", "_tuned", "_always")
        for m in ("exact", "f1")
        for kind in kinds
    ]
    assert sorted(metrics) == sorted([*names, "threshold_tuned"])
    assert metrics["f1_tuned"] >= max(metrics["f1"], metrics["f1_always"])
    # A span of which nothing counts, such as "the", is officially no answer.
    assert metrics["exact_unanswerable_always"] < 0.2 < metrics["exact_unanswerable_tuned"]
    assert metrics["f1_answerable_always"] > 0.5
    assert all(type(value) is float for value in metrics.values())
    json.dumps(metrics, allow_nan=False)


def test_questions_of_one_kind_have_no_metrics_of_the_other():
    rows = [r for r in ROWS if r["answers"]["text"]]
    store = tokenize_windows(
        split_of(rows), wordpiece(), max_length=64, stride=21, keep_layout=True
    )
    metrics = make_objective(SQUAD).all_metrics(scores_of(store, skill=3, seed=0), store)
    assert "exact_unanswerable" not in metrics
    assert metrics["f1_answerable_always"] == metrics["f1_always"]


def test_logits_that_are_not_finite_are_never_scored(store):
    logits = np.zeros((store.num_tokens, 2), dtype=np.float32)
    logits[5, 1] = np.nan
    with pytest.raises(BertvisionError, match=r"1 of .* tokens have logits .* first is token 5\)"):
        make_objective(SQUAD).scores(logits)


@pytest.fixture(scope="module")
def result(store, predictor_scores) -> SplitResult:
    objective = make_objective(SQUAD)
    metrics = {n: objective.all_metrics(s, store) for n, s in predictor_scores.by_name().items()}
    return SplitResult(name="validation", examples=len(ROWS), **metrics)


def test_the_report_has_a_second_table(result):
    report = report_on("squad_v2", result)
    kept = {"validation": {key: result.head[key] for key in ("exact", "f1")}}
    history = tuple(replace(record, scores=kept) for record in report.train.history)
    report = replace(report, train=replace(report.train, history=history))
    assert isinstance(history[0], EpochRecord)
    text = render_table(report)
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    first = lines.index("Questions with and without an answer")
    assert lines[first + 3].split() == ["threshold", "exact", "f1", "exact", "f1", "exact"]
    rows = [line.split() for line in lines[first + 5 : first + 14]]
    for scores, (zero, tuned, always) in zip(
        (result.bert, result.head, result.ensemble), np.reshape(np.arange(9), (3, 3)), strict=True
    ):
        for i, suffix in ((zero, ""), (tuned, "_tuned"), (always, "_always")):
            keys = ("exact", "f1", "exact_answerable", "f1_answerable", "exact_unanswerable")
            assert rows[i][-5:] == [f"{scores[key + suffix]:.4f}" for key in keys]
    assert rows[1][-7:-5] == [f"{result.bert['threshold_tuned']:.2f}", "(tuned)"]

    markdown = render_markdown(report)
    assert (
        "## Questions with and without an answer\n\n|  | threshold | all exact | f1 |" in markdown
    )
    assert f"| head | 0 | {result.head['exact']:.4f} |" in markdown
    assert "| epoch | training loss | validation loss | exact | f1 |" in markdown
    html = render_html(report, [])
    assert "<h2>Questions with and without an answer</h2>" in html
    assert f"<td>head</td><td>0</td><td>{result.head['exact']:.4f}</td>" in html
    assert metrics_json(report)["splits"]["validation"]["head"] == result.head


def test_other_tasks_have_no_second_table(result):
    few = {key: result.head[key] for key in ("exact", "f1")}
    split = SplitResult(
        name="validation",
        examples=3,
        bert={"accuracy": 1},
        head={"accuracy": 1},
        ensemble=few | {"accuracy": 1},
    )
    report = report_on("rte", split)
    assert "answerable" not in render_table(report) + render_markdown(report)
