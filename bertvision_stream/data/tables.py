"""Columns of a parquet, csv or jsonl file, with the place of each row."""

from __future__ import annotations

import csv
import io
import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertvision_stream.data.places import Places, with_places
from bertvision_stream.data.split_files import listing
from bertvision_stream.data.text_files import read_csv, read_text
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TOO_LARGE = (
    "which does not fit 64 bits with a sign: write classes as text, and a number to predict as a "
    "float"
)
_SHOWN = 60  # characters of a value that an error shows


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


def read_table(
    path: Path,
    text_columns: Sequence[str],
    *other_columns: str,
    optional_columns: Sequence[str] = (),
) -> pa.Table:
    """Reads the columns of a file that are wanted, and perhaps others, such as rows' places.

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
            table = _plain(file.read(columns=list(dict.fromkeys(columns))))
            return with_places(table, None)
        if path.suffix == ".csv":
            table, lines, empty_lines = read_csv(path, text_columns)
            require_columns(table.column_names, columns, str(path))
            return with_places(table, lines, empty_lines)
        return _read_jsonl(path, columns, optional_columns)
    except (OSError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {cause}") from error


def read_columns(path: Path) -> list[str]:
    """The names of the columns of a file; of a jsonl file those in its first row.

    Raises:
        DataError: The file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            return list(parquet.ParquetFile(path).schema_arrow.names)
        if path.suffix == ".csv":
            return next(csv.reader(io.StringIO(read_text(path), newline="")), [])
        lines = (line for line in read_text(path).splitlines() if line.strip())
        return list(json.loads(next(lines, "{}")))
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error


def _plain(table: pa.Table) -> pa.Table:
    """A table of a parquet file, its categories as their values; checks that texts are in UTF-8.

    Raises:
        ValueError: Some are not, which parquet does not see to.
    """
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            is_bad = np.array([_is_no_utf8(value) for value in column])
            if not is_bad.any():
                raise
            raise ValueError(
                f"column '{name}' is not in UTF-8 in {Places.of('', len(column)).describe(is_bad)}"
            ) from None
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _is_no_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return True
    return False


def _read_jsonl(path: Path, columns: Sequence[str], optional: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    empty_lines: list[int] = []
    lines = io.StringIO(read_text(path), newline=None)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            empty_lines.append(number)
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object such as {{'{columns[0]}': ...}}")
        rows.append(row)
        numbers.append(number)
    if not rows:
        return pa.table({name: pa.nulls(0) for name in columns})
    present = list(dict.fromkeys(key for row in rows for key in row))
    require_columns(present, columns, str(path))
    wanted = dict.fromkeys([*columns, *(name for name in optional if name in present)])
    arrays = {name: _to_arrow([row.get(name) for row in rows], name, numbers) for name in wanted}
    return with_places(pa.table(arrays), numbers, empty_lines)


def _to_arrow(values: list[Any], name: str, lines: Sequence[int]) -> pa.Array:
    """The values of a column as Arrow has them.

    Raises:
        ValueError: A value cannot be converted, or not beside those before it.
    """
    import pyarrow as pa

    def fails(count: int) -> bool:
        try:
            pa.array(values[:count])
        except (ValueError, TypeError, OverflowError):
            return True
        # Arrow takes true for 1.0 where it stands behind 0.5.
        return len({isinstance(value, bool) for value in values[:count] if value is not None}) > 1

    if not fails(len(values)):
        return pa.array(values)
    # The fewest rows that cannot be converted end with the one that is to blame.
    row = bisect_left(range(1, len(values) + 1), True, key=fails)
    value, shown = values[row], ascii(values[row])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        why = f"a whole number {TOO_LARGE}"
    elif re.search(r"\\ud[89a-f][0-9a-f]{2}", shown):
        why = "half a surrogate pair, which is no character"
    else:
        why = "which does not go with the rows before: a column is of one type"
    at = f" in line {lines[row]}" if lines[row] != row + 1 else ""
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    raise ValueError(f"column '{name}' holds {shown} in row {row + 1}{at}, {why}")
