"""The types of single settings that pydantic has no ready type for.

A type whose JSON schema does not say in words what it allows has these words in the schema, under
`"allowed"`. `--help` and the error report share them.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from bertvision_stream.settings.problems import Problem, nearest, raise_problems
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.utils.units import parse_bytes

TASK_NAMES = (*TASKS, "custom")
"""The names that `task=` accepts, besides `glue` for all of GLUE."""

TASKS_IN_WORDS = (
    f"one of {', '.join(TASK_NAMES)};\n"
    "glue for the nine tasks of GLUE; or a list such as [cola,rte]"
)


def _check_task(task: object) -> str | tuple[str, ...]:
    names = [str(name) for name in task] if isinstance(task, list | tuple) else [str(task)]
    known = (*TASK_NAMES, "glue")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"no such task; must be {TASKS_IN_WORDS}"
        likely = [near for name in unknown if (near := nearest(name, known))]
        advice = f"Did you mean {', '.join(likely)}?" if likely else ""
        if isinstance(task, str) and "," in task:
            advice = f"Write a list in brackets: 'task=[{task}]'"
        raise_problems([Problem("task", wrong, advice)])
    return tuple(names) if isinstance(task, list | tuple) else names[0]


def _check_num_gpus(num_gpus: float) -> float:
    if num_gpus < 0 or (num_gpus > 1 and num_gpus != int(num_gpus)):
        raise ValueError("neither a fraction of one GPU nor a whole number of GPUs")
    return num_gpus


def _positive_bytes(size: int) -> int:
    if size == 0:
        raise ValueError("0 bytes hold nothing")
    return size


def _listed(values: object) -> object:
    """Takes a single value for a list of one."""
    if isinstance(values, list | tuple):
        return tuple(values)
    return values if values is None else (values,)


def _all_different(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError("one of them is given twice")
    return values


def _in_order(layers: tuple[int, ...]) -> tuple[int, ...]:
    """Ascending, and those that are counted from the end last, as they are of any encoder."""
    return tuple(sorted(layers, key=lambda layer: (layer < 0, layer)))


def _one_or_more(names: object) -> object:
    if isinstance(names, str):
        return (names,)
    return tuple(names) if isinstance(names, list) else names


Auto = Literal["auto"]
Codec = Literal["bf16", "int8", "fp32"]
Precision = Literal["auto", "bf16", "fp32"]
NoLabel = Literal["refuse", "leave_out", "class"]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
MaxLength = Annotated[int, Field(ge=8)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Seeds = Annotated[
    tuple[Seed, ...],
    Field(min_length=1),
    AfterValidator(_all_different),
    BeforeValidator(_listed),
    WithJsonSchema({"allowed": "different whole numbers from 0 to 4294967295, such as [1,2,3]"}),
]
Fractions = Annotated[
    tuple[Fraction, ...],
    Field(min_length=1),
    AfterValidator(_all_different),
    BeforeValidator(_listed),
    WithJsonSchema({"allowed": "different numbers above 0 and at most 1, such as [0.01,0.1,1.0]"}),
]
Epochs = Annotated[
    tuple[NotNegative, ...],
    Field(min_length=1),
    AfterValidator(_all_different),
    BeforeValidator(_listed),
    WithJsonSchema({"allowed": "different numbers of at least 0, such as [0,0.1,0.3,1]"}),
]
Layers = Annotated[
    tuple[int, ...],
    Field(min_length=1),
    AfterValidator(_in_order),
    AfterValidator(_all_different),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "allowed": "different layers as whole numbers (0 the embeddings, 1 the first layer, "
            "-1 the last), such as [0,6,-1]"
        }
    ),
]
NumGpus = Annotated[
    float,
    AfterValidator(_check_num_gpus),
    WithJsonSchema({"allowed": "0, a fraction of one GPU such as 0.5, a whole number of GPUs"}),
]
Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"allowed": "0, a size such as 268435456, 256MiB or 2GB"}),
]
PositiveBytes = Annotated[
    int,
    AfterValidator(_positive_bytes),
    BeforeValidator(parse_bytes),
    WithJsonSchema({"allowed": "a size such as 268435456, 256MiB or 2GB"}),
]
Columns = Annotated[
    tuple[str, ...],
    Field(min_length=1, max_length=2),
    BeforeValidator(_one_or_more),
    WithJsonSchema({"allowed": "one or two column names such as [title,text]"}),
]
# A shell leaves the ~ of `key=~/folder` alone. As in a shell, that of an unknown user stays.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
RunFolders = Annotated[
    tuple[UserPath, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    WithJsonSchema({"allowed": "the folder of a finished run, or a list of them"}),
]
TaskChoice = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_check_task),
    WithJsonSchema({"allowed": TASKS_IN_WORDS}),
]
