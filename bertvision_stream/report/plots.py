"""Plots of a run, one file each, drawn without a display.

matplotlib takes most of a second to import: import this module only where plots are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import pearsonr

from bertvision_stream.report.calibration_plot import reliability
from bertvision_stream.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    escape_mathtext,
    integer_epoch_axis,
    new_figure,
    save_figures,
)
from bertvision_stream.report.records import HeadSummary, RunReport
from bertvision_stream.report.tables import PREDICTORS
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import predicted
from bertvision_stream.training.objectives.squad_scoring import ScoredSpans

_COLORS = {"bert": GREY, "head": BLUE, "ensemble": ORANGE}
# With more classes than these, the numbers or the names in a matrix would be too small to read.
_MOST_CLASSES_NUMBERED, _MOST_CLASSES_NAMED = 12, 40
_MOST_ODDS = 1e30  # Questions without any span have odds above this; no threshold answers them.


@dataclass(frozen=True, eq=False)
class SplitScores:
    """What the three predictors say of one validation split.

    Attributes:
        name: The name of the split.
        labels: The gold class ids, or numbers, [N].
        scores: The scores by the keys of `PREDICTORS`, float64 [N, C] or [N]; empty for spans.
        spans: The scored answers by the same keys; empty unless answers are spans.
    """

    name: str
    labels: np.ndarray
    scores: Mapping[str, np.ndarray]
    spans: Mapping[str, ScoredSpans] = field(default_factory=dict)


def write_plots(report: RunReport, splits: Sequence[SplitScores], folder: Path) -> list[Path]:
    """Writes the plots that suit the task into `folder`, which is made.

    Every task has `curves.png`, and `layers.png` if the head weighs layers. For each split there
    are `calibration_<split>.png` and `confusion_<split>.png` of a classification,
    `scatter_<split>.png` of a regression, and `thresholds_<split>.png` of spans.

    Returns:
        The files.
    """
    figures = {"curves": draw_curves(report)}
    if report.head.mix_weights or report.head.adapter_shares:
        figures["layers"] = draw_layers(report.head, _title(report, "what the head reads"))
    for split in splits:
        where = split.name.replace("_", " ")
        if report.task.kind == "classification":
            figures[f"calibration_{split.name}"] = draw_calibration(
                split, _title(report, f"calibration on {where}")
            )
            figures[f"confusion_{split.name}"] = draw_confusion(
                split, report.task, _title(report, f"gold labels and predictions on {where}")
            )
        elif report.task.kind == "regression":
            figures[f"scatter_{split.name}"] = draw_scatter(
                split, _title(report, f"gold and predicted scores on {where}")
            )
        else:
            figures[f"thresholds_{split.name}"] = draw_thresholds(
                split.spans, _title(report, f"answers and thresholds on {where}")
            )
    return save_figures(figures, folder)


def _title(report: RunReport, what: str) -> str:
    return f"{report.task.name}, {report.head.kind} head on {report.backbone}: {what}"


def draw_curves(report: RunReport) -> Figure:
    """The head's losses and metrics after each epoch, with BERT's own metrics as lines."""
    history, chosen = report.train.records, report.train.best_epoch
    epochs = [record.epoch for record in history]
    metrics = report.task.metrics
    count = 1 + len(metrics)
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(_title(report, "learning curves"), size=(4.2 * columns, 0.4 + 3.4 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels:
        integer_epoch_axis(axes)
        axes.axvline(chosen, color=GREY, lw=0.8, ls=":", zorder=0)
        axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)

    losses = panels[0]
    losses.plot(epochs, [r.loss for r in history], "o-", color=ORANGE, ms=4, label="training")
    validation = [record.validation_loss for record in history]
    losses.plot(epochs, validation, "o-", color=BLUE, ms=4, label="validation")
    losses.set_ylabel(f"loss ({_loss_unit(report.task)})")
    _mark_chosen(losses, chosen, validation[epochs.index(chosen)])
    losses.legend(frameon=False, fontsize=8)

    for axes, metric in zip(panels[1:], metrics, strict=False):
        axes.set_ylabel(f"{escape_mathtext(report.task.metric_title(metric))} (validation)")
        for number, split in enumerate(report.splits):
            name = f" {split.name.removeprefix('validation_')}" if len(report.splits) > 1 else ""
            style = ("-", "--", "-.")[number % 3]
            values = [record.scores[split.name][metric] for record in history]
            axes.plot(epochs, values, f"o{style}", color=BLUE, ms=4, label=f"head{name}")
            axes.axhline(split.bert[metric], color=GREY, ls=style, label=f"BERT{name}")
            _mark_chosen(axes, chosen, values[epochs.index(chosen)])
        axes.legend(frameon=False, fontsize=8)
    return figure


def _loss_unit(task: Task) -> str:
    return {
        "classification": "nats an example",
        "regression": "squared error an example",
        "span": "nats a window, mean of start and end",
    }[task.kind]


def _mark_chosen(axes: Axes, epoch: int, value: float) -> None:
    axes.plot([epoch], [value], "o", ms=9, mfc="none", mec="black", mew=1, zorder=4)


def draw_layers(head: HeadSummary, title: str) -> Figure:
    """The shares of the layers in the scalar mix, and in the norm of the adapters' output."""
    rows = f"{head.adapter_rows:,} validation row{'s' * (head.adapter_rows != 1)}"
    panels = {
        "share of the scalar mix (softmax weight)": head.mix_weights,
        f"share of the adapters' output norm\n(over the tokens of {rows})": head.adapter_shares,
    }
    panels = {label: shares for label, shares in panels.items() if shares}
    count = max(map(len, panels.values()))
    width = max(4.2, 0.28 * count + 1.5)
    figure = new_figure(title, size=(max(width * len(panels), 5.5), 3.8))
    for axes, (label, shares) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True
    ):
        axes.bar(range(len(shares)), shares, color=BLUE)
        axes.axhline(1 / len(shares), color="black", lw=0.8, ls="--", label="equal shares")
        step = 1 if len(shares) <= 14 else 2
        names = ["emb." if layer == 0 else str(layer) for layer in head.layers]
        axes.set_xticks(range(0, len(shares), step), names[::step], fontsize=8)
        axes.set_xlabel("layer (emb.: the embeddings)")
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_ylim(0, 1.18 * max(*shares, 1 / len(shares)))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def draw_calibration(split: SplitScores, title: str) -> Figure:
    """For each predictor: accuracy against confidence, and below it how many examples there are."""
    figure = new_figure(title, size=(11, 4.6))
    grid = figure.subplots(
        2, 3, sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": [3, 1]}
    )
    for column, (name, scores) in enumerate(split.scores.items()):
        found = reliability(scores, split.labels)
        upper, lower = grid[0][column], grid[1][column]
        color = _COLORS[name]
        upper.plot([found.edges[0], 1], [found.edges[0], 1], color="black", lw=0.8, ls="--")
        seen = found.counts > 0
        upper.plot(found.confidence[seen], found.accuracy[seen], color=color, lw=1)
        # A point that stands for few examples says little, so it is drawn small.
        sizes = 8 + 72 * np.sqrt(found.counts[seen] / found.counts.max())
        upper.scatter(found.confidence[seen], found.accuracy[seen], sizes, color=color, zorder=3)
        upper.set_title(
            f"{PREDICTORS[name]}: expected calibration error {found.expected_error:.3f}", fontsize=9
        )
        upper.set_ylim(-0.03, 1.03)
        upper.yaxis.set_major_formatter(PercentFormatter(1))
        widths = np.diff(found.edges)
        lower.bar(found.edges[:-1], found.counts, widths, align="edge", color=color, ec="white")
        for left, width, count in zip(found.edges, widths, found.counts.tolist(), strict=False):
            if count:
                middle = left + width / 2
                lower.annotate(
                    f"{count:,}",
                    (middle, count),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                )
        lower.set_xlabel("confidence of the prediction")
        lower.xaxis.set_major_formatter(PercentFormatter(1))
    highest = max(reliability(s, split.labels).counts.max() for s in split.scores.values())
    grid[1][0].set_ylim(0, 1.3 * highest)
    grid[0][0].set_ylabel("accuracy (dashed: as confident)")
    grid[1][0].set_ylabel("examples")
    return figure


def draw_confusion(split: SplitScores, task: Task, title: str) -> Figure:
    """BERT's and the head's predictions by gold label, shaded by the share of the label."""
    classes = list(task.label_names)
    size = min(1.9 + 0.7 * len(classes), 9)
    figure = new_figure(title, size=(2 * size + 2.2, size + 1.2))
    figure.set_layout_engine("compressed")  # Keeps square panels close to each other.
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("bert", "head"), strict=True):
        counts = confusion(split.scores[name], split.labels, len(classes))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(PREDICTORS[name], fontsize=10)
        axes.set_xlabel("predicted")
        ticks = range(0, len(classes), math.ceil(len(classes) / _MOST_CLASSES_NAMED))
        names = [escape_mathtext(_shorten(classes[tick], 28)) for tick in ticks]
        slope = {"rotation": 30, "ha": "right"} if len(classes) <= 8 else {"rotation": 90}
        axes.set_xticks(ticks, names, fontsize=8, **slope)
        axes.set_yticks(ticks, names, fontsize=8)
        if len(classes) <= _MOST_CLASSES_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                shown = f"{count:,}\n{shares[row, column]:.0%}"
                color = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, shown, ha="center", va="center", fontsize=8, color=color)
    panels[0].set_ylabel("gold")
    bar = figure.colorbar(image, ax=panels, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("share of the gold label")
    return figure


def _shorten(name: str, length: int) -> str:
    """The name, cut where it is longer than `length`."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def confusion(scores_BC: np.ndarray, labels_B: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of examples by gold label (rows) and prediction (columns), int64 [C, C].

    Args:
        scores_BC: Class probabilities, float64 [B, C].
        labels_B: Gold class ids, int64 [B].
        num_classes: C, the number of classes.
    """
    pairs = labels_B * num_classes + predicted(scores_BC, "classification")
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def draw_scatter(split: SplitScores, title: str) -> Figure:
    """BERT's and the head's scores against the gold ones."""
    figure = new_figure(title, size=(9.4, 4.9))
    figure.set_layout_engine("compressed")  # Keeps square panels close to each other.
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    shown = [split.labels, split.scores["bert"], split.scores["head"]]
    low, high = min(map(np.min, shown)), max(map(np.max, shown))
    margin = 0.04 * (high - low) or 1.0
    for axes, name in zip(panels, ("bert", "head"), strict=True):
        scores = split.scores[name]
        axes.plot([low, high], [low, high], color="black", lw=0.8, ls="--")
        alpha = float(np.clip(400 / len(scores), 0.15, 0.6))
        axes.scatter(split.labels, scores, s=14, color=_COLORS[name], alpha=alpha, lw=0)
        axes.set_title(f"{PREDICTORS[name]}: {_agreement(scores, split.labels)}", fontsize=10)
        axes.set_xlabel("gold score")
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(low - margin, high + margin)
        axes.set_aspect("equal")
    panels[0].set_ylabel("predicted score (dashed: equal)")
    return figure


def _agreement(scores: np.ndarray, labels: np.ndarray) -> str:
    error = f"mean absolute error {np.abs(scores - labels).mean():.2f}"
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(labels) == 0:
        return error  # Constant numbers have no correlation.
    return f"Pearson {pearsonr(scores, labels).statistic:.3f}, {error}"


def draw_scores_against(
    title: str,
    series: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    x_label: str,
    score_label: str,
    log_x: bool = True,
) -> Figure:
    """Scores of several predictors against a quantity such as the share of the training rows.

    Args:
        title: The text above the plot.
        series: The scores, one for each seed, by name of the predictor and by the quantity.
        x_label: What the quantity is, with its unit.
        score_label: What the score is.
        log_x: Whether the quantity is drawn on a logarithmic scale.
    """
    figure = new_figure(title, size=(7, 4.4))
    axes = figure.subplots()
    colors = [BLUE, GREY, ORANGE]
    places = sorted({x for points in series.values() for x in points})
    for number, (name, points) in enumerate(series.items()):
        xs = sorted(points)
        color = _COLORS.get(name.lower(), colors[number % len(colors)])
        means = [float(np.mean(points[x])) for x in xs]
        axes.plot(xs, means, "o-", color=color, ms=5, label=name, zorder=3)
        lows, highs = [min(points[x]) for x in xs], [max(points[x]) for x in xs]
        axes.fill_between(xs, lows, highs, color=color, alpha=0.15, lw=0)
        for x in xs:
            axes.plot([x] * len(points[x]), points[x], ".", color=color, ms=4, alpha=0.6)
    if log_x:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    several = any(len(scores) > 1 for points in series.values() for scores in points.values())
    axes.set_ylabel(score_label + (" (line: mean of the seeds)" if several else ""))
    axes.legend(frameon=False)
    return figure


def draw_thresholds(scored: Mapping[str, ScoredSpans], title: str) -> Figure:
    """Exact match and F1 of the predictors against the threshold above which no answer is given.

    Dots mark the highest score of each predictor, the dashed line is threshold 0. At the left end
    no question is answered, at the right end every question is.
    """
    figure = new_figure(title, size=(9.4, 4.2))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for name, spans in scored.items():
        odds, *curves = spans.curve()
        seen = np.abs(odds) < _MOST_ODDS
        if not seen.any():
            continue
        # With a threshold below the lowest odds no question is answered.
        first = float(spans.null.mean())
        thresholds = np.concatenate([[odds[seen][0] - 1], odds[seen]])
        for axes, values in zip(panels, curves, strict=True):
            scores = np.concatenate([[first], values[seen]])
            best = int(scores.argmax())
            axes.step(thresholds, scores, where="post", color=_COLORS[name], label=PREDICTORS[name])
            axes.plot(thresholds[best], scores[best], "o", color=_COLORS[name], ms=5, zorder=3)
    for axes, metric in zip(panels, ("exact match", "F1"), strict=True):
        axes.axvline(0, color="black", lw=0.8, ls="--")
        axes.set_xlabel("threshold (null score less the best span's)")
        axes.set_ylabel(f"{metric} (dot: the highest)")
        axes.tick_params(labelleft=True)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].legend(frameon=False, fontsize=8)
    return figure
