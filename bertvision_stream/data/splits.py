"""The examples of a split with the labels that a model is trained on, and samples of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bertvision_stream.data.labels import class_ids, takes_ids
from bertvision_stream.data.places import Places
from bertvision_stream.data.rows import Rows
from bertvision_stream.data.split_files import NUM_LISTED, listing
from bertvision_stream.data.squad import Questions
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Attributes:
        name: A name such as `train` or `validation_matched`.
        texts: `N` tuples of one or two strings, as they were found.
        labels: `[N]`; int64 class ids, or float32 for regression; for questions, bool: whether they
            have an answer.
        questions: The ids and gold answers, where the task's answers are spans.
        places: Where each example stands in the user's files.
    """

    name: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    questions: Questions | None = None
    places: Places | None = None

    @classmethod
    def of(cls, name: str, rows: Rows, task: Task) -> Split:
        """The split of some rows.

        Raises:
            DataError: A label is no class of the task, or no finite number.
        """
        if isinstance(rows, Questions):
            return cls(name, rows.texts, rows.labels, rows)
        return cls(name, rows.texts, encode_labels(rows, task), places=rows.places)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices` (int `[M]`), in that order."""
        questions = self.questions.take(indices) if self.questions is not None else None
        texts = [self.texts[i] for i in indices]
        places = self.places and self.places.take(indices)
        return Split(self.name, texts, self.labels[indices], questions, places)


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its data; `notes` are sentences that the user should see."""

    task: Task
    train: Split
    validation: tuple[Split, ...]
    notes: tuple[str, ...]


def take_fraction(data: TaskData, *, fraction: float, seed: int) -> TaskData:
    """The task with a fraction of its training examples, drawn by `nested_sample`."""
    if fraction == 1:
        return data
    indices = nested_sample(len(data.train), fraction=fraction, seed=seed)
    return replace(data, train=data.train.take(indices))


def nested_sample(num_rows: int, *, fraction: float, seed: int) -> np.ndarray:
    """Draws a fraction of the rows, at least one.

    With the same seed the sample of a smaller fraction lies inside that of a larger one, so that
    learning curves compare like with like.

    Returns:
        Row indices, int64, ascending.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    return np.sort(order[: max(1, round(fraction * num_rows))])


def encode_labels(rows: Rows, task: Task) -> np.ndarray:
    """Turns labels into what a model is trained on.

    Names become the task's ids by name. Integers are names too where a class is called by a number,
    and otherwise ids already.

    Returns:
        `[N]`; int64 class ids, or float32 for regression.

    Raises:
        DataError: A label is no class of the task, or no finite number that fits float32.
    """
    where = f"{rows.source}: label column '{task.label_column}'"
    kind = rows.labels.dtype.kind
    if task.kind == "regression":
        if kind not in "if":
            raise DataError(f"{where} holds no numbers, and {task.name} is to predict a number")
        is_bad = ~np.isfinite(rows.labels)
        if is_bad.any():
            raise DataError(f"{where} is not a finite number in {rows.which(is_bad)}")
        with np.errstate(over="ignore", under="ignore"):
            values = rows.labels.astype(np.float32)
        is_bad = ~np.isfinite(values) | ((values == 0) & (rows.labels != 0))
        if is_bad.any():
            raise DataError(
                f"{where} holds {rows.labels[is_bad][0]:g}, which does not fit float32, in "
                f"{rows.which(is_bad)}: write the numbers in another unit"
            )
        return values

    if kind == "f" or (kind == "b" and "True" not in task.label_names):
        found = "booleans" if kind == "b" else "floats"
        raise DataError(f"{where} holds {found}, not {_allowed(task)}")
    known = class_ids(task.label_names)
    ids = np.array([known.get(str(label), -1) for label in rows.labels.tolist()], dtype=np.int64)
    if (ids < 0).any():
        unknown = np.unique(rows.labels[ids < 0]).tolist()
        first = unknown[:NUM_LISTED]
        shown = [f"{value!r} in {rows.which(rows.labels == value)}" for value in first]
        more = f" and {len(unknown) - NUM_LISTED:,} more" if len(unknown) > NUM_LISTED else ""
        raise DataError(
            f"{where} holds labels that {task.name} does not have: {', '.join(shown)}{more}; "
            f"allowed: {_allowed(task)}"
        )
    return ids


def _allowed(task: Task) -> str:
    names = task.label_names
    with_ids = takes_ids(names)
    return listing([f"{name} (or {i})" if with_ids else name for i, name in enumerate(names)])
