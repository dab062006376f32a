"""How soon a score is reached: all of BERT fine-tuned, or a little and then a streamed head."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from actors.finetune import WORKER_ENVIRONMENT
from benchmarks.peers.launch import run_peer
from benchmarks.peers.outcome import Curve
from benchmarks.results import with_spread

FULL, OURS = "finetuned", "finetuned-then-streamed"
NAMES = {FULL: "all of BERT fine-tuned", OURS: "BERT fine-tuned a little, then a streamed head"}
EPOCHS = {FULL: 3.0, OURS: 1.0}


@dataclass(frozen=True)
class Track:
    """A curve of one run, in seconds from its command on."""

    steps: tuple[str, ...]
    seconds: tuple[float, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, curve: Curve, began: float) -> "Track":
        return cls(curve.steps, tuple(time - began for time in curve.times), curve.scores)

    @property
    def best(self) -> float:
        return max(self.scores)

    def reaches(self, score: float) -> float:
        """Seconds until a point has the score; infinite if none has."""
        points = zip(self.seconds, self.scores, strict=True)
        return next((seconds for seconds, reached in points if reached >= score), math.inf)


def measure(repeats: int, *, keys: Sequence[str]) -> list[str]:
    """Both in turns.

    Args:
        repeats: Turns.
        keys: Settings; `finetune.epochs` is not among them.

    Returns:
        Markdown.
    """
    tracks: dict[str, list[Track]] = {FULL: [], OURS: []}
    for turn in range(repeats):
        for name in tracks:
            # Of ours Ray Train gives its worker the same variables.
            environment = WORKER_ENVIRONMENT if name == FULL else {}
            options = [*keys, f"finetune.epochs={EPOCHS[name]}"]
            observed, curve = run_peer(name, options, Curve, environment=environment)
            track = Track.of(curve, observed.began)
            tracks[name].append(track)
            print(f"turn {turn + 1}, {name}: best {track.best:.4f}", flush=True)
    return tables(tracks[FULL], tracks[OURS])


def tables(full: Sequence[Track], ours: Sequence[Track]) -> list[str]:
    """Both curves, and the first time at which each has certain scores.

    Args:
        full: Full fine-tuning, one a turn.
        ours: A run of ours, one a turn; its first point is BERT's own score.
    """
    return [
        "Seconds from the command on, medians: Python, rows, for ours Ray, its workers and all "
        "evaluations; full fine-tuning is not charged with its own evaluations. The score is the "
        "one that a task is ranked by, the mean of its metrics. Learning rates go down to zero by "
        "the end of each fine-tuning, and of the head's training.",
        "",
        "| | after | time | score |",
        "|---|---|---:|---:|",
        *_rows(NAMES[FULL], full),
        *_rows(NAMES[OURS], ours),
        "",
        f"| score first reached after | {NAMES[FULL]} | {NAMES[OURS]} |",
        "|---|---:|---:|",
        *(
            f"| {what} | {_first(full, targets)} | {_first(ours, targets)} |"
            for what, targets in (
                (
                    f"BERT's own, fine-tuned for {EPOCHS[OURS]:g} epoch",
                    [own.scores[0] for own in ours],
                ),
                (
                    "the best that both reach",
                    [min(a.best, b.best) for a, b in zip(full, ours, strict=True)],
                ),
                ("the head's best", [max(own.scores[1:]) for own in ours]),
            )
            for what in [f"{what}, {statistics.median(targets):.4f}"]
        ),
    ]


def _rows(name: str, tracks: Sequence[Track]) -> list[str]:
    """One a point, medians over the turns."""
    return [
        f"| {name} | {step} "
        f"| {statistics.median(track.seconds[point] for track in tracks):.1f} s "
        f"| {statistics.median(track.scores[point] for track in tracks):.4f} |"
        for point, step in enumerate(tracks[0].steps)
    ]


def _first(tracks: Sequence[Track], targets: Sequence[float]) -> str:
    """When a score is there; in each turn it is that turn's."""
    seconds = [track.reaches(target) for track, target in zip(tracks, targets, strict=True)]
    missed = sum(map(math.isinf, seconds))
    if missed:
        return "never" if missed == len(seconds) else f"never in {missed} of {len(seconds)} turns"
    return with_spread(seconds, " s")
