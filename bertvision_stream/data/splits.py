"""The examples of a split with their labels, and samples of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bertvision_stream.data.rows import Rows, listing, row_numbers
from bertvision_stream.data.squad import Questions
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split.

    Attributes:
        name: Such as `train` or `validation_matched`.
        texts: `N` tuples of one or two strings, as they were found.
        labels: `[N]`; int64 class ids, or float32 for regression; of questions, whether they have
            an answer.
        questions: Ids and gold answers, where the task's answers are spans.
    """

    name: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    questions: Questions | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its data; `notes` are sentences that the user should see."""

    task: Task
    train: Split
    validation: tuple[Split, ...]
    notes: tuple[str, ...]


def take_fraction(data: TaskData, *, fraction: float, seed: int) -> TaskData:
    """The task with a fraction of its training examples, as `data.train_fraction` takes them."""
    if fraction == 1:
        return data
    train = data.train
    indices = nested_sample(len(train), fraction=fraction, seed=seed)
    questions = train.questions.take(indices) if train.questions is not None else None
    texts = [train.texts[i] for i in indices]
    return replace(data, train=Split(train.name, texts, train.labels[indices], questions))


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

    Names become the task's ids by name; plain integers are taken for ids already.

    Returns:
        `[N]`; int64 class ids, or float32 for regression.

    Raises:
        DataError: A label is no class of the task, or no finite number.
    """
    where = f"{rows.source}: label column '{task.label_column}'"
    kind = rows.labels.dtype.kind
    if task.kind == "regression":
        if kind not in "if":
            raise DataError(f"{where} holds no numbers, and {task.name} is to predict a number")
        values = rows.labels.astype(np.float32)
        is_bad = ~np.isfinite(values)
        if is_bad.any():
            raise DataError(f"{where} is not a finite number in {row_numbers(is_bad)}")
        return values

    if kind not in "Oi":
        found = "booleans" if kind == "b" else "floats"
        raise DataError(f"{where} holds {found}, not {_allowed(task)}")
    ids_by_label: dict[object, int] = (
        {name: i for i, name in enumerate(task.label_names)}
        if kind == "O"
        else {i: i for i in range(task.num_labels)}
    )
    ids = np.array([ids_by_label.get(label, -1) for label in rows.labels.tolist()], dtype=np.int64)
    if (ids < 0).any():
        values, counts = np.unique(rows.labels[ids < 0], return_counts=True)
        unknown = [
            f"{value!r} ({count:,} row{'s' if count > 1 else ''})"
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        ]
        raise DataError(
            f"{where} holds labels that {task.name} does not have: {listing(unknown)}; allowed: "
            f"{_allowed(task)}"
        )
    return ids


def _allowed(task: Task) -> str:
    return ", ".join(f"{name} (or {i})" for i, name in enumerate(task.label_names))
