"""Rows of the user's own data (`task=custom`), and the task that follows from them.

The type of the label column decides: text, integers and booleans are classes; floats are a
regression target, even where every one of them happens to be a whole number (a note says so).
A csv file has no types: there, codes such as 007, 1.10 beside 1.1, 10:30, and decimals in quotation
marks are classes as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.labels import alike, as_names, no_labels_among, shown
from bertvision_stream.data.rows import RawData, Rows, UnlabelledError, read_rows
from bertvision_stream.data.split_files import (
    SUFFIXES,
    describe_folder,
    files_left_out,
    find_split_files,
    listing,
    require_suffix,
)
from bertvision_stream.data.splits import encode_labels
from bertvision_stream.data.tables import read_columns
from bertvision_stream.data.text_files import why_as_written
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings

VALIDATION_NAMES = ("validation", "dev", "valid", "val")
HELD_OUT_FRACTION = 0.1
_LEAVE_OUT = "data.no_label=leave_out leaves such rows out"
_FEW_CLASSES = 1000  # With more, a note asks whether this is the right column.


def load_custom(settings: TaskSettings) -> RawData:
    """Reads the user's rows and makes the task from them.

    Without a validation split a seeded tenth of the training rows is held out.

    Raises:
        DataError: The path, a split, a column, a text or a label is missing or cannot be used.
    """
    text_columns, label_column = settings.data.text_columns, settings.data.label_column
    # The settings refuse task=custom without these.
    assert settings.data.path is not None
    assert text_columns is not None
    assert label_column is not None
    path = Path(settings.data.path)
    train_files, validation_files = find_custom(path)
    csv_files = [path for path in (*train_files, *validation_files) if path.suffix == ".csv"]
    reason = why_as_written(csv_files, label_column)
    try:
        splits = [
            read_rows(
                files,
                text_columns=text_columns,
                label_column=label_column,
                as_written=reason is not None,
                only_labelled=settings.data.no_label == "leave_out",
            )
            for files in (train_files, validation_files)
            if files
        ]
    except UnlabelledError as error:
        raise DataError(f"{error}; {_LEAVE_OUT}") from error

    kinds = {rows.labels.dtype.kind for rows in splits}
    if "f" in kinds and not kinds <= {"f", "i"}:
        raise DataError(
            f"label column '{label_column}' holds floats in one split and no numbers in the other: "
            f"{listing([rows.source for rows in splits])}"
        )
    if "f" in kinds:
        task, notes = _regression(splits, text_columns, label_column, from_csv=bool(csv_files))
        for rows in splits:  # Before some are held out, so that an error names all bad rows.
            encode_labels(rows, task)
    else:
        # Classes are sorted before they become strings, so that 10 comes after 9.
        names = tuple(str(value) for value in np.unique(splits[0].labels))
        splits = [replace(rows, labels=as_names(rows.labels)) for rows in splits]
        if settings.data.no_label == "refuse":
            _refuse_no_label(splits, label_column)
        task = _classification(names, splits, text_columns, label_column)
        notes = _class_notes(names, splits[0], label_column)
    if reason is not None:
        notes.append(
            f"Label column '{label_column}' holds {listing(task.label_names)}: taken for classes, "
            f"as they are written, because {reason}. Numbers to predict are written without "
            "quotation marks and leading zeros, each in one way."
        )
    notes += [
        f"Rows of {rows.source} that have no label and are left out (data.no_label=leave_out): "
        f"{rows.left_out:,}."
        for rows in splits
        if rows.left_out
    ]

    if not validation_files:
        num_rows = len(splits[0])
        splits = hold_out(splits[0], seed=settings.seed)
        notes.append(
            f"There is no validation split ({', '.join(VALIDATION_NAMES)}): {len(splits[1]):,} "
            f"of the {num_rows:,} training rows, drawn with seed {settings.seed}, are held out as "
            "one."
        )
    if path.is_dir():
        used = [*train_files, *validation_files]
        notes += files_left_out(path, ("train", *VALIDATION_NAMES), used)
    return RawData(task, splits[0], {"validation": splits[1]}, notes)


def hold_out(rows: Rows, *, seed: int) -> list[Rows]:
    """Draws a tenth of the rows, at least one, for validation.

    The first drawn row of each class stays for training, so that no class is lost to it.

    Returns:
        The rows for training and those held out, both in their order.

    Raises:
        DataError: No row can be spared.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    groups = rows.labels[order] if rows.labels.dtype.kind == "O" else np.zeros(len(rows))
    _, kept_positions = np.unique(groups, return_index=True)
    spare = np.delete(order, kept_positions)
    if not len(spare):
        raise DataError(
            f"{rows.source}: {len(rows)} rows are too few to hold out a validation split"
        )
    held_out = spare[: max(1, round(HELD_OUT_FRACTION * len(rows)))]
    is_held_out = np.isin(np.arange(len(rows)), held_out)
    return [rows.take(np.flatnonzero(~is_held_out)), rows.take(np.flatnonzero(is_held_out))]


def columns_of(path: str) -> list[str]:
    """The columns of the training rows at a `data.path`; none where it cannot be read."""
    try:
        return read_columns(find_custom(Path(path).expanduser())[0][0])
    except (DataError, OSError):
        return []


def find_custom(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of the training split, and of the validation split if there is one.

    Raises:
        DataError: The path or the training split is not there.
    """
    if path.is_file():
        require_suffix(path)
        return [path], []
    if not path.is_dir():
        raise DataError(
            f"data.path={path} does not exist; task=custom takes a {', '.join(SUFFIXES)} file or "
            "a folder with train.* and validation.* files"
        )
    train, validation = find_split_files(path, ["train"]), find_split_files(path, VALIDATION_NAMES)
    if not train and not validation:
        files = [file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()]
        train = files if len(files) == 1 and not find_split_files(path, ["test"]) else []
    if not train:
        raise DataError(
            f"data.path={path} has no training split: looked for train, or shards such as "
            f"train-00000-of-00002, with the suffix {' or '.join(SUFFIXES)}, or a single such "
            f"file; it holds {describe_folder(path)}"
        )
    return train, validation


def _regression(
    splits: Sequence[Rows], text_columns: Sequence[str], label_column: str, *, from_csv: bool
) -> tuple[Task, list[str]]:
    task = custom_task((), text_columns, label_column)
    if all(np.array_equal(rows.labels, np.round(rows.labels)) for rows in splits):
        return task, [
            f"Label column '{label_column}' holds floats, though all are whole numbers: this is "
            "taken as regression. For classes, write them as integers or text."
        ]
    numbers = np.unique(splits[0].labels)
    # Numbers that all differ cannot be meant as classes.
    if from_csv and len(numbers) < len(splits[0]):
        values = [f"{value:g}" for value in numbers[:3]]
        return task, [
            f"Label column '{label_column}' ({', '.join(values)}, ...) is taken for numbers, and "
            "this for regression. For classes, write the labels in quotation marks."
        ]
    return task, []


def _classification(
    names: tuple[str, ...], splits: Sequence[Rows], text_columns: Sequence[str], label_column: str
) -> Task:
    """The task of telling apart `names`, the labels of the first split."""
    train = splits[0]
    where = f"{train.source}: label column '{label_column}'"
    if len(names) == 1:
        raise DataError(f"{where} has one class only, '{names[0]}': there is nothing to learn")
    wrong_column = (
        "this might be the wrong column; a number to predict must be written as a float, in csv "
        "without quotation marks"
    )
    # A validation split with the same values shows that these are classes, however rare each is.
    if len(splits) == 1 and _is_rare(names, train):
        raise DataError(
            f"{where} has {len(names):,} different values in {len(train):,} rows "
            f"({listing([shown(name) for name in names[:3]])}, ...): {wrong_column}; classes of so "
            "few rows need a validation split of their own"
        )
    for rows in splits:
        unseen = set(rows.labels) - set(names)
        if unseen:
            found = rows.which(np.array([label in unseen for label in rows.labels]))
            hint = f": {wrong_column}" if _is_rare(names, train) else ""
            raise DataError(
                f"{rows.source}: label column '{label_column}' has classes that no training row "
                f"has: {listing([shown(name) for name in sorted(unseen)])}, in {found}; the "
                f"training rows have {listing([shown(name) for name in names])}{hint}"
            )
    return custom_task(names, text_columns, label_column)


def _is_rare(names: Sequence[str], train: Rows) -> bool:
    """Whether a class has less than two rows on average, as values that are no classes have."""
    return len(names) > 2 and 2 * len(names) > len(train)


def _refuse_no_label(splits: Sequence[Rows], label_column: str) -> None:
    """Refuses classes such as -1, which mean in this field that a row has no label."""
    found = no_labels_among({name for rows in splits for name in rows.labels})
    for rows in splits:
        marked = {name: rows.labels == name for name in sorted(found)}
        listed = [
            f"{shown(name)} in {rows.which(is_marked)}"
            for name, is_marked in marked.items()
            if is_marked.any()
        ]
        if listed:
            raise DataError(
                f"{rows.source}: label column '{label_column}' holds {listing(listed)}, which "
                f"commonly means that a row has no label: {_LEAVE_OUT}, data.no_label=class takes "
                "this for a class like the others"
            )


def _class_notes(names: Sequence[str], train: Rows, label_column: str) -> list[str]:
    """Says what may be a mistake, though it can be used as it is."""
    notes = [
        f"Label column '{label_column}': {listing([repr(name) for name in group])} are different "
        "classes, though they differ only in white space, case or the form of a character."
        for group in alike(names)
    ]
    if len(names) > _FEW_CLASSES or _is_rare(names, train):
        notes.append(
            f"Label column '{label_column}' has {len(names):,} classes in {len(train):,} training "
            "rows. A number to predict must be written as a float."
        )
    return notes


def custom_task(
    label_names: tuple[str, ...], text_columns: Sequence[str], label_column: str
) -> Task:
    """The task of the user's own data; without names of labels a regression."""
    metrics = ("accuracy", "f1", "matthews") if len(label_names) == 2 else ("accuracy", "matthews")
    return Task(
        name="custom",
        kind="classification" if label_names else "regression",
        text_columns=tuple(text_columns),
        label_column=label_column,
        label_names=label_names,
        metrics=metrics if label_names else ("pearson", "spearman"),
    )
