"""Plots of a run: what is drawn is what was measured. And the report that holds them."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reports import report_on, split_result
from sklearn.metrics import confusion_matrix

from bertvision_stream.report.calibration_plot import NUM_BINS, reliability
from bertvision_stream.report.html import render_html
from bertvision_stream.report.plots import (
    SplitScores,
    confusion,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_layers,
    draw_scatter,
    draw_scores_against,
    draw_thresholds,
    write_plots,
)
from bertvision_stream.report.records import HeadSummary, RunReport
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.objectives.squad_scoring import ScoredSpans

PNG = b"\x89PNG\r\n\x1a\n"


def rte() -> RunReport:
    return report_on("rte", split_result("validation", 300, accuracy=(0.5704, 0.6101, 0.6209)))


def mnli() -> RunReport:
    return report_on(
        "mnli",
        split_result("validation_matched", 300, accuracy=(0.71, 0.72, 0.73)),
        split_result("validation_mismatched", 200, accuracy=(0.74, 0.75, 0.76)),
    )


def stsb() -> RunReport:
    values = {"pearson": (0.8, 0.81, 0.82), "spearman": (0.7, 0.71, 0.72)}
    return report_on("stsb", split_result("validation", 300, **values))


def probabilities(count: int, classes: int, *, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (count, classes))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def classified(name: str, classes: int, count: int = 300) -> SplitScores:
    scores = {n: probabilities(count, classes, seed=i) for i, n in enumerate(("bert", "head"))}
    scores["ensemble"] = (scores["bert"] + scores["head"]) / 2
    return SplitScores(name, np.random.default_rng(9).integers(0, classes, count), scores)


def scored(count: int = 300) -> SplitScores:
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, count)
    bert, head = labels + rng.normal(0, 1, count), labels + rng.normal(0, 0.5, count)
    scores = {"bert": bert, "head": head, "ensemble": (bert + head) / 2}
    return SplitScores("validation", labels, scores)


def visible(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def assert_labelled(figure: Figure) -> None:
    """Whoever sees the plot alone knows what it shows."""
    suptitle = figure.get_suptitle()
    assert suptitle
    panels = visible(figure)
    bottom, left = [axes.get_xlabel() for axes in panels], [axes.get_ylabel() for axes in panels]
    assert any(bottom)
    assert left[0]


@pytest.mark.parametrize("classes", [2, 3])
def test_reliability_bin_by_bin(classes: int):
    split = classified("validation", classes, 500)
    scores = split.scores["head"]
    scores[0] = np.eye(classes)[0]  # certainty itself belongs into the last bin
    found = reliability(scores, split.labels)
    right = scores.argmax(axis=1) == split.labels
    error = 0.0
    width = (1 - 1 / classes) / NUM_BINS
    for k in range(NUM_BINS):
        low = 1 / classes + k * width
        last = k == NUM_BINS - 1
        rows = [i for i, p in enumerate(scores.max(axis=1)) if p >= low - 1e-12
                and (last or p < low + width - 1e-12)]  # fmt: skip
        assert found.counts[k] == len(rows)
        if rows:
            assert found.accuracy[k] == pytest.approx(np.mean([right[i] for i in rows]))
            certain = np.mean([scores[i].max() for i in rows])
            assert found.confidence[k] == pytest.approx(certain)
            error += len(rows) / 500 * abs(certain - found.accuracy[k])
        else:
            assert np.isnan(found.accuracy[k])
    assert found.expected_error == pytest.approx(error)
    assert found.counts.sum() == 500


def test_the_confusion_matrix_is_scikit_learns():
    split = classified("validation", 3)
    scores = split.scores["bert"]
    scores[:, 2] = 0  # a class that is never predicted keeps its column
    expected = confusion_matrix(split.labels, scores.argmax(axis=1), labels=[0, 1, 2])
    np.testing.assert_array_equal(confusion(scores, split.labels, 3), expected)
    figure = draw_confusion(split, TASKS["mnli"], "title")
    assert_labelled(figure)
    shown = [text.get_text().splitlines()[0] for text in figure.axes[0].texts]
    assert shown == [f"{count:,}" for count in expected.ravel()]
    labels = [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
    assert labels == list(TASKS["mnli"].label_names)


@pytest.mark.filterwarnings("error")
def test_any_text_will_do_for_a_label(tmp_path: Path):
    names = ("$5-$10^", r"\frac{$", "日本語", "x" * 99)
    task = replace(TASKS["rte"], name="a$b$", label_names=names)
    report = replace(rte(), task=task)
    files = write_plots(report, [classified("validation", 4)], tmp_path)
    assert len(files) == 3
    figure = draw_confusion(classified("validation", 4), task, "$title$^")
    assert max(len(tick.get_text()) for tick in figure.axes[0].get_yticklabels()) < 32


def test_curves_show_the_history():
    report = mnli()
    figure = draw_curves(report)
    assert_labelled(figure)
    losses, accuracy = visible(figure)
    lines = {line.get_label(): line for line in losses.get_lines()}
    history = report.train.history
    assert list(lines["training"].get_ydata()) == [record.loss for record in history]
    assert list(lines["validation"].get_ydata()) == [r.validation_loss for r in history]
    assert losses.get_ylabel() == "loss (nats an example)"
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    assert {"head matched", "BERT matched", "head mismatched", "BERT mismatched"} <= lines.keys()
    assert list(lines["BERT mismatched"].get_ydata()) == [0.74, 0.74]


@pytest.mark.parametrize(("rows", "said"), [(1, "1 validation row)"), (34, "34 validation rows)")])
def test_layers_show_both_shares_and_of_how_many_rows(rows: int, said: str):
    mix, adapters = (0.2, 0.3, 0.5), (0.6, 0.3, 0.1)
    head = HeadSummary(
        kind="adapter_pooler",
        parameters=1,
        backbone_parameters=2,
        layers=(0, 3, 6),
        mix_weights=mix,
        mix_gamma=1.0,
        adapter_shares=adapters,
        adapter_rows=rows,
    )
    figure = draw_layers(head, "title")
    assert_labelled(figure)
    assert figure.axes[1].get_ylabel().endswith(f"(over the tokens of {said}")
    for axes, shares in zip(figure.axes, (mix, adapters), strict=True):
        assert [bar.get_height() for bar in axes.patches] == list(shares)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["emb.", "3", "6"]
    assert len(draw_layers(replace(head, mix_weights=()), "title").axes) == 1


def test_calibration_shows_counts():
    split = classified("validation", 2)
    figure = draw_calibration(split, "title")
    assert_labelled(figure)
    for column, scores in enumerate(split.scores.values()):
        found = reliability(scores, split.labels)
        bars = [bar.get_height() for bar in figure.axes[3 + column].patches]
        assert bars == found.counts.tolist()
        assert f"{found.expected_error:.3f}" in figure.axes[column].get_title()


def test_scatter_shows_every_example():
    split = scored()
    figure = draw_scatter(split, "title")
    assert_labelled(figure)
    points = figure.axes[1].collections[0].get_offsets()
    np.testing.assert_allclose(points, np.stack([split.labels, split.scores["head"]], axis=1))
    pearson = np.corrcoef(split.labels, split.scores["head"])[0, 1]
    assert f"Pearson {pearson:.3f}" in figure.axes[1].get_title()
    flat = SplitScores("validation", split.labels, {k: np.ones(300) for k in split.scores})
    assert "Pearson" not in draw_scatter(flat, "title").axes[0].get_title()


def test_scores_against_a_quantity():
    series = {"head": {0.1: [0.5, 0.7], 1.0: [0.8, 0.8]}, "BERT": {0.1: [0.4], 1.0: [0.9]}}
    figure = draw_scores_against(
        "title", series, x_label="share of the training rows", score_label="accuracy"
    )
    assert_labelled(figure)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["head"].get_ydata()) == pytest.approx([0.6, 0.8])
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_ylabel() == "accuracy (line: mean of the seeds)"


def with_shares(report: RunReport) -> RunReport:
    return replace(
        report, head=replace(report.head, layers=(0, 1, 2), adapter_shares=(0.25, 0.5, 0.25))
    )


def test_every_kind_of_task_has_its_plots(tmp_path: Path):
    splits = [classified("validation_matched", 3), classified("validation_mismatched", 3)]
    files = write_plots(with_shares(mnli()), splits, tmp_path / "mnli")
    assert [file.name for file in files] == [
        "curves.png",
        "layers.png",
        "calibration_validation_matched.png",
        "confusion_validation_matched.png",
        "calibration_validation_mismatched.png",
        "confusion_validation_mismatched.png",
    ]
    assert all(file.read_bytes().startswith(PNG) for file in files)
    files = write_plots(stsb(), [scored()], tmp_path / "stsb")
    assert [file.name for file in files] == ["curves.png", "scatter_validation.png"]
    scores = {"exact": (0.5, 0.6, 0.55), "f1": (0.55, 0.65, 0.6)}
    squad = report_on("squad_v2", split_result("validation", 60, **scores))
    # The end has more metrics than each epoch.
    more = {f"{name}_answerable": values for name, values in scores.items()}
    squad = replace(squad, splits=(split_result("validation", 60, **scores, **more),))
    answered = SplitScores("validation", np.ones(60), {}, spans())
    files = write_plots(squad, [answered], tmp_path / "squad")
    assert [file.name for file in files] == ["curves.png", "thresholds_validation.png"]


def spans() -> dict[str, ScoredSpans]:
    """Questions, a third without an answer, and one that no threshold answers."""
    found = {}
    for seed, name in enumerate(("bert", "head", "ensemble")):
        rng = np.random.default_rng(seed)
        golds = [[] if i % 3 == 0 else ["york"] for i in range(60)]
        texts = rng.choice(["york", "bath in york"], 60).tolist()
        odds = np.append(rng.normal(0, 3, 59).round(1), np.finfo(np.float32).max)
        found[name] = ScoredSpans.of(texts, golds, odds, np.array([bool(gold) for gold in golds]))
    return found


def test_thresholds_show_the_official_scores():
    scored = spans()
    figure = draw_thresholds(scored, "title")
    assert_labelled(figure)
    for axes, metric in zip(figure.axes, ("exact", "f1"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        for name, label in (("bert", "BERT"), ("head", "head"), ("ensemble", "ensemble")):
            thresholds, values = lines[label].get_data()
            assert max(thresholds) < 100
            for threshold, value in zip(thresholds, values, strict=True):
                assert value == pytest.approx(scored[name].metrics(threshold)[metric])
        highest = [line.get_ydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1]
        assert highest == pytest.approx(
            [max(lines[label].get_ydata()) for label in ("BERT", "head", "ensemble")]
        )


class Page(HTMLParser):
    """What a page shows and what it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.shown.append(" ".join(data.split()))


def test_the_report_is_whole_and_loads_nothing(tmp_path: Path):
    report = with_shares(rte())
    stages = {"fine-tuning": 35.1, "epoch 1": 4.0, "epochs 2 to 3": 6.0}
    report = replace(
        report,
        seconds=replace(report.seconds, stages=stages),
        settings={"task": "rte", "data.path": "<script>alert(1)</script>"},
    )
    files = write_plots(report, [classified("validation", 2)], tmp_path)
    text = render_html(report, files)
    page = Page(text)
    assert page.open == []
    assert page.loaded[0] == "data:,"  # no icon is looked for
    inlined = [
        base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.loaded[1:]
    ]
    assert inlined == [file.read_bytes() for file in files]
    assert "http" not in text
    assert "<script>" not in text
    shown = page.shown
    assert "<script>alert(1)</script>" in shown
    for expected in (
        "0.5704",
        "0.6209",
        "7,154",
        "python -m bertvision_stream.run task=rte backbone=minilm",
        "2 (chosen)",
    ):
        assert expected in shown
    places = [shown.index(stage) for stage in ("fine-tuning", "epochs 2 to 3", "epoch 1")]
    assert places == sorted(places)  # the slowest first
    assert shown[places[0] + 1 : places[0] + 3] == ["35.1", "78%"]
