"""The command line of reports: `python -m bertvision_stream.report.text errors RUN`."""

from __future__ import annotations

import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertvision_stream.report.errors import (
    SOURCES,
    Predictions,
    Table,
    counts,
    read_predictions,
    tables,
)
from bertvision_stream.report.tables import text_grid
from bertvision_stream.utils.errors import BertvisionError, UserError
from bertvision_stream.utils.files import write_text, writing

_USAGE = """\
usage: python -m bertvision_stream.report errors RUN

Prints where the head and BERT of a finished run disagree, the head's most confident mistakes, and
scores by length; writes all of them, as jsonl and csv, into RUN/errors/. Answers in spans are
compared by SQuAD's rules, and scored with and without an answer as well. RUN is the folder of a run
(outputs/TASK/RUN_NAME), or of the predictions of mode=predict."""
_NUM_SHOWN = 10
_WIDTH = 96
_MOST_CHARACTERS = 280  # of a text that is printed; the files have it in full
_NAMES = {"bert": "BERT", "head": "head", "ensemble": "ensemble"}
_NO_ANSWER = "(no answer)"


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (not written) or 2 (a user's mistake)."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if {"--help", "-h"} & set(argv):
        print(_USAGE)
        return 0
    if len(argv) != 2 or argv[0] != "errors":
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        folder = Path(argv[1]).expanduser()
        for predictions in read_predictions(folder):
            found = tables(predictions)
            print(f"{render(predictions, found)}\n")
            for path in write_tables(folder / "errors", predictions.split, found):
                print(path)
            print()
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except BertvisionError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def write_tables(folder: Path, split: str, found: Mapping[str, Table]) -> list[Path]:
    """Write `<table>_<split>.jsonl` and `.csv` of each table.

    Raises:
        OutputError: They cannot be written.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
    paths = []
    for name, table in found.items():
        for suffix, content in ((".jsonl", _jsonl(table)), (".csv", _csv(table))):
            paths.append(folder / f"{name}_{split}{suffix}")
            write_text(paths[-1], content)
    return paths


def _jsonl(table: Table) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.rows)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return text.getvalue()


def render(predictions: Predictions, found: Mapping[str, Table]) -> str:
    """What is printed of one split."""
    num_rows = len(predictions.rows)
    sections = [f"{predictions.split}: {num_rows:,} rows"]
    if predictions.labelled and not predictions.regression:
        sections.append(_grid_of_counts(predictions))
    apart = found["disagreements"]
    title = f"Head and BERT disagree on {_of(apart, num_rows)} Where both are surest"
    if predictions.regression:
        title = "Where head and BERT are furthest apart"
    sections.append(_listed(title, apart))
    if not predictions.labelled:
        return "\n\n".join([*sections, "There are no labels: nothing else can be said."])
    wrong = found["mistakes"]
    title = f"The head is wrong on {_of(wrong, num_rows)} Where it is surest"
    if predictions.regression:
        title = "Where the head is furthest off"
    sections += [_listed(title, wrong), _lengths(predictions, found["lengths"])]
    if "kinds" in found:
        sections.append(_kinds(found["kinds"]))
    return "\n\n".join(sections)


def _of(table: Table, num_rows: int) -> str:
    return f"{len(table):,} of {num_rows:,} rows ({len(table) / num_rows:.1%})."


def _grid_of_counts(predictions: Predictions) -> str:
    found = counts(predictions)
    header = [("", ""), ("", "BERT right"), ("", "BERT wrong")]
    rows = [["head right", "both right", "only head"], ["head wrong", "only BERT", "both wrong"]]
    return text_grid(header, [[name, *(f"{found[c]:,}" for c in cells)] for name, *cells in rows])


def _lengths(predictions: Predictions, table: Table) -> str:
    what = "Mean absolute error" if predictions.regression else "Share of right predictions"
    if predictions.spans:
        what = "Exact match and F1"
    ranges = [_range(row) for row in table.rows]
    return f"{what} by length\n\n{_grid_of_scores(predictions.unit, ranges, table)}"


def _kinds(table: Table) -> str:
    kinds = [row["kind"] for row in table.rows]
    return f"Exact match and F1 by kind\n\n{_grid_of_scores('questions', kinds, table)}"


def _grid_of_scores(title: str, groups: Sequence[str], table: Table) -> str:
    """Scores of groups of rows: the three contestants, under each metric if there are several."""
    header = [("", title), ("", "rows")]
    keys = [key for key in table.columns if key.split("_")[0] in SOURCES]
    for key in keys:
        source, _, metric = key.partition("_")
        header.append((metric, _NAMES[source]))
    rows = [
        [group, f"{row['rows']:,}", *(f"{row[key]:.4f}" for key in keys)]
        for group, row in zip(groups, table.rows, strict=True)
    ]
    return text_grid(header, rows)


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['from']} to {row['to']}" if row["from"] < row["to"] else str(row["to"])


def _listed(title: str, table: Table) -> str:
    """The first rows of a table; of an empty one the title's first sentence."""
    if not table.rows:
        return title.rpartition(". ")[0] + "."
    first = f" ({_NUM_SHOWN} of them)" if len(table) > _NUM_SHOWN else ""
    lines = [f"{title}{first}:"]
    for row in table.rows[:_NUM_SHOWN]:
        lines += ["", *_entry(row)]
    return "\n".join(lines)


def _entry(row: Mapping[str, Any]) -> Iterator[str]:
    said = [f"gold {_shown(row['gold'])}"] if "gold" in row else []
    for source in ("head", "bert"):
        sure = f" {row[f'{source}_confidence']:.3f}" if f"{source}_confidence" in row else ""
        said.append(f"{_NAMES[source]} {_shown(row[source])}{sure}")
    yield f"  {row['index']}: {', '.join(said)}"
    for key, text in row.items():
        if key.startswith("texts."):
            text = " ".join(text.split())
            short = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
            wrapped = textwrap.fill(short, _WIDTH, initial_indent="    ", subsequent_indent="    ")
            yield wrapped or "    (no text)"


def _shown(value: object) -> str:
    if value == "":
        return _NO_ANSWER
    return f"{value:.3f}" if isinstance(value, float) else str(value)
