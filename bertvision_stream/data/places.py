"""Where rows stand in the user's files, so that messages and predictions can name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.split_files import NUM_LISTED, listing

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of a table that was read from a file, so that rows which are taken from it keep them.
_ROW, _LINE = "bertvision_stream.row", "bertvision_stream.line"
_EMPTY_LINES = b"bertvision_stream.empty_lines"  # in the metadata of such a table


def with_places(
    table: pa.Table, lines: Sequence[int] | None, empty_lines: Sequence[int] = ()
) -> pa.Table:
    """All rows of a file with columns for their places, which `Places.of_table` reads.

    Args:
        table: The rows.
        lines: The line on which each row begins, counted from 1; None where the file has no lines.
        empty_lines: The lines that are no rows, as they are empty. Those at the end are no loss.
    """
    row_N = np.arange(1, table.num_rows + 1)
    line_N = row_N if lines is None else np.array(lines, dtype=np.int64)
    if np.array_equal(row_N, line_N):  # Rows are lines: one number says it all.
        line_N = np.zeros_like(row_N)
    between = [str(line) for line in empty_lines if lines and line < lines[-1]]
    if between:
        line, is_no_row = ("lines", "are no rows") if len(between) > 1 else ("line", "is no row")
        shown = f"{len(between):,} empty {line} between rows ({listing(between)}) {is_no_row}"
        table = table.replace_schema_metadata({_EMPTY_LINES: shown})
    return table.append_column(_ROW, [row_N]).append_column(_LINE, [line_N])


@dataclass(frozen=True, eq=False)
class Places:
    """The places of N rows. They stay with the rows when some are held out or drawn.

    Attributes:
        files: The names of the files, or of what else the rows are from.
        file_N: int64 [N]; the position of each row's file in `files`.
        row_N: int64 [N]; the number of the row in its file, counted from 1.
        line_N: int64 [N]; the line on which the row begins, counted from 1; 0 where rows are lines,
            or where the file has none.
        notes: What the user should know of the files.
    """

    files: tuple[str, ...]
    file_N: np.ndarray
    row_N: np.ndarray
    line_N: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: str, num_rows: int) -> Places:
        """The places of all rows of a source that has no lines."""
        zeros = np.zeros(num_rows, dtype=np.int64)
        return cls((source,), zeros, np.arange(1, num_rows + 1), zeros)

    @classmethod
    def of_table(cls, table: pa.Table, source: str) -> Places:
        """The places of rows: of those that stand in the table since a file was read, or of all."""
        if _ROW not in table.column_names:
            return cls.of(source, table.num_rows)
        row_N, line_N = (table.column(name).to_numpy() for name in (_ROW, _LINE))
        empty_lines = (table.schema.metadata or {}).get(_EMPTY_LINES)
        notes = (
            [f"{source}: {empty_lines.decode()}; predictions name the line of each row."]
            if empty_lines
            else []
        )
        return cls((source,), np.zeros_like(row_N), row_N, line_N, tuple(notes))

    @classmethod
    def join(cls, parts: Sequence[Places]) -> Places:
        """The places of the rows of several files, one file after the other."""
        starts = np.cumsum([0, *(len(part.files) for part in parts)])
        files = [part.file_N + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(
            tuple(name for part in parts for name in part.files),
            np.concatenate(files),
            np.concatenate([part.row_N for part in parts]),
            np.concatenate([part.line_N for part in parts]),
            tuple(note for part in parts for note in part.notes),
        )

    def __len__(self) -> int:
        return len(self.row_N)

    def take(self, indices: np.ndarray) -> Places:
        """The places of the rows at `indices` (int `[M]`), in that order."""
        chosen = (self.file_N[indices], self.row_N[indices], self.line_N[indices])
        return Places(self.files, *chosen, self.notes)

    def one(self, index: int) -> dict[str, str | int]:
        """The place of one row: `row`; `line`, where rows are no lines; `file`, of several."""
        place: dict[str, str | int] = {"row": int(self.row_N[index])}
        if self.line_N[index]:
            place["line"] = int(self.line_N[index])
        if len(self.files) > 1:
            place["file"] = Path(self.files[self.file_N[index]]).name
        return place

    def describe(self, is_bad: np.ndarray) -> str:
        """Says how many rows a mask (bool [N]) marks, and which come first.

        For example `2 rows (4 in line 5, 9 in line 12; the first row is 1)`.
        """
        rows = np.flatnonzero(is_bad)
        shown = [self._name(index) for index in rows[:NUM_LISTED]]
        more = f" and {len(rows) - NUM_LISTED:,} more" if len(rows) > NUM_LISTED else ""
        s = "s" if len(rows) > 1 else ""
        return f"{len(rows):,} row{s} ({', '.join(shown)}{more}; the first row is 1)"

    def _name(self, index: int) -> str:
        place = self.one(index)
        line = f" in line {place['line']}" if "line" in place else ""
        return f"{place['row']}{line}" + (f" of {place['file']}" if "file" in place else "")
