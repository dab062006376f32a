"""From a command line to settings, or to one report of everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from pydantic import ValidationError

from bertvision_stream.settings.help import dotted_keys, format_help, key_schemas
from bertvision_stream.settings.problems import Problem, nearest, nearest_keys, render_report
from bertvision_stream.settings.schema import choices, describe_allowed, is_text
from bertvision_stream.settings.settings import Settings, TaskSettings
from bertvision_stream.settings.types import TASK_NAMES
from bertvision_stream.utils.errors import ConfigError

__all__ = ["Settings", "TaskSettings", "dotted_keys", "format_help", "load_settings"]

_SHORTHANDS = {"backbone": "backbone.name"}
_FREE_FORM = "search.space"  # Any key may follow below it: search.space.train.lr=log:1e-4..1e-2.


def load_settings(argv: Sequence[str]) -> Settings:
    """Reads settings from `key=value` arguments, whose values are YAML.

    Args:
        argv: Arguments such as `task=rte`, `finetune.epochs=0.3` or `data.text_columns=[a,b]`.

    Raises:
        ConfigError: One report of all that is wrong with `argv`.
    """
    arguments, malformed = _sort_arguments(argv)
    values, unreadable = _merge(arguments)
    problems = [*malformed, *unreadable]
    settings, invalid = _validate(values, at_fault={found.key for found in problems})
    problems += [replace(found, given=_given(arguments, found.key)) for found in invalid]
    if settings is None or problems:
        raise ConfigError(render_report(problems))
    return settings


def _given(arguments: dict[str, str], key: str) -> str:
    """The arguments that set `key`: several where it is free-form."""
    of_key = [text for name, text in arguments.items() if f"{name}.".startswith(f"{key}.")]
    return " ".join(of_key)


def _sort_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """Returns the one argument of each key, and what is wrong with the other arguments."""
    by_key: dict[str, list[str]] = {}
    problems = []
    for argument in argv:
        if problem := _malformed(argument):
            problems.append(problem)
        else:
            key = argument.partition("=")[0]
            by_key.setdefault(_SHORTHANDS.get(key, key), []).append(argument)
    for key, arguments in by_key.items():
        if len(arguments) > 1:
            wrong = f"{key} is given {len(arguments)} times"
            problems.append(Problem(key, wrong, "Keep one of them.", given=" ".join(arguments)))
    return {key: found[0] for key, found in by_key.items() if len(found) == 1}, problems


def _malformed(argument: str) -> Problem | None:
    key, _, value = argument.lstrip("-").partition("=")
    if not (key in key_schemas() or key in _SHORTHANDS or key.startswith(f"{_FREE_FORM}.")):
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
            raise yaml.composer.ComposerError(problem="a * refers to another value; quote it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key is given twice")
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
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            problems.append(Problem(key, f"the value cannot be read: {reason}", given=argument))
            continue
        for name in reversed(key.split(".")):
            value = {name: value}
        if not _merge_into(merged, value):
            wrong = "another argument gives a value where this one has keys, or the other way round"
            problems.append(Problem(key, wrong, "Keep one of them.", given=argument))
    return merged, problems


def _read(key: str, text: str) -> Any:
    """Reads the value of a key; text is taken as it is: a commit named `1e10` is no number."""
    if is_text(key_schemas().get(key, {})) and text != "null" and text[0] not in "\"'":
        return text
    return yaml.load(text, _ValueLoader)


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
