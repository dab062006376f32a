"""Plots of a search, one file each, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bertvision_stream.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    YELLOW,
    escape_mathtext,
    integer_epoch_axis,
    new_figure,
    save_figures,
)
from bertvision_stream.settings.search_dimensions import Choice, Range, show
from bertvision_stream.utils.errors import SearchError
from tune.trial_results import SCORE
from tune.trials import FAILED_STATUSES, Search, Trial, best_trial

_COLORS = {"finished": BLUE, "stopped": GREY, "unfinished": ORANGE}
_FAILED, _BEST = RED, YELLOW
_LABELS = {"stopped": "stopped early", "unfinished": "unfinished", "finished": "finished"}


def write_plots(search: Search, folder: Path) -> list[Path]:
    """Write all plots.

    Args:
        search: The search.
        folder: The folder that the plots are written into; it is made.

    Returns:
        The paths of the files: `hyperparameters.png`, `learning_curves.png`, `best_so_far.png`.
    """
    figures = {
        "hyperparameters": draw_hyperparameters(search),
        "learning_curves": draw_learning_curves(search),
        "best_so_far": draw_best_so_far(search),
    }
    return save_figures(figures, folder)


def draw_hyperparameters(search: Search) -> Figure:
    """Draw the score of each trial over each searched key.

    Trials that diverged or failed have no score, and stand on the lower edge.
    """
    keys = search.keys
    columns = min(len(keys), 3) or 1
    rows = math.ceil(len(keys) / columns) or 1
    figure = _figure(
        search, "score against what was searched", size=(1 + 3.6 * columns, 3.4 * rows)
    )
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    best = _best(search)
    for axes, key in zip(grid, keys, strict=False):
        positions = _x_positions(axes, key, search)
        for trial in search.trials:
            _mark(axes, positions[trial.number], trial, best=trial is best)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(_score_label(search))
    _legend(figure, search.trials, best)
    return figure


def draw_learning_curves(search: Search) -> Figure:
    """Draw the score and the validation loss of each trial after each epoch."""
    figure = _figure(search, "learning curves", size=(10, 4.2))
    best = _best(search)
    panels = {SCORE: _score_label(search), "validation_loss": "validation loss (mean per example)"}
    for axes, (column, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for trial in sorted(search.trials, key=lambda trial: trial is best):  # the best on top
            if column in trial.history:
                _curve(axes, trial.history[column].dropna(), trial, best=trial is best)
        integer_epoch_axis(axes)
        axes.set_ylabel(label)
    _limit_losses(
        axes, [t.history[column] for t in search.trials if t.is_eligible and column in t.history]
    )
    _legend(figure, search.trials, best)
    return figure


def draw_best_so_far(search: Search) -> Figure:
    """Draw the score of each trial, in the order of their last reports, and the highest so far."""
    figure = _figure(search, "best so far", size=(8, 4.2))
    axes = figure.subplots()
    best = _best(search)
    reported = [trial for trial in search.trials if not trial.history.empty]
    reported.sort(key=lambda trial: (trial.history["timestamp"].iloc[-1], trial.number))
    highest, steps = -math.inf, []
    for position, trial in enumerate(reported, start=1):
        _mark(axes, position, trial, best=trial is best)
        highest = max(highest, trial.score) if trial.is_eligible else highest
        steps.append(highest if math.isfinite(highest) else math.nan)
    if reported:
        axes.step(range(1, len(steps) + 1), steps, where="post", color="black", lw=1.2, zorder=1)
    axes.set_xlabel("trials, in the order of their last report")
    axes.set_ylabel(_score_label(search))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, search.trials, best, Line2D([], [], color="black", lw=1.2, label="best so far"))
    return figure


def _figure(search: Search, what: str, *, size: tuple[float, float]) -> Figure:
    """An empty figure with a title; `size` is in inches."""
    return new_figure(f"{search.name}: {what} ({len(search.trials)} trials)", size=size)


def _best(search: Search) -> Trial | None:
    """The best trial; None where there is none."""
    try:
        return best_trial(search)
    except SearchError:
        return None


def _score_label(search: Search) -> str:
    """The label of an axis of scores, which names the metrics that they are the mean of."""
    names = [escape_mathtext(part) for part in search.score_parts]
    if len(names) == 1:
        return f"score ({names[0]})"
    return "score (mean of\n" + ",\n".join(names) + ")" if names else "score"


def _x_positions(axes: Axes, key: str, search: Search) -> dict[int, float]:
    """Prepare the x axis for a searched key.

    A range is drawn to scale, logarithmic where the search is. Choices stand side by side, and
    trials with the same choice a little apart, which the label of the axis says.

    Returns:
        The x position of each trial, by the number of the trial.
    """
    dimension = search.space.get(key)
    values: dict[int, Any] = {trial.number: trial.config.get(key) for trial in search.trials}
    numbers = all(isinstance(v, int | float) and v is not True for v in values.values())
    if not isinstance(dimension, Choice) and numbers:
        if isinstance(dimension, Range):
            axes.set_xlim(*_with_margin(dimension))
            if dimension.log:
                axes.set_xscale("log")
        axes.set_xlabel(key)
        return {number: float(value) for number, value in values.items()}
    listed = dimension.values if isinstance(dimension, Choice) else dict.fromkeys(values.values())
    places = {value: float(place) for place, value in enumerate(listed)}
    axes.set_xticks(
        list(places.values()),
        [show(value).replace("_", "\n") for value in places],
        fontsize=8 if len(places) > 4 else None,
    )
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(f"{key}\n(points of one choice are spread sideways)")
    # They would otherwise hide each other.
    return {
        number: places.get(value, math.nan) + 0.05 * (number % 7 - 3)
        for number, value in values.items()
    }


def _with_margin(dimension: Range) -> tuple[float, float]:
    """The limits of an axis for a range, with a margin of 4 % on both sides."""
    low, high = dimension.low, dimension.high
    if dimension.log:
        margin = (high / low) ** 0.04
        return low / margin, high * margin
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _mark(axes: Axes, x: float, trial: Trial, *, best: bool) -> None:
    """Draw a trial as a point; as a cross on the lower edge if it diverged or failed."""
    if trial.is_eligible:
        color = _BEST if best else _COLORS[trial.status]
        marker, size = ("*", 200) if best else ("o", 36)
        axes.scatter(
            x, trial.score, s=size, marker=marker, color=color, edgecolor="black", lw=0.5, zorder=3
        )
    elif trial.status in FAILED_STATUSES:
        on_edge = axes.get_xaxis_transform()
        axes.scatter(x, 0.03, s=36, marker="x", color=_FAILED, transform=on_edge, zorder=3)


def _limit_losses(axes: Axes, losses: Sequence[Any]) -> None:
    """Fit the axis to the losses of the trials that can be the best.

    The losses of trials that diverged may lie outside: they would flatten all other curves.
    """
    if not losses:
        return
    low, high = min(map(min, losses)), max(map(max, losses))
    if high > 20 * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high)
        axes.set_ylim(low - margin, high + margin)


def _curve(axes: Axes, values: Any, trial: Trial, *, best: bool) -> None:
    """Draw the curve of a trial, with a mark at its end."""
    failed = trial.status in FAILED_STATUSES
    color = _FAILED if failed else _COLORS.get(trial.status, "black")
    if best:
        axes.plot(values.index, values, color="black", lw=4, zorder=3)
    axes.plot(
        values.index,
        values,
        color=_BEST if best else color,
        lw=2.4 if best else 1.2,
        alpha=1 if best else 0.8,
        zorder=4 if best else 2,
    )
    if len(values):
        marker, size = ("x", 6) if failed else ("*", 13) if best else ("o", 4)
        axes.plot(
            values.index[-1],
            values.iloc[-1],
            marker=marker,
            markersize=size,
            color=_BEST if best else color,
            markeredgecolor="black" if best else color,
            zorder=5,
        )


def _legend(figure: Figure, trials: Sequence[Trial], best: Trial | None, *more: Line2D) -> None:
    """Draw one legend for all panels, below them, that says what each mark stands for."""
    status = {trial.status for trial in trials}
    handles = [
        Line2D([], [], marker="o", ls="", color=color, mec="black", mew=0.5, label=_LABELS[name])
        for name, color in _COLORS.items()
        if name in status
    ]
    if failed := " or ".join(name for name in FAILED_STATUSES if name in status):
        handles.append(Line2D([], [], marker="x", ls="", color=_FAILED, label=failed))
    if best:
        label = f"best: trial {best.number}, {best.score:.4f}"
        handles.append(
            Line2D([], [], marker="*", ls="", ms=13, color=_BEST, mec="black", label=label)
        )
    handles += more
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
