"""What a peer tells of itself, in one line on its standard output."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bertvision_stream.results import EpochRecord

_MARK = "OUTCOME "


@dataclass(frozen=True)
class PeerOutcome:
    """One run of a peer.

    Attributes:
        training_began: Unix time from which training steps came as fast as hidden states did.
        dump_seconds: Of writing hidden states before the first epoch.
        epoch_seconds: Of each epoch, evaluation included.
        losses: Training loss of each epoch.
        scores: Validation scores of the last epoch by metric, on the first validation split.
        bytes_written: Hidden states on disk.
    """

    training_began: float
    dump_seconds: float
    epoch_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    scores: dict[str, float]
    bytes_written: int

    def print(self) -> None:
        print(_MARK + json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, text: str) -> "PeerOutcome":
        """From all that a peer has printed.

        Raises:
            ValueError: It printed no outcome.
        """
        lines = [line for line in text.splitlines() if line.startswith(_MARK)]
        if len(lines) != 1:
            raise ValueError(f"{len(lines)} outcomes in what it printed:\n{text[-2000:]}")
        fields = json.loads(lines[0].removeprefix(_MARK))
        fields["epoch_seconds"] = tuple(fields["epoch_seconds"])
        fields["losses"] = tuple(fields["losses"])
        return cls(**fields)


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
            scores=dict(next(iter(history[-1].scores.values()))),
            bytes_written=bytes_written,
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
