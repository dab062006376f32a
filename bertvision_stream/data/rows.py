"""Rows of a data set, read from parquet, csv or jsonl files and checked; texts stay as they are.

Nothing is guessed or skipped: what cannot be used ends in a `DataError`, which names the file, what
was looked for and what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.labels import is_no_label
from bertvision_stream.data.places import Places
from bertvision_stream.data.split_files import listing, source_of
from bertvision_stream.data.tables import TOO_LARGE, read_table, require_columns
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

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
        places: Where each row stands in its file, where it is from one.
    """

    source: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    left_out: int = field(default=0, kw_only=True)
    places: Places | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at `indices` (int `[M]`), in that order."""
        places = self.places and self.places.take(indices)
        texts = [self.texts[i] for i in indices]
        return Rows(self.source, texts, self.labels[indices], places=places)

    def which(self, is_bad: np.ndarray) -> str:
        """Says which rows a mask (bool `[N]`) marks, as `Places.describe` does."""
        return (self.places or Places.of(self.source, len(self))).describe(is_bad)


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
    labels = np.concatenate([part.labels for part in parts])
    places = Places.join([part.places for part in parts if part.places])
    return Rows(source, texts, labels, left_out=left_out, places=places)


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
    places = Places.of_table(table, source)
    texts = texts_of(table, source, text_columns)
    labels = _labels(table.column(label_column), label_column, places)
    if names is not None and labels.dtype.kind == "i":
        labels = _names_of(labels, names, label_column, places)
    return Rows(source, texts, labels, places=places)


def texts_of(table: pa.Table, source: str, text_columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each row of a table that has rows, checked.

    Raises:
        DataError: A column is missing, or holds no text somewhere.
    """
    require_columns(table.column_names, text_columns, source)
    places = Places.of_table(table, source)
    columns = [_texts(table.column(name), name, places) for name in text_columns]
    return list(zip(*columns, strict=True))


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


def _texts(column: pa.ChunkedArray, name: str, places: Places) -> list[str]:
    if column.null_count:
        raise DataError(
            f"{places.files[0]}: text column '{name}' is null in "
            f"{places.describe(_is_null(column))}"
        )
    texts = column.to_pylist()
    if not isinstance(texts[0], str):
        raise DataError(f"{places.files[0]}: column '{name}' holds {column.type}, not text")
    return texts


def _labels(column: pa.ChunkedArray, name: str, places: Places) -> np.ndarray:
    from pyarrow import types

    where = f"{places.files[0]}: label column '{name}'"
    if column.null_count:
        raise UnlabelledError(f"{where} is empty in {places.describe(_is_null(column))}")
    for is_type, dtype in (
        (types.is_boolean, np.bool_),
        (types.is_integer, np.int64),
        (types.is_floating, np.float64),
    ):
        if is_type(column.type):
            values = column.to_numpy()
            if values.dtype == np.uint64 and (is_bad := values > np.iinfo(np.int64).max).any():
                raise DataError(
                    f"{where} holds {values[is_bad][0]} in {places.describe(is_bad)}, {TOO_LARGE}"
                )
            return values.astype(dtype)
    labels = np.empty(len(column), dtype=object)
    labels[:] = column.to_pylist()
    if not isinstance(labels[0], str):
        raise DataError(
            f"{where} holds {column.type}; labels are text, integers, booleans or floats"
        )
    is_empty = np.array([not label.strip() for label in labels])
    if is_empty.any():
        raise UnlabelledError(f"{where} is empty in {places.describe(is_empty)}")
    return labels


def _names_of(
    positions: np.ndarray, class_names: Sequence[str], column: str, places: Places
) -> np.ndarray:
    is_bad = (positions < 0) | (positions >= len(class_names))
    if is_bad.any():
        values = listing([str(value) for value in np.unique(positions[is_bad])])
        error = UnlabelledError if all(map(is_no_label, positions[is_bad])) else DataError
        raise error(
            f"{places.files[0]}: label column '{column}' holds {values} in "
            f"{places.describe(is_bad)}, which is no label: allowed are {listing(class_names)}"
        )
    return np.array(class_names, dtype=object)[positions]


def _is_null(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_null())
