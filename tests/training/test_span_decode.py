"""The best spans and the ensembles against loops over all pairs of tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from span_rows import generated_rows, row, split_of, wordpiece

from bertvision_stream.data.windows import SpanLayout, WindowStore, tokenize_windows
from bertvision_stream.training.objectives import span_decoding as decode
from bertvision_stream.training.objectives.span_decoding import (
    MAX_ANSWER_TOKENS,
    best_spans,
    ensemble_spans,
    log_softmax,
    span_texts,
)

ROWS = [
    *generated_rows(12, seed=1),
    row("long", "who won?", "in france rollo won the battle " * 25, "rollo"),
    row("nothing to read", "who?", "\x07", starts=()),
    row("one word", "who?", "rollo", "rollo"),
    *generated_rows(5, seed=2, prefix="r"),
]


@pytest.fixture(scope="module")
def store() -> WindowStore:
    return tokenize_windows(split_of(ROWS), wordpiece(), max_length=64, stride=21, keep_layout=True)


@pytest.fixture(scope="module")
def layout(store: WindowStore) -> SpanLayout:
    assert store.layout is not None
    return store.layout


def random_scores(store: WindowStore, seed: int, ties: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(store.num_tokens, 2)) * 3
    return (np.round(scores) if ties else scores).astype(np.float32)


def all_spans(
    scores: np.ndarray, store: WindowStore, layout: SpanLayout, q: int
) -> list[tuple[float, int, int]]:
    """Every allowed span of a question, the best first and of equal ones the first."""
    spans = []
    for w in range(layout.question_offsets[q], layout.question_offsets[q + 1]):
        begin, end = (store.offsets[w] + layout.context[w]).tolist()
        for first in range(begin, end):
            for last in range(first, min(end, first + 30)):
                score = float(scores[first, 0]) + float(scores[last, 1])
                spans.append((-score, first, last))
    return [(-score, first, last) for score, first, last in sorted(spans)]


@pytest.mark.parametrize("at_a_time", [1, 300, 2**16])
@pytest.mark.parametrize("ties", [False, True])
def test_the_best_spans_are_those_of_all_pairs(store, layout, monkeypatch, at_a_time, ties):
    monkeypatch.setattr(decode, "_TOKENS_AT_A_TIME", at_a_time)
    scores = random_scores(store, 3, ties)
    found = best_spans(scores, store.offsets, layout, num_best=20)
    assert found.scores.shape == (len(ROWS), 20)
    for q in range(len(ROWS)):
        spans = all_spans(scores, store, layout, q)[:20]
        assert found.scores[q, : len(spans)].tolist() == [score for score, _, _ in spans]
        assert np.isneginf(found.scores[q, len(spans) :]).all()
        if not ties:
            assert found.tokens[q, : len(spans)].tolist() == [[a, b] for _, a, b in spans]
        elif spans:
            assert found.tokens[q, 0].tolist() == list(spans[0][1:])
        nulls = [
            float(scores[store.offsets[w] + layout.nulls[w]].astype(float).sum())
            for w in range(layout.question_offsets[q], layout.question_offsets[q + 1])
        ]
        assert found.null_scores[q] == min(nulls)
        if spans:
            assert found.null_odds[q] == min(nulls) - spans[0][0]


def test_the_best_alone_is_the_first_of_the_best(store, layout):
    scores = random_scores(store, 4)
    many = best_spans(scores, store.offsets, layout, num_best=5)
    one = best_spans(scores, store.offsets, layout)
    np.testing.assert_array_equal(one.scores[:, 0], many.scores[:, 0])
    np.testing.assert_array_equal(one.tokens[:, 0], many.tokens[:, 0])
    np.testing.assert_array_equal(one.null_odds, many.null_odds)


def test_no_answer_is_longer_than_allowed(store, layout):
    """Scores that ask for a whole window."""
    scores = np.zeros((store.num_tokens, 2))
    for w in range(store.num_examples):
        first, last = store.offsets[w] + layout.context[w] - [0, 1]
        if last > first:
            scores[first, 0] = scores[last, 1] = 100
    tokens = best_spans(scores, store.offsets, layout).tokens[:, 0]
    assert (tokens[:, 1] - tokens[:, 0] < MAX_ANSWER_TOKENS).all()


def test_a_context_without_tokens_has_no_answer(store, layout):
    q = layout.ids.index("nothing to read")
    found = best_spans(random_scores(store, 5), store.offsets, layout, num_best=3)
    assert np.isneginf(found.scores[q]).all()
    assert 1e30 < found.null_odds[q] < math.inf
    assert span_texts(found.tokens[:, 0], layout)[q] == ""
    assert found.confidences(0.0)[q] == 1


def test_texts_are_the_contexts_characters():
    rows = [row("a", "who?", "Der  Große—Café 日本", "Café")]
    store = tokenize_windows(
        split_of(rows), wordpiece(), max_length=64, stride=21, keep_layout=True
    )
    assert store.layout is not None
    begin, end = store.layout.context[0]
    whole = np.array([[begin, end - 1]])
    assert span_texts(whole, store.layout) == ["Der  Große—Café 日本"]
    assert span_texts(store.labels[:1], store.layout) == ["Café"]


def test_confidence_is_the_share_among_the_best_and_no_answer(store, layout):
    found = best_spans(random_scores(store, 6), store.offsets, layout, num_best=4)
    for q, confidence in enumerate(found.confidences(0.0)):
        weights = [math.exp(s) for s in (found.null_scores[q], *found.scores[q])]
        predicted = weights[0] if found.null_odds[q] > 0 else weights[1]
        assert confidence == pytest.approx(predicted / sum(weights))


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return weights / weights.sum(axis=0)


@pytest.mark.parametrize("method", ["mean", "max"])
def test_the_ensemble_is_of_the_probabilities_in_each_window(store, method):
    bert, head = random_scores(store, 7), random_scores(store, 8)
    found = ensemble_spans(bert, head, method, store.offsets)
    for w in range(store.num_examples):
        window = slice(store.offsets[w], store.offsets[w + 1])
        both = np.stack([probabilities(bert[window]), probabilities(head[window])])
        combined = both.mean(axis=0) if method == "mean" else both.max(axis=0)
        expected = combined / combined.sum(axis=0)
        np.testing.assert_allclose(np.exp(found[window]), expected, rtol=1e-12)


def test_the_ensemble_of_a_model_with_itself_has_its_best_spans(store, layout):
    """Within a window: windows of one question differ in what all their probabilities add up to."""
    scores = random_scores(store, 9)
    alone = best_spans(log_softmax(scores, store.offsets), store.offsets, layout)
    for method in ("mean", "max"):
        both = ensemble_spans(scores, scores, method, store.offsets)
        together = best_spans(both, store.offsets, layout)
        np.testing.assert_allclose(together.null_odds, alone.null_odds, rtol=1e-9)
        np.testing.assert_array_equal(together.tokens, alone.tokens)


def test_logits_far_apart_stay_comparable(store):
    logits = random_scores(store, 10) * 1e4
    logs = log_softmax(logits, store.offsets)
    assert np.isfinite(logs).all()
    assert np.isfinite(ensemble_spans(logits, -logits, "max", store.offsets)).all()
