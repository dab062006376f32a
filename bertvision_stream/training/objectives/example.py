"""One answer an example: a class, or a number."""

import numpy as np
import torch

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.training.losses import Reduction, example_loss
from bertvision_stream.training.metrics import (
    EnsembleMethod,
    compute_metrics,
    ensemble,
    scores_from_logits,
)
from bertvision_stream.training.objectives.base import Objective


class ExampleObjective(Objective):
    """Classification by cross-entropy, regression by squared error."""

    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        lengths_B: torch.Tensor,
        reduction: Reduction = "mean",
    ) -> torch.Tensor:
        return example_loss(logits, labels, reduction)

    def target_scale(self, train_labels: np.ndarray) -> tuple[float, float]:
        if self.task.kind != "regression":
            return 0.0, 1.0
        labels = train_labels.astype(np.float64)
        # Labels that are all the same have no spread to divide by; a mean is rounded.
        return float(labels.mean()), float(labels.std()) if np.ptp(labels) else 1.0

    def num_rows(self, store: TokenStore) -> int:
        return store.num_examples

    def rows(self, store: TokenStore, example_ids: np.ndarray) -> np.ndarray:
        return example_ids

    def scores(self, logits: np.ndarray) -> np.ndarray:
        return scores_from_logits(logits, self.task.kind)

    def ensemble(
        self, bert: np.ndarray, head: np.ndarray, method: EnsembleMethod, store: TokenStore
    ) -> np.ndarray:
        return ensemble(bert, head, method, self.task.kind)

    def metrics(self, scores: np.ndarray, store: TokenStore) -> dict[str, float]:
        return compute_metrics(scores, store.labels, self.task.metrics)
