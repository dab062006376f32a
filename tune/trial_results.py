"""What a trial of a search reports to Ray Tune after each epoch, and which trial is the best."""

from __future__ import annotations

import math

from bertvision_stream.training.metrics import main_score
from bertvision_stream.training.records import EpochRecord

SCORE = "score"
"""The name of the result that trials are ranked by: Tune's `metric`, whatever the task."""

MODE = "max"
"""Tune's `mode`: of two scores the higher one is better."""

WORST_SCORE = -1.0
"""The lowest score of any task: accuracy and F1 start at 0, correlations at -1."""

FAILURE = "failure"
"""The name of the result that says why a trial diverged; its `score` is then nan."""

BEST_RULE = (
    "The best trial is, of those that neither diverged nor failed, the one with the highest score "
    "in its last report: the score of the weights it would leave, those of its last epoch or, with "
    "train.patience, of the epoch with the lowest validation loss."
)
"""The rule by which `tune.trials.best_trial` chooses, in one sentence for people.

It treats finished, running and stopped trials alike. Tune's own `get_best_result()` chooses the
same trial, unless a trial failed.
"""


def epoch_result(record: EpochRecord, *, kept: EpochRecord) -> dict[str, float]:
    """What a trial reports after an epoch.

    Args:
        record: The record of the epoch.
        kept: The record of the epoch whose weights the head would keep if it ended now: the same
            one or, with `train.patience`, the one with the lowest validation loss so far.

    Returns:
        `score`, the `main_score` of `kept`; and of `record` its `epoch` (counted from 1), `loss`,
        `validation_loss`, and `<split>_<metric>` for each metric of each validation split.
    """
    metrics = {
        f"{split}_{metric}": value
        for split, scores in record.scores.items()
        for metric, value in scores.items()
    }
    return {
        SCORE: main_score(kept.scores),
        "epoch": record.epoch,
        "loss": record.loss,
        "validation_loss": record.validation_loss,
        **metrics,
    }


def failure_result(failure: str) -> dict[str, float | str]:
    """What a trial reports when its head has diverged; it is the last report of the trial."""
    return {SCORE: math.nan, FAILURE: failure}
