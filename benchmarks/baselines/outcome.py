"""What a baseline tells of itself on its standard output, and the process that it runs in."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.processes import Observed, observe
from bertvision_stream.training.records import EpochRecord, Scores

_MARK = "OUTCOME "

T = TypeVar("T")


@dataclass(frozen=True)
class HeadOutcome:
    """One trained head.

    Attributes:
        training_began: Unix time at which the first epoch began. All other work came before: the
            start of Python, rows and tokens, the start of Ray and of its actors, a dump.
        dump_seconds: Time of writing hidden states before the first epoch.
        epoch_seconds: Time of each epoch and its evaluation.
        losses: Training loss of each epoch.
        scores: Scores of each epoch by metric, on the first validation split.
        bytes_written: Bytes of the hidden states on disk.
    """

    training_began: float
    dump_seconds: float
    epoch_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[Scores, ...]
    bytes_written: int

    def work_seconds(self, epochs: int) -> float:
        """The time of the dump and of the first `epochs` epochs, without Python's and Ray's start.

        Raises:
            ValueError: Fewer epochs ran.
        """
        if epochs > len(self.epoch_seconds):
            raise ValueError(f"{epochs} epochs of {len(self.epoch_seconds)} that ran")
        return self.dump_seconds + sum(self.epoch_seconds[:epochs])

    def ended(self, epochs: int) -> float:
        """Unix time at which the last of the first `epochs` epochs ended."""
        return self.training_began + self.work_seconds(epochs) - self.dump_seconds


@dataclass(frozen=True)
class Curve:
    """The scores of a model on validation rows in the course of its training.

    Attributes:
        steps: What had been done by each point, for readers.
        times: Unix time of each point.
        scores: `main_score` at each point.
    """

    steps: tuple[str, ...]
    times: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class TrialsOutcome:
    """Many heads, one for each sample of a search.

    Attributes:
        seconds: Time from the connected cluster to the end of the last trial.
        cpu_seconds_before: CPU time of all processes until the cluster was connected.
        tokens_extracted: Tokens of the blocks that were made, of all trials together.
        best_score: The highest score that a trial ended with.
    """

    seconds: float
    cpu_seconds_before: float
    tokens_extracted: int
    best_score: float


def print_outcome(outcome: Any) -> None:
    """Print an outcome in one line, for `read_outcome`."""
    print(_MARK + json.dumps(asdict(outcome)), flush=True)


def read_outcome(kind: type[T], text: str) -> T:
    """Read the outcome in all that a baseline has printed.

    Raises:
        ValueError: The text holds no outcome, or several.
    """
    lines = [line for line in text.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} outcomes in what it printed:\n{text[-2000:]}")
    fields = json.loads(lines[0].removeprefix(_MARK))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def run_baseline(
    name: str,
    keys: Sequence[str],
    kind: type[T],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Observed, T]:
    """Run a baseline in a process of its own, to its end.

    Args:
        name: One of the names that `python -m benchmarks.baselines` knows.
        keys: `key=value` settings.
        kind: The class of its outcome.
        folder: Where it leaves and finds files. None gives it a temporary folder.
        environment: Variables that it is started with, beside our own.

    Raises:
        RuntimeError: The baseline failed.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as own:
            return run_baseline(name, keys, kind, folder=Path(own), environment=environment)
    options = ["--folder", str(folder), "--threads", str(os.cpu_count()), name, *keys]
    command = [sys.executable, "-m", "benchmarks.baselines", *options]
    observed = observe(command, environment or {})
    return observed, read_outcome(kind, observed.output)


def head_scores(history: Sequence[EpochRecord]) -> tuple[Scores, ...]:
    """The scores of each epoch on the first validation split."""
    return tuple(dict(next(iter(record.scores.values()))) for record in history)


class Stopwatch:
    """Times the dump and the epochs of a baseline."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._epoch_seconds: list[float] = []
        self._training_began = self._dump_seconds = 0.0

    def training_begins(self, *, after_dump: bool = False) -> None:
        """Call it before the first epoch; the time before counts only where it was a dump."""
        self._training_began = time.time()
        seconds = self._lap()
        self._dump_seconds = seconds if after_dump else 0.0

    def epoch_ends(self) -> None:
        """Call it after each epoch."""
        self._epoch_seconds.append(self._lap())

    def outcome(self, history: Sequence[EpochRecord], folder: Path) -> HeadOutcome:
        """What was timed, with the scores of the head and the bytes of the files in a folder."""
        return HeadOutcome(
            training_began=self._training_began,
            dump_seconds=self._dump_seconds,
            epoch_seconds=tuple(self._epoch_seconds),
            losses=tuple(record.loss for record in history),
            scores=head_scores(history),
            bytes_written=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        )

    def _lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last
