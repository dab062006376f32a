"""The keys that a command line may set, and the text of `--help`, both read off the models."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from textwrap import TextWrapper, fill

from pydantic import BaseModel

from bertvision_stream.settings.problems import nearest, nearest_keys
from bertvision_stream.settings.schema import Schema, describe_allowed
from bertvision_stream.settings.settings import Settings
from bertvision_stream.utils.errors import ConfigError

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

Lists are written '[a,b]', quoted for the shell; byte sizes with a unit, as 2GiB; null unsets a key.
--version shows the version, --help the keys that matter first, --help all every key.
"""
# What `--help` shows of the keys; README's table has the same ones.
_FIRST_KEYS = (
    "task", "mode", "backbone.name", "data.path", "data.train_fraction", "data.text_columns",
    "data.label_column", "finetune.epochs", "extract.codec", "extract.layers", "stream.budget",
    "stream.cache", "head.kind", "head.adapter_dim", "head.pool", "train.epochs", "train.lr",
    "train.batch_size", "train.patience", "seed", "seeds", "output_dir", "run_name", "resume",
)  # fmt: skip

_KEY_WIDTH = 26
_WRAPPER = TextWrapper(width=100, subsequent_indent=" " * _KEY_WIDTH, break_on_hyphens=False)


def format_help(section: str = "") -> str:
    """Returns the text of `--help`: keys, each with its default and its meaning.

    Args:
        section: Empty for usage, examples and the keys that matter first; `all` for every key; a
            group such as `search`, or a key, for that alone.

    Raises:
        ConfigError: There is no such section.
    """
    schemas = key_schemas()
    if not section:
        lines = [_INTRODUCTION, "The keys that matter first:"]
        lines += [_key_entry(key, schemas[key]) for key in _FIRST_KEYS]
        groups = ", ".join(dict.fromkeys(key.partition(".")[0] for key in schemas if "." in key))
        more = f"More keys: --help SECTION, with one of {groups}; or --help all."
        return "\n".join([*lines, "", fill(more, 100)])
    shown = [key for key in schemas if section in ("all", key, key.partition(".")[0])]
    if not shown:
        near = nearest(section, {key.partition(".")[0] for key in schemas})
        likely = [near] if near else nearest_keys(section, dotted_keys())
        advice = f" Did you mean --help {likely[0]}?" if likely else ""
        raise ConfigError(f"--help {section}: there is no such section or key.{advice}")
    lines = [_INTRODUCTION] if section == "all" else []
    for group, keys in groupby(shown, key=lambda key: key.rpartition(".")[0]):
        lines.append(_group_title(group))
        lines += [_key_entry(key, schemas[key]) for key in keys]
        lines.append("")
    return "\n".join(lines)


def asked_section(argv: Sequence[str]) -> str | None:
    """The section that `--help` or `-h` among arguments asks for; None where neither is there."""
    flags = [word for word in argv if word in ("--help", "-h") or word.startswith("--help=")]
    if not flags:
        return None
    words = [word for word in argv if "=" not in word and not word.startswith("-")]
    return flags[0].partition("=")[2] or (words[0] if words else "")


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
