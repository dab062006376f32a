"""From the settings of a task to its rows: those of the demo, GLUE, SQuAD or the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertvision_stream.data.custom import find_custom, load_custom
from bertvision_stream.data.demo import load_demo
from bertvision_stream.data.glue import find_splits, load_glue
from bertvision_stream.data.rows import RawData
from bertvision_stream.data.splits import Split, TaskData, take_fraction
from bertvision_stream.data.squad import load_squad
from bertvision_stream.settings.tasks import TASKS

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings


def load_task_data(settings: TaskSettings) -> TaskData:
    """Reads the rows of a task, maps its labels by name and takes `data.train_fraction` of them.

    Raises:
        DataError: The data cannot be found, read or used; the message says where and why.
    """
    raw = _load_rows(settings)
    places = [rows.places for rows in (raw.train, *raw.validation.values()) if rows.places]
    # Rows that are held out are from the same file as those that are left.
    of_files = dict.fromkeys(note for of_rows in places for note in of_rows.notes)
    data = TaskData(
        task=raw.task,
        train=Split.of(raw.task.train_split, raw.train, raw.task),
        validation=tuple(Split.of(name, rows, raw.task) for name, rows in raw.validation.items()),
        notes=(*raw.notes, *of_files),
    )
    fraction = settings.data.train_fraction
    sample = take_fraction(data, fraction=fraction, seed=settings.seed)
    if sample is data:
        return data
    note = (
        f"Training on {len(sample.train):,} of {len(data.train):,} rows, drawn with seed "
        f"{settings.seed} (data.train_fraction={fraction:g})."
    )
    return replace(sample, notes=(*data.notes, note))


def find_rows(settings: TaskSettings) -> None:
    """Looks for the files of rows at `data.path`, and reads none.

    Raises:
        DataError: The folder, the file or a split is missing.
    """
    path, task = settings.data.path, TASKS.get(settings.task)
    if path is not None and task is None:
        find_custom(Path(path))
    elif path is not None and task is not None:
        find_splits(task, Path(path))


def _load_rows(settings: TaskSettings) -> RawData:
    if settings.task == "demo":
        return load_demo()
    if settings.task == "custom":
        return load_custom(settings)
    return load_squad(settings) if TASKS[settings.task].per_token else load_glue(settings)
