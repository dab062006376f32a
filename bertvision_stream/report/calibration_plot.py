"""The numbers of a calibration plot: how far a predictor's confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertvision_stream.training.metrics import confidence

NUM_BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Examples by the confidence of their prediction, in bins of equal width.

    Attributes:
        edges: The edges of the bins, float64 [K + 1], from chance (1 / C) to 1.
        counts: The number of examples in each bin, int64 [K].
        confidence: The mean confidence in each bin, float64 [K]; nan in an empty one.
        accuracy: The share of right predictions in each bin, float64 [K]; nan in an empty one.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_error(self) -> float:
        """The expected calibration error (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

        It is the mean over all examples of |accuracy - confidence| of their bins.
        """
        gaps = np.abs(self.accuracy - self.confidence)[self.counts > 0]
        return float(gaps @ self.counts[self.counts > 0] / self.counts.sum())


def reliability(scores_BC: np.ndarray, labels_B: np.ndarray) -> Reliability:
    """Compares the confidence and the accuracy of predictions.

    Args:
        scores_BC: Class probabilities, float64 [B, C]. The confidence of a prediction is its
            probability, the largest of C, which is never below 1 / C.
        labels_B: Gold class ids, int64 [B].
    """
    certain = confidence(scores_BC)
    right = scores_BC.argmax(axis=1) == labels_B
    edges = np.linspace(1 / scores_BC.shape[1], 1, NUM_BINS + 1)
    bins = np.clip(np.searchsorted(edges, certain, side="right") - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges,
            counts,
            np.bincount(bins, weights=certain, minlength=NUM_BINS) / counts,
            np.bincount(bins, weights=right, minlength=NUM_BINS) / counts,
        )
