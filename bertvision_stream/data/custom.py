"""Rows of the user's own data (`task=custom`), and the task that follows from them.

The type of the label column decides: text, integers and booleans are classes; floats are a
regression target, even where every one of them happens to be a whole number (a note says so).
A csv file has no types: there, codes such as 007, 1.10 beside 1.1, 10:30, and decimals in quotation
marks are classes as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.rows import (
    SUFFIXES,
    RawData,
    Rows,
    describe_folder,
    files_left_out,
    find_split_files,
    listing,
    read_columns,
    read_rows,
    require_suffix,
)
from bertvision_stream.data.text_files import why_as_written
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings

VALIDATION_NAMES = ("validation", "dev", "valid", "val")
HELD_OUT_FRACTION = 0.1
MAX_CLASSES = 1000


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
    splits = [
        read_rows(
            files,
            text_columns=text_columns,
            label_column=label_column,
            as_written=reason is not None,
        )
        for files in (train_files, validation_files)
        if files
    ]

    kinds = {rows.labels.dtype.kind for rows in splits}
    if "f" in kinds and not kinds <= {"f", "i"}:
        raise DataError(
            f"label column '{label_column}' holds floats in one split and no numbers in the other: "
            f"{listing([rows.source for rows in splits])}"
        )
    if "f" in kinds:
        task, notes = _regression(splits, text_columns, label_column, from_csv=bool(csv_files))
    else:
        # Classes are sorted before they become strings, so that 10 comes after 9.
        names = tuple(str(value) for value in np.unique(splits[0].labels))
        splits = [Rows(rows.source, rows.texts, as_names(rows.labels)) for rows in splits]
        task, notes = _classification(names, splits, text_columns, label_column), []
    if reason is not None:
        notes.append(
            f"Label column '{label_column}' holds {listing(task.label_names)}: taken for classes, "
            f"as they are written, because {reason}. Numbers to predict are written without "
            "quotation marks and leading zeros, each in one way."
        )

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
    if len(names) > MAX_CLASSES or (len(names) > 2 and 2 * len(names) > len(train)):
        raise DataError(
            f"{where} has {len(names):,} different values in {len(train):,} rows "
            f"({listing(names[:3])}, ...): this might be the wrong column; a number to predict "
            "must be written as a float, in csv without quotation marks"
        )
    for rows in splits:
        unseen = sorted(set(rows.labels) - set(names))
        if unseen:
            raise DataError(
                f"{rows.source}: label column '{label_column}' has classes that no training row "
                f"has: {listing(unseen)}; the training rows have {listing(names)}"
            )
    return custom_task(names, text_columns, label_column)


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


def as_names(labels: np.ndarray) -> np.ndarray:
    """The labels as strings, in an object array as `Rows` has it."""
    names = np.empty(len(labels), dtype=object)
    names[:] = [str(label) for label in labels]
    return names
