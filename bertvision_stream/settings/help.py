"""The keys that a command line may set, and the text of `--help`, both read off the models."""

from __future__ import annotations

import inspect
import json
from functools import cache
from itertools import groupby
from textwrap import TextWrapper

from pydantic import BaseModel

from bertvision_stream.settings.schema import Schema, describe_allowed
from bertvision_stream.settings.settings import Settings

_INTRODUCTION = """\
usage: python -m bertvision_stream.run task=TASK [key=value ...]

Fine-tunes a BERT for a fraction of an epoch, freezes it, streams the hidden states of all its
layers through memory to a small head, and trains the head on them. Nothing of them touches a disk.

examples:
  python -m bertvision_stream.run task=demo
  python -m bertvision_stream.run task=rte finetune.epochs=0.3 head.pool=attention
  python -m bertvision_stream.run 'task=[cola,stsb]' backbone=minilm data.path=data/glue
  python -m bertvision_stream.run task=glue 'seeds=[1,2,3]'
  python -m bertvision_stream.run task=cola mode=study 'study.fractions=[0.01,0.1,1]'
  python -m bertvision_stream.run task=rte mode=plan
  python -m bertvision_stream.run task=cola mode=search search.space.head.dropout=0..0.3
  python -m bertvision_stream.run task=custom data.path=reviews.csv \\
      'data.text_columns=[title,body]' data.label_column=stars
  python -m bertvision_stream.run mode=predict run=outputs/custom/20261123-171336 data.path=new.csv

--help shows this text, --version the version. Lists are written '[a,b]', quoted for the shell;
byte sizes with a unit, as 2GiB; null unsets a key.
"""

_KEY_WIDTH = 26
_WRAPPER = TextWrapper(width=100, subsequent_indent=" " * _KEY_WIDTH, break_on_hyphens=False)


def format_help() -> str:
    """Returns usage, examples and all keys in groups, each with its default and its meaning."""
    lines = [_INTRODUCTION]
    for group, items in groupby(key_schemas().items(), key=lambda item: item[0].rpartition(".")[0]):
        lines.append(_group_title(group))
        lines += [_key_entry(key, schema) for key, schema in items]
        lines.append("")
    return "\n".join(lines)


def _group_title(group: str) -> str:
    model = Settings.model_fields[group].annotation if group else Settings
    title = (getattr(model, "__doc__", None) or "").rstrip(".")
    return f"{group}: {title}" if group else f"{title}:"


def _key_entry(key: str, schema: Schema) -> str:
    values = " ".join(describe_allowed(schema).removesuffix(", or null").splitlines())
    meaning = f"{schema['description']} {_default(schema)}."
    if values not in ("text", "true or false"):
        meaning += f" Takes {values}."
    return _WRAPPER.fill(f"  {key:<{_KEY_WIDTH - 3}} {meaning}")


def _default(schema: Schema) -> str:
    if "unset" in schema:
        return f"Default: {schema['unset']}"
    default = schema["default"]
    return f"Default: {default if isinstance(default, str) else json.dumps(default)}"


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
