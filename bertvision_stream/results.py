"""What a run found out, as records, and the files for other programs.

`metrics.json` and `predictions_<split>.jsonl` are made here; `report.py` renders the same records
for people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from bertvision_stream.errors import OutputError
from bertvision_stream.evaluate import EnsembleMethod, confidence, predicted
from bertvision_stream.plan_check import PlanCheck
from bertvision_stream.tasks import Task

if TYPE_CHECKING:
    from bertvision_stream.data import Split

Scores = Mapping[str, float]
"""Metric name -> value, as `evaluate.compute_metrics` returns it."""


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The three contestants on one validation split of `examples` rows."""

    name: str
    examples: int
    bert: Scores
    head: Scores
    ensemble: Scores


@dataclass(frozen=True, kw_only=True)
class HeadSummary:
    """The head that was trained, and the number of parameters of the backbone below it.

    Attributes:
        kind: `head.kind`.
        parameters: How many it has.
        backbone_parameters: How many the backbone has.
        mix_weights: Softmax weight of each layer in its scalar mix; empty without one.
        mix_gamma: The scale of the mix; None without one.
        adapter_shares: Share of each layer in the norm of the adapters' output on validation
            tokens; empty without adapters. Layer 0 is the embeddings.
    """

    kind: str
    parameters: int
    backbone_parameters: int
    mix_weights: tuple[float, ...] = ()
    mix_gamma: float | None = None
    adapter_shares: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FinetuneSummary:
    """The partial fine-tuning of the backbone.

    Attributes:
        epochs: How long; 0 leaves the backbone as it is.
        parameters: How many were trained.
        reused: Whether its result was found again: an earlier run's, or that of a trial of the
            search that came first.
    """

    epochs: float
    parameters: int
    reused: bool


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of the head: mean losses, and its scores on each split (`scores[split][metric]`).

    Attributes:
        epoch: Counted from 1.
        loss: Mean training loss over the epoch's examples.
        validation_loss: Mean loss over the examples of all validation splits.
        scores: Metrics of the head after the epoch, by split.
    """

    epoch: int
    loss: float
    validation_loss: float
    scores: Mapping[str, Scores]


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How the head was trained.

    Attributes:
        examples: Training examples in an epoch.
        tokens: Their tokens.
        history: One record for each epoch that ran, in order.
        planned_epochs: `train.epochs`; more than ran where training stopped early.
        best_epoch: The epoch (from 1) whose head is reported and saved.
        chosen_by: Rule that chose it, as it reads after "chosen by", say "lowest validation loss".
    """

    examples: int
    tokens: int
    history: tuple[EpochRecord, ...]
    planned_epochs: int
    best_epoch: int
    chosen_by: str


@dataclass(frozen=True, kw_only=True)
class StreamSummary:
    """What the feature stream did, training and validation together; keys as in `metrics.json`.

    Attributes:
        blocks: Distinct blocks.
        blocks_extracted: Blocks made by a forward pass, repetitions included.
        blocks_from_cache: Blocks delivered without one.
        tokens_extracted: Tokens in the blocks extracted.
        bytes_per_epoch: Bytes of hidden states that one epoch delivers.
        budget_bytes: Limit of the bytes that may exist at once.
        peak_bytes: Most that existed at once.
        cache_bytes: Bytes that the cache held at the end.
        spilled_bytes: Bytes that Ray's object store spilled to disk: 0.
        fallback_bytes: Bytes that it put into files mapped into memory: 0.
        dump_bytes_avoided: What BERTVision's layout would have written to disk: every example
            padded to `max_length` tokens, all layers, 4 bytes a number.
    """

    blocks: int
    blocks_extracted: int
    blocks_from_cache: int
    tokens_extracted: int
    bytes_per_epoch: int
    budget_bytes: int
    peak_bytes: int
    cache_bytes: int
    spilled_bytes: int
    fallback_bytes: int
    dump_bytes_avoided: int


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """The search before the training; keys as in `metrics.json`.

    Attributes:
        target: `head` or `backbone`.
        trials: How many there were.
        lost: Those that diverged or failed.
        best_trial: The number of the best, from 1.
        best_score: Its score, on the rows that the search took.
        best_config: Its values by dotted key.
        max_concurrent: Trials at once.
        seconds: Wall time.
        epochs: Epochs that the stream ran for all trials together.
        examples: Training examples that the search took.
        tokens_extracted: Tokens of the blocks that the stream made for all trials together.
        blocks_extracted: Blocks that it made.
        blocks_from_cache: Blocks that it delivered without making them again.
    """

    target: str
    trials: int
    lost: int
    best_trial: int
    best_score: float
    best_config: Mapping[str, Any]
    max_concurrent: int
    seconds: float
    epochs: int
    examples: int
    tokens_extracted: int
    blocks_extracted: int
    blocks_from_cache: int


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time: the whole run, fine-tuning, and streaming with the training of heads.

    `stages` is all that the run did, in order, by what it was.
    """

    total: float
    finetune: float
    stream: float
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that a finished run says about itself.

    Attributes:
        settings: Resolved settings, dotted key -> value.
        command: Command line that does the run again.
        versions: Package -> version.
        notes: Sentences for the user: what was held out, what was picked automatically.
        search: The search that came first; None without one.
        plan: What was predicted before the stream began, against what happened.
    """

    task: Task
    backbone: str
    seed: int
    ensemble: EnsembleMethod
    head: HeadSummary
    splits: tuple[SplitResult, ...]
    finetune: FinetuneSummary
    train: TrainSummary
    stream: StreamSummary
    seconds: Seconds
    settings: Mapping[str, object]
    command: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    search: SearchSummary | None = None
    plan: PlanCheck | None = None


def metrics_json(report: RunReport) -> dict[str, Any]:
    """The content of `metrics.json`. Other programs read it: keys may be added, never renamed."""
    train = report.train
    return {
        "task": report.task.name,
        "backbone": report.backbone,
        "seed": report.seed,
        "ensemble": report.ensemble,
        "head": asdict(report.head),
        "splits": splits_json(report.splits),
        "finetune": asdict(report.finetune),
        "train": {
            "examples": train.examples,
            "tokens": train.tokens,
            "epochs": len(train.history),
            "loss": [record.loss for record in train.history],
            "planned_epochs": train.planned_epochs,
            "best_epoch": train.best_epoch,
            "chosen_by": train.chosen_by,
            "validation": [
                {
                    "epoch": record.epoch,
                    "loss": record.validation_loss,
                    "head": {name: dict(scores) for name, scores in record.scores.items()},
                }
                for record in train.history
            ],
        },
        "stream": asdict(report.stream),
        "seconds": asdict(report.seconds),
        "versions": dict(report.versions),
        "notes": list(report.notes),
        **({"search": asdict(report.search)} if report.search else {}),
        **({"plan": asdict(report.plan)} if report.plan else {}),
    }


def splits_json(splits: Iterable[SplitResult]) -> dict[str, Any]:
    """Scores of the three on each split, as in `metrics.json`."""
    return {
        split.name: {
            "examples": split.examples,
            "bert": dict(split.bert),
            "head": dict(split.head),
            "ensemble": dict(split.ensemble),
        }
        for split in splits
    }


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees the old file or the whole new one.

    Raises:
        ValueError: If a number is not finite; JSON has no word for it.
        TypeError: If something is not JSON, a NumPy number for example.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path` and rename: a reader sees the old file or the whole new one.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or else a machine that stops may keep the name alone
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong while `path` is written into an error for people.

    Raises:
        OutputError: Says what happened and that nothing written earlier was touched.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise OutputError(
            f"{path} cannot be written: {cause}. What was written before is whole. Make room or "
            f"give another output_dir; with resume=true the same command then goes on from the "
            f"last finished epoch."
        ) from error


def write_predictions(
    path: Path,
    *,
    task: Task,
    split: Split,
    bert: np.ndarray,
    head: np.ndarray,
    ensemble: np.ndarray,
    tokens: np.ndarray,
    labelled: bool = True,
) -> None:
    """Write `predictions_<split>.jsonl`, one line an example, in the order of the split.

    A line holds `index`, `texts` by column, how many `tokens` they are, `gold` where there are
    labels, and for each of `bert`, `head` and `ensemble` the `prediction`: a label's name with its
    `confidence`, or for regression the score alone.

    Args:
        path: File to write.
        task: The task that the split belongs to.
        split: The texts and gold labels.
        bert: Scores of BERT's own classifier, `[B, C]` or `[B]`.
        head: Scores of the head.
        ensemble: Scores of their ensemble.
        tokens: Tokens of each example, int [B].
        labelled: Whether the split's labels are real ones.

    Raises:
        ValueError: If there are not as many scores as examples.
    """
    sources = {
        "bert": _verdicts(bert, task),
        "head": _verdicts(head, task),
        "ensemble": _verdicts(ensemble, task),
    }
    lines = []
    for index, (texts, label, length, *verdicts) in enumerate(
        zip(split.texts, split.labels.tolist(), tokens.tolist(), *sources.values(), strict=True)
    ):
        row = {
            "index": index,
            "texts": dict(zip(task.text_columns, texts, strict=True)),
            "tokens": length,
            **({"gold": _label_value(label, task)} if labelled else {}),
            **dict(zip(sources, verdicts, strict=True)),
        }
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def _verdicts(scores: np.ndarray, task: Task) -> list[dict[str, object]]:
    """Prediction and confidence of each example, as they are written."""
    predictions = [_label_value(value, task) for value in predicted(scores, task.kind).tolist()]
    if task.kind == "regression":
        return [{"prediction": prediction} for prediction in predictions]
    confidences = confidence(scores).round(6).tolist()
    return [
        {"prediction": prediction, "confidence": certainty}
        for prediction, certainty in zip(predictions, confidences, strict=True)
    ]


def _label_value(label: float, task: Task) -> str | float:
    # Six digits: a float32 gold score of 3.8 then reads 3.8, not 3.799999952316284.
    return round(label, 6) if task.kind == "regression" else task.label_names[int(label)]
