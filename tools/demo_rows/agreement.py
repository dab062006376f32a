"""Rules on the form of a word: it must fit another word of the sentence.

Each function makes one minimal pair of clauses; `phenomena` lists them.
"""

from __future__ import annotations

from tools.demo_rows import lexicon as lex
from tools.demo_rows.grammar import (
    FREQUENCIES,
    MinimalPair,
    Sampler,
    Subject,
    activity,
    anyone,
    someone,
    sometime,
    somewhere,
    subject,
    tensed,
    the_person,
    thing_adjectives,
)

_BESIDE = ("near", "behind", "next to", "in front of")
_BE = (("is", "are"), ("was", "were"))
_HEDGES = ("probably", "certainly", "also", "surely")


def subject_verb_agreement(s: Sampler) -> MinimalPair:
    """`the boats are`, `Anna has`, with nothing between that could mislead."""
    return _with_predicate(s, subject(s))


def attractor_agreement(s: Sampler) -> MinimalPair:
    """Agreement across a noun, usually of the other number, that stands nearer to the verb."""
    plural = s.chance(0.5)
    other = plural if s.chance(0.25) else not plural
    kind = s.pick("thing", "place", "kin", "relative", "relative")
    if kind == "thing":
        things = s.pick(lex.TOOLS, lex.VEHICLES).things
        head, attractor = (s.draw(things).form(number) for number in (plural, other))
        rest = s.pick(s.draw(lex.THING_ADJECTIVES), f"{s.pick(*_BESIDE)} {anyone(s)}")
        text = f"the {head} {s.pick(*_BESIDE)} the {attractor}"
        return _number_pair(Subject(text, plural), s.pick(*_BE), rest)
    if kind == "place":
        text = f"{the_person(s, plural)} {s.pick(*_BESIDE)} {the_person(s, other)}"
    elif kind == "kin":
        relative = s.draw(s.pick(lex.FEMALE_KIN, lex.MALE_KIN)).form(plural)
        text = f"the {relative} of {the_person(s, other)}"
    else:
        head, attractor = the_person(s, plural), the_person(s, other)
        verb = s.draw(lex.TRANSITIVE)
        clause = s.pick(f"{attractor} {verb.present(other)}", f"{verb.present(plural)} {attractor}")
        text = f"{head} who {clause}"
    return _with_predicate(s, Subject(text, plural))


def _with_predicate(s: Sampler, sbj: Subject) -> MinimalPair:
    """Says something about people, once with the right form of the verb and once with the other."""
    verb, obj = activity(s)
    kind = s.pick("adjective", "progressive", "perfect", "present")
    if kind == "adjective":
        return _number_pair(sbj, s.pick(*_BE), s.draw(lex.PERSON_ADJECTIVES))
    if kind == "progressive":
        return _number_pair(sbj, s.pick(*_BE), f"{verb.ing} {obj}{sometime(s)}")
    if kind == "perfect":
        return _number_pair(sbj, ("has", "have"), f"{verb.participle} {obj}")
    adverb = f" {s.pick(*FREQUENCIES)}" if s.chance(0.4) else ""
    sbj = Subject(f"{sbj.text}{adverb}", sbj.plural)
    return _number_pair(sbj, (verb.third, verb.base), f"{obj}{sometime(s)}")


def _number_pair(sbj: Subject, forms: tuple[str, str], rest: str) -> MinimalPair:
    """Joins a subject, the singular or the plural of two verb forms, and the rest."""
    good, bad = forms[sbj.plural], forms[not sbj.plural]
    return MinimalPair(f"{sbj.text} {good} {rest}", f"{sbj.text} {bad} {rest}")


def reflexive_agreement(s: Sampler) -> MinimalPair:
    """A reflexive takes gender and number from the subject of its own clause, from nothing else."""
    good, bad = s.shuffled("herself", "himself", "themselves")[:2]
    kind = s.pick("local", "kin", "relative", "clause")
    if kind == "local":
        text = _antecedent(s, good)
    elif kind == "kin":
        text = f"{_antecedent(s, good, kin=True)} of {_antecedent(s, bad)}"
    elif kind == "relative":
        (met,) = tensed(s, s.draw(lex.TRANSITIVE), future=False)
        text = f"{_antecedent(s, good, kin=True)} who {met} {_antecedent(s, bad)}"
    else:
        # Past, so that the number of the first subject does not show.
        report = s.pick("said that", "thought that", "believed that")
        text = f"{_antecedent(s, bad)} {report} {_antecedent(s, good)}"
    (form,) = tensed(s, s.draw(lex.REFLEXIVE), future=kind != "clause")
    end = sometime(s)
    return MinimalPair(*(f"{text} {form} {pronoun}{end}" for pronoun in (good, bad)))


def _antecedent(s: Sampler, reflexive: str, kin: bool = False) -> str:
    """A subject for a reflexive; a noun for relatives if `kin`."""
    feminine = reflexive == "herself" or (reflexive == "themselves" and s.chance(0.5))
    if kin:
        noun = s.draw(lex.FEMALE_KIN if feminine else lex.MALE_KIN)
    elif reflexive != "themselves" and s.chance(0.5):
        return s.draw(lex.FEMALE_NAMES if feminine else lex.MALE_NAMES)
    else:
        noun = s.draw(lex.WOMEN if feminine else lex.MEN)
    return f"the {noun.form(reflexive == 'themselves')}"


def determiner_noun_agreement(s: Sampler) -> MinimalPair:
    """`this boat` and `these boats`, with adjectives between; either side may be the wrong one."""
    plural = s.chance(0.5)
    singular_word, plural_word = s.pick(
        ("this", "these"), ("that", "those"), ("every", "several"), ("another", "many")
    )
    if singular_word != "that" and s.chance(0.3):
        # Not `that` in front: "thinks that doctors ..." is good English.
        noun, adjectives = s.draw(lex.PEOPLE), [s.draw(lex.PERSON_ADJECTIVES)]
        verb, obj = activity(s)
        start, end = [], [*tensed(s, verb), obj]
    else:
        domain = s.pick(*lex.DOMAINS)
        noun, adjectives = s.draw(domain.things), thing_adjectives(s)
        start, end = [anyone(s), *tensed(s, s.draw(domain.verbs))], []
    right, wrong = (plural_word, singular_word) if plural else (singular_word, plural_word)
    bad_word, bad_plural = s.pick((wrong, plural), (right, not plural))
    return MinimalPair(
        " ".join([*start, right, *adjectives, noun.form(plural), *end]),
        " ".join([*start, bad_word, *adjectives, noun.form(bad_plural), *end]),
    )


def quantifier(s: Sampler) -> MinimalPair:
    """`there are` takes weak quantifiers, `almost` strong ones; `much` goes with masses."""
    if s.chance(0.4):
        mass, count = s.draw(lex.MASS_NOUNS), s.draw(s.pick(lex.TOOLS, lex.FOOD).things).plural
        noun, good_bad = s.pick((mass, ("much", "many")), (count, ("many", "much")))
        start = f"{anyone(s)} {s.pick('needed', 'received', 'had', 'asked for')}"
        degree, end = s.pick(("too", sometime(s)), ("so", f" that {someone(s)} laughed"))
        return MinimalPair(*(f"{start} {degree} {word} {noun}{end}" for word in good_bad))
    plural = s.chance(0.5)
    strong, weak = ("all", s.pick("many", "several", "some")) if plural else ("every", "another")
    if s.chance(0.5):
        noun, rest = s.draw(lex.PEOPLE).form(plural), s.draw(lex.PERSON_ADJECTIVES)
    else:
        noun, rest = s.draw(lex.TOOLS.things).form(plural), s.draw(lex.THING_ADJECTIVES)
    be = s.pick("are", "were") if plural else s.pick("is", "was")
    place = f"{s.pick(*_BESIDE)} the {s.draw(lex.PLACES.things).singular}"
    if s.chance(0.5):
        return MinimalPair(*(f"there {be} {word} {noun} {place}" for word in (weak, strong)))
    return MinimalPair(*(f"almost {word} {noun} {place} {be} {rest}" for word in (strong, weak)))


def auxiliary_form(s: Sampler) -> MinimalPair:
    """`has eaten`, `will eat`, `is eating`: the auxiliary chooses the form of the verb."""
    who, (verb, obj) = someone(s), activity(s)
    modal = (s.pick("will", "can", "should"), verb.base)
    other = s.pick(("has", verb.participle), (s.pick("is", "was"), verb.ing))
    right, wrong = s.pick((modal, other), (other, modal))
    hedge = f"{s.pick(*_HEDGES)} " if s.chance(0.5) else ""
    bad = s.pick((wrong[0], right[1]), (right[0], wrong[1]))
    return MinimalPair(*(f"{who} {aux} {hedge}{form} {obj}" for aux, form in (right, bad)))


def tense(s: Sampler) -> MinimalPair:
    """The tense of a verb goes with the adverb of time, or with the verb of the time clause."""
    who, (verb, obj) = anyone(s), activity(s)
    past = s.chance(0.5)
    start = f"{who} {verb.past if past else 'will ' + verb.base} {obj}"
    if s.chance(0.5):
        times = s.pick(("yesterday", "tomorrow"), ("last week", "next week"))
        good, bad = times if past else times[::-1]
        return MinimalPair(f"{start} {good}", f"{start} {bad}")
    later = s.draw(lex.INTRANSITIVE)
    forms = (later.past, later.third) if past else (later.third, later.past)
    clause = f"{s.pick('before', 'as soon as', 'when')} {someone(s)}"
    return MinimalPair(*(f"{start} {clause} {form}" for form in forms))


def pronoun_case(s: Sampler) -> MinimalPair:
    """`he` as a subject, `him` as an object, also as the subject of a clause under `make`."""
    nominative, accusative = s.pick(("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"))
    who, intransitive, end = anyone(s), s.draw(lex.INTRANSITIVE), s.pick("", somewhere(s))
    kind = s.pick("time", "report", "object", "object clause")
    if kind == "time":
        verb, obj = activity(s)
        (form,) = tensed(s, verb, future=False)
        start = f"{who} {form} {obj} {s.pick('because', 'before', 'after')}"
        end = f" {intransitive.past}{end}"
    elif kind == "report":
        start, end = f"{who} {s.pick('thought', 'said', 'knew')}", f" {intransitive.past}{end}"
    elif kind == "object":
        start = f"{who} {tensed(s, s.draw(lex.TRANSITIVE))[0]}"
    else:
        # Not "saw": "saw they sleep" can be read as "saw that they sleep".
        start, end = f"{who} {s.pick('made', 'let', 'watched')}", f" {intransitive.base}{end}"
    good_bad = nominative, accusative
    if kind.startswith("object"):
        good_bad = accusative, nominative
    return MinimalPair(*(f"{start} {word}{end}" for word in good_bad))


def relative_pronoun(s: Sampler) -> MinimalPair:
    """`who` for people, `which` for things."""
    if s.chance(0.5):
        head, good_bad, predicate = the_person(s), ("who", "which"), s.draw(lex.PERSON_ADJECTIVES)
    else:
        head, good_bad = f"the {s.draw(lex.THEMES).singular}", ("which", "who")
        predicate = s.draw(lex.THING_ADJECTIVES)
    (inner,) = tensed(s, s.draw(lex.TRANSITIVE), future=False)
    clause = f"{anyone(s)} {inner}"
    if s.chance(0.5):
        start, end = f"{anyone(s)} {tensed(s, s.draw(lex.TRANSITIVE))[0]} {head}", sometime(s)
    else:
        start, end = head, f" {s.pick('is', 'was')} {predicate}"
    return MinimalPair(*(f"{start} {word} {clause}{end}" for word in good_bad))
