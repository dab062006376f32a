"""What a peer tells of itself, in one line on its standard output."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertvision_stream.training.records import EpochRecord, Scores

_MARK = "OUTCOME "

T = TypeVar("T")


@dataclass(frozen=True)
class PeerOutcome:
    """A head trained by one peer.

    Attributes:
        training_began: Unix time at which the first epoch began. Whatever else there is to do came
            before: the start of Python, rows and tokens, Ray and its actors, a dump.
        dump_seconds: Of writing hidden states before the first epoch.
        epoch_seconds: Of each epoch, evaluation included.
        losses: Training loss of each epoch.
        scores: Validation scores of each epoch by metric, on the first validation split.
        bytes_written: Hidden states on disk.
    """

    training_began: float
    dump_seconds: float
    epoch_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[Scores, ...]
    bytes_written: int

    def work_seconds(self, epochs: int) -> float:
        """The dump and the first `epochs` epochs. The start of Python and of Ray is no work.

        Raises:
            ValueError: So many did not run.
        """
        if epochs > len(self.epoch_seconds):
            raise ValueError(f"{epochs} epochs of {len(self.epoch_seconds)} that ran")
        return self.dump_seconds + sum(self.epoch_seconds[:epochs])

    def ended(self, epochs: int) -> float:
        """Unix time at which the last of the first `epochs` epochs ended."""
        return self.training_began + self.work_seconds(epochs) - self.dump_seconds


@dataclass(frozen=True)
class Curve:
    """What a model scored on validation rows, time after time.

    Attributes:
        steps: What had been done by each point, for people.
        times: Unix time of each point.
        scores: `evaluate.main_score` at each point.
    """

    steps: tuple[str, ...]
    times: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class TrialsOutcome:
    """Many heads, one for each sample of a search.

    Attributes:
        seconds: From the connected cluster on, until the last has ended.
        cpu_seconds_before: What all processes together had taken when the cluster was connected.
        tokens_extracted: Tokens of the blocks that were made, all trials together.
        best_score: The highest score that a trial ended with.
    """

    seconds: float
    cpu_seconds_before: float
    tokens_extracted: int
    best_score: float


def tell(outcome: Any) -> None:
    """Print an outcome, for `read_outcome`."""
    print(_MARK + json.dumps(asdict(outcome)), flush=True)


def read_outcome(kind: type[T], text: str) -> T:
    """From all that a peer has printed.

    Raises:
        ValueError: It printed no outcome, or several.
    """
    lines = [line for line in text.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} outcomes in what it printed:\n{text[-2000:]}")
    fields = json.loads(lines[0].removeprefix(_MARK))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def scores_of(history: Sequence[EpochRecord]) -> tuple[Scores, ...]:
    """Scores of each epoch on the first validation split."""
    return tuple(dict(next(iter(record.scores.values()))) for record in history)


class Stopwatch:
    """Times a peer: its dump, and each epoch."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: list[float] = []
        self._training_began = self._dump_seconds = 0.0

    def training_begins(self, *, after_dump: bool = False) -> None:
        """What went before is no epoch, but perhaps a dump."""
        self._training_began = time.time()
        self.lap()
        before = self._laps.pop()
        self._dump_seconds = before if after_dump else 0.0

    def lap(self) -> None:
        now = time.perf_counter()
        self._laps.append(now - self._last)
        self._last = now

    def outcome(self, history: Sequence[EpochRecord], bytes_written: int) -> PeerOutcome:
        return PeerOutcome(
            training_began=self._training_began,
            dump_seconds=self._dump_seconds,
            epoch_seconds=tuple(self._laps),
            losses=tuple(record.loss for record in history),
            scores=scores_of(history),
            bytes_written=bytes_written,
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
