"""One dimension of a search: a list or a range, read as it is written below `search.space`.

Every value and every bound has to be one that the setting itself takes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bertvision_stream.settings.groups import (
    FinetuneSettings,
    HeadSettings,
    SettingsGroup,
    TrainSettings,
)
from bertvision_stream.settings.problems import Problem, nearest, raise_problems
from bertvision_stream.settings.schema import Schema, choices, describe_allowed
from bertvision_stream.settings.types import Seed

Value = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: At least two, as they were listed.
    """

    values: tuple[Value, ...]

    @property
    def written(self) -> list[Value]:
        """The dimension as it is written below `search.space`."""
        return list(self.values)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Any number between two bounds, both included.

    Attributes:
        low: The least value; above 0 if `log`.
        high: The largest value, above `low`.
        log: Whether to draw evenly on a logarithmic scale.
        integer: Whether only whole numbers count; `low` and `high` are whole then.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @property
    def written(self) -> str:
        """The dimension as it is written below `search.space`."""
        return f"{'log:' if self.log else ''}{self.low!r}..{self.high!r}"


Dimension = Choice | Range


class _TopLevel(SettingsGroup):
    seed: Seed = 0


_GROUPS: Mapping[str, type[SettingsGroup]] = {
    "": _TopLevel,
    "head": HeadSettings,
    "train": TrainSettings,
    "finetune": FinetuneSettings,
}

_NUMBER = r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(log:)?([-+]?{_NUMBER})\.\.([-+]?{_NUMBER})")

_TOO_FEW = "fewer than two values are nothing to search"


def read_dimension(key: str, value: object) -> Dimension:
    """Reads what is written for one key.

    Args:
        key: The dotted key of a setting of `head`, `train` or `finetune`, or `seed`.
        value: A list of values, or a range as text: `1e-3..1e-2`, `log:1e-3..1e-2`.

    Raises:
        PydanticCustomError: It has the type `refused`, and the problems in its context.
    """
    if isinstance(value, list | tuple):
        return _choice(key, list(value))
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None or _number_type(key) is None:
        raise_problems([_unreadable(key, value)])
    assert match is not None
    log, low, high = bool(match[1]), _number(match[2]), _number(match[3])
    raise_problems(_unfit(key, [low, high]))
    if low >= high:
        wrong = f"the range ends at {high!r}, which is not above its start, {low!r}"
        raise_problems([problem_of(key, wrong)])
    if log and low <= 0:
        raise_problems([problem_of(key, "a logarithmic range has to start above 0")])
    integer = _number_type(key) == "integer"
    low, high = (number if integer else float(number) for number in (low, high))
    return Range(low=low, high=high, log=log, integer=integer)


def problem_of(key: str, wrong: str, advice: str = "", *involves: str) -> Problem:
    """A problem with what is written for `key`; for `involves` see `Problem`."""
    return Problem(f"search.space.{key}", wrong, advice, involves=("search.target", *involves))


def _choice(key: str, values: list[Any]) -> Choice:
    raise_problems(_unfit(key, values))
    # In a list such as [0, 0.1] every value becomes a float, as the setting's type is.
    kept = dict.fromkeys(map(float, values) if _number_type(key) == "number" else values)
    if len(kept) < 2:
        raise_problems([problem_of(key, _TOO_FEW, _advice_to_set(key, *kept))])
    return Choice(tuple(kept))


def _unfit(key: str, values: list[Any]) -> list[Problem]:
    """The problem with the values that the setting does not take, if there are any."""
    unfit = [value for value in values if not _fits(key, value)]
    if not unfit:
        return []
    wrong = f"{', '.join(map(show, unfit))} cannot be {key}: must be {_allowed(key)}"
    near = [word for v in unfit if (word := nearest(str(v), choices(_schema(key))))]
    return [problem_of(key, wrong, f"Did you mean {', '.join(near)}?" if near else "")]


def _fits(key: str, value: object) -> bool:
    group, _, name = key.rpartition(".")
    if value in (None, "auto") or (key == "finetune.epochs" and value == 0):
        return False  # The settings take these, but they leave nothing to compare.
    try:
        _GROUPS[group].model_validate({name: value})
    except ValidationError:
        return False
    return True


def _unreadable(key: str, value: object) -> Problem:
    kind = _number_type(key)
    if kind == "integer":
        forms = "a list such as [8,16,64], or a range such as 8..64 or log:8..64"
    elif kind == "number":
        forms = "a list such as [1e-3,1e-2], or a range such as 1e-3..1e-2 or log:1e-3..1e-2"
    elif words := choices(_schema(key)):
        forms = f"a list such as [{words[0]},{words[1]}], of {', '.join(words)}"
    else:
        forms = "the list [true,false]"
    wrong = f"must be {forms}"
    text = str(value)
    numbers = re.findall(_NUMBER, text)
    if _fits(key, value):
        wrong, advice = _TOO_FEW, _advice_to_set(key, value)
    elif "," in text and "(" not in text:
        advice = f"Write a list in brackets: 'search.space.{key}=[{text.strip('[]')}]'"
    elif kind and len(numbers) == 2:
        log = "log:" if "log" in text else ""
        advice = f"Write search.space.{key}={log}{numbers[0]}..{numbers[1]}"
    else:
        advice = f"Write search.space.{key}=null to search without it."
    return problem_of(key, wrong, advice)


def _advice_to_set(key: str, *values: object) -> str:
    if key == "seed" or not values:
        return f"Write search.space.{key}=null to search without it."
    return f"Write {key}={show(values[0])} to have it so in all trials."


def _allowed(key: str) -> str:
    words = describe_allowed(_schema(key)).removesuffix(", or null")
    return words.replace("of at least 0", "above 0") if key == "finetune.epochs" else words


def _schema(key: str) -> Schema:
    group, _, name = key.rpartition(".")
    schema = _GROUPS[group].model_json_schema()["properties"][name]
    words = [word for word in schema.get("enum", ()) if word != "auto"]
    return {**schema, "enum": words} if words else schema


def _number_type(key: str) -> str | None:
    """Whether a key takes an `integer` or a `number`; None for words, and for true and false."""
    schema = _schema(key)
    types = {option.get("type") for option in schema.get("anyOf", [schema])}
    return next((name for name in ("integer", "number") if name in types), None)


def _number(text: str) -> int | float:
    number = float(text)
    # int() raises for thousands of digits. As a float they are infinite, which no setting takes.
    whole = re.fullmatch(r"[-+]?\d+", text) and math.isfinite(number)
    return int(text) if whole else number


def show(value: object) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)
