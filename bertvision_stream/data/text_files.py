"""Text files of rows: their encoding, the records of a csv file, and how its labels are spelled.

No row may vanish: pyarrow reads almost anything as csv, and takes lines into a text where a
quotation mark is not closed. So each file is first read by Python's strict reader, which names the
line, and its records are counted against the rows that pyarrow makes of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_QUOTE_ADVICE = (
    "A value that holds a comma, a line break or a quotation mark stands in quotation marks as a "
    'whole, and each quotation mark within it is doubled ("")'
)
# pyarrow's table of values that are to be null is small; a file quotes all numbers or none.
_MOST_QUOTED_VALUES = 500


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without its byte order mark.

    Raises:
        ValueError: The file is in another encoding; the message says how to convert it.
    """
    content = path.read_bytes()
    # Plain English in UTF-16 is valid UTF-8 as well: each second byte is zero.
    start = content[:100]
    has_mark = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    if has_mark or 4 * start.count(0) > len(start):
        ending = "" if has_mark else ("BE", "LE")[start.index(0) % 2]
        found, encoding = "it is in UTF-16 and not in UTF-8", f"UTF-16{ending}"
    else:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = (
                f"line {line} is not in UTF-8 (byte 0x{content[error.start]:02x}); the file may be "
                "in an encoding of Windows, such as cp1252"
            )
            encoding = "cp1252"
    new = path.with_stem(f"{path.stem}-utf8").name
    raise ValueError(
        f"{found}. Save it as UTF-8, or convert it: "
        f"iconv -f {encoding} -t UTF-8 {path.name} > {new}"
    )


def read_csv(path: Path, strings: Collection[str]) -> tuple[pa.Table, list[int], list[int]]:
    """Reads all columns of a csv file.

    Args:
        path: The file; its first record names the columns.
        strings: The columns that are read as text, whatever their values look like. The types of
            the others follow from their values.

    Returns:
        The rows, the line on which each begins, and the empty lines; lines are counted from 1.

    Raises:
        ValueError: The file is no csv in UTF-8, or its records are not one row each.
        pa.ArrowException: pyarrow cannot read it.
    """
    import pyarrow as pa

    lines, empty_lines = _lines_of_records(read_text(path))
    table = _read_arrow(path, column_types={name: pa.string() for name in strings})
    if table.num_rows != len(lines):
        raise ValueError(
            f"it has {len(lines):,} records, of which pyarrow makes {table.num_rows:,} rows. "
            f"{_QUOTE_ADVICE}"
        )
    return table, lines, empty_lines


def _lines_of_records(text: str) -> tuple[list[int], list[int]]:
    """The first line of each record after the header, and empty lines; checks the records."""
    # Python refuses values of more than 131,072 characters unless told otherwise.
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text)))
    try:
        lines, empty_lines, suspects = _check_records(text)
        if suspects:
            _check_for_rows_in_values(text, suspects)
    finally:
        csv.field_size_limit(limit)
    return lines, empty_lines


@dataclass(frozen=True)
class _Suspect:
    """A line within a value that has as many values of its own as a record.

    Attributes:
        line: Where the record that holds it begins.
        column: Which of the record's values it is in.
        values: Its own values.
    """

    line: int
    column: int
    values: list[str]


def _check_records(text: str) -> tuple[list[int], list[int], list[_Suspect]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first_line, num_values = 1, 0
    lines = []
    empty_lines: list[int] = []
    suspects = []
    try:
        for record in reader:
            if record:
                num_values = num_values or len(record)
                if len(record) != num_values:
                    raise ValueError(
                        f"line {first_line} has {len(record)} value{'s'[: len(record) != 1]}, and "
                        f"the header names {num_values}. {_QUOTE_ADVICE}"
                    )
                if empty_lines and num_values == 1:
                    raise ValueError(
                        f"line {empty_lines[0]} is empty, which may be a row or none in a file of "
                        'one column. Write "" for an empty text, or remove the line'
                    )
                lines.append(first_line)
                if reader.line_num > first_line and num_values > 1:
                    suspects += _suspects(first_line, record)
            elif lines:
                empty_lines.append(first_line)
            first_line = reader.line_num + 1
    except csv.Error as error:
        last_line = reader.line_num
        if "end of data" in str(error):
            what = f"line {first_line}: a quotation mark is opened and never closed"
        elif last_line > first_line:
            what = (
                f"line {first_line}: a value begins with a quotation mark that is closed in line "
                f"{last_line} only, where text follows"
            )
        else:
            what = f"line {first_line}: text follows a closing quotation mark"
        raise ValueError(f"{what}. {_QUOTE_ADVICE}") from error
    return lines[1:], empty_lines, suspects


def _suspects(line: int, record: list[str]) -> list[_Suspect]:
    parts = [(i, csv.reader(io.StringIO(value))) for i, value in enumerate(record)]
    return [
        _Suspect(line, i, values)
        for i, lines in parts
        for values in lines
        if len(values) == len(record)
    ]


def _check_for_rows_in_values(text: str, suspects: Sequence[_Suspect]) -> None:
    """Refuses rows within a text: lines that end as other records do, with the same label."""
    records = filter(None, csv.reader(io.StringIO(text, newline="")))
    columns = [set(values) for values in zip(*records, strict=True)]
    for suspect in suspects:
        for i, value in enumerate(suspect.values):
            if i != suspect.column and value and value in columns[i]:
                raise ValueError(
                    f"line {suspect.line}: a value in quotation marks goes on over lines that look "
                    f"like rows ({','.join(suspect.values)[:80]!r}), so a quotation mark may not "
                    "be closed where it should be. Where the text is meant so, write jsonl or "
                    "parquet"
                )


def why_as_written(files: Sequence[Path], column: str) -> str | None:
    """Why the labels of csv files are classes as they are written, and no numbers.

    Class codes such as 007, 1.10 or 10:30 read as numbers or times, and would lose their spelling.

    Args:
        files: The files of all splits; those that are not csv are passed over.
        column: The column of labels.

    Returns:
        The reason, to follow "because", or None where the type that pyarrow finds is right, or
        where the column cannot be read or has values that are missing.
    """
    from pyarrow import types

    spellings: set[str] = set()
    num_rows, are_quoted, are_dates, are_whole = 0, False, False, True
    for path in files:
        found = _column(path, column)
        if found is None or found.null_count:
            return None
        if types.is_string(found.type) or types.is_boolean(found.type):
            continue
        if not (types.is_integer(found.type) or types.is_floating(found.type)):
            are_dates = True
            continue
        written = _written(path, column)
        num_rows += len(found)
        spellings.update(written)
        if types.is_floating(found.type):
            are_whole = are_whole and all(re.fullmatch(r"[+-]?\d+", text) for text in written)
            are_quoted = are_quoted or _are_quoted(path, column, written)
    if are_dates:
        return "they are dates or times"
    if are_quoted:
        return "they are in quotation marks"
    # Numbers to predict seldom repeat. Where they do not, an odd spelling is no sign of classes.
    if are_whole or 2 * len(spellings) <= num_rows:
        return _odd_spelling(spellings, are_whole=are_whole)
    return None


def has_label_as_written(path: Path, column: str, names: Collection[str]) -> bool:
    """Whether a csv file spells labels as `names` has them, though they read as something else."""
    found = _column(path, column)
    if found is None or not len(found):
        return False
    written = _written(path, column)
    return not set(written).isdisjoint(names) and not all(map(_is_plain, written))


def _odd_spelling(spellings: Collection[str], *, are_whole: bool) -> str | None:
    by_number: dict[str, str] = {}
    for text in sorted(spellings):
        if re.match(r"[+-]?0\d", text) or (are_whole and not _is_plain(text)):
            return f"{text} would lose its spelling as a number"
        if re.fullmatch(r"[+-]?\d*\.\d+", text):
            other = by_number.setdefault(text.rstrip("0"), text)
            if other != text:
                return f"{other} and {text} would be one number"
    return None


def _is_plain(text: str) -> bool:
    """Whether an integer is written as Python writes it, and fits into 64 bits."""
    plain = re.fullmatch(r"0|-?[1-9]\d{0,18}", text)
    return plain is not None and -(2**63) <= int(text) < 2**63


def _written(path: Path, column: str) -> list[str]:
    """The values of a column as they are written, each once, without spaces around them."""
    import pyarrow as pa

    found = _column(path, column, {column: pa.string()})
    return [] if found is None else [text.strip() for text in found.unique().to_pylist()]


def _are_quoted(path: Path, column: str, values: Sequence[str]) -> bool:
    # pyarrow does not tell quoted values from others, unless they are said to be null: then the
    # quoted ones are not.
    import pyarrow as pa

    values = values[:_MOST_QUOTED_VALUES]
    found = _column(path, column, {column: pa.string()}, null_values=values)
    return found is not None and not set(found.unique().to_pylist()).isdisjoint(values)


def _column(
    path: Path,
    column: str,
    types: dict[str, pa.DataType] | None = None,
    null_values: Sequence[str] | None = None,
) -> pa.ChunkedArray | None:
    """A column of a csv file; None where it cannot be read, which `read_csv` explains."""
    import pyarrow as pa

    try:
        table = _read_arrow(
            path,
            include_columns=[column],
            column_types=types,
            null_values=null_values,
            strings_can_be_null=null_values is not None,
            quoted_strings_can_be_null=null_values is None,
        )
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    return table.column(0)


def _read_arrow(path: Path, **convert_options: Any) -> pa.Table:
    from pyarrow import csv as arrow_csv

    # A record must fit into one block.
    block_size = min(max(1 << 20, path.stat().st_size), 2**31 - 1)
    return arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(block_size=block_size),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(**convert_options),
    )
