"""One answer an example: a class, or a number."""

from pathlib import Path

import numpy as np
import torch

from bertvision_stream.data import Split, TokenStore
from bertvision_stream.evaluate import (
    EnsembleMethod,
    compute_metrics,
    ensemble,
    scores_from_logits,
)
from bertvision_stream.losses import example_loss
from bertvision_stream.objectives.base import Contestants, Objective
from bertvision_stream.results import write_predictions


class ExampleObjective(Objective):
    """Classification by cross-entropy, regression by squared error."""

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        return example_loss(logits, labels)

    def initial_bias(self, train_labels: np.ndarray) -> float | None:
        """A regression starts at the mean label."""
        return float(train_labels.mean()) if self.task.kind == "regression" else None

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

    def write_predictions(
        self,
        folder: Path,
        split: Split,
        store: TokenStore,
        contestants: Contestants,
        *,
        labelled: bool = True,
    ) -> None:
        path = folder / f"predictions_{split.name}.jsonl"
        write_predictions(
            path,
            task=self.task,
            split=split,
            bert=contestants.bert,
            head=contestants.head,
            ensemble=contestants.ensemble,
            tokens=store.lengths,
            labelled=labelled,
        )
