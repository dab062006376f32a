"""Plots of answers in spans."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bertvision_stream.figures import BLUE, GREY, ORANGE, new_figure
from bertvision_stream.spans.scoring import ScoredSpans

_STYLES = {"bert": ("BERT", GREY), "head": ("head", BLUE), "ensemble": ("ensemble", ORANGE)}
_MOST_ODDS = 1e30  # above are questions without any span, which no threshold answers


def draw_thresholds(scored: Mapping[str, ScoredSpans], title: str) -> Figure:
    """Exact match and F1 of the three against the threshold above which no answer is given.

    The dot is the highest of each; the dashed line is threshold 0. To the left nothing is answered,
    to the right everything.
    """
    figure = new_figure(title, size=(9.4, 4.2))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for name, spans in scored.items():
        label, color = _STYLES[name]
        odds, *curves = spans.curve()
        seen = np.abs(odds) < _MOST_ODDS
        if not seen.any():
            continue
        # Below the lowest odds nothing is answered.
        first = float(spans.null.mean())
        thresholds = np.concatenate([[odds[seen][0] - 1], odds[seen]])
        for axes, values in zip(panels, curves, strict=True):
            scores = np.concatenate([[first], values[seen]])
            best = int(scores.argmax())
            axes.step(thresholds, scores, where="post", color=color, label=label)
            axes.plot(thresholds[best], scores[best], "o", color=color, ms=5, zorder=3)
    for axes, metric in zip(panels, ("exact match", "F1"), strict=True):
        axes.axvline(0, color="black", lw=0.8, ls="--")
        axes.set_xlabel("threshold (null score less the best span's)")
        axes.set_ylabel(f"{metric} (dot: the highest)")
        axes.tick_params(labelleft=True)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].legend(frameon=False, fontsize=8)
    return figure
