"""The command line of reports: `python -m bertvision_stream.report errors RUN`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bertvision_stream.report.errors import Predictions, error_tables, read_predictions
from bertvision_stream.report.tables import PREDICTORS, WIDTH, Table
from bertvision_stream.utils.errors import BertvisionError, UserError
from bertvision_stream.utils.files import write_text, writing
from bertvision_stream.utils.terminal import printable

_USAGE = """\
usage: python -m bertvision_stream.report errors RUN

Prints where the head and BERT of a finished run disagree, the head's most confident mistakes, and
scores by length; writes all of them, as jsonl and csv, into RUN/errors/. Answers in spans are
compared by SQuAD's rules, and scored with and without an answer as well. RUN is the folder of a run
(outputs/TASK/RUN_NAME), or of the predictions of mode=predict."""
_NUM_SHOWN = 10
_MOST_CHARACTERS = 280  # Texts are printed up to this length; the files have them in full.
_NO_ANSWER = "(no answer)"


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 (a file cannot be written) or 2 (the user made a mistake).
    """
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
            found = error_tables(predictions)
            print(printable(f"{render(predictions, found)}\n"))
            for path in write_tables(folder / "errors", predictions.split, found):
                print(printable(path))
            print()
    except UserError as error:
        print(f"\n{printable(error)}", file=sys.stderr)
        return 2
    except BertvisionError as error:
        print(f"\n{printable(error)}", file=sys.stderr)
        return 1
    return 0


def write_tables(folder: Path, split: str, found: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write `<table>_<split>.jsonl` and `.csv` of each table.

    The csv files are for spreadsheets: text that they would take for a formula has an apostrophe
    before it. The jsonl files have every text as it was.

    Returns:
        The files.

    Raises:
        OutputError: They cannot be written.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
    paths = []
    for name, table in found.items():
        rows = table.to_dict("records")
        jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        csv = table.rename(columns=_no_formula).map(_no_formula)
        csv = csv.to_csv(index=False, lineterminator="\n")
        for suffix, content in ((".jsonl", jsonl), (".csv", csv)):
            paths.append(folder / f"{name}_{split}{suffix}")
            write_text(paths[-1], content)
    return paths


def _no_formula(cell: Any) -> Any:
    """A cell of a csv file, with an apostrophe before what a spreadsheet would compute."""
    is_formula = isinstance(cell, str) and cell.lstrip()[:1] in (*"=+-@\uff1d\uff0b\uff0d\uff20",)
    return f"'{cell}" if is_formula else cell


def render(predictions: Predictions, found: Mapping[str, pd.DataFrame]) -> str:
    """What is printed of one split."""
    num_rows, regression = len(predictions.rows), predictions.kind == "regression"
    apart = found["disagreements"]
    sections = [f"{predictions.split}: {num_rows:,} rows"]
    if predictions.labelled and not regression:
        sections.append(_right_and_wrong(predictions.right).text())
    title = f"Head and BERT disagree on {_of(apart, num_rows)} Where both are surest"
    if regression:
        title = "Where head and BERT are furthest apart"
    sections.append(_listed(title, apart))
    if not predictions.labelled:
        return "\n\n".join([*sections, "There are no labels: nothing else can be said."])
    wrong, lengths = found["mistakes"], found["lengths"]
    title = f"The head is wrong on {_of(wrong, num_rows)} Where it is surest"
    if regression:
        title = "Where the head is furthest off"
    sections.append(_listed(title, wrong))
    what = {
        "classification": "Share of right predictions",
        "regression": "Mean absolute error",
        "span": "Exact match and F1",
    }[predictions.kind]
    ranges = [_range(row) for row in lengths.to_dict("records")]
    sections += [f"{what} by length", _scores(predictions.unit, ranges, lengths).text()]
    if "kinds" in found:
        kinds = found["kinds"]
        sections += [f"{what} by kind", _scores("questions", kinds["kind"], kinds).text()]
    return "\n\n".join(sections)


def _of(table: pd.DataFrame, num_rows: int) -> str:
    return f"{len(table):,} of {num_rows:,} rows ({len(table) / num_rows:.1%})."


def _right_and_wrong(right: pd.DataFrame) -> Table:
    """How many rows both get right, one of them, or none."""
    bert = right["bert"]
    rows = [
        [name, f"{(head & bert).sum():,}", f"{(head & ~bert).sum():,}"]
        for name, head in (("head right", right["head"]), ("head wrong", ~right["head"]))
    ]
    return Table(["", "BERT right", "BERT wrong"], rows)


def _scores(title: str, groups: Iterable[str], table: pd.DataFrame) -> Table:
    """Scores of groups of rows: the three predictors, under each metric if there are several."""
    keys = [key for key in table.columns if key.split("_")[0] in PREDICTORS]
    names = (key.partition("_") for key in keys)
    titles = [f"{metric}\n{PREDICTORS[name]}".strip() for name, _, metric in names]
    rows = [
        [group, f"{row['rows']:,}", *(f"{row[key]:.4f}" for key in keys)]
        for group, row in zip(groups, table.to_dict("records"), strict=True)
    ]
    return Table([title, "rows", *titles], rows)


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['from']} to {row['to']}" if row["from"] < row["to"] else str(row["to"])


def _listed(title: str, table: pd.DataFrame) -> str:
    """The first rows of a table; for an empty one the title's first sentence."""
    if table.empty:
        return title.rpartition(". ")[0] + "."
    first = f" ({_NUM_SHOWN} of them)" if len(table) > _NUM_SHOWN else ""
    lines = [f"{title}{first}:"]
    for row in table.head(_NUM_SHOWN).to_dict("records"):
        lines += ["", *_entry(row)]
    return "\n".join(lines)


def _entry(row: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one row: what is right, what is predicted, and the texts."""
    said = [f"gold {_shown(row['gold'])}"] if "gold" in row else []
    for key in ("head", "bert"):
        sure = f" {row[f'{key}_confidence']:.3f}" if f"{key}_confidence" in row else ""
        said.append(f"{PREDICTORS[key]} {_shown(row[key])}{sure}")
    yield f"  {row['index']}: {', '.join(said)}"
    for key, text in row.items():
        if key.startswith("texts."):
            text = " ".join(text.split())
            short = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
            wrapped = textwrap.fill(short, WIDTH, initial_indent="    ", subsequent_indent="    ")
            yield wrapped or "    (no text)"


def _shown(value: object) -> str:
    if value == "":
        return _NO_ANSWER
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
