"""From a command line to settings, or to one report of everything that is wrong with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from pydantic import ValidationError

from bertvision_stream.settings.help import dotted_keys, format_help, key_schemas
from bertvision_stream.settings.problems import Problem, nearest, nearest_keys, render_report
from bertvision_stream.settings.schema import choices, describe_allowed, is_text
from bertvision_stream.settings.settings import Settings, TaskSettings, dotted
from bertvision_stream.settings.types import TASK_NAMES
from bertvision_stream.utils.errors import ConfigError

__all__ = ["Settings", "TaskSettings", "dotted_keys", "format_help", "load_settings"]

_SHORTHANDS = {"backbone": "backbone.name"}
_FREE_FORM = "search.space"  # Any key may follow below it: search.space.train.lr=log:1e-4..1e-2.
_PAIRS = {"[": "]", "{": "}"}
_MOST_OWNERS = 2  # A word that more keys take than this says nothing about which one was meant.


def load_settings(
    argv: Sequence[str], *, columns_of: Callable[[str], Sequence[str]] | None = None
) -> Settings:
    """Reads settings from `key=value` arguments, whose values are YAML.

    Args:
        argv: Arguments such as `task=rte`, `finetune.epochs=0.3` or `data.text_columns=[a,b]`.
        columns_of: Lists the columns of the rows at a `data.path`, for the report on a column that
            was forgotten; empty where it cannot. The settings themselves read no files.

    Raises:
        ConfigError: One report of all that is wrong with `argv`.
    """
    arguments, malformed = _sort_arguments(argv)
    values, unreadable = _merge(arguments)
    problems = [*malformed, *unreadable]
    settings, invalid = _validate(values, at_fault={found.key for found in problems})
    invalid = _swapped(invalid, dotted(values))
    problems += [
        found if found.given else replace(found, given=_given(arguments, found.key))
        for found in invalid
    ]
    if settings is None or problems:
        path = dotted(values).get("data.path")
        if columns_of is not None and isinstance(path, str):
            problems = _with_columns(problems, path, columns_of)
        raise ConfigError(render_report(problems))
    return settings


def _with_columns(
    problems: list[Problem], path: str, columns_of: Callable[[str], Sequence[str]]
) -> list[Problem]:
    """The problems, where the last one about a column that was not given lists those there are."""
    missing = [
        i
        for i, found in enumerate(problems)
        if found.key in ("data.label_column", "data.text_columns") and not found.given
    ]
    if missing and (columns := columns_of(path)):
        last = problems[missing[-1]]
        advice = f"{last.advice}\nThe columns there: {', '.join(columns)}"
        problems[missing[-1]] = replace(last, advice=advice)
    return problems


def _swapped(problems: list[Problem], values: Mapping[str, Any]) -> list[Problem]:
    """The problems, where a word that another key takes is said to be that key's.

    Two keys that have each other's word are one problem.
    """
    owners = {found.key: _owners(found.key, values.get(found.key)) for found in problems}
    explained: list[Problem] = []
    for found in problems:
        key, mine, word = found.key, owners[found.key], values.get(found.key)
        other = next((one for one in mine if key in owners.get(one, ())), None)
        if other is None:
            advice = " or ".join(f"{one}={word}" for one in mine)
            advice = f"{word} is a value of another key: {advice}" if mine else found.advice
            explained.append(replace(found, advice=advice))
        elif all(found.key != other for found in explained):
            given = f"{key}={word} {other}={values[other]}"
            advice = f"Write {key}={values[other]} {other}={word}"
            explained.append(Problem(key, "the two values are swapped", advice, given=given))
    return explained


def _owners(key: str, word: object) -> list[str]:
    """The keys that take a word which `key` does not, if there are not too many of them."""
    takes = {key: choices(schema) for key, schema in key_schemas().items()}
    takes["task"] = [*TASK_NAMES, "glue"]
    owners = [other for other, words in takes.items() if word in words]
    return owners if len(owners) <= _MOST_OWNERS and key not in owners else []


def _given(arguments: dict[str, str], key: str) -> str:
    """The arguments that set `key`: several where it is free-form."""
    of_key = [text for name, text in arguments.items() if f"{name}.".startswith(f"{key}.")]
    return " ".join(of_key)


def _sort_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """Returns the one argument of each key, and what is wrong with the other arguments."""
    by_key: dict[str, list[str]] = {}
    problems = []
    for argument, is_split in _whole_arguments(argv):
        key = argument.partition("=")[0]
        if is_split:
            wrong = "the shell has split this at its spaces"
            problems.append(Problem(key, wrong, _quoted(argument), given=argument))
        elif problem := _malformed(argument):
            problems.append(problem)
        else:
            by_key.setdefault(_SHORTHANDS.get(key, key), []).append(argument)
    for key, arguments in by_key.items():
        if len(arguments) > 1:
            wrong = f"{key} is given {len(arguments)} times"
            problems.append(Problem(key, wrong, "Keep one of them.", given=" ".join(arguments)))
    return {key: found[0] for key, found in by_key.items() if len(found) == 1}, problems


def _whole_arguments(argv: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yields the arguments, each with whether the shell had split it, as it does `seeds=[1, 2]`."""
    rest = list(argv)
    while rest:
        first = rest.pop(0)
        key, _, value = first.partition("=")
        num_words = _words_of(value, rest) if _is_key(key) and "-" not in first[:1] else 0
        words = [value, *rest[:num_words]]
        if num_words and "=" not in first:  # `seed = 1` and `seed =1`
            words[1] = words[1].removeprefix("=")
        yield (f"{key}={' '.join(filter(None, words))}", True) if num_words else (first, False)
        del rest[:num_words]


def _words_of(value: str, following: Sequence[str]) -> int:
    """The number of the following arguments that the shell has split off from a value."""
    text = value
    for number, word in enumerate(following, start=1):
        if not _unbalanced(text):
            break
        text += f" {word}"
        if not _unbalanced(text):
            return number
    if following and following[0].startswith("="):
        return 1 + (following[0] == "=" and len(following) > 1)
    strays = 0
    while strays < len(following) and _is_stray(following[strays]):
        strays += 1
    return strays


def _quoted(argument: str) -> str:
    """How to write an argument that the shell has split."""
    key, _, value = argument.partition("=")
    if "," in value and value[0] not in _PAIRS and not is_text(key_schemas().get(key, {})):
        argument = f"{key}=[{value}]"
    quoted = shlex.quote(argument)
    return f"Quote it: {quoted}" if quoted != argument else f"Write {argument} without spaces"


def _is_stray(argument: str) -> bool:
    """Whether an argument is no setting, nor like one, and so may belong to the one before it."""
    if argument.startswith("-") or "=" in argument or argument in (*TASK_NAMES, "glue"):
        return False
    groups = {key.partition(".")[0] for key in dotted_keys()}
    likely = nearest_keys(argument, [*dotted_keys(), *_SHORTHANDS])
    return not (_is_key(argument) or argument in groups or likely)


def _is_key(key: str) -> bool:
    return key in key_schemas() or key in _SHORTHANDS or key.startswith(f"{_FREE_FORM}.")


def _unbalanced(text: str) -> str:
    """What is wrong with the brackets and quotation marks of a value; empty if nothing is."""
    opened: list[str] = []
    quote = ""
    for before, character in zip(f" {text}", text, strict=False):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and before in " [{,:":  # elsewhere it is an apostrophe
            quote = character
        elif character in _PAIRS:
            opened.append(character)
        elif character in _PAIRS.values() and (not opened or _PAIRS[opened.pop()] != character):
            return f"a {character} closes nothing"
    if quote:
        return "a quotation mark is not closed"
    return f"a {opened[-1]} is not closed" if opened else ""


def _malformed(argument: str) -> Problem | None:
    key, _, value = argument.lstrip("-").partition("=")
    if not _is_key(key):
        return _unknown(argument, key)
    if argument.startswith("-"):
        wrong = "keys are written without dashes"
    elif not value:
        wrong = "there is no value"
    else:
        return None
    return Problem(key, wrong, f"Write {key}={value or 'VALUE'}", given=argument)


def _unknown(argument: str, key: str) -> Problem:
    likely = nearest_keys(key, [*dotted_keys(), *_SHORTHANDS])
    advice = f"Did you mean {' or '.join(likely)}?" if likely else ""
    members = [known for known in dotted_keys() if known.startswith(f"{key}.")]
    if members:
        wrong = f"{key} is a group of keys, which are set one by one"
        advice = f"Its keys: {', '.join(members)}"
    elif argument.startswith("-"):
        wrong = "there is no such option: settings are key=value, without dashes"
    elif key and "=" in argument:
        wrong = "there is no such key"
    else:
        wrong = "not of the form key=value, without spaces around the ="
        if key in (*TASK_NAMES, "glue"):
            likely, advice = ["task"], f"Did you mean task={key}?"
    # Who misspells `task` has given a task: do not tell them that it is missing as well.
    return Problem("task" if likely == ["task"] else key, wrong, advice, given=argument)


class _ValueLoader(yaml.SafeLoader):
    """YAML, but `1e-4` is a number, `2024-01-01` is text, and no value refers to another one."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        # A value that holds itself, as in `&a {b: *a}`, would be read without end.
        if self.check_event(yaml.AliasEvent):
            raise ValueError("a * refers to another value; quote it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise ValueError("a key is given twice")
        return mapping


_ValueLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a dot and a sign, as in `1.0e+3`, but people write learning rates as `1e-3`.
_ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _merge(arguments: dict[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the values as nested dicts, and the arguments whose value cannot be read."""
    merged: dict[str, Any] = {}
    problems = []
    for key, argument in arguments.items():
        try:
            value = _read(key, argument.partition("=")[2])
        except ValueError as error:
            wrong = f"the value cannot be read: {str(error).splitlines()[0]}"
            problems.append(Problem(key, wrong, given=argument))
            continue
        for name in reversed(key.split(".")):
            value = {name: value}
        if not _merge_into(merged, value):
            wrong = "another argument gives a value where this one has keys, or the other way round"
            problems.append(Problem(key, wrong, "Keep one of them.", given=argument))
    return merged, problems


def _read(key: str, text: str) -> Any:
    """Reads the value of a key; text is taken as it is: a commit named `1e10` is no number.

    Raises:
        ValueError: It cannot be read.
    """
    if is_text(key_schemas().get(key, {})) and text != "null" and text[0] not in "\"'":
        return text
    try:
        return yaml.load(text, _ValueLoader)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    except yaml.YAMLError as error:  # whose own words are for people who know YAML
        special = "a character in it, such as : # & * ! % @ or `, needs quotation marks around it"
        raise ValueError(_unbalanced(text) or special) from error


def _merge_into(merged: dict[str, Any], values: Mapping[str, Any]) -> bool:
    """Adds nested values: several arguments may give `search.space`. Returns whether they agree."""
    fits = True
    for name, value in values.items():
        known = merged.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            fits &= _merge_into(known, value)
        else:
            fits &= None in (known, value) or isinstance(known, dict) == isinstance(value, dict)
            merged[name] = value
    return fits


def _validate(
    values: dict[str, Any], *, at_fault: set[str]
) -> tuple[Settings | None, list[Problem]]:
    """Validates values; finds all problems, where pydantic alone stops at the first layer.

    pydantic looks at combinations only once each single value is right. So values at fault are
    left out and the rest is validated again, until nothing new comes up.

    Args:
        values: Nested by group.
        at_fault: Dotted keys whose problems are known already; they are left out from the start.

    Returns:
        The settings, None if there are problems; and the problems.
    """
    at_fault = set(at_fault)
    problems: list[Problem] = []
    while True:
        sound = _without(values, at_fault)
        if "task" in at_fault:
            sound["task"] = "demo"  # Stands in; what involves the task is not reported then.
        try:
            settings = Settings.model_validate(sound)
            return (None if problems else settings), problems
        except ValidationError as error:
            found = [
                problem
                for problem in _problems_of(error)
                if at_fault.isdisjoint((problem.key, *problem.involves))
            ]
        if not found:
            return None, problems
        problems += found
        at_fault |= {problem.key for problem in found}


def _without(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name not in keys}
    for group, members in kept.items():
        if isinstance(members, dict):
            kept[group] = {
                name: value for name, value in members.items() if f"{group}.{name}" not in keys
            }
    return kept


def _problems_of(error: ValidationError) -> Iterator[Problem]:
    """Yields the problems that a pydantic error stands for, one for each key."""
    seen = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "refused":
            yield from detail["ctx"]["problems"]
            continue
        parts = [str(part) for part in detail["loc"]]
        key = parts[0] if parts[0] in key_schemas() else ".".join(parts[:2])
        if key in seen:  # A type with alternatives has an error for each of them.
            continue
        seen.add(key)
        schema = key_schemas()[key]
        near = nearest(str(detail["input"]), choices(schema))
        advice = f"Did you mean {key}={near}?" if near else ""
        yield Problem(key, f"must be {describe_allowed(schema)}", advice)
