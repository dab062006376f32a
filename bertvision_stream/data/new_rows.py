"""Rows to be scored by a finished run: test splits, or any file, with labels or without."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.glue import hub_class_names, hub_source, ids_note, load_from_hub
from bertvision_stream.data.labels import is_no_label
from bertvision_stream.data.originals import how_to_convert
from bertvision_stream.data.places import Places
from bertvision_stream.data.rows import class_names, rows_from_table, texts_of
from bertvision_stream.data.split_files import (
    SHARD,
    SUFFIXES,
    describe_folder,
    files_left_out,
    find_split_files,
    require_suffix,
)
from bertvision_stream.data.splits import Split, encode_labels
from bertvision_stream.data.squad import Questions, from_hub, read_new_questions
from bertvision_stream.data.tables import read_table
from bertvision_stream.data.text_files import has_label_as_written
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError
from bertvision_stream.utils.log import log

if TYPE_CHECKING:
    import pyarrow as pa

AX = "ax"
"""GLUE's diagnostic set, for the model of mnli."""
_INDEX = "idx"


@dataclass(frozen=True, eq=False)
class NewRows:
    """The rows of one split.

    Attributes:
        split: The texts with their labels; zeros stand for labels that are not there.
        labelled: Whether every row has a label.
        index: The number that GLUE gives each row, int64 [N].
        notes: Sentences for the user.
    """

    split: Split
    labelled: bool
    index: np.ndarray
    notes: tuple[str, ...] = ()


def read_new_rows(task: Task, path: str | None) -> list[NewRows]:
    """Reads the rows at `data.path`, or from the hub: test splits, for SQuAD the validation split.

    Raises:
        DataError: They cannot be found, read or used.
    """
    kind = _SPANS if task.per_token else _EXAMPLES
    if path is None:
        if task.hub_repo is None:
            raise DataError(
                f"mode=predict needs data.path for task={task.name}: a {', '.join(SUFFIXES)} file, "
                f"or a folder with test.* files"
            )
        return kind.load(task)
    place = Path(path)
    if place.is_file():
        require_suffix(place, how_to_convert(task, place.parent))
        name = re.sub(f"{SHARD.pattern}$", "", place.stem)
        return [kind.read(re.sub(r"[^\w.-]", "_", name), [place], task)]
    if not place.is_dir():
        raise DataError(f"data.path={place} does not exist")
    return [kind.read(name, files, task) for name, files in _find_splits(place, task, kind).items()]


@dataclass(frozen=True)
class _Kind:
    """How the rows of a kind of task are found and read.

    Attributes:
        splits: The splits to look for in a folder.
        only_first: Whether the first of them that is there will do.
        also: What is looked for besides `test`, in words.
        read: Reads the split of a name from its files.
        load: Loads all splits from the hub.
    """

    splits: tuple[str, ...]
    only_first: bool
    also: str
    read: Callable[[str, Sequence[Path], Task], NewRows]
    load: Callable[[Task], list[NewRows]]


def _find_splits(path: Path, task: Task, kind: _Kind) -> dict[str, list[Path]]:
    """The files of each test split in a folder laid out like the hub's."""
    folder = path / task.name if (path / task.name).is_dir() else path
    found = {name: find_split_files(folder, [name]) for name in kind.splits}
    if task.name == "mnli" and (path / AX).is_dir():
        found[AX] = find_split_files(path / AX, ["test"])
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise DataError(
            f"data.path={path} has no test split: looked for test.* or all shards of it "
            f"{kind.also} with the suffix {' or '.join(SUFFIXES)} in {folder}, which holds "
            f"{describe_folder(folder)}. To score other rows, name a file"
            f"{how_to_convert(task, path) or '.'}"
        )
    for note in files_left_out(folder, kind.splits, [*chain.from_iterable(found.values())]):
        log.info("%s", note)
    return dict(list(found.items())[:1]) if kind.only_first else found


def _read_questions(name: str, files: Sequence[Path], task: Task) -> NewRows:
    return _questions(name, *read_new_questions(files))


def _load_questions(task: Task) -> list[NewRows]:
    (name,) = task.validation_splits
    (dataset,) = load_from_hub(task, [name])
    questions = from_hub(task, name, dataset)
    return [_questions(name, questions, len(questions))]


def _questions(name: str, questions: Questions, num_labelled: int) -> NewRows:
    split = Split(name, questions.texts, questions.labels, questions)
    labelled = num_labelled == len(questions)
    notes = _some_labelled(num_labelled, len(questions), "gold answers")
    return NewRows(split, labelled, index=np.arange(len(questions)), notes=notes)


def _some_labelled(num_labelled: int, num_rows: int, what: str) -> tuple[str, ...]:
    """A note where some rows have labels and others do not."""
    if num_labelled in (0, num_rows):
        return ()
    return (
        f"{num_labelled:,} of {num_rows:,} rows have {what}: there are predictions for all rows, "
        f"and no scores, which need {what} in every row.",
    )


def _read_examples(name: str, files: Sequence[Path], task: Task) -> NewRows:
    parts = []
    for path in files:
        strings = [*task.text_columns]
        if path.suffix == ".csv" and has_label_as_written(
            path, task.label_column, task.label_names
        ):
            strings.append(task.label_column)
        table = read_table(path, strings, optional_columns=(task.label_column, _INDEX))
        if table.num_rows:
            names = class_names(table.schema, task.label_column)
            parts.append(_rows(table, str(path), task, names))
    if not parts:
        raise DataError(f"{files[0]}: there are no rows")
    return _joined(name, parts, task)


def _load_examples(task: Task) -> list[NewRows]:
    splits = ("test_matched", "test_mismatched") if task.name == "mnli" else ("test",)
    wanted = {name: (task, name) for name in splits}
    if task.name == "mnli":
        wanted[AX] = (replace(task, hub_config=AX), "test")
    found = []
    for name, (where, split) in wanted.items():
        (dataset,) = load_from_hub(where, [split])
        source, names = hub_source(where, split), hub_class_names(task, dataset)
        rows = _rows(dataset.with_format("arrow")[:], source, task, names)
        found.append(_joined(name, [rows], task))
    return found


_EXAMPLES = _Kind(
    splits=("test", "test_matched", "test_mismatched"),
    only_first=False,
    also="(for mnli also test_matched and test_mismatched)",
    read=_read_examples,
    load=_load_examples,
)
# SQuAD's test split is not public, so the validation split will do where no other is there.
_SPANS = _Kind(
    splits=("test", "validation"),
    only_first=True,
    also="and for validation.*",
    read=_read_questions,
    load=_load_questions,
)


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of one file.

    `labels` is None where not all rows have one, `index` where there is none; `by_id` says that
    labels are ids, not names.
    """

    texts: list[tuple[str, ...]]
    num_labelled: int
    labels: np.ndarray | None
    index: np.ndarray | None
    by_id: bool
    places: Places


def _rows(table: pa.Table, source: str, task: Task, names: Sequence[str] | None) -> _Part:
    texts = texts_of(table, source, task.text_columns)
    labels, by_id = None, False
    num_labelled = _num_labelled(table, task)
    if num_labelled == len(texts):
        rows = rows_from_table(table, source, task.text_columns, task.label_column, names)
        labels = encode_labels(rows, task)
        found = {str(label) for label in np.unique(rows.labels).tolist()}
        by_id = task.kind == "classification" and not found <= set(task.label_names)
    index = None
    if _INDEX in table.column_names and str(table.schema.field(_INDEX).type).startswith("int"):
        index = table.column(_INDEX).to_numpy()
    return _Part(texts, num_labelled, labels, index, by_id, Places.of_table(table, source))


def _num_labelled(table: pa.Table, task: Task) -> int:
    """How many rows have a label; GLUE's test splits have -1 everywhere."""
    if task.label_column not in table.column_names:
        return 0
    labels = [
        value
        for value in table.column(task.label_column).to_pylist()
        if str(value) in task.label_names or not _is_missing(value, task)
    ]
    # stsb's -1 is a float there.
    is_sign = "-1" not in task.label_names and all(value == -1 for value in labels)
    return 0 if is_sign else len(labels)


def _is_missing(value: object, task: Task) -> bool:
    """Whether a value is no label: among numbers to predict, -1 is a number like the others."""
    if task.kind == "regression":
        return value is None or value != value
    return is_no_label(value)


def _joined(name: str, parts: Sequence[_Part], task: Task) -> NewRows:
    labels = [part.labels for part in parts if part.labels is not None]
    labelled = len(labels) == len(parts)
    num_labelled = sum(part.num_labelled for part in parts)
    texts = [text for part in parts for text in part.texts]
    order = np.arange(len(texts))
    numbers = [part.index for part in parts if part.index is not None]
    index = np.concatenate(numbers) if len(numbers) == len(parts) else order
    all_labels = np.concatenate(labels) if labelled else np.zeros(len(texts))
    places = Places.join([part.places for part in parts])
    ids = (ids_note(task),) if labelled and any(part.by_id for part in parts) else ()
    return NewRows(
        Split(name, texts, all_labels, places=places),
        labelled=labelled,
        # The numbers of a mere selection of GLUE's rows are no index into them: count anew.
        index=index if np.array_equal(np.sort(index), order) else order,
        notes=(*ids, *places.notes, *_some_labelled(num_labelled, len(texts), "labels")),
    )
