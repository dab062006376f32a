"""Draws words, and makes the phrases that the rules are made of."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tools.demo_rows import lexicon as lex

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

FREQUENCIES = ("often", "usually", "sometimes", "rarely")
# These fit every tense that `tensed` makes, but not the present perfect.
_TIMES = ("after lunch", "before dinner", "during the concert", "in the morning", "at noon")
_PLACES = ("in the garden", "in the kitchen", "at the station", "near the river", "on the train")
_OPENERS = (
    "according to the newspaper,",
    "as everybody knows,",
    "of course,",
    "to be honest,",
    "strangely enough,",
)
_REPORTS = ("says that", "thinks that", "believes that", "has heard that", "is sure that")


class MinimalPair(NamedTuple):
    """Two strings of words that differ in one rule; clauses until `as_sentences` finishes them."""

    good: str
    bad: str


@dataclass(frozen=True)
class Subject:
    """A noun phrase together with the number that its verb agrees with."""

    text: str
    plural: bool


class Sampler:
    """Draws words for one split, none twice in one sentence.

    Args:
        rng: The only source of randomness.
        use_held_out: Whether about half of the words come from the held-out parts of the pools.
    """

    def __init__(self, rng: random.Random, *, use_held_out: bool) -> None:
        self._rng = rng
        self._use_held_out = use_held_out
        self._drawn: set[Hashable] = set()

    def start_sentence(self) -> None:
        """Forgets which words the last sentence used."""
        self._drawn.clear()

    def draw(self, pool: lex.Pool[H]) -> H:
        held_out = self._use_held_out and self.chance(0.5)
        words = pool.held_out if held_out else pool.train
        word = self._rng.choice([word for word in words if word not in self._drawn] or words)
        self._drawn.add(word)
        return word

    def pick(self, *options: T) -> T:
        """Chooses among function words or rules, which are never held out."""
        return self._rng.choice(options)

    def shuffled(self, *options: T) -> list[T]:
        return self._rng.sample(options, len(options))

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability


def with_article(phrase: str) -> str:
    """Puts `a` or `an` before a phrase; the lexicon has no "hour" and no "university"."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def name(s: Sampler) -> str:
    return s.draw(s.pick(lex.FEMALE_NAMES, lex.MALE_NAMES))


def person_noun(s: Sampler, plural: bool) -> str:
    """A noun for people, sometimes with an adjective: `famous doctors`."""
    noun = s.draw(
        s.pick(lex.PEOPLE, lex.PEOPLE, lex.WOMEN, lex.MEN, lex.FEMALE_KIN, lex.MALE_KIN)
    ).form(plural)
    return f"{s.draw(lex.PERSON_ADJECTIVES)} {noun}" if s.chance(0.2) else noun


def the_person(s: Sampler, plural: bool = False) -> str:
    return f"the {person_noun(s, plural)}"


def anyone(s: Sampler) -> str:
    """One person or several, for places where no other word has to agree in number."""
    return name(s) if s.chance(0.4) else the_person(s, plural=s.chance(0.3))


def someone(s: Sampler) -> str:
    """One person."""
    return name(s) if s.chance(0.4) else the_person(s)


def subject(s: Sampler) -> Subject:
    """A subject whose verb agrees with the first noun, or is plural because of an `and`."""
    plural = s.chance(0.5)
    if plural and s.chance(0.25):
        return Subject(f"{name(s)} and {someone(s)}", plural)
    if not plural and s.chance(0.3):
        return Subject(name(s), plural)
    return Subject(the_person(s, plural), plural)


def thing_adjectives(s: Sampler) -> list[str]:
    """Up to two adjectives for things, in the order that English wants: `strange green`."""
    opinion = [s.draw(lex.THING_ADJECTIVES)] if s.chance(0.2) else []
    color = [s.draw(lex.COLORS)] if s.chance(0.1) else []
    return [*opinion, *color]


def thing(s: Sampler, pool: lex.Pool[lex.Noun]) -> str:
    """A complete noun phrase for a thing or several: `an ugly lamp`, `the lamps`."""
    plural = s.chance(0.35)
    phrase = " ".join([*thing_adjectives(s), s.draw(pool).form(plural)])
    if plural:
        # Not "some": it sounds wrong under the negations of other rules.
        return f"{s.pick('the', 'two', 'three')} {phrase}"
    return f"the {phrase}" if s.chance(0.5) else with_article(phrase)


def activity(s: Sampler) -> tuple[lex.Verb, str]:
    """A transitive verb and a fitting object: (`repair`, `an old boat`)."""
    domain = s.pick(*lex.DOMAINS)
    return s.draw(domain.verbs), thing(s, domain.things)


def tensed(s: Sampler, *verbs: lex.Verb, future: bool = True) -> list[str]:
    """Puts all verbs into the same tense, in forms that fit a subject of any number."""
    tense = s.pick("past", "past", "pluperfect", *(["future"] if future else []))
    if tense == "past":
        return [verb.past for verb in verbs]
    if tense == "future":
        return [f"will {verb.base}" for verb in verbs]
    return [f"had {verb.participle}" for verb in verbs]


def sometime(s: Sampler) -> str:
    """A time with a leading space, or nothing; it fits every activity."""
    return f" {s.pick(*_TIMES)}" if s.chance(0.4) else ""


def somewhere(s: Sampler) -> str:
    """A place or a time with a leading space."""
    return f" {s.pick(*_PLACES, *_TIMES)}"


def as_sentences(s: Sampler, clauses: MinimalPair) -> MinimalPair:
    """Makes sentences of two clauses: the same opening for both, a capital and a full stop."""
    if s.chance(0.06):
        opening = f"{someone(s)} {s.pick(*_REPORTS)} "
    elif s.chance(0.06):
        opening = f"{s.pick(*_OPENERS)} "
    else:
        opening = ""
    good, bad = (opening + clause for clause in clauses)
    return MinimalPair(f"{good[0].upper()}{good[1:]}.", f"{bad[0].upper()}{bad[1:]}.")
