"""What `mode=study` finds out: scores by amount of data, of fine-tuning, and by seed; no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertvision_stream.data import TaskData
from bertvision_stream.evaluate import main_score
from bertvision_stream.spread import Spread

BERT, HEAD, HEAD_ON_ALL = "BERT", "head", "head on BERT of all rows"
"""The predictors that are compared, each at every fraction:

BERT fine-tuned on the rows; the head on them, on the hidden states of that BERT; the head on them,
on the hidden states of the BERT that was fine-tuned on the largest fraction.
"""

Cell = tuple[float, float]
"""Epochs of fine-tuning and fraction of the training rows."""


@dataclass(frozen=True)
class Point:
    """One predictor, trained and evaluated once.

    Attributes:
        predictor: `BERT`, `HEAD` or `HEAD_ON_ALL`.
        finetune_epochs: Of the BERT that it is, or reads.
        fraction: Of the training examples that it learned from.
        seed: Drew the examples, and seeded fine-tuning and head.
        examples: How many they are.
        scores: Metrics by validation split; empty where it failed.
        failure: Why it has none, or empty.
    """

    predictor: str
    finetune_epochs: float
    fraction: float
    seed: int
    examples: int
    scores: Mapping[str, Mapping[str, float]]
    failure: str = ""


@dataclass(frozen=True)
class StreamUse:
    """One stream: the hidden states of one BERT, and how many heads learned from them.

    Attributes:
        finetune_epochs: Of the BERT.
        fraction: Of the training examples, for the BERT and in the stream.
        seed: Of all.
        heads: How many learned from it.
        tokens_extracted: Tokens of all blocks made.
        blocks_extracted: Blocks made.
        blocks_from_cache: Blocks delivered without making them.
        finetune_seconds: Wall time of the fine-tuning; 0 where it was found again.
        stream_seconds: Wall time of the epochs.
    """

    finetune_epochs: float
    fraction: float
    seed: int
    heads: int
    tokens_extracted: int
    blocks_extracted: int
    blocks_from_cache: int
    finetune_seconds: float
    stream_seconds: float


@dataclass
class Study:
    """A study, finished or on its way.

    Attributes:
        task: Its name.
        backbone: As it was named.
        head: `head.kind`.
        rows: A hash of the rows, for one that is gone on with.
        points: All that was measured.
        streams: All that was streamed.
    """

    task: str
    backbone: str
    head: str
    rows: str
    points: list[Point] = field(default_factory=list)
    streams: list[StreamUse] = field(default_factory=list)

    @property
    def fractions(self) -> list[float]:
        """All fractions, ascending."""
        return sorted({point.fraction for point in self.points})

    @property
    def finetune_epochs(self) -> list[float]:
        """All amounts of fine-tuning, ascending."""
        return sorted({point.finetune_epochs for point in self.points})

    @property
    def seeds(self) -> list[int]:
        """All seeds, in the order in which they ran."""
        return list(dict.fromkeys(point.seed for point in self.points))

    def has(self, finetune_epochs: float, fraction: float, seed: int) -> bool:
        """Whether the stream of a backbone has been used up."""
        key = (finetune_epochs, fraction, seed)
        return key in {(s.finetune_epochs, s.fraction, s.seed) for s in self.streams}

    def scores(self, predictor: str) -> dict[Cell, list[float]]:
        """GLUE's mean of metrics and splits, for each seed that did not fail.

        With the largest fraction, and without fine-tuning, both heads are the same one.
        """
        largest = max(self.fractions, default=1.0)
        found: dict[Cell, list[float]] = {}
        for point in self.points:
            same = point.fraction == largest or point.finetune_epochs == 0
            also = predictor == HEAD_ON_ALL and point.predictor == HEAD and same
            if (point.predictor == predictor or also) and point.scores:
                cell = (point.finetune_epochs, point.fraction)
                found.setdefault(cell, []).append(main_score(point.scores))
        return found

    def spreads(self, predictor: str) -> dict[Cell, Spread]:
        """Mean and standard deviation of `scores`."""
        return {cell: Spread.of(scores) for cell, scores in self.scores(predictor).items()}

    def examples(self, fraction: float) -> int:
        """Training examples of a fraction."""
        return next(point.examples for point in self.points if point.fraction == fraction)

    @property
    def failures(self) -> list[str]:
        """One line for each point without scores."""
        return [
            f"{p.predictor}, {p.fraction:g} of the rows, {p.finetune_epochs:g} epochs of "
            f"fine-tuning, seed {p.seed}: {p.failure}"
            for p in self.points
            if p.failure
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of `study.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Study:
        """What `to_json` made."""
        points = [Point(**point) for point in content["points"]]
        streams = [StreamUse(**stream) for stream in content["streams"]]
        named = {name: content[name] for name in ("task", "backbone", "head", "rows")}
        return cls(**named, points=points, streams=streams)


def read_study(path: Path) -> Study | None:
    """A study that was interrupted; None where none was begun."""
    if not path.is_file():
        return None
    return Study.from_json(json.loads(path.read_text(encoding="utf-8")))


def rows_fingerprint(data: TaskData) -> str:
    """A hash of all texts and labels."""
    digest = hashlib.sha256(repr(data.task).encode())
    for split in (data.train, *data.validation):
        for texts in split.texts:
            digest.update(repr(texts).encode())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]
