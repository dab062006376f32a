"""Questions on contexts and their gold answers, read and checked; texts stay as they are.

A row is used as it is, or the error names its id. An answer that is not where it is said to be
would be learned wrongly, and a question left out would change the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertvision_stream.data.glue import hub_source, load_splits
from bertvision_stream.data.rows import RawData, Rows
from bertvision_stream.data.split_files import NUM_LISTED, listing, source_of
from bertvision_stream.data.tables import read_table, require_columns
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from bertvision_stream.settings.settings import TaskSettings

_TEXTS = ("id", "question", "context")
_SHOWN = 40  # characters of a text that an error shows


@dataclass(frozen=True, slots=True)
class Answer:
    """A gold answer: `context[start : start + len(text)] == text`, counted in characters."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True, eq=False)
class Questions(Rows):
    """Rows of questions, N of them.

    Attributes:
        source: Where the rows are from, for messages.
        texts: `N` pairs of question and context.
        labels: bool `[N]`: whether the question has an answer.
        ids: `N` different names.
        answers: `N` tuples of gold answers, empty for a question that has none.
    """

    ids: list[str]
    answers: list[tuple[Answer, ...]]

    def take(self, indices: np.ndarray) -> Questions:
        """The rows at `indices` (int `[M]`), in that order."""
        rows = Rows.take(self, indices)
        ids = [self.ids[i] for i in indices]
        return Questions(
            rows.source, rows.texts, rows.labels, ids, [self.answers[i] for i in indices]
        )


def load_squad(settings: TaskSettings) -> RawData:
    """Reads the training and validation rows of the task `settings.task`, from hub or folder.

    Raises:
        DataError: The hub cannot be reached; or the folder, a split or a column is missing; or
            rows cannot be used, which the message names by their ids.
    """
    task = TASKS[settings.task]
    splits, notes = load_splits(task, settings.data.path, read=_read, take=from_hub)
    train, *validation = splits
    for rows in splits:
        empty = [rows.ids[i] for i, texts in enumerate(rows.texts) if not texts[0].strip()]
        if empty:
            are = "question is" if len(empty) == 1 else "questions are"
            notes.append(f"{rows.source}: {len(empty):,} {are} empty: {listing(empty)}.")
    return RawData(task, train, dict(zip(task.validation_splits, validation, strict=True)), notes)


def questions_from_rows(rows: Sequence[dict[str, Any]], source: str) -> Questions:
    """Checks rows as SQuAD has them and takes the questions out of them.

    Args:
        rows: Rows with `id`, `question`, `context` and `answers`, a mapping of `text` and
            `answer_start` to lists of equal length, which are empty if there is no answer.
        source: Where the rows are from, for messages.

    Raises:
        DataError: There is no row, or some cannot be used; the message says which, and why.
    """
    if not rows:
        raise DataError(f"{source}: there are no rows")
    bad: list[str] = []
    seen: set[str] = set()
    known: dict[str, str] = {}  # Questions share contexts; the text of each is kept once.
    ids, answers = [], []
    texts: list[tuple[str, ...]] = []
    for number, row in enumerate(rows, start=1):
        name = row["id"]
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        has_name = isinstance(name, str) and bool(name.strip())
        fault = _fault(row) if has_name else "it has no id"
        if has_name and name in seen:
            fault = "another row has the same id"
        if fault:
            bad.append(f"{name if has_name else f'row {number}'}: {fault}")
            continue
        seen.add(name)
        ids.append(name)
        texts.append((row["question"], known.setdefault(row["context"], row["context"])))
        given = row["answers"]
        answers.append(tuple(map(Answer, given["text"], given["answer_start"])))
    if bad:
        shown = "\n  ".join(bad[:NUM_LISTED])
        more = f"\n  and {len(bad) - NUM_LISTED:,} more" if len(bad) > NUM_LISTED else ""
        are = "row cannot be used" if len(bad) == 1 else "rows cannot be used"
        raise DataError(
            f"{source}: {len(bad):,} {are}:\n  {shown}{more}\nMend or remove them: none is left "
            f"out by itself."
        )
    labels = np.array([bool(gold) for gold in answers])
    return Questions(source, texts, labels, ids, answers)


def _fault(row: dict[str, Any]) -> str:
    """Says why a row cannot be used; the text is empty if it can."""
    for name in ("question", "context"):
        if not isinstance(row[name], str):
            return f"it has no {name}"
    context, given = row["context"], row["answers"]
    if not context.strip():
        return "its context is empty"
    if not isinstance(given, dict):
        return "it has no answers, which are written {'text': [...], 'answer_start': [...]}"
    texts, starts = given.get("text"), given.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list):
        return "its answers lack " + ("answer_start" if isinstance(texts, list) else "text")
    if len(texts) != len(starts):
        return f"it has {len(texts)} answer texts and {len(starts)} of answer_start"
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return "an answer is empty; a question without answer has empty lists"
        if not isinstance(start, int) or start < 0:
            return f"answer_start of its answer {_show(text)} is {start}, not a place in the text"
        if (there := context[start : start + len(text)]) != text:
            found = f"which has {_show(there)} there" if there else "which is shorter"
            return f"its answer {_show(text)} is not at character {start} of its context, {found}"
    return ""


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _read(files: Sequence[Path]) -> Questions:
    """The questions of all files of a split."""
    rows: list[dict[str, Any]] = []
    for path in files:
        if path.suffix == ".csv":
            raise _no_lists(path)
        rows += _rows(read_table(path, _TEXTS, "answers"), str(path))
    return questions_from_rows(rows, source_of(files))


def read_new_questions(files: Sequence[Path]) -> tuple[Questions, int]:
    """Reads questions that are to be answered, with or without gold answers.

    Returns:
        The questions, and how many have gold answers: a column `answers` that is not null. Where
        not all have them, the gold answers of all are left out.

    Raises:
        DataError: A file cannot be read, or holds rows that cannot be used; the message says
            which, and why.
    """
    rows: list[dict[str, Any]] = []
    for path in files:
        table = read_table(path, _TEXTS, optional_columns=("answers",))
        has_answers = "answers" in table.column_names
        if has_answers and path.suffix == ".csv":
            raise _no_lists(path)
        rows += _rows(table if has_answers else _without_answers(table), str(path))
    num_labelled = sum(row["answers"] is not None for row in rows)
    if num_labelled < len(rows):
        rows = [row | {"answers": {"text": [], "answer_start": []}} for row in rows]
    return questions_from_rows(rows, source_of(files)), num_labelled


def _without_answers(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    return table.append_column("answers", pa.nulls(table.num_rows))


def _no_lists(path: Path) -> DataError:
    return DataError(f"{path}: a csv file cannot hold lists of answers; write parquet, jsonl")


def from_hub(task: Task, split: str, dataset: datasets.Dataset) -> Questions:
    """The questions of a split from the hub.

    Raises:
        DataError: Rows cannot be used.
    """
    source = hub_source(task, split)
    return questions_from_rows(_rows(dataset.with_format("arrow")[:], source), source)


def _rows(table: pa.Table, source: str) -> list[dict[str, Any]]:
    columns = [*_TEXTS, "answers"]
    require_columns(table.column_names, columns, source)
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return rows
