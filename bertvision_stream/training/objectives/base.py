"""What the kind of a task decides: the loss, where logits are kept, and what they are worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.losses import Reduction
from bertvision_stream.training.metrics import EnsembleMethod


@dataclass(frozen=True)
class PredictorScores:
    """Scores of the three predictors on one split, float64 [R, C] or [R] (see `Objective.scores`).

    Attributes:
        bert: The scores of BERT's own classifier.
        head: The scores of the head.
        ensemble: The scores of both together.
    """

    bert: np.ndarray
    head: np.ndarray
    ensemble: np.ndarray

    def by_name(self) -> dict[str, np.ndarray]:
        """The scores by the names of the fields."""
        return {"bert": self.bert, "head": self.head, "ensemble": self.ensemble}


class Objective(ABC):
    """How a task of one kind is learned and judged.

    Logits of a split are kept as R rows: one for each example or, of tasks with answers in spans,
    one for each token. *Scores* are what comes of them for metrics and ensembles.

    Args:
        task: What is learned.
    """

    def __init__(self, task: Task):
        self.task = task

    @abstractmethod
    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        lengths_B: torch.Tensor,
        reduction: Reduction = "mean",
    ) -> torch.Tensor:
        """The loss of B examples: their mean, or with `reduction="none"` that of each, [B].

        Args:
            logits: The logits of the examples, [B, C], or of all their tokens, packed, [T, C].
            labels: The labels, [B] or [B, 2].
            lengths_B: The number of tokens of each example, int64.
            reduction: `mean` or `none`.
        """

    def target_scale(self, train_labels: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the numbers that a regression learns; 0 and 1 else."""
        return 0.0, 1.0

    @abstractmethod
    def num_rows(self, store: TokenStore) -> int:
        """R, the number of rows of logits of a split."""

    @abstractmethod
    def rows(self, store: TokenStore, example_ids: np.ndarray) -> np.ndarray:
        """The rows in which the logits of examples are kept, int64, in the order of the logits."""

    def empty_logits(self, store: TokenStore) -> np.ndarray:
        """An array for the logits of a split, float32 [R, C], nan until they are there."""
        return np.full((self.num_rows(store), self.task.num_labels), np.nan, dtype=np.float32)

    @abstractmethod
    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Scores from the logits [R, C] of a split, float64.

        Raises:
            BertvisionError: A logit is not finite.
        """

    @abstractmethod
    def ensemble(
        self, bert: np.ndarray, head: np.ndarray, method: EnsembleMethod, store: TokenStore
    ) -> np.ndarray:
        """The scores of two models combined."""

    def predictor_scores(
        self,
        bert_logits: np.ndarray,
        head_logits: np.ndarray,
        method: EnsembleMethod,
        store: TokenStore,
    ) -> PredictorScores:
        """The scores of BERT, of the head and of their ensemble on one split.

        Args:
            bert_logits: The logits of BERT's own classifier, [R, C].
            head_logits: The logits of the head, [R, C].
            method: How the two are combined.
            store: The tokens of the split.

        Raises:
            BertvisionError: A logit is not finite.
        """
        bert, head = self.scores(bert_logits), self.scores(head_logits)
        return PredictorScores(bert, head, self.ensemble(bert, head, method, store))

    @abstractmethod
    def metrics(self, scores: np.ndarray, store: TokenStore) -> dict[str, float]:
        """The task's metrics on a split, in the order of `task.metrics`."""

    def all_metrics(self, scores: np.ndarray, store: TokenStore) -> dict[str, float]:
        """The task's metrics, then what else a report tells of a split."""
        return self.metrics(scores, store)

    def metrics_by_split(
        self, logits: Mapping[str, np.ndarray], stores: Mapping[str, TokenStore]
    ) -> dict[str, dict[str, float]]:
        """The task's metrics on each split that there are logits of."""
        return {
            split: self.metrics(self.scores(values), stores[split])
            for split, values in logits.items()
        }
