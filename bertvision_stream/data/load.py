"""From the rows of a task to its token store.

`load_task_data` reads texts and labels (`demo`, GLUE, SQuAD, or the user's own data) and `tokenize`
turns a split into flat arrays of token ids, which Ray ships without copying; questions on long
contexts become windows in `spans.windows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bertvision_stream.data.custom import load_custom
from bertvision_stream.data.demo import load_demo
from bertvision_stream.data.glue import load_glue
from bertvision_stream.data.rows import Rows
from bertvision_stream.data.splits import Split, TaskData, encode_labels, nested_sample
from bertvision_stream.data.squad import Questions, load_squad
from bertvision_stream.settings.tasks import TASKS, Task

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings


def load_task_data(settings: TaskSettings) -> TaskData:
    """Reads the rows of a task, maps its labels by name and takes `data.train_fraction` of them.

    Args:
        settings: Of one task, from `Settings.for_task`.

    Raises:
        DataError: The data cannot be found, read or used; the message says where and why.
    """
    if settings.task == "demo":
        raw = load_demo()
    elif settings.task == "custom":
        raw = load_custom(settings)
    elif TASKS[settings.task].kind == "span":
        raw = load_squad(settings)
    else:
        raw = load_glue(settings)
    notes = list(raw.notes)
    train_rows = raw.train
    if settings.data.train_fraction < 1:
        indices = nested_sample(
            len(raw.train), fraction=settings.data.train_fraction, seed=settings.seed
        )
        train_rows = raw.train.take(indices)
        notes.append(
            f"Training on {len(indices):,} of {len(raw.train):,} rows, drawn with seed "
            f"{settings.seed} (data.train_fraction={settings.data.train_fraction:g})."
        )
    return TaskData(
        task=raw.task,
        train=_split(raw.task.train_split, train_rows, raw.task),
        validation=tuple(_split(name, rows, raw.task) for name, rows in raw.validation.items()),
        notes=tuple(notes),
    )


def _split(name: str, rows: Rows, task: Task) -> Split:
    if isinstance(rows, Questions):
        return Split(name, rows.texts, rows.labels, rows)
    return Split(name, rows.texts, encode_labels(rows, task))
