"""From the rows of a task to its token store.

`load_task_data` reads texts and labels (`demo`, GLUE, SQuAD, or the user's own data) and `tokenize`
turns a split into flat arrays of token ids, which Ray ships without copying; questions on long
contexts become windows in `spans.windows`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.custom_data import load_custom
from bertvision_stream.errors import DataError
from bertvision_stream.glue_data import load_glue
from bertvision_stream.rows import RawData, Rows, listing, row_numbers
from bertvision_stream.spans.questions import Questions, load_squad
from bertvision_stream.tasks import TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from bertvision_stream.settings import TaskSettings

_DEMO_SEED = 0  # the demo's data set is the same for everyone, whatever their `seed`
_ROWS_AT_A_TIME = 1000  # bounds the tokenizer's Python objects, which dwarf the arrays


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


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of all examples of a split, end to end; the arrays may be read-only.

    Attributes:
        input_ids: int32 `[T]`, special tokens included, no padding.
        token_type_ids: uint8 `[T]`; zeros where the tokenizer has none.
        offsets: int64 `[N + 1]`; example `i` is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: `[N]`, as in `Split`; of windows `[N, 2]` (see `spans.windows`).
        num_truncated: How many examples were longer than the limit and were cut to it.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    num_truncated: int = 0

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 `[N]`."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the store holds, to be counted and hashed."""
        return self.input_ids, self.token_type_ids, self.offsets, self.labels

    def describe(self, max_length: int) -> str:
        """What it holds, for people; `max_length` is the limit that examples were cut to."""
        cut = f"; {self.num_truncated:,} were cut to {max_length}" if self.num_truncated else ""
        return f"{self.num_examples:,} examples, {self.num_tokens:,} tokens{cut}"

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """The rows of examples (ascending int64), which are themselves unless there are windows."""
        return examples

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of example `i`, int32; a view."""
        return self.input_ids[self.offsets[i] : self.offsets[i + 1]]


def load_task_data(settings: TaskSettings) -> TaskData:
    """Reads the rows of a task, maps its labels by name and takes `data.train_fraction` of them.

    Args:
        settings: Of one task, from `Settings.for_task`.

    Raises:
        DataError: The data cannot be found, read or used; the message says where and why.
    """
    if settings.task == "demo":
        raw = _load_demo()
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


def tokenize(split: Split, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TokenStore:
    """Tokenizes a split, without padding.

    Args:
        split: Its examples are one text or a pair of texts.
        tokenizer: A fast tokenizer.
        max_length: Most tokens of an example, special tokens included. Longer ones are cut, from a
            pair's longer text first.
    """
    ids, type_ids, lengths = [], [], []
    num_truncated = 0
    for start in range(0, len(split), _ROWS_AT_A_TIME):
        columns = zip(*split.texts[start : start + _ROWS_AT_A_TIME], strict=True)
        encoded = tokenizer(
            *(list(column) for column in columns),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        ids.append(_flat(encoded["input_ids"], np.int32))
        type_ids.append(
            _flat(encoded["token_type_ids"], np.uint8)
            if "token_type_ids" in encoded
            else np.zeros(len(ids[-1]), dtype=np.uint8)
        )
        lengths += [len(example) for example in encoded["input_ids"]]
        num_truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return TokenStore(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(type_ids),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        labels=split.labels,
        num_truncated=num_truncated,
    )


def _load_demo() -> RawData:
    from bertvision_stream.demo import DemoExample, make_demo

    def rows(split: str, examples: list[DemoExample]) -> Rows:
        labels = np.array([example.label for example in examples], dtype=np.int64)
        return Rows(f"demo ({split})", [(example.sentence,) for example in examples], labels)

    train, validation = make_demo(_DEMO_SEED)
    return RawData(
        TASKS["demo"], rows("train", train), {"validation": rows("validation", validation)}
    )


def _split(name: str, rows: Rows, task: Task) -> Split:
    if isinstance(rows, Questions):
        return Split(name, rows.texts, rows.labels, rows)
    return Split(name, rows.texts, encode_labels(rows, task))


def _allowed(task: Task) -> str:
    return ", ".join(f"{name} (or {i})" for i, name in enumerate(task.label_names))


def _flat(sequences: list[list[int]], dtype: type[np.generic]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequences), dtype=dtype)
