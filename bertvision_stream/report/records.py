"""What a run found out, as records, and as the `metrics.json` that other programs read.

`text.py` and `html.py` render the same records for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bertvision_stream.report.tables import PREDICTORS
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import EnsembleMethod
from bertvision_stream.training.records import EpochRecord, Scores

if TYPE_CHECKING:
    from bertvision_stream.data.splits import Split
    from bertvision_stream.data.tokens import TokenStore
    from bertvision_stream.training.objectives.base import Objective, PredictorScores


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The metrics of the three predictors on one split.

    Attributes:
        name: The name of the split.
        examples: The number of its rows.
        bert: The metrics of BERT's own classifier.
        head: The metrics of the head.
        ensemble: The metrics of both together.
    """

    name: str
    examples: int
    bert: Scores
    head: Scores
    ensemble: Scores

    @classmethod
    def of(
        cls, split: Split, scores: PredictorScores, objective: Objective, store: TokenStore
    ) -> SplitResult:
        """All metrics of the predictions on a split.

        Args:
            split: The rows.
            scores: The scores of the three predictors.
            objective: The objective of the task, which computes the metrics.
            store: The tokens and labels of the split.
        """
        metrics = {key: objective.all_metrics(s, store) for key, s in scores.by_name().items()}
        return cls(name=split.name, examples=len(split), **metrics)

    def by_predictor(self) -> dict[str, Scores]:
        """The metrics by the keys of `PREDICTORS`."""
        return {key: getattr(self, key) for key in PREDICTORS}


@dataclass(frozen=True, kw_only=True)
class HeadSummary:
    """The head that was trained, and the size of the backbone below it.

    Attributes:
        kind: The value of `head.kind`.
        parameters: The number of the head's parameters.
        backbone_parameters: The number of the backbone's parameters.
        layers: The numbers of the layers that the head reads, ascending; 0 is the embeddings.
        mix_weights: The softmax weight of each of these layers in the head's scalar mix; empty for
            a head without one.
        mix_gamma: The scale of the mix; None for a head without one.
        adapter_shares: The share of each of these layers in the norm of the adapters' output on
            validation tokens; empty for a head without adapters.
        adapter_rows: The number of validation rows (of SQuAD, windows) whose tokens these are.
    """

    kind: str
    parameters: int
    backbone_parameters: int
    layers: tuple[int, ...]
    mix_weights: tuple[float, ...] = ()
    mix_gamma: float | None = None
    adapter_shares: tuple[float, ...] = ()
    adapter_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class FinetuneSummary:
    """The partial fine-tuning of the backbone.

    Attributes:
        epochs: The number of epochs; 0 leaves the backbone as it is.
        parameters: The number of parameters that were trained.
        reused: Whether the result was found again: it is an earlier run's, or that of a trial of
            the search that came first.
    """

    epochs: float
    parameters: int
    reused: bool


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How the head was trained.

    Attributes:
        examples: The number of training examples in an epoch.
        tokens: The number of their tokens.
        history: One record for each epoch that ran, in order.
        start: The record of the head before its first step, where that was a candidate.
        planned_epochs: The value of `train.epochs`; fewer ran where training stopped early.
        best_epoch: The epoch (from 1) whose head is reported and saved; 0 where it is `start`.
        chosen_by: The rule that chose it, as it reads after "chosen by", for example "lowest
            validation loss".
    """

    examples: int
    tokens: int
    history: tuple[EpochRecord, ...]
    planned_epochs: int
    best_epoch: int
    chosen_by: str
    start: EpochRecord | None = None

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The records of all states that were evaluated, `start` included."""
        return self.history if self.start is None else (self.start, *self.history)


@dataclass(frozen=True, kw_only=True)
class StreamSummary:
    """What the feature stream did, training and validation together; keys as in `metrics.json`.

    Attributes:
        blocks: The number of distinct blocks.
        blocks_extracted: The number of blocks made by a forward pass, repetitions included.
        blocks_from_cache: The number of blocks delivered without a forward pass.
        tokens_extracted: The number of tokens in the blocks that were extracted.
        extractors_lost: The number of extractors that died and were replaced.
        bytes_per_epoch: The bytes of hidden states that one epoch delivers.
        budget_bytes: The limit of the bytes of hidden states that may exist at once.
        peak_bytes: The most bytes that did exist at once.
        cache_bytes: The bytes that the cache held at the end.
        spilled_bytes: The bytes that Ray's object store spilled to disk. It is to be 0.
        fallback_bytes: The bytes that Ray's object store put into files mapped into memory. It is
            to be 0 as well.
        store_file: The file on disk in which Ray keeps its object store; empty where memory holds
            it, as it should.
        dump_bytes_avoided: The bytes that BERTVision's layout would have written to disk: every
            example padded to `max_length` tokens, the layers that heads read, 4 bytes a number.
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
    store_file: str
    dump_bytes_avoided: int
    extractors_lost: int = 0


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """The search before the training; keys as in `metrics.json`.

    Attributes:
        target: What was searched for: `head` or `backbone`.
        trials: The number of trials.
        lost: The number of trials that diverged or failed.
        best_trial: The number of the best trial, counted from 1.
        best_score: The best trial's score, on the rows that the search took.
        best_config: The best trial's values by dotted key.
        max_concurrent: The most trials that ran at once.
        seconds: The wall time of the search.
        epochs: The number of epochs that the stream ran for all trials together.
        examples: The number of training examples that the search took.
        tokens_extracted: The number of tokens of the blocks that the stream made for all trials
            together.
        blocks_extracted: The number of blocks that the stream made.
        blocks_from_cache: The number of blocks that it delivered without making them again.
        extractors_lost: The number of its extractors that died and were replaced.
        deaths: The trainers and streams that died and were started again, one sentence each.
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
    extractors_lost: int = 0
    deaths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall times in seconds.

    Attributes:
        total: The whole run.
        finetune: The fine-tuning of the backbone; 0 where its result was found again.
        stream: All epochs of the stream, with the training of the heads.
        stages: Everything that the run did, in order, by what it was.
    """

    total: float
    finetune: float
    stream: float
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that a finished run says about itself.

    Attributes:
        task: What was learned.
        backbone: The name of the backbone, as the user gave it.
        seed: The seed of the run.
        ensemble: How the scores of BERT and head are combined.
        head: The head.
        splits: The metrics on each validation split.
        finetune: The fine-tuning of the backbone.
        train: The training of the head.
        stream: The feature stream.
        seconds: The time that the run took.
        settings: The resolved settings by dotted key.
        command: The command line that does the run again.
        versions: The versions of Python and of packages by name.
        notes: Sentences for the user: what was held out, what was picked automatically.
        search: The search that came first; None for a run without one.
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


def metrics_json(report: RunReport) -> dict[str, Any]:
    """The content of `metrics.json`. Other programs read it: keys may be added, never renamed."""
    train = report.train
    return {
        "task": report.task.name,
        "backbone": report.backbone,
        "seed": report.seed,
        "ensemble": report.ensemble,
        **f1_json(report.task),
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
            "validation": [_validation_json(record) for record in train.history],
            **({"start": _validation_json(train.start)} if train.start else {}),
        },
        "stream": asdict(report.stream),
        "seconds": asdict(report.seconds),
        "versions": dict(report.versions),
        "notes": list(report.notes),
        **({"search": asdict(report.search)} if report.search else {}),
    }


def death_notes(extractors_lost: int, deaths: Iterable[str]) -> list[str]:
    """Sentences for people about the actors of streams that died and were replaced.

    Args:
        extractors_lost: The number of extractors.
        deaths: A sentence for each of the others.
    """
    notes = [f"{death}; it was started again" for death in deaths]
    if extractors_lost:
        one = extractors_lost == 1
        died = "1 extractor died and was" if one else f"{extractors_lost} extractors died and were"
        notes.insert(0, f"{died} replaced; the blocks that they worked on were made again")
    return notes


def _validation_json(record: EpochRecord) -> dict[str, Any]:
    """What an epoch is worth on validation rows, as in `metrics.json`."""
    scores = {name: dict(scores) for name, scores in record.scores.items()}
    return {"epoch": record.epoch, "loss": record.validation_loss, "head": scores}


def f1_json(task: Task) -> dict[str, str]:
    """The class that F1 is of, where a task has such a metric."""
    return {} if task.f1_class is None else {"f1_class": task.f1_class}


def splits_json(splits: Iterable[SplitResult]) -> dict[str, Any]:
    """The metrics of the three predictors on each split, as in `metrics.json`."""
    return {
        split.name: {"examples": split.examples}
        | {key: dict(scores) for key, scores in split.by_predictor().items()}
        for split in splits
    }
