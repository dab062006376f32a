"""The rules of English that the demo task tests.

They are those of BLiMP (Warstadt et al. 2020, arXiv:1912.00582). No rule can be solved by counting
words, for one of two reasons. Either the two clauses of a pair hold the same words in another
order, or they differ in one word that the same rule elsewhere makes the right one: `himself` is
wrong after "the queen" as often as `herself` is wrong after "the king".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tools.demo_rows import agreement, structure
from tools.demo_rows.grammar import MinimalPair, Sampler


class Phenomenon(NamedTuple):
    """One rule of English, and its share of the pairs relative to the others."""

    rule: Callable[[Sampler], MinimalPair]
    weight: int

    @property
    def name(self) -> str:
        return self.rule.__name__


# The weights set how hard the task is. Fine-tuned for one epoch on 4,000 sentences, a 6-layer BERT
# learns most of the heavy rules and nothing of the light ones; with equal weights it learns none.
PHENOMENA = (
    Phenomenon(agreement.auxiliary_form, weight=10),
    Phenomenon(agreement.pronoun_case, weight=6),
    Phenomenon(agreement.quantifier, weight=7),
    Phenomenon(structure.coordination, weight=9),
    Phenomenon(structure.negative_polarity, weight=8),
    Phenomenon(structure.word_order, weight=7),
    Phenomenon(agreement.subject_verb_agreement, weight=1),
    Phenomenon(agreement.attractor_agreement, weight=1),
    Phenomenon(agreement.determiner_noun_agreement, weight=1),
    Phenomenon(agreement.reflexive_agreement, weight=1),
    Phenomenon(agreement.relative_pronoun, weight=1),
    Phenomenon(agreement.tense, weight=1),
    Phenomenon(structure.dative, weight=1),
    Phenomenon(structure.filler_gap, weight=1),
    Phenomenon(structure.transitivity, weight=1),
    Phenomenon(structure.verb_complement, weight=1),
)
