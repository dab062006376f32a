"""Rows of a data set, read from parquet, csv or jsonl files and checked; texts stay as they are.

Nothing is guessed or skipped: what cannot be used ends in a `DataError`, which names the file, what
was looked for and what is there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertvision_stream.data.labels import is_no_label
from bertvision_stream.data.split_files import listing, source_of
from bertvision_stream.data.text_files import read_csv, read_text
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_TOO_LARGE = "which does not fit 64 bits with a sign: write classes as text, and a number to predict as a float"
_KINDS = {"O": "text", "b": "booleans", "i": "numbers", "f": "numbers"}  # by NumPy's dtype.kind


class UnlabelledError(DataError):
    """Rows without a label, which `only_labelled` would leave out."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split, with labels as they were found.

    Attributes:
        source: Where the rows are from, for messages.
        texts: `N` tuples of one or two strings.
        labels: `[N]`; object (a `str` each: the names of classes), int64, bool or float64.
        left_out: How many rows had no label and were left out.
    """

    source: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    left_out: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at `indices` (int `[M]`), in that order."""
        return Rows(self.source, [self.texts[i] for i in indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class RawData:
    """A task and its rows before labels become ids; `notes` are sentences for the user."""

    task: Task
    train: Rows
    validation: dict[str, Rows]
    notes: list[str] = field(default_factory=list)


def read_rows(
    files: Sequence[Path],
    *,
    text_columns: Sequence[str],
    label_column: str,
    as_written: bool = False,
    only_labelled: bool = False,
) -> Rows:
    """Reads the files of one split, one after the other.

    Args:
        files: The files.
        text_columns: One or two columns of strings.
        label_column: The column of labels.
        as_written: Whether labels of csv files are text, even where they look like numbers.
        only_labelled: Whether to leave out rows whose label means that they have none.

    Raises:
        DataError: A file cannot be read, has not all columns, or holds texts or labels that cannot
            be used; or there is no row at all.
    """
    parts, left_out = [], 0
    for path in files:
        strings = [*text_columns, label_column] if as_written else text_columns
        table = read_table(path, strings, label_column)
        if only_labelled:
            table, unlabelled = _only_labelled(table, label_column)
            left_out += unlabelled
        names = class_names(table.schema, label_column)
        parts.append(rows_from_table(table, str(path), text_columns, label_column, names))
    source = source_of(files)
    parts = [part for part in parts if len(part)]
    if not parts:
        which = f" with a label in column '{label_column}'" if left_out else ""
        raise DataError(f"{source}: there are no rows{which}")
    if len({_KINDS[part.labels.dtype.kind] for part in parts}) > 1:
        kinds = [f"{_KINDS[part.labels.dtype.kind]} in {part.source}" for part in parts]
        raise DataError(f"label column '{label_column}' is not of one type: {listing(kinds)}")
    texts = [text for part in parts for text in part.texts]
    return Rows(source, texts, np.concatenate([part.labels for part in parts]), left_out=left_out)


def _only_labelled(table: pa.Table, label_column: str) -> tuple[pa.Table, int]:
    """The rows that have a label, and how many have none."""
    has_label = [not is_no_label(label) for label in table.column(label_column).to_pylist()]
    kept = np.flatnonzero(has_label)
    return table.take(kept), table.num_rows - len(kept)


def rows_from_table(
    table: pa.Table,
    source: str,
    text_columns: Sequence[str],
    label_column: str,
    names: Sequence[str] | None,
) -> Rows:
    """Checks the columns of an Arrow table and takes the rows out of it.

    Args:
        table: Holds the columns, and perhaps others.
        source: Where the table is from, for messages.
        text_columns: One or two columns of strings.
        label_column: The column of labels.
        names: The names of the classes, where the label column holds their positions in this list.

    Raises:
        DataError: A column is missing, or holds texts or labels that cannot be used.
    """
    require_columns(table.column_names, [*text_columns, label_column], source)
    if table.num_rows == 0:
        return Rows(source, [], np.empty(0, dtype=object))
    texts = texts_of(table, source, text_columns)
    labels = _labels(table.column(label_column), label_column, source)
    if names is not None and labels.dtype.kind == "i":
        labels = _names_of(labels, names, label_column, source)
    return Rows(source, texts, labels)


def texts_of(table: pa.Table, source: str, text_columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each row of a table that has rows, checked.

    Raises:
        DataError: A column is missing, or holds no text somewhere.
    """
    require_columns(table.column_names, text_columns, source)
    columns = [_texts(table.column(name), name, source) for name in text_columns]
    return list(zip(*columns, strict=True))


def require_columns(present: Sequence[str], wanted: Sequence[str], source: str) -> None:
    """Checks that each wanted column is there once.

    Raises:
        DataError: One is not; the message lists the columns there are.
    """
    for name in wanted:
        if list(present).count(name) != 1:
            found = "no column" if name not in present else "more than one column"
            raise DataError(
                f"{source}: there is {found} '{name}'; the columns are: {listing(present)}"
            )


def row_numbers(is_bad: np.ndarray) -> str:
    """Says how many rows are marked and which come first, counted from 1: `2 rows (4, 9)`."""
    rows = [str(i + 1) for i in np.flatnonzero(is_bad)]
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({listing(rows)}; the first row is 1)"


def read_table(
    path: Path,
    text_columns: Sequence[str],
    *other_columns: str,
    optional_columns: Sequence[str] = (),
) -> pa.Table:
    """Reads the columns of a file that are wanted, and perhaps others.

    In csv files text columns are read as text, whatever their values look like.

    Raises:
        DataError: The file cannot be read, or a column that is not optional is missing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = [*text_columns, *other_columns]
    try:
        if path.suffix == ".parquet":
            file = parquet.ParquetFile(path)
            present = file.schema_arrow.names
            require_columns(present, columns, str(path))
            columns += [name for name in optional_columns if name in present]
            return file.read(columns=list(dict.fromkeys(columns)))
        if path.suffix == ".csv":
            return read_csv(path, text_columns)
        return _read_jsonl(path, columns, optional_columns)
    except (OSError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {cause}") from error


def _read_jsonl(path: Path, columns: Sequence[str], optional: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    lines = io.StringIO(read_text(path), newline=None)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object such as {{'{columns[0]}': ...}}")
        rows.append(row)
    if not rows:
        return pa.table({name: pa.nulls(0) for name in columns})
    present = list(dict.fromkeys(key for row in rows for key in row))
    require_columns(present, columns, str(path))
    arrays = {}
    for name in [*columns, *(name for name in optional if name in present)]:
        try:
            arrays[name] = pa.array([row.get(name) for row in rows])
        except OverflowError as error:
            raise ValueError(f"column '{name}' holds a whole number {_TOO_LARGE}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"column '{name}' is not of one type: {error}") from error
    return pa.table(arrays)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of the classes whose positions a column holds, where the file says so."""
    # This reads the metadata that `datasets` writes. `datasets.Features` would drop the names
    # without a word when the column's width or nullability differs from its own.
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(column)
    is_class_label = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return feature.get("names") if is_class_label else None


def _texts(column: pa.ChunkedArray, name: str, source: str) -> list[str]:
    if column.null_count:
        raise DataError(
            f"{source}: text column '{name}' is null in {row_numbers(_is_null(column))}"
        )
    texts = column.to_pylist()
    if not isinstance(texts[0], str):
        raise DataError(f"{source}: column '{name}' holds {column.type}, not text")
    return texts


def _labels(column: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    from pyarrow import types

    if column.null_count:
        raise UnlabelledError(
            f"{source}: label column '{name}' is empty in {row_numbers(_is_null(column))}"
        )
    for is_type, dtype in (
        (types.is_boolean, np.bool_),
        (types.is_integer, np.int64),
        (types.is_floating, np.float64),
    ):
        if is_type(column.type):
            values = column.to_numpy()
            if values.dtype == np.uint64 and (is_bad := values > np.iinfo(np.int64).max).any():
                raise DataError(
                    f"{source}: label column '{name}' holds {values[is_bad][0]} in "
                    f"{row_numbers(is_bad)}, {_TOO_LARGE}"
                )
            return values.astype(dtype)
    labels = np.empty(len(column), dtype=object)
    labels[:] = column.to_pylist()
    if not isinstance(labels[0], str):
        raise DataError(
            f"{source}: label column '{name}' holds {column.type}; labels are text, integers, "
            "booleans or floats"
        )
    is_empty = np.array([not label.strip() for label in labels])
    if is_empty.any():
        raise UnlabelledError(
            f"{source}: label column '{name}' is empty in {row_numbers(is_empty)}"
        )
    return labels


def _names_of(
    positions: np.ndarray, class_names: Sequence[str], column: str, source: str
) -> np.ndarray:
    is_bad = (positions < 0) | (positions >= len(class_names))
    if is_bad.any():
        values = listing([str(value) for value in np.unique(positions[is_bad])])
        error = UnlabelledError if all(map(is_no_label, positions[is_bad])) else DataError
        raise error(
            f"{source}: label column '{column}' holds {values} in {row_numbers(is_bad)}, which is "
            f"no label: allowed are {listing(class_names)}"
        )
    return np.array(class_names, dtype=object)[positions]


def _is_null(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_null())
