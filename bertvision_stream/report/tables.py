"""What all reports have in common: tables, the names of the predictors, the width of a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bertvision_stream.utils.terminal import printable_line

WIDTH = 96
"""The number of columns that sentences on a console are wrapped to."""

PREDICTORS: Mapping[str, str] = {"bert": "BERT", "head": "head", "ensemble": "ensemble"}
"""The three predictors that every report compares: the key in files, and the name for people."""


class Best(str):
    """The text of a cell that is the best of several; each renderer marks it in its own way."""


@dataclass(frozen=True)
class Table:
    """A table of text, which every report renders in its own way.

    Attributes:
        titles: The titles of the columns. A title may have two lines, with a line break between.
        rows: The cells of each row, as many as there are titles. A cell of type `Best` is marked.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def one_line_titles(self) -> list[str]:
        """The titles without line breaks."""
        return [title.replace("\n", " ") for title in self.titles]

    def text(self, *, mark: str = "* ") -> str:
        """The table for a console, its columns two spaces apart.

        The first column is aligned to the left, the others to the right.

        Args:
            mark: What is put before a cell of type `Best`.
        """
        titles = [title.split("\n") for title in self.titles]
        height = max(map(len, titles))
        # A title of fewer lines than the others stands at the bottom, next to its column.
        padded = [[""] * (height - len(lines)) + lines for lines in titles]
        header = [list(line) for line in zip(*padded, strict=True)]
        rows = [
            [mark * isinstance(cell, Best) + printable_line(cell) for cell in row]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*header, *rows, strict=True)]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))

        def line(cells: Sequence[str]) -> str:
            others = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
            return "  ".join([cells[0].ljust(widths[0]), *others]).rstrip()

        return "\n".join([*map(line, header), rule, *map(line, rows), rule])

    def markdown(self, *, left: int = 1) -> str:
        """The table as Markdown, with cells of type `Best` in bold.

        Args:
            left: How many columns are aligned to the left; those after them are to the right.
        """
        rules = [*["---"] * left, *["---:"] * (len(self.titles) - left)]
        rows = ([_markdown_cell(cell) for cell in row] for row in self.rows)
        lines = (map(_markdown_cell, self.one_line_titles), rules, *rows)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown_cell(cell: str) -> str:
    text = printable_line(cell).replace("|", "\\|")
    return f"**{text}**" if isinstance(cell, Best) else text


@dataclass(frozen=True)
class MeanStd:
    """A score over seeds: the mean, and the sample's standard deviation (None for one seed)."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        """The mean and the standard deviation of a score's values, one value for each seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{self.deviation:.4f}".replace("±0.", "±.")

    @property
    def as_difference(self) -> str:
        """The mean with its sign and its standard error, where the values are differences."""
        if self.deviation is None:
            return f"{self.mean:+.4f}"
        error = self.deviation / math.sqrt(self.seeds)
        return f"{self.mean:+.4f} ±{error:.4f}".replace("±0.", "±.")


def mark_best(scores: Sequence[MeanStd]) -> list[str]:
    """Scores as cells of four digits, the highest mean as `Best`.

    Means that read the same are equally good, so several cells may be the best.
    """
    means = [f"{score.mean:.4f}" for score in scores]
    best = max(means, key=float)
    return [
        Best(score) if mean == best else str(score)
        for mean, score in zip(means, scores, strict=True)
    ]
