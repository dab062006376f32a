"""The dotted keys of nested settings, and what a key allows, in words, read off its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]


def dotted_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested mappings with their dotted keys: `train.lr` and its value.

    A key that is given twice, dotted and nested, is yielded twice. An empty mapping is a value.
    """
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_text(schema: Schema) -> bool:
    """Whether a key takes any text, so that its value must not be read as a number or a list."""
    types = [option.get("type") for option in schema.get("anyOf", [schema])]
    return "string" in types and not choices(schema)


def choices(schema: Schema) -> list[str]:
    """The words that a key takes; there are none for numbers and free text."""
    options = [word for option in schema.get("anyOf", []) for word in choices(option)]
    constants = [schema["const"]] if "const" in schema else []
    return [*schema.get("enum", []), *constants, *options]


def describe_allowed(schema: Schema) -> str:
    """Says what a key allows."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return ", or ".join(describe_allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    return f"{_NAMES[schema['type']]}{_limits(schema)}"


_NAMES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a mapping such as {key: value}",
    "null": "null",
}
_LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _limits(schema: Schema) -> str:
    limits = [f"{words} {schema[name]}" for name, words in _LIMITS.items() if name in schema]
    return f" {' and '.join(limits)}" if limits else ""
