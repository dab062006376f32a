"""How soon a score is reached: all of BERT fine-tuned, or a little and then a streamed head."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from actors.finetune import WORKER_ENVIRONMENT
from benchmarks.baselines.outcome import Curve, run_baseline
from benchmarks.results import turns, with_spread

FULL, OURS = "finetuned", "finetuned-then-streamed"
NAMES = {FULL: "all of BERT fine-tuned", OURS: "BERT fine-tuned a little, then a streamed head"}
EPOCHS = {FULL: 3.0, OURS: 1.0}


@dataclass(frozen=True)
class Track:
    """The curve of one run, in seconds from its command on."""

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
        """Seconds until a point has at least that score; infinite if none has."""
        points = zip(self.seconds, self.scores, strict=True)
        return next((seconds for seconds, reached in points if reached >= score), math.inf)


def measure(repeats: int, *, keys: Sequence[str]) -> list[str]:
    """Run both in turns.

    Args:
        repeats: The number of turns.
        keys: `key=value` settings, without `finetune.epochs`.

    Returns:
        Lines of Markdown.
    """
    tracks: dict[str, list[Track]] = {FULL: [], OURS: []}
    for name in turns(repeats, tracks):
        # In a run of ours Ray Train gives its worker the same variables.
        environment = WORKER_ENVIRONMENT if name == FULL else {}
        options = [*keys, f"finetune.epochs={EPOCHS[name]}"]
        observed, curve = run_baseline(name, options, Curve, environment=environment)
        tracks[name].append(Track.of(curve, observed.began))
    return tables(tracks[FULL], tracks[OURS])


def tables(full: Sequence[Track], ours: Sequence[Track]) -> list[str]:
    """Both curves, and the first time at which each has certain scores.

    Args:
        full: The curves of full fine-tuning, one a turn.
        ours: The curves of a run of ours, one a turn; their first point is BERT's own score.
    """
    targets = {
        f"BERT's own, fine-tuned for {EPOCHS[OURS]:g} epoch": [own.scores[0] for own in ours],
        "the best that both reach": [min(a.best, b.best) for a, b in zip(full, ours, strict=True)],
        "the head's best": [max(own.scores[1:]) for own in ours],
    }
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
            f"| {what}, {statistics.median(scores):.4f} | {_first(full, scores)} "
            f"| {_first(ours, scores)} |"
            for what, scores in targets.items()
        ),
    ]


def _rows(name: str, tracks: Sequence[Track]) -> list[str]:
    """One row a point, with medians over the turns."""
    return [
        f"| {name} | {step} "
        f"| {statistics.median(track.seconds[point] for track in tracks):.1f} s "
        f"| {statistics.median(track.scores[point] for track in tracks):.4f} |"
        for point, step in enumerate(tracks[0].steps)
    ]


def _first(tracks: Sequence[Track], targets: Sequence[float]) -> str:
    """When a score is first reached; each turn has a target of its own."""
    seconds = [track.reaches(target) for track, target in zip(tracks, targets, strict=True)]
    missed = sum(map(math.isinf, seconds))
    if missed:
        return "never" if missed == len(seconds) else f"never in {missed} of {len(seconds)} turns"
    return with_spread(seconds, " s")
