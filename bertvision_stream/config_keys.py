"""The dotted keys of the settings and what each allows, read off the models."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from pydantic import BaseModel

from bertvision_stream.settings import Settings

Schema = dict[str, Any]


@cache
def key_schemas() -> dict[str, Schema]:
    """The JSON schema of each dotted key, in the order of the models."""
    schemas: dict[str, Schema] = {}
    properties = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if inspect.isclass(group) and issubclass(group, BaseModel):
            members = group.model_json_schema()["properties"]
            schemas |= {f"{name}.{member}": schema for member, schema in members.items()}
        else:
            schemas[name] = properties[name]
    return schemas


def dotted_keys() -> tuple[str, ...]:
    """All keys that a command line may set."""
    return tuple(key_schemas())


def is_text(schema: Schema) -> bool:
    """Whether a key takes any text, so that its value must not be read as a number or a list."""
    types = [option.get("type") for option in schema.get("anyOf", [schema])]
    return "string" in types and not choices(schema)


def choices(schema: Schema) -> list[str]:
    """The words that a key takes; empty for numbers and free text."""
    options = [word for option in schema.get("anyOf", []) for word in choices(option)]
    constants = [schema["const"]] if "const" in schema else []
    return [*schema.get("enum", []), *constants, *options]


def allowed(schema: Schema) -> str:
    """What a key allows, in words."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return ", or ".join(allowed(option) for option in schema["anyOf"])
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
