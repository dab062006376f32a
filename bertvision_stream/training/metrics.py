"""From logits to scores, ensembles and GLUE's metrics.

*Scores* are what every function here works on, always float64: class probabilities `[B, C]` for
classification, one number an example `[B]` for regression. Nothing here sees a hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np

from bertvision_stream.settings.tasks import TaskKind
from bertvision_stream.utils.errors import BertvisionError

EnsembleMethod = Literal["mean", "max"]


def scores_from_logits(logits_BC: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Turn logits into scores.

    Args:
        logits_BC: Logits `[B, C]`, any float dtype; `C` is 1 for regression.
        kind: The kind of the task.

    Returns:
        float64: softmax probabilities `[B, C]`, or for regression the only column, `[B]`.

    Raises:
        ValueError: If the shape does not fit the kind.
        BertvisionError: If a logit is not finite.
    """
    logits_BC = np.asarray(logits_BC, dtype=np.float64)
    if logits_BC.ndim != 2 or (kind == "regression") != (logits_BC.shape[1] == 1):
        raise ValueError(
            f"logits of shape {logits_BC.shape} do not fit {kind}, which takes "
            + ("[examples, 1]" if kind == "regression" else "[examples, at least 2 classes]")
        )
    require_finite(logits_BC, "logits")
    if kind == "regression":
        return logits_BC[:, 0]
    # The largest logit becomes 0, so that exp() cannot overflow; the quotient is unchanged.
    exp_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    return exp_BC / exp_BC.sum(axis=1, keepdims=True)


def ensemble(
    bert: np.ndarray, head: np.ndarray, method: EnsembleMethod, kind: TaskKind
) -> np.ndarray:
    """Combine the scores of BERT's own classifier with the head's.

    `mean` averages; `max` is the BERTVision paper's element-wise maximum, which lets the more
    confident of the two decide. Maxima of probabilities are divided by their sum: the prediction
    stays, and the confidence falls where the two disagree, as it should. For regression `max` is
    the plain maximum: scores carry no confidence and the result leans upwards, so prefer `mean`.

    Args:
        bert: The scores of BERT, `[B, C]` or `[B]`.
        head: The scores of the head, of the same shape.
        method: `mean` or `max`.
        kind: The kind of the task.

    Returns:
        Scores of the same shape, float64.

    Raises:
        ValueError: If the shapes differ.
    """
    if bert.shape != head.shape:
        raise ValueError(f"BERT's scores {bert.shape} and the head's {head.shape} differ in shape")
    if method == "mean":
        return (bert + head) / 2
    highest = np.maximum(bert, head)
    return highest if kind == "regression" else highest / highest.sum(axis=1, keepdims=True)


def predicted(scores: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Class ids int64 `[B]` (the lowest on a tie), or for regression the scores themselves."""
    return scores if kind == "regression" else scores.argmax(axis=1)


def confidence(scores_BC: np.ndarray) -> np.ndarray:
    """Probability of the predicted class, float64 `[B]`. Regression has none."""
    return scores_BC.max(axis=1)


def main_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The one number that a task is ranked by, higher is better.

    As GLUE does: the mean of a task's metrics (mrpc's accuracy and F1), then of its validation
    splits (mnli's matched and mismatched).

    Args:
        scores: The value of each metric by split: `scores[split][metric]`.
    """
    means = [sum(split.values()) / len(split) for split in scores.values()]
    return sum(means) / len(means)


def compute_metrics(
    scores: np.ndarray, labels: np.ndarray, metrics: tuple[str, ...]
) -> dict[str, float]:
    """Score one split with GLUE's metrics.

    Where a metric is undefined it is 0.0, never nan, which JSON cannot hold: Matthews, Pearson and
    Spearman when predictions or labels are constant, F1 when nothing is or should be positive. Such
    predictions carry no information, and 0 is what that is worth on each of these scales.

    Args:
        scores: Scores `[B, C]` or `[B]` of one split (mnli's two are scored apart).
        labels: Gold class ids, or for regression numbers, `[B]`.
        metrics: Of `accuracy`, `f1` (of class 1; two classes), `matthews`, `pearson`, `spearman`.

    Returns:
        Each metric as a Python float, in the order asked for.

    Raises:
        ValueError: If shapes do not match, a class id is out of range or a metric is unknown or
            unfit for the scores.
        BertvisionError: If there is nothing to score, or a score or label is not finite.
    """
    if unknown := sorted(set(metrics) - set(_METRICS)):
        raise ValueError(f"unknown metrics {unknown}; there are {sorted(_METRICS)}")
    if labels.ndim != 1 or len(scores) != len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} do not match")
    if len(labels) == 0:
        raise BertvisionError("There are no examples to compute metrics on.")
    require_finite(scores, "scores")
    require_finite(labels, "labels")
    if scores.ndim == 2 and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise ValueError(
            f"class ids from {labels.min()} to {labels.max()} do not fit {scores.shape[1]} classes"
        )
    result = {}
    for name in metrics:
        scores_ndim, metric = _METRICS[name]
        if scores.ndim != scores_ndim:
            raise ValueError(f"{name} does not fit scores of shape {scores.shape}")
        predictions = scores.argmax(axis=1) if scores.ndim == 2 else scores
        result[name] = float(metric(predictions, labels))
    return result


def require_finite(values: np.ndarray, what: str, *, of: str = "examples") -> None:
    """Check numbers, a row for each of the examples or tokens of a split.

    Raises:
        BertvisionError: Some are not finite; says how many rows.
    """
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise BertvisionError(
            f"{bad.sum():,} of {len(values):,} {of} have {what} that are not finite "
            f"(the first is {of[:-1]} {bad.argmax()}): the model has diverged or was fed bad "
            f"numbers."
        )


# scikit-learn and scipy take about a second to import: only where a metric is computed.


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0)


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions, labels):
        return 0.0
    return matthews_corrcoef(labels, predictions)


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _constant(predictions, labels):
        return 0.0
    return pearsonr(predictions, labels).statistic


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _constant(predictions, labels):
        return 0.0
    return spearmanr(predictions, labels).statistic


def _constant(predictions: np.ndarray, labels: np.ndarray) -> bool:
    return bool(np.ptp(predictions) == 0 or np.ptp(labels) == 0)


# For each metric the number of dimensions of the scores that it takes, and its function.
_METRICS: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray], float]]] = {
    "accuracy": (2, _accuracy),
    "f1": (2, _f1),
    "matthews": (2, _matthews),
    "pearson": (1, _pearson),
    "spearman": (1, _spearman),
}


def import_metrics(names: Iterable[str]) -> None:
    """Have the libraries that metrics need imported now, and not while an epoch waits for it."""
    for name in names:
        if name in _METRICS:
            _METRICS[name][1](np.arange(2), np.arange(2))
