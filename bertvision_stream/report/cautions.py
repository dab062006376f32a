"""What keeps the scores of a run from meaning what they seem to: sentences for its notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bertvision_stream.data.splits import Split
from bertvision_stream.report.records import SplitResult
from bertvision_stream.report.tables import PREDICTORS
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.records import EpochRecord

FEW_ROWS = 50
"""With fewer validation rows than this, one of them is worth more than two percent."""

_OTHER_SCALE = 1000  # how often one spread contains the other where a regression learned nothing
_RISING_EPOCHS = 2


def cautions_on_split(
    task: Task, split: Split, result: SplitResult, scores: PredictorScores
) -> Iterator[str]:
    """What to know about the scores on a split with labels.

    Args:
        task: What was learned.
        split: The rows; the labels of a regression are numbers [N].
        result: The metrics on them.
        scores: The scores of the predictors; those of a regression are numbers [N].
    """
    if task.kind == "regression":
        yield from _other_spread(task, split, result, scores)
    if 0 < result.examples < FEW_ROWS:
        yield (
            f"{split.name} has {result.examples} row{'s' * (result.examples > 1)}, and each is "
            f"{1 / result.examples:.0%} of a mean over them: such scores are uncertain, and small "
            f"differences between them mean nothing"
        )


def _other_spread(
    task: Task, split: Split, result: SplitResult, scores: PredictorScores
) -> Iterator[str]:
    """Warnings where predicted numbers are of another scale than the labels."""
    of_labels = float(np.ptp(split.labels)) if len(split) else 0.0
    if of_labels == 0:
        return
    found: dict[str, list[str]] = {}
    for name, values in scores.by_name().items():
        span = float(np.ptp(values))
        if span * _OTHER_SCALE <= of_labels:
            what = "are practically one number"
        elif span > of_labels * _OTHER_SCALE:
            what = "vary without regard to the labels"
        else:
            continue
        metrics = result.by_predictor()[name]
        listed = task.listed({metric: metrics[metric] for metric in task.metrics})
        ends = f"{np.min(values):.7g} to {np.max(values):.7g}"
        found.setdefault(what, []).append(f"{PREDICTORS[name]} {span:.4g} ({ends}; {listed})")
    for what, spans in found.items():
        yield (
            f"WARNING: predictions on {split.name} {what}. The labels span {of_labels:.4g}, and "
            f"those of {', '.join(spans)}: a correlation does not see this. Next to nothing was "
            f"learned; more rows, more epochs or another learning rate may help"
        )


def rising_loss(history: Sequence[EpochRecord], patience: int | None) -> str:
    """What to say where the head went on long after its best epoch; else empty.

    Args:
        history: The epochs that ran.
        patience: The value of `train.patience`; with one, the epoch with the lowest loss was kept.
    """
    if patience is not None or not history:
        return ""
    best, last = min(history, key=lambda record: record.validation_loss), history[-1]
    epochs = last.epoch - best.epoch
    if epochs < _RISING_EPOCHS or last.validation_loss <= best.validation_loss:
        return ""
    return (
        f"the validation loss was lowest in epoch {best.epoch} ({best.validation_loss:.4f}) and "
        f"has risen to {last.validation_loss:.4f} in the {epochs} epochs since: the head may be "
        f"overfitting. train.patience={_RISING_EPOCHS} stops such a run, and keeps the epoch with "
        f"the lowest loss; by default the last one is kept"
    )
