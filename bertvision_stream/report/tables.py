"""Tables as data, and their layout for a console and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_Header = Sequence[tuple[str, str]]  # for each column the upper and the lower line of its title


_Rows = Sequence[Sequence[str]]


_Mark = Callable[[str], str]  # how the best score of several is shown


@dataclass(frozen=True)
class Grid:
    """A table: titles of the columns, and rows of cells."""

    titles: Sequence[str]
    rows: _Rows


def _grid(header: _Header, rows: _Rows) -> Grid:
    return Grid([" ".join(filter(None, title)) for title in header], rows)


def _marked(values: Sequence[float], mark: _Mark) -> list[str]:
    """Scores with four digits, the best marked; what reads the same is equally good."""
    shown = [f"{value:.4f}" for value in values]
    best = max(shown, key=float)
    return [mark(score) if score == best else score for score in shown]


def _star(score: str) -> str:
    return f"* {score}"


def _bold(score: str) -> str:
    return f"**{score}**"


def text_grid(header: _Header, rows: _Rows) -> str:
    """Lays out columns two spaces apart, the first to the left, the others to the right."""
    titles = [list(line) for line in zip(*header, strict=True) if any(line)]
    widths = [max(map(len, column)) for column in zip(*titles, *rows, strict=True)]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))

    def line(cells: Sequence[str]) -> str:
        others = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *others]).rstrip()

    return "\n".join([*map(line, titles), rule, *map(line, rows), rule])


def markdown_grid(header: _Header, rows: _Rows, *, align_right: bool = True) -> str:
    """Lays out a Markdown table, the first column to the left."""
    titles = [" ".join(filter(None, title)) for title in header]
    rules = ["---", *["---:" if align_right else "---"] * (len(titles) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rules, *escaped))


@dataclass(frozen=True)
class MeanStd:
    """A score over seeds: the mean, and the sample's standard deviation (None of one seed)."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{self.deviation:.4f}".replace("±0.", "±.")
