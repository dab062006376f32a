"""The dotted keys of the settings, read off the models."""

from __future__ import annotations

import inspect
from functools import cache

from pydantic import BaseModel

from bertvision_stream.schema_words import Schema
from bertvision_stream.settings import Settings


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
