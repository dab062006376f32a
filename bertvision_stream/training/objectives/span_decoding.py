"""From logits of tokens to the best spans of every question, over all of its windows.

As the field does it: a span's score is its start logit plus its end logit, a question's null score
the lowest over its windows of `[CLS]`'s two, and what separates the two, `null_odds`, says how much
speaks against an answer. All spans count, not only those among the best starts and ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertvision_stream.data.windows import SpanLayout
from bertvision_stream.training.metrics import EnsembleMethod

MAX_ANSWER_TOKENS = 30
NUM_BEST = 20
"""The number of spans of a question that share the probability, as transformers' `n_best_size`."""

_TOKENS_AT_A_TIME = 2**16  # bounds the memory of all spans that are compared at once


@dataclass(frozen=True)
class BestSpans:
    """The K best spans of each of Q questions, the best first.

    Attributes:
        scores: The scores of the spans, float64 [Q, K]; -inf where a question has fewer.
        tokens: The first and the last token of each span, counted over the whole split, int64
            [Q, K, 2].
        null_scores: The score of giving no answer, float64 [Q].
    """

    scores: np.ndarray
    tokens: np.ndarray
    null_scores: np.ndarray

    @property
    def null_odds(self) -> np.ndarray:
        """Null score less the best span's, float64 [Q]; very high where there is no span."""
        best_Q = self.scores[:, 0]
        no_span = np.finfo(np.float32).max  # JSON has no infinity
        return np.where(np.isfinite(best_Q), self.null_scores - best_Q, no_span)

    def confidences(self, threshold: float) -> np.ndarray:
        """Probability of what is predicted, among the K best spans and no answer: float64 [Q]."""
        all_scores = np.column_stack([self.null_scores - threshold, self.scores])
        shares = np.exp(all_scores - all_scores.max(axis=1, keepdims=True))
        return shares.max(axis=1) / shares.sum(axis=1)


def best_spans(
    scores_T2: np.ndarray, offsets: np.ndarray, layout: SpanLayout, *, num_best: int = 1
) -> BestSpans:
    """The best spans of every question.

    A span lies in the context's part of one window and has at most `MAX_ANSWER_TOKENS` tokens. Of
    equally good ones the first is taken.

    Args:
        scores_T2: Start and end scores of all tokens of a split, logits or log-probabilities.
        offsets: int64 [W + 1], windows in the tokens.
        layout: The questions, windows and contexts of the split.
        num_best: K, the number of spans of each question.
    """
    scores_T2 = np.asarray(scores_T2, dtype=np.float64)
    null_W = scores_T2[offsets[:-1] + layout.nulls].sum(axis=1)
    null_Q = np.minimum.reduceat(null_W, layout.question_offsets[:-1])
    context_ends_W = offsets[:-1] + layout.context[:, 1]
    position_T = np.arange(len(scores_T2))
    # Tokens from each one to the end of its window's context; 0 outside of it.
    room_T = np.repeat(context_ends_W, np.diff(offsets)) - position_T
    context_starts_T = np.repeat(offsets[:-1] + layout.context[:, 0], np.diff(offsets))
    room_T = np.where(position_T >= context_starts_T, np.maximum(room_T, 0), 0)

    question_starts = offsets[layout.question_offsets]
    scores, tokens = [], []
    first = 0
    while first < layout.num_questions:
        limit = question_starts[first] + _TOKENS_AT_A_TIME
        last = max(first + 1, int(np.searchsorted(question_starts, limit, side="right")) - 1)
        start, end = question_starts[first], question_starts[last]
        found = _best_of(
            scores_T2[start:end],
            room_T[start:end],
            question_starts[first : last + 1] - start,
            num_best,
        )
        scores.append(found[0])
        tokens.append(found[1] + start)
        first = last
    return BestSpans(np.concatenate(scores), np.concatenate(tokens), null_Q)


def _best_of(
    scores_T2: np.ndarray, room_T: np.ndarray, question_offsets: np.ndarray, num_best: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [Q, K] and tokens [Q, K, 2] of some questions."""
    num_tokens = len(scores_T2)
    span_TM = np.full((num_tokens, MAX_ANSWER_TOKENS), -np.inf)
    for more in range(min(MAX_ANSWER_TOKENS, num_tokens)):
        begins = num_tokens - more
        score = scores_T2[:begins, 0] + scores_T2[more:, 1]
        span_TM[:begins, more] = np.where(room_T[:begins] > more, score, -np.inf)
    best_T = span_TM.max(axis=1)
    question_T = np.repeat(np.arange(len(question_offsets) - 1), np.diff(question_offsets))
    scores, tokens = [], []
    for _ in range(num_best):
        best_Q = np.maximum.reduceat(best_T, question_offsets[:-1])
        hits = np.flatnonzero(best_T == best_Q[question_T])
        start_Q = hits[np.unique(question_T[hits], return_index=True)[1]]
        more_Q = span_TM[start_Q].argmax(axis=1)
        scores.append(best_Q)
        tokens.append(np.stack([start_Q, start_Q + more_Q], axis=1))
        span_TM[start_Q, more_Q] = -np.inf  # the next best comes next
        best_T[start_Q] = span_TM[start_Q].max(axis=1)
    return np.stack(scores, axis=1), np.stack(tokens, axis=1)


def span_texts(tokens_Q2: np.ndarray, layout: SpanLayout) -> list[str]:
    """The context's characters from each question's first token to its last."""
    starts_Q = layout.char_spans[tokens_Q2[:, 0], 0].tolist()
    ends_Q = layout.char_spans[tokens_Q2[:, 1], 1].tolist()
    return [
        context[start:end]
        for context, start, end in zip(layout.contexts, starts_Q, ends_Q, strict=True)
    ]


def ensemble_spans(
    bert_T2: np.ndarray, head_T2: np.ndarray, method: EnsembleMethod, offsets: np.ndarray
) -> np.ndarray:
    """Combine two models' softmax probabilities over each window, of start and of end.

    Args:
        bert_T2: Logits.
        head_T2: Logits.
        method: `mean`, or BERTVision's element-wise `max`, divided by its sum.
        offsets: int64 [W + 1], windows in the tokens.

    Returns:
        Log-probabilities, float64 [T, 2]: what is hardly possible stays comparable.
    """
    bert, head = (log_softmax(logits_T2, offsets) for logits_T2 in (bert_T2, head_T2))
    if method == "mean":
        return np.logaddexp(bert, head) - np.log(2)
    return log_softmax(np.maximum(bert, head), offsets)


def log_softmax(logits_T2: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Logs of the softmax over the tokens of each window: float64 [T, 2]."""
    logits_T2 = np.asarray(logits_T2, dtype=np.float64)
    starts, lengths = offsets[:-1], np.diff(offsets)
    highest_W2 = np.maximum.reduceat(logits_T2, starts, axis=0)
    shifted_T2 = logits_T2 - np.repeat(highest_W2, lengths, axis=0)
    sums_W2 = np.add.reduceat(np.exp(shifted_T2), starts, axis=0)
    return shifted_T2 - np.repeat(np.log(sums_W2), lengths, axis=0)
