"""What is recorded of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Scores = Mapping[str, float]
"""Metric name -> value, as `evaluate.compute_metrics` returns it."""


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
