"""The scorer against the official rules, said again here in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from squad_rules import official_score

from bertvision_stream.training.objectives.squad_scoring import ScoredSpans, exact_and_f1

PIECES = [
    *["the", "The", "a", "an", "rollo", "Rollo's", "norman", "Normandy", "1,066", "(in)", "co-op"],
    *["café", "ÜBER", "日本", "—", "“quoted”", "$5", "an.", "  ", "\u00a0", "\t", "...", "theatre"],
]
NUM_PREDICTIONS = 800


class Case:
    """Random questions: predictions, gold answers, odds with many ties."""

    def __init__(self, seed: int, count: int = NUM_PREDICTIONS):
        rng = np.random.default_rng(seed)

        def text() -> str:
            return " ".join(rng.choice(PIECES, size=rng.integers(1, 8)).tolist())

        self.golds: list[list[str]] = []
        self.texts: list[str] = []
        for _ in range(count):
            golds = [text() for _ in range(rng.integers(0, 4))] if rng.random() < 0.6 else []
            near = golds and rng.random() < 0.5
            self.golds.append(golds)
            self.texts.append(str(rng.choice(golds)) if near else text())
        self.odds = rng.integers(-20, 20, count) / 4
        self.has_answer = np.array([bool(golds) for golds in self.golds])

    def scored(self) -> ScoredSpans:
        return ScoredSpans.of(self.texts, self.golds, self.odds, self.has_answer)

    def official(self, threshold: float) -> dict[str, float]:
        """Means over all questions and over both kinds, at a threshold."""
        scores = []
        for text, golds, odds in zip(self.texts, self.golds, self.odds, strict=True):
            scores.append(official_score("" if odds > threshold else text, golds))
        result = {}
        for suffix, wanted in (("", None), ("_answerable", True), ("_unanswerable", False)):
            chosen = [
                score
                for score, golds in zip(scores, self.golds, strict=True)
                if wanted is None or bool(golds) == wanted
            ]
            if chosen:
                result[f"exact{suffix}"] = sum(exact for exact, _ in chosen) / len(chosen)
                result[f"f1{suffix}"] = math.fsum(f1 for _, f1 in chosen) / len(chosen)
        return result


def test_hundreds_of_random_predictions_are_scored_as_officially():
    case = Case(0)
    pairs = list(zip(case.texts, case.golds, strict=True))
    expected = [official_score(text, golds) for text, golds in pairs]
    assert len({round(f1, 3) for _, f1 in expected}) > 8, "there is something to tell apart"
    for (text, golds), (exact, f1) in zip(pairs, expected, strict=True):
        assert exact_and_f1(text, golds) == (exact, pytest.approx(f1)), (text, golds)


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("The Normans", ["normans!"], 1, 1),
        ("a theatre", ["theatre"], 1, 1),
        ("co-op", ["coop"], 1, 1),
        ("Rollo the duke", ["duke Rollo"], 0, 1),
        ("Rollo Rollo", ["Rollo"], 0, 2 / 3),
        ("Rollo", ["Harold", "Rollo of Normandy"], 0, 0.5),
        ("", [], 1, 1),
        ("the", [], 1, 1),  # without its articles nothing is left of it
        ("Rollo", [], 0, 0),
        ("", ["Rollo"], 0, 0),
        ("", ["the"], 1, 1),  # a gold answer of which nothing is left counts as none
        ("Rollo", ["the", "Rollo"], 1, 1),
    ],
)
def test_the_rules_by_example(prediction: str, golds: list[str], exact: float, f1: float):
    assert exact_and_f1(prediction, golds) == (exact, pytest.approx(f1))
    assert official_score(prediction, golds) == (exact, pytest.approx(f1))


@pytest.mark.parametrize("seed", range(5))
def test_means_at_any_threshold_are_the_official_ones(seed: int):
    case = Case(seed)
    scored = case.scored()
    for threshold in (-100, -1.25, 0.0, 0.1, 3, 100):
        found = scored.metrics(threshold)
        assert found == {k: pytest.approx(v) for k, v in case.official(threshold).items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_no_other_threshold_has_a_higher_f1(seed: int, count: int):
    case = Case(seed, count)
    best = case.official(case.scored().best_threshold())["f1"]
    others = [-1e6, *case.odds, *(case.odds - 0.1), 1e6]
    assert best == pytest.approx(max(case.official(other)["f1"] for other in others))


def test_of_equally_good_thresholds_the_lowest():
    scored = ScoredSpans.of(
        ["rollo", "rollo", "won"], [["rollo"], [], []], np.array([-1.0, 2, 3]), np.eye(3)[0] > 0
    )
    assert scored.best_threshold() == -1.0


def test_where_every_answer_is_wrong_the_best_threshold_answers_nothing():
    nothing = np.zeros(2, dtype=bool)
    scored = ScoredSpans.of(["rollo", "won"], [[], []], np.array([-5.0, -4.0]), nothing)
    assert scored.best_threshold() < -5
    assert scored.metrics(scored.best_threshold()) == {
        "exact": 1,
        "exact_unanswerable": 1,
        "f1": 1,
        "f1_unanswerable": 1,
    }
    assert scored.metrics(0)["exact"] == 0
