"""What all plots have in common: their colours, figures without a display, and their files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, GREY, ORANGE, RED, YELLOW = "#2a6f97", "#93a1ad", "#e09f3e", "#c1121f", "#f2b705"

DOTS_PER_INCH = 130


def new_figure(title: str, *, size: tuple[float, float]) -> Figure:
    """An empty figure of `size` inches, with a title above all panels."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(escape_mathtext(title), fontsize=11)
    return figure


def escape_mathtext(text: str) -> str:
    """A user's text, to be drawn as it is: between dollars matplotlib would look for a formula."""
    return text.replace("$", r"\$")


def integer_epoch_axis(axes: Axes) -> None:
    """Labels an x axis of epochs, at whole numbers only."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes `NAME.png` for each figure into `folder`, which is made; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with warnings.catch_warnings():
            # Labels in a script that the font lacks are drawn as boxes. Users see that in the plot,
            # and a warning for each letter would only hide the other lines on their console.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(files[-1], dpi=DOTS_PER_INCH)
    return files
