"""Rows of a GLUE task, and of any task, from the hub or from a local folder laid out like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bertvision_stream.data.originals import how_to_convert
from bertvision_stream.data.rows import RawData, Rows, read_rows, rows_from_table
from bertvision_stream.data.split_files import (
    SUFFIXES,
    describe_folder,
    files_left_out,
    find_split_files,
    listing,
)
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.utils.errors import DataError
from bertvision_stream.utils.hub import hub_reachable

if TYPE_CHECKING:
    import datasets

    from bertvision_stream.settings.settings import TaskSettings

RowsT = TypeVar("RowsT", bound=Rows)


def load_glue(settings: TaskSettings) -> RawData:
    """Reads the training and validation rows of the GLUE task `settings.task`.

    Raises:
        DataError: The hub cannot be reached; or the local folder, a split, a column, a text or a
            label is missing or cannot be used.
    """
    task = TASKS[settings.task]

    def read(files: Sequence[Path]) -> Rows:
        return read_rows(files, text_columns=task.text_columns, label_column=task.label_column)

    rows, notes = load_splits(task, settings.data.path, read=read, take=_hub_rows)
    train, *validation = rows
    labels = {str(label) for split in rows for label in np.unique(split.labels).tolist()}
    if task.kind == "classification" and labels - set(task.label_names):
        notes.append(ids_note(task))
    return RawData(task, train, dict(zip(task.validation_splits, validation, strict=True)), notes)


def ids_note(task: Task) -> str:
    """Says which class each id stands for, where labels are ids without names."""
    whose = "by their order" if task.hub_repo is None else "as GLUE's"
    meaning = listing([f"{i} is {name}" for i, name in enumerate(task.label_names)])
    return f"Labels of {task.name} are numbers without names: taken {whose}, {meaning}."


def load_splits(
    task: Task,
    path: str | None,
    *,
    read: Callable[[Sequence[Path]], RowsT],
    take: Callable[[Task, str, datasets.Dataset], RowsT],
) -> tuple[list[RowsT], list[str]]:
    """The rows of a task's training split and of its validation splits, in order, and notes.

    Args:
        task: Names the splits, the folder and the hub's repository.
        path: `data.path`; None is the hub.
        read: Reads the files of a split.
        take: Takes the rows of a split from what the hub gave.

    Raises:
        DataError: The hub cannot be reached, or the folder or a split is missing; or `read` or
            `take` raises it.
    """
    splits = (task.train_split, *task.validation_splits)
    if path is not None:
        folder, found = find_splits(task, Path(path))
        used = [file for files in found for file in files]
        return [read(files) for files in found], files_left_out(folder, splits, used)
    loaded = zip(splits, load_from_hub(task, splits), strict=True)
    return [take(task, split, rows) for split, rows in loaded], []


def find_splits(task: Task, path: Path) -> tuple[Path, list[list[Path]]]:
    """The files of a task's training split and of its validation splits, in order.

    Args:
        task: Names the splits and the folder.
        path: `data.path`, which holds the files, or the folder of the task with them.

    Returns:
        The folder that holds the files, and those of each split.

    Raises:
        DataError: The folder or a split is missing.
    """
    splits = (task.train_split, *task.validation_splits)
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"data.path={path} {found}; task={task.name} needs a folder that holds "
            f"{task.name}/{splits[0]}-*.parquet and the like"
        )
    folder = path / task.name if (path / task.name).is_dir() else path
    found_files = []
    for split in splits:
        files = find_split_files(folder, [split])
        if not files:
            looked_for = f"{split}, or shards such as {split}-00000-of-00002, with the suffix "
            looked_for += " or ".join(SUFFIXES)
            where = folder if folder != path else f"{path / task.name} and in {path}"
            raise DataError(
                f"data.path={path} has no {split} split of {task.name}: looked for {looked_for} "
                f"in {where}; {folder} holds {describe_folder(folder)}"
                f"{how_to_convert(task, path)}"
            )
        found_files.append(files)
    return folder, found_files


def load_from_hub(task: Task, splits: Sequence[str]) -> list[datasets.Dataset]:
    """Loads splits of `task.hub_repo` as they are.

    Raises:
        DataError: The hub cannot be reached, or has no such split.
    """
    import datasets

    assert task.hub_repo is not None
    is_reachable = hub_reachable()
    try:
        with _cache_only(not is_reachable):
            loaded: list[datasets.Dataset] = datasets.load_dataset(
                task.hub_repo, task.hub_config, split=list(splits)
            )
    # load_dataset lets through whatever its many layers raise; all of it means: there are no data.
    except Exception as error:
        cause = (
            f"{type(error).__name__}: {error}".splitlines()[0]
            if is_reachable
            else "the Hugging Face hub cannot be reached from here, and no copy of it is cached"
        )
        raise DataError(
            f"{task.hub_repo} ({task.hub_config}) could not be loaded: {cause}. To do without the "
            f"hub, set data.path= to a local folder laid out like it, one that holds "
            + ", ".join(f"{task.name}/{split}-*.parquet" for split in splits)
        ) from error
    return loaded


def hub_source(task: Task, split: str) -> str:
    """What messages call a split from the hub."""
    return f"{task.hub_repo} ({task.hub_config}, {split})"


def hub_class_names(task: Task, dataset: datasets.Dataset) -> list[str] | None:
    """The names of the classes whose positions the label column holds, where the hub has them."""
    return getattr(dataset.features.get(task.label_column), "names", None)


def _hub_rows(task: Task, split: str, dataset: datasets.Dataset) -> Rows:
    source, names = hub_source(task, split), hub_class_names(task, dataset)
    table = dataset.with_format("arrow")[:]
    rows = rows_from_table(table, source, task.text_columns, task.label_column, names)
    if not len(rows):
        raise DataError(f"{source}: there are no rows")
    return rows


@contextmanager
def _cache_only(enabled: bool) -> Iterator[None]:
    """Lets `datasets` read its cache only; without that it would retry the hub for 23 seconds."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
