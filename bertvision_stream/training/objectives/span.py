"""The first and the last token of an answer, in windows of long contexts: SQuAD."""

import numpy as np
import torch

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.data.windows import SpanLayout, WindowStore
from bertvision_stream.stream.corpus import packed_positions
from bertvision_stream.training.losses import Reduction, span_loss
from bertvision_stream.training.metrics import EnsembleMethod, require_finite
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.training.objectives.span_decoding import (
    best_spans,
    ensemble_spans,
    span_texts,
)
from bertvision_stream.training.objectives.squad_scoring import ScoredSpans

THRESHOLD = 0.0
"""No answer is predicted where it scores higher than every span."""


class SpanObjective(Objective):
    """Start and end logits of every token.

    Scores of one model are its logits, those of an ensemble log-probabilities.
    """

    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        lengths_B: torch.Tensor,
        reduction: Reduction = "mean",
    ) -> torch.Tensor:
        return span_loss(logits, labels, lengths_B, reduction)

    def num_rows(self, store: TokenStore) -> int:
        return store.num_tokens

    def rows(self, store: TokenStore, example_ids: np.ndarray) -> np.ndarray:
        return packed_positions(store.offsets[example_ids], store.lengths[example_ids])

    def scores(self, logits: np.ndarray) -> np.ndarray:
        require_finite(logits, "logits", of="tokens")
        return np.asarray(logits, dtype=np.float64)

    def ensemble(
        self, bert: np.ndarray, head: np.ndarray, method: EnsembleMethod, store: TokenStore
    ) -> np.ndarray:
        return ensemble_spans(bert, head, method, store.offsets)

    def metrics(self, scores: np.ndarray, store: TokenStore) -> dict[str, float]:
        means = score_spans(scores, store).metrics(THRESHOLD)
        return {name: means[name] for name in self.task.metrics}

    def all_metrics(self, scores: np.ndarray, store: TokenStore) -> dict[str, float]:
        """Metrics of all questions, `<metric>_answerable` and `<metric>_unanswerable`.

        At threshold 0; then, as `<metric>_tuned`, at the one that has the highest F1 on these very
        questions, which is called `threshold_tuned`; and `<metric>_always`, where an answer is
        given to every question.
        """
        scored = score_spans(scores, store)
        tuned = scored.best_threshold()
        metrics = scored.metrics(THRESHOLD)
        for suffix, threshold in (("tuned", tuned), ("always", np.inf)):
            at_it = scored.metrics(threshold).items()
            metrics |= {f"{name}_{suffix}": value for name, value in at_it}
        return metrics | {"threshold_tuned": tuned}


def layout_of(store: TokenStore) -> SpanLayout:
    """What is needed to evaluate a validation split."""
    assert isinstance(store, WindowStore)
    assert store.layout is not None
    return store.layout


def score_spans(scores: np.ndarray, store: TokenStore) -> ScoredSpans:
    """What one model's answers to the questions of a split are worth, for any threshold."""
    layout = layout_of(store)
    spans = best_spans(scores, store.offsets, layout)
    texts = span_texts(spans.tokens[:, 0], layout)
    return ScoredSpans.of(texts, layout.golds, spans.null_odds, layout.has_answer)
