"""What a run found out, as records, and the files for other programs.

`metrics.json` and `predictions_<split>.jsonl` are made here; `report.py` renders the same records
for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.plan_check import PlanCheck
from bertvision_stream.training.metrics import EnsembleMethod
from bertvision_stream.training.records import EpochRecord, Scores

if TYPE_CHECKING:
    pass


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
