"""What a search varies, as it is written below `search.space`.

| written | meaning |
|---|---|
| `search.space.head.adapter_dim=[8,16,64]` | one of these values |
| `search.space.head.dropout=0..0.3` | from 0 to 0.3, both included |
| `search.space.train.lr=log:1e-4..1e-2` | the same, drawn evenly on a logarithmic scale |
| `search.space.seed=null` | not searched |

A range holds whole numbers only if its key takes nothing else. What is written changes the default
space or adds to it. A key that is set to a value (`train.lr=1e-3`) is not searched. The exception
is `seed`, which is the seed of the data and of the searcher as well.

This imports neither Ray nor torch: a space is checked with the rest of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from bertvision_stream.settings.checks import ADAPTER_OPTIONS
from bertvision_stream.settings.groups import HeadSettings
from bertvision_stream.settings.problems import Problem, nearest_keys
from bertvision_stream.settings.schema import dotted_items
from bertvision_stream.settings.search_dimensions import (
    Choice,
    Dimension,
    Range,
    problem_of,
    read_dimension,
    show,
)

Target = Literal["head", "backbone"]
Space = Mapping[str, Dimension]
"""Dimensions by the dotted key of the setting that they vary."""


SEARCHABLE: Mapping[Target, tuple[str, ...]] = {
    "head": (
        *(f"train.{name}" for name in ("lr", "weight_decay", "warmup_ratio", "batch_size")),
        *(f"head.{name}" for name in HeadSettings.model_fields),
        "seed",
    ),
    "backbone": ("finetune.lr", "finetune.epochs", "finetune.batch_size", "seed"),
}
"""The keys that a search can vary, by `search.target`."""

_COMMON = {
    "train.epochs": "they learn side by side, and ASHA compares them epoch by epoch",
    "train.patience": "it decides which epoch of a trial counts, and one rule judges them all",
    "train.precision": "heads on a trainer share their batches, which have one precision",
}
_ADAPTER_KEYS = tuple(f"head.{name}" for name in ADAPTER_OPTIONS)


def default_space(target: Target, *, finetune_lr: float) -> Space:
    """What is searched unless `search.space` says otherwise.

    For heads that is BERTVision's space (`models.ap_glue`: seed, adapter size, learning rate), with
    learning rates around this project's default. For the backbone, learning rates from half to five
    times the recommended one.

    Args:
        target: The value of `search.target`.
        finetune_lr: The recommended learning rate of the fine-tuning.
    """
    seed = Range(low=1, high=2000, integer=True)
    if target == "backbone":
        return {
            "finetune.lr": Range(low=finetune_lr / 2, high=finetune_lr * 5, log=True),
            "finetune.epochs": Choice((0.5, 1.0, 2.0, 3.0)),
            "seed": seed,
        }
    return {
        "train.lr": Range(low=1e-4, high=1e-2, log=True),
        "head.adapter_dim": Choice(tuple(2**power for power in range(3, 9))),
        "seed": seed,
    }


def resolve_space(
    written: Mapping[str, Any],
    *,
    target: Target,
    fixed: Mapping[str, object],
    head_kind: str,
    finetune_lr: float,
) -> tuple[Space, list[Problem]]:
    """The space of a search: the default one, changed by what is written.

    Args:
        written: The value of `search.space`, with keys nested or dotted.
        target: The value of `search.target`.
        fixed: The values of settings that the user has given, by dotted key.
        head_kind: The kind of the head where it is not searched.
        finetune_lr: The recommended learning rate of the fine-tuning.

    Returns:
        The space, and what is wrong with `written`.
    """
    given, problems = _read(written, target)
    default = default_space(target, finetune_lr=finetune_lr)
    space = {key: dimension for key, dimension in default.items() if key not in fixed}
    for key, dimension in given.items():
        if dimension is None:
            space.pop(key, None)
        elif key in fixed:
            wrong = f"{key}={show(fixed[key])} is given as well, and what is set is not searched"
            problems.append(problem_of(key, wrong, "Leave one of the two out.", key))
        else:
            space[key] = dimension
    kind = space.get("head.kind")
    kinds = kind.values if isinstance(kind, Choice) else (head_kind,)
    if "adapter_pooler" not in kinds:
        for key in _ADAPTER_KEYS:
            if space.pop(key, None) and key in given:
                wrong = "only adapter_pooler has this option, and it is not among the heads: "
                wrong += show(kinds)
                advice = f"Leave search.space.{key} out, or add adapter_pooler to head.kind."
                problems.append(problem_of(key, wrong, advice, "head.kind"))
    if not space and not problems:
        wrong = "nothing is left to search: every key of the space is set to one value"
        advice = f"Give a range for one of {', '.join(default)}, or leave its value out."
        problems.append(Problem("search.space", wrong, advice))
    return space, problems


def read_space(written: Mapping[str, Any]) -> Space:
    """Reads the space of resolved settings: `search.space` of `TaskSettings`, or its JSON.

    Raises:
        ValueError: A dimension cannot be read.
    """
    return {key: read_dimension(key, value) for key, value in written.items()}


def _read(
    written: Mapping[str, Any], target: Target
) -> tuple[dict[str, Dimension | None], list[Problem]]:
    """Returns the dimensions that are written, None for keys set to null, and what is wrong."""
    given: dict[str, Dimension | None] = {}
    problems = []
    for key, value in dotted_items(written):
        if key in given:
            problems.append(problem_of(key, f"{key} is given twice", "Keep one of them."))
        elif key not in SEARCHABLE[target]:
            problems.append(_not_searchable(key, target))
        else:
            try:
                given[key] = None if value is None else read_dimension(key, value)
            except PydanticCustomError as error:
                given[key] = None
                problems += (error.context or {})["problems"]
    return given, problems


def _not_searchable(key: str, target: Target) -> Problem:
    if key == "extract.layers":
        wrong = "all trials have the same layers: " + (
            "they read one stream"
            if target == "head"
            else "they compare BERT's own scores, which do not depend on it"
        )
        advice = "Write extract.layers=[0,6,-1] to set it for all, and search once for each list."
        return problem_of(key, wrong, advice)
    if target == "head" and key in _COMMON:
        wrong = f"all trials have the same {key}: {_COMMON[key]}"
        return problem_of(key, wrong, f"Write {key}=VALUE to set it for all.")
    if key in SEARCHABLE["backbone"]:
        wrong = f"search.target=head searches the head, and {key} is of the fine-tuning before it"
        return problem_of(key, wrong, "Take search.target=backbone to search that.")
    if key in SEARCHABLE["head"]:
        wrong = f"search.target=backbone searches the fine-tuning, and {key} is of the head"
        return problem_of(key, wrong, "Take search.target=head to search that.")
    wrong = fill(f"not a key that can be searched; there are {', '.join(SEARCHABLE[target])}", 90)
    likely = [f"search.space.{near}" for near in nearest_keys(key, SEARCHABLE[target])]
    return problem_of(key, wrong, f"Did you mean {' or '.join(likely)}?" if likely else "")
