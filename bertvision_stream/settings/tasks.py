"""The tasks: columns, label names, splits, metrics and recommended hyperparameters.

This imports only the standard library, so that settings are checked before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

TaskKind = Literal["classification", "regression", "span"]


def metric_title(metric: str, f1_class: str | None) -> str:
    """The name of a metric for people, in one short line: F1 says of which class it is.

    Args:
        metric: The name of the metric.
        f1_class: The class that F1 is of, if it is of one.
    """
    if metric != "f1" or f1_class is None:
        return metric
    name = " ".join(f1_class.split())
    return f"{metric} ({name if len(name) <= 12 else name[:11] + '…'})"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task reads, predicts and is judged by.

    Attributes:
        name: The name by which `task=` chooses it.
        kind: `classification` (one of `label_names`), `regression` (one number) or `span` (the
            first and the last token of an answer, for questions that may have none).
        text_columns: The column, or the pair of columns, that holds the text.
        label_column: The column of labels.
        label_names: The name of class `i` at position `i`; empty for other kinds.
        metrics: The names of the metrics.
        train_split: The name of the training split.
        validation_splits: The names of the splits with labels to evaluate on.
        hub_repo: The dataset repository on the Hugging Face hub, if there is one.
        hub_config: The configuration inside `hub_repo`, and the task's folder in it.
        finetune_lr: The recommended learning rate to fine-tune BERT-base or BERT-large with.
        batch_size: The recommended number of examples in a batch.
        max_length: The recommended limit of tokens in an example, special tokens included.
        search_fraction: The share of the training examples that a search takes by default.
    """

    name: str
    kind: TaskKind
    text_columns: tuple[str, ...]
    label_column: str = "label"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...]
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ("validation",)
    hub_repo: str | None = None
    hub_config: str | None = None
    finetune_lr: float = 2e-5
    batch_size: int = 32
    max_length: int = 128
    search_fraction: float = 1.0

    @property
    def num_labels(self) -> int:
        """Width of the logits: the number of classes, 1 for regression, 2 for spans."""
        return {"classification": len(self.label_names), "regression": 1, "span": 2}[self.kind]

    @property
    def output_names(self) -> tuple[str, ...]:
        """The name of each logit: the classes, the column of a number, or both ends of a span."""
        return ("start", "end") if self.kind == "span" else self.label_names or (self.label_column,)

    @property
    def per_token(self) -> bool:
        """Whether every token has logits, and not every example: start and end of a span."""
        return self.kind == "span"

    @property
    def f1_class(self) -> str | None:
        """The class that F1 is of: class 1 of two. None for a task without F1 of a class."""
        return self.label_names[1] if "f1" in self.metrics and self.label_names else None

    def metric_title(self, metric: str) -> str:
        """The name of a metric for people: `metric_title` with the task's own class of F1."""
        return metric_title(metric, self.f1_class)

    def listed(self, scores: Mapping[str, float]) -> str:
        """Scores for people, in one line: the title of each metric and its value."""
        return ", ".join(f"{self.metric_title(name)} {value:.4f}" for name, value in scores.items())

    def default_stride(self, max_length: int) -> int | None:
        """The `data.stride` of windows of `max_length` tokens; None for a task without windows."""
        return min(128, max_length // 3) if self.per_token else None


# Label names and their order are those of nyu-mll/glue; hyperparameters those of BERTVision.
_GLUE = tuple(
    replace(task, hub_repo="nyu-mll/glue", hub_config=task.name)
    for task in (
        Task(
            name="cola",
            kind="classification",
            text_columns=("sentence",),
            label_names=("unacceptable", "acceptable"),
            metrics=("matthews",),
            finetune_lr=2e-5,
            batch_size=16,
        ),
        Task(
            name="sst2",
            kind="classification",
            text_columns=("sentence",),
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            finetune_lr=2e-5,
            batch_size=32,
            search_fraction=0.1,
        ),
        Task(
            name="mrpc",
            kind="classification",
            text_columns=("sentence1", "sentence2"),
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            finetune_lr=2e-5,
            batch_size=32,
        ),
        Task(
            name="stsb",
            kind="regression",
            text_columns=("sentence1", "sentence2"),
            metrics=("pearson", "spearman"),
            finetune_lr=2e-5,
            batch_size=16,
        ),
        Task(
            name="qqp",
            kind="classification",
            text_columns=("question1", "question2"),
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            finetune_lr=1e-5,
            batch_size=32,
            search_fraction=0.1,
        ),
        Task(
            name="mnli",
            kind="classification",
            text_columns=("premise", "hypothesis"),
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            validation_splits=("validation_matched", "validation_mismatched"),
            finetune_lr=1e-5,
            batch_size=32,
            search_fraction=0.1,
        ),
        Task(
            name="qnli",
            kind="classification",
            text_columns=("question", "sentence"),
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            finetune_lr=1e-5,
            batch_size=32,
            search_fraction=0.1,
        ),
        Task(
            name="rte",
            kind="classification",
            text_columns=("sentence1", "sentence2"),
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            finetune_lr=2e-5,
            batch_size=16,
            max_length=250,
        ),
        Task(
            name="wnli",
            kind="classification",
            text_columns=("sentence1", "sentence2"),
            label_names=("not_entailment", "entailment"),
            metrics=("accuracy",),
            finetune_lr=2e-5,
            batch_size=16,
            max_length=250,
        ),
    )
)

_DEMO = Task(
    name="demo",
    kind="classification",
    text_columns=("sentence",),
    label_names=("unacceptable", "acceptable"),
    metrics=("accuracy", "matthews"),
    finetune_lr=2e-5,
    batch_size=32,
    max_length=64,
)

_SQUAD = Task(
    name="squad_v2",
    kind="span",
    text_columns=("question", "context"),
    label_column="answers",
    metrics=("exact", "f1"),
    hub_repo="rajpurkar/squad_v2",
    hub_config="squad_v2",
    finetune_lr=2e-5,
    batch_size=16,
    max_length=384,
)

GLUE_TASKS: tuple[str, ...] = tuple(task.name for task in _GLUE)
"""The nine tasks that `task=glue` stands for, in GLUE's order."""

TASKS: dict[str, Task] = {task.name: task for task in (_DEMO, *_GLUE, _SQUAD)}
"""Every task that is known before any data are read (`custom` is made from its data)."""
