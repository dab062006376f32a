"""Rules on which words may stand together, and in what order.

Each function makes one minimal pair of clauses; `phenomena` lists them.
"""

from __future__ import annotations

from tools.demo_rows import lexicon as lex
from tools.demo_rows.grammar import (
    FREQUENCIES,
    MinimalPair,
    Sampler,
    activity,
    anyone,
    name,
    person_noun,
    someone,
    sometime,
    somewhere,
    tensed,
    the_person,
    thing,
)

_KNOWS = ("knows", "remembers", "has forgotten", "has found out", "will find out")


def transitivity(s: Sampler) -> MinimalPair:
    """Some verbs must have an object, some cannot."""
    who, where = anyone(s), somewhere(s)
    forms = tensed(s, s.draw(lex.TRANSITIVE), s.draw(lex.INTRANSITIVE))
    if s.chance(0.5):
        obj = the_person(s) if s.chance(0.4) else thing(s, lex.THEMES)
        return MinimalPair(*(f"{who} {form} {obj}{where}" for form in forms))
    return MinimalPair(*(f"{who} {form}{where}" for form in reversed(forms)))


def dative(s: Sampler) -> MinimalPair:
    """`explain the plan to Anna`, `lend Anna the map`, `avoid Anna`: not the one for the other."""
    who, whom, what = anyone(s), someone(s), thing(s, lex.THEMES)
    when = sometime(s)
    transitive, to_dative, double_object = tensed(
        s, s.draw(lex.TRANSITIVE), s.draw(lex.TO_DATIVE), s.draw(lex.DOUBLE_OBJECT)
    )
    forms, end = s.pick(
        ((to_dative, transitive), f"{what} to {whom}"),
        ((double_object, to_dative), f"{whom} {what}"),
        ((transitive, double_object), whom),
    )
    return MinimalPair(*(f"{who} {form} {end}{when}" for form in forms))


def verb_complement(s: Sampler) -> MinimalPair:
    """`hope to visit` and `enjoy visiting`."""
    who, (verb, obj) = anyone(s), activity(s)
    forms = tensed(s, s.draw(lex.TO_INFINITIVE), s.draw(lex.GERUND))
    if s.chance(0.5):
        return MinimalPair(*(f"{who} {form} to {verb.base} {obj}" for form in forms))
    return MinimalPair(*(f"{who} {form} {verb.ing} {obj}" for form in reversed(forms)))


def negative_polarity(s: Sampler) -> MinimalPair:
    """`ever` and `any` need a negation with them in its scope, not just one that comes before."""
    rule = s.pick(_npi_in_relative, _npi_in_complement, _npi_after_not, _npi_object)
    return rule(s)


def _npi_in_relative(s: Sampler) -> MinimalPair:
    plural, other_plural = s.chance(0.5), s.chance(0.5)
    person, other = person_noun(s, plural), person_noun(s, other_plural)
    verb, obj = activity(s)
    have, other_have = ("have" if number else "has" for number in (plural, other_plural))
    met = s.draw(lex.TRANSITIVE).participle
    if s.chance(0.5):
        end = f"{other_have} {met} {have} ever {verb.participle} {obj}"
        return MinimalPair(
            f"no {person} who the {other} {end}", f"the {person} who no {other} {end}"
        )
    start, end = f"the {person} who no {other} {other_have}", f"{verb.participle} {obj}"
    return MinimalPair(f"{start} ever {met} {have} {end}", f"{start} {met} {have} ever {end}")


def _npi_in_complement(s: Sampler) -> MinimalPair:
    who, (verb, obj) = someone(s), activity(s)
    said, end = s.pick("claimed that", "believed that", "said that"), f"{verb.participle} {obj}"
    if s.chance(0.5):
        return MinimalPair(
            f"nobody has ever {said} {who} had {end}", f"{who} has ever {said} nobody had {end}"
        )
    return MinimalPair(
        f"{who} had {said} nobody had ever {end}", f"{who} had ever {said} nobody had {end}"
    )


def _npi_after_not(s: Sampler) -> MinimalPair:
    who, met = the_person(s), f"{s.draw(lex.TRANSITIVE).participle} {anyone(s)}"
    domain = s.pick(*lex.DOMAINS)
    verb, things = s.draw(domain.verbs).participle, s.draw(domain.things).plural
    end = f"{verb} {s.pick('anything', f'any {things}')}{s.pick('', ' yet')}"
    return MinimalPair(f"{who} who has {met} has not {end}", f"{who} who has not {met} has {end}")


def _npi_object(s: Sampler) -> MinimalPair:
    noun, domain = person_noun(s, s.chance(0.5)), s.pick(*lex.DOMAINS)
    # Not the future: "any child will eat cakes" is good English.
    (form,) = tensed(s, s.draw(domain.verbs), future=False)
    things, end = s.draw(domain.things).plural, sometime(s)
    return MinimalPair(f"no {noun} {form} any {things}{end}", f"any {noun} {form} no {things}{end}")


def filler_gap(s: Sampler) -> MinimalPair:
    """`what` needs a gap, `that` allows none, and no gap may stand in a clause of time."""
    knows, who = f"{someone(s)} {s.pick(*_KNOWS)}", anyone(s)
    wh, obj = s.pick(("who", the_person(s)), ("what", thing(s, lex.THEMES)))
    verb, end = s.draw(lex.TRANSITIVE), s.pick("", somewhere(s))
    (form,) = tensed(s, verb)
    kind = s.pick("gap", "no gap", "island")
    if kind == "gap":
        return MinimalPair(*(f"{knows} {word} {who} {form}{end}" for word in (wh, "that")))
    if kind == "no gap":
        return MinimalPair(*(f"{knows} {word} {who} {form} {obj}{end}" for word in ("that", wh)))
    time = f"{s.pick('before', 'after')} {name(s)} {s.draw(lex.TRANSITIVE).past}"
    return MinimalPair(
        f"{knows} {wh} {who} {verb.past} {time} {obj}",
        f"{knows} {wh} {who} {verb.past} {obj} {time}",
    )


def coordination(s: Sampler) -> MinimalPair:
    """`both ... and`, `either ... or`, `neither ... nor`."""
    conjunctions = {"both": "and", "either": "or", "neither": "nor"}
    # The wrong partners; "neither ... or" is left out, because many speakers say it.
    wrong_conjunction = {"both": "or", "either": "nor", "neither": "and"}
    wrong_correlative = {"both": "neither", "either": "both", "neither": "either"}
    correlative = s.pick(*conjunctions)
    conjunction = conjunctions[correlative]
    if s.chance(0.5):
        good_bad = (correlative, conjunction), (correlative, wrong_conjunction[correlative])
    else:
        good_bad = (correlative, conjunction), (wrong_correlative[correlative], conjunction)
    if s.chance(0.5):
        (verb, obj), first, second = activity(s), anyone(s), anyone(s)
        start, end = "", f" {tensed(s, verb)[0]} {obj}"
    else:
        domain = s.pick(*lex.DOMAINS)
        first, second = thing(s, domain.things), thing(s, domain.things)
        start, end = f"{anyone(s)} {tensed(s, s.draw(domain.verbs))[0]} ", sometime(s)
    return MinimalPair(*(f"{start}{one} {first} {two} {second}{end}" for one, two in good_bad))


def word_order(s: Sampler) -> MinimalPair:
    """Two neighbors change places."""
    who = anyone(s)
    (verb, obj), end = activity(s), sometime(s)
    kind = s.pick("adverb", "particle", "preposition", "question", "enough")
    if kind == "adverb":
        adverb = s.pick(*FREQUENCIES)
        return MinimalPair(
            f"{who} {adverb} {verb.past} {obj}{end}", f"{who} {verb.past} {adverb} {obj}{end}"
        )
    it = s.pick("it", "them")
    if kind == "particle":
        phrasal, particle = s.draw(lex.PARTICLE_VERBS)
        return MinimalPair(
            f"{who} {phrasal} {it} {particle}{end}", f"{who} {phrasal} {particle} {it}{end}"
        )
    if kind == "preposition":
        phrasal, preposition = s.draw(lex.PREPOSITION_VERBS)
        return MinimalPair(
            f"{who} {phrasal} {preposition} {it}{end}", f"{who} {phrasal} {it} {preposition}{end}"
        )
    if kind == "question":
        start = f"{someone(s)} {s.pick(*_KNOWS)} {s.pick('what', 'why', 'when')}"
        aux, form = s.pick(("will", verb.base), ("had", verb.participle), ("could", verb.base))
        end = "" if start.endswith("what") else f" {obj}"
        return MinimalPair(f"{start} {who} {aux} {form}{end}", f"{start} {aux} {who} {form}{end}")
    degree = s.draw(lex.PERSON_ADJECTIVES)
    end = f"to {verb.base} {obj}"
    return MinimalPair(f"{who} seemed {degree} enough {end}", f"{who} seemed enough {degree} {end}")
