"""Metrics against hand-written formulae, and the ensembles' arithmetic."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from bertvision_stream.training.metrics import (
    compute_metrics,
    confidence,
    ensemble,
    main_score,
    predicted,
    scores_from_logits,
)
from bertvision_stream.utils.errors import BertvisionError


def one_hot(class_ids: np.ndarray, num_classes: int = 2) -> np.ndarray:
    """Scores that predict the given classes."""
    return np.eye(num_classes)[class_ids]


def counts(predictions: np.ndarray, labels: np.ndarray) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of class 1."""
    pairs = list(zip(predictions.tolist(), labels.tolist(), strict=True))
    return tuple(pairs.count(pair) for pair in [(1, 1), (1, 0), (0, 1), (0, 0)])


def pearson_by_hand(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    square_x = math.fsum((a - mean_x) ** 2 for a in x)
    square_y = math.fsum((b - mean_y) ** 2 for b in y)
    return covariance / math.sqrt(square_x * square_y)


def ranks_by_hand(x: list[float]) -> list[float]:
    """Rank of each value; equal values share the mean of their ranks."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_softmax_equals_its_formula(random):
    logits_BC = random.normal(size=(5, 3)).astype(np.float32)
    scores_BC = scores_from_logits(logits_BC, "classification")
    assert scores_BC.dtype == np.float64
    for row, logits in zip(scores_BC, logits_BC.tolist(), strict=True):
        total = sum(math.exp(logit) for logit in logits)
        assert row.tolist() == pytest.approx([math.exp(logit) / total for logit in logits])


def test_softmax_survives_huge_logits():
    logits_BC = np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32)
    assert scores_from_logits(logits_BC, "classification").tolist() == [[1, 0], [0.5, 0.5]]


def test_regression_scores_are_the_only_column():
    logits_BC = np.array([[1.5], [-2.0]], dtype=np.float32)
    assert scores_from_logits(logits_BC, "regression").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("kind", "shape"), [("regression", (4, 2)), ("classification", (4, 1)), ("regression", (4,))]
)
def test_logits_of_another_kind_are_refused(kind, shape):
    with pytest.raises(ValueError, match=f"do not fit {kind}"):
        scores_from_logits(np.zeros(shape), kind)


def test_ensemble_mean_and_max_of_probabilities():
    bert = np.array([[0.9, 0.1], [0.6, 0.4]])
    head = np.array([[0.2, 0.8], [0.7, 0.3]])
    mean = ensemble(bert, head, "mean", "classification")
    np.testing.assert_allclose(mean, [[0.55, 0.45], [0.65, 0.35]])
    # Maxima are (.9, .8) and (.7, .4): divided by their sums, the winner stays the same.
    highest = ensemble(bert, head, "max", "classification")
    np.testing.assert_allclose(highest, [[0.9 / 1.7, 0.8 / 1.7], [0.7 / 1.1, 0.4 / 1.1]])
    assert predicted(highest, "classification").tolist() == [0, 0]
    assert confidence(highest).tolist() == pytest.approx([0.9 / 1.7, 0.7 / 1.1])


def test_max_follows_the_more_confident_of_two_classifiers(random):
    bert, head = (scores_from_logits(random.normal(size=(200, 3)), "classification") for _ in "ab")
    bolder = np.where(confidence(bert) > confidence(head), bert.argmax(1), head.argmax(1))
    voted = predicted(ensemble(bert, head, "max", "classification"), "classification")
    assert (voted == bolder).all()


def test_ensemble_of_regression_scores():
    bert, head = np.array([1.0, 4.0]), np.array([2.0, 3.0])
    assert ensemble(bert, head, "mean", "regression").tolist() == [1.5, 3.5]
    assert ensemble(bert, head, "max", "regression").tolist() == [2.0, 4.0]


def test_ensemble_refuses_scores_of_different_examples():
    with pytest.raises(ValueError, match=r"\(1, 2\) and the head's \(3, 2\)"):
        ensemble(np.zeros((1, 2)), np.zeros((3, 2)), "mean", "classification")


def test_classification_metrics_equal_their_formulae(random):
    labels = random.integers(0, 2, 97)
    predictions = np.where(random.random(97) < 0.7, labels, 1 - labels)
    tp, fp, fn, tn = counts(predictions, labels)
    found = compute_metrics(one_hot(predictions), labels, ("matthews", "accuracy", "f1"))
    assert list(found) == ["matthews", "accuracy", "f1"]
    assert found["accuracy"] == pytest.approx((tp + tn) / 97)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / math.sqrt(product))
    assert all(type(value) is float for value in found.values())


def test_f1_is_that_of_class_1():
    labels, predictions = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
    f1 = compute_metrics(one_hot(predictions), labels, ("f1",))["f1"]
    assert f1 == pytest.approx(2 / 3)  # of class 0 it would be 4/5


def test_regression_metrics_equal_their_formulae_with_ties(random):
    labels = np.round(random.uniform(0, 5, 60) * 2).astype(np.float32) / 2
    scores = np.round(labels + random.normal(size=60), 1)
    x, y = scores.tolist(), labels.tolist()
    assert max(len(set(x)), len(set(y))) < 60, "there are ties in both"
    found = compute_metrics(scores, labels, ("pearson", "spearman"))
    assert found["pearson"] == pytest.approx(pearson_by_hand(x, y))
    assert found["spearman"] == pytest.approx(pearson_by_hand(ranks_by_hand(x), ranks_by_hand(y)))


@pytest.mark.filterwarnings("error")
def test_metrics_of_constant_predictions_are_zero_and_valid_json():
    ids, numbers = np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0])
    never = compute_metrics(one_hot(np.zeros(3, int)), ids, ("matthews", "f1", "accuracy"))
    flat = compute_metrics(np.full(3, 2.5), numbers, ("pearson", "spearman"))
    single = compute_metrics(np.array([2.5]), numbers[:1], ("pearson", "spearman"))
    one_class = compute_metrics(one_hot(np.zeros(3, int)), np.zeros(3, int), ("matthews", "f1"))
    assert never == {"matthews": 0, "f1": 0, "accuracy": pytest.approx(1 / 3)}
    assert flat == single == {"pearson": 0, "spearman": 0}
    assert one_class == {"matthews": 0, "f1": 0}
    json.dumps([never, flat, single, one_class], allow_nan=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_never_scored(bad):
    scores = np.array([1.0, 2.0, bad, bad])
    with pytest.raises(
        BertvisionError, match=r"2 of 4 examples have scores .* first is example 2\)"
    ):
        compute_metrics(scores, np.arange(4.0), ("pearson",))
    with pytest.raises(BertvisionError, match="2 of 4 examples have logits that are not finite"):
        scores_from_logits(scores[:, None], "regression")


def test_nothing_to_score_is_an_error():
    with pytest.raises(BertvisionError, match="no examples"):
        compute_metrics(np.zeros((0, 2)), np.zeros(0, int), ("accuracy",))


@pytest.mark.parametrize(
    ("scores", "labels", "metrics", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2, int), ("accuracy",), "do not match"),
        (np.zeros((2, 2)), np.array([0, 2]), ("accuracy",), "from 0 to 2 do not fit 2 classes"),
        (np.zeros((2, 2)), np.array([-1, 1]), ("accuracy",), "from -1 to 1 do not fit 2 classes"),
        (np.zeros(2), np.zeros(2), ("accuracy",), r"accuracy does not fit scores of shape \(2,\)"),
        (np.zeros(2), np.zeros(2), ("bleu",), r"unknown metrics \['bleu'\]"),
    ],
)
def test_what_cannot_be_scored_is_refused(scores, labels, metrics, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(scores, labels, metrics)


def test_the_main_score_is_glues_mean():
    assert main_score({"validation": {"matthews": 0.4}}) == 0.4
    assert main_score({"validation": {"accuracy": 0.5, "f1": 0.75}}) == 0.625
    mnli = {"validation_matched": {"accuracy": 0.5}, "validation_mismatched": {"accuracy": 1.0}}
    assert main_score(mnli) == 0.75
    uneven = {"a": {"accuracy": 1.0, "f1": 0.0}, "b": {"accuracy": 0.0}}
    assert main_score(uneven) == 0.25  # each split counts alike, whatever it has of metrics


def test_the_libraries_of_metrics_are_imported_when_asked_for_and_not_before() -> None:
    """In a process of its own, as here they are imported already."""
    script = """
import sys
from bertvision_stream.training.metrics import import_metrics

assert "sklearn" not in sys.modules
import_metrics(["accuracy", "exact"])
assert "sklearn" not in sys.modules
import_metrics(["accuracy", "matthews", "f1"])
assert "sklearn.metrics" in sys.modules
import_metrics(["pearson", "spearman"])
assert "scipy.stats" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
