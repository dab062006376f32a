"""SQuAD 2.0's official rules (evaluate-v2.0): exact match, F1, questions without an answer.

Texts are compared without case, punctuation, articles and surplus spaces, and with the gold answer
that they fit best. To predict no answer is to predict the empty text, which is right where there is
no gold answer and wrong where there is one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=2**17)  # epochs and heads predict the same texts again and again
def normalized_tokens(text: str) -> tuple[str, ...]:
    """The words of an answer that count."""
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_and_f1(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of a prediction, each with the gold answer that it fits best.

    Args:
        text: The prediction; empty for no answer.
        golds: Gold answers; none, or none with a word that counts, stands for no answer.
    """
    words = normalized_tokens(text)
    wanted = [tokens for gold in golds if (tokens := normalized_tokens(gold))] or [()]
    return float(words in wanted), max(_f1(words, tokens) for tokens in wanted)


def _f1(words: tuple[str, ...], gold: tuple[str, ...]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))


@dataclass(frozen=True)
class ScoredSpans:
    """What Q predictions are worth if they are made, and if no answer is given instead.

    Attributes:
        exact: The exact match of the best spans' texts, float64 [Q].
        f1: The F1 of the best spans' texts, float64 [Q].
        null: The exact match of the empty text, which is also its F1, float64 [Q].
        null_odds: What speaks against an answer, float64 [Q]; no answer is predicted where it is
            above the threshold.
        has_answer: Whether the question has an answer, bool [Q].
    """

    exact: np.ndarray
    f1: np.ndarray
    null: np.ndarray
    null_odds: np.ndarray
    has_answer: np.ndarray

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        golds: Sequence[Sequence[str]],
        null_odds: np.ndarray,
        has_answer: np.ndarray,
    ) -> ScoredSpans:
        pairs = [exact_and_f1(text, gold) for text, gold in zip(texts, golds, strict=True)]
        null = [exact_and_f1("", gold)[0] for gold in golds]
        exact, f1 = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return cls(exact, f1, np.array(null, dtype=np.float64), null_odds, has_answer)

    def at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Exact match and F1 of each question, float64 [Q], with no answer above `threshold`."""
        answered = self.null_odds <= threshold
        return np.where(answered, self.exact, self.null), np.where(answered, self.f1, self.null)

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds that differ in what is answered, ascending, with mean exact match and F1."""
        order = np.argsort(self.null_odds, kind="stable")
        odds = self.null_odds[order]
        ends = np.flatnonzero(np.append(odds[1:] > odds[:-1], True))  # equal odds go together
        exact, f1 = (
            (self.null.sum() + np.cumsum((values - self.null)[order])[ends]) / len(self.null)
            for values in (self.exact, self.f1)
        )
        return odds[ends], exact, f1

    def metrics(self, threshold: float) -> dict[str, float]:
        """The means `exact` and `f1`, and both `_answerable` and `_unanswerable` if there are any.

        Args:
            threshold: No answer is given where the odds against one are above it.
        """
        means = {}
        for name, values in zip(("exact", "f1"), self.at(threshold), strict=True):
            means[name] = float(values.mean())
            for kind, chosen in (
                ("answerable", self.has_answer),
                ("unanswerable", ~self.has_answer),
            ):
                if chosen.any():
                    means[f"{name}_{kind}"] = float(values[chosen].mean())
        return means

    def best_threshold(self) -> float:
        """The threshold with the highest F1 on these questions; of several the lowest."""
        odds, _, f1 = self.curve()
        best = f1.argmax()
        # With a loss for every threshold it is best to answer nothing.
        return float(odds[best] if f1[best] > self.null.mean() else odds[0] - 1)
