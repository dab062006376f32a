"""What is recorded of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Scores = Mapping[str, float]
"""The value of each metric by its name, as `metrics.compute_metrics` returns it."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of the head: mean losses, and its scores on each split (`scores[split][metric]`).

    Attributes:
        epoch: Counted from 1; 0 for the head before its first step.
        loss: The mean training loss over the epoch's examples; nan before the first step.
        validation_loss: The mean loss over the examples of all validation splits.
        scores: The metrics of the head after the epoch, by split.
    """

    epoch: int
    loss: float
    validation_loss: float
    scores: Mapping[str, Scores]
