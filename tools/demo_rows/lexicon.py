"""The words of the demo task, and how they inflect.

A word list is written as one string. Words after the bar `|` are *held out*: the training split
never contains them. Irregular forms follow the base after slashes, `write/wrote/written`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Noun:
    """A countable noun."""

    singular: str
    plural: str

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb with all its forms; `third` is the third person singular of the present."""

    base: str
    third: str
    past: str
    participle: str
    ing: str

    def present(self, plural: bool) -> str:
        return self.base if plural else self.third


@dataclass(frozen=True)
class Pool(Generic[T]):
    """Words that can stand in the same place, the held-out ones apart."""

    train: tuple[T, ...]
    held_out: tuple[T, ...]


@dataclass(frozen=True)
class Domain:
    """Verbs and the things that people sensibly do them to."""

    verbs: Pool[Verb]
    things: Pool[Noun]


def _s_form(base: str) -> str:
    """Returns the plural of a noun or the third person singular of a verb, for regular words."""
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")


def _noun(entry: str) -> Noun:
    singular, *irregular = entry.split("/")
    return Noun(singular, irregular[0] if irregular else _s_form(singular))


def _verb(entry: str) -> Verb:
    base, *irregular = entry.split("/")
    if base.endswith("e"):
        regular = base + "d"
    elif base.endswith("y") and base[-2] not in "aeiou":
        regular = base[:-1] + "ied"
    else:
        regular = base + "ed"
    past, participle = irregular or (regular, regular)
    stem = base if base.endswith("ee") else base.removesuffix("e")
    return Verb(base, _s_form(base), past, participle, stem + "ing")


def _phrase(entry: str) -> tuple[str, str]:
    verb, particle = entry.split("_")
    return verb, particle


def _pool(words: str, parse: Callable[[str], T]) -> Pool[T]:
    train, held_out = words.split("|")
    return Pool(tuple(map(parse, train.split())), tuple(map(parse, held_out.split())))


FEMALE_NAMES = _pool("Anna Maria Susan Emma Laura Sarah Julia Alice Clara | Helen Ruth Nina", str)
MALE_NAMES = _pool("Peter David Thomas Robert James Daniel Paul Henry Oscar | Simon Karl Hugo", str)

PEOPLE = _pool(
    "teacher doctor student lawyer farmer singer guest painter driver manager writer "
    "scientist soldier child/children customer visitor | nurse pilot judge librarian dentist",
    _noun,
)
WOMEN = _pool("woman/women girl queen lady | princess nun", _noun)
MEN = _pool("man/men boy king gentleman/gentlemen | prince monk", _noun)
FEMALE_KIN = _pool("mother sister aunt daughter grandmother | niece godmother", _noun)
MALE_KIN = _pool("father brother uncle son grandfather | nephew godfather", _noun)

PERSON_ADJECTIVES = _pool(
    "tired happy hungry famous friendly nervous rich | proud polite lonely", str
)
THING_ADJECTIVES = _pool(
    "small big cheap expensive beautiful strange lovely ordinary | tiny enormous ugly", str
)
COLORS = _pool("red green blue white | brown yellow", str)

FOOD = Domain(
    _pool("eat/ate/eaten prepare taste order | bake devour", _verb),
    _pool("apple sandwich cake pizza pie potato carrot | pancake muffin cupcake", _noun),
)
VEHICLES = Domain(
    _pool("repair clean buy/bought/bought steal/stole/stolen paint | polish sell/sold/sold", _verb),
    _pool("car truck bicycle boat van bus tractor | motorcycle wagon", _noun),
)
DOCUMENTS = Domain(
    _pool("write/wrote/written copy print finish sign | type deliver", _verb),
    _pool("letter essay contract article poem | postcard invoice", _noun),
)
PLACES = Domain(
    _pool("visit photograph enter leave/left/left | draw/drew/drawn film", _verb),
    _pool("museum castle library church school factory | palace temple", _noun),
)
TOOLS = Domain(
    _pool("pack carry borrow use collect | wash hide/hid/hidden", _verb),
    _pool("lamp basket chair knife/knives bottle umbrella key box | ladder shelf/shelves", _noun),
)
DOMAINS = (FOOD, VEHICLES, DOCUMENTS, PLACES, TOOLS)

# What one can show to people and talk about; none of them takes "to" as "the letter to Anna" does.
THEMES = _pool("plan painting photograph book novel map design | report recipe sketch", _noun)
MASS_NOUNS = _pool(
    "furniture money water bread advice rice luggage sugar homework | equipment jewelry cheese",
    str,
)

# The four classes of verbs that the rules on arguments set against each other.
# "admire Anna", "admire the map", never just "admire".
TRANSITIVE = _pool(
    "admire avoid ignore recognize appreciate adore cherish encounter rescue "
    "| despise abandon dislike replace identify",
    _verb,
)
INTRANSITIVE = _pool(
    "sleep/slept/slept smile sneeze cough yawn arrive laugh vanish cry faint "
    "| snore giggle shiver disappear blush",
    _verb,
)
# "describe the map to Anna", never "describe Anna the map".
TO_DATIVE = _pool("explain describe mention reveal display | announce suggest donate", _verb)
# "lend Anna the map", never "lend Anna".
DOUBLE_OBJECT = _pool("give/gave/given hand lend/lent/lent | award", _verb)

TO_INFINITIVE = _pool(
    "hope decide refuse agree volunteer expect promise want | pretend threaten hesitate", _verb
)
GERUND = _pool(
    "enjoy deny risk miss recall keep/kept/kept consider | resist postpone imagine", _verb
)

REFLEXIVE = _pool("blame defend praise introduce trust hurt/hurt/hurt | criticize comfort", _verb)

# "picked it up" against "looked at it": particles follow a pronoun, prepositions go before it.
PARTICLE_VERBS = _pool(
    "picked_up turned_off took_off wrote_down put_away gave_back sent_back switched_on "
    "| threw_away filled_in",
    _phrase,
)
PREPOSITION_VERBS = _pool(
    "looked_at waited_for listened_to talked_about laughed_at thought_about relied_on "
    "| complained_about searched_for",
    _phrase,
)
