"""What settings must not be where answers are spans: checked with the rest, before torch loads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from bertvision_stream.settings.groups import (
    DataSettings,
    HeadSettings,
    SearchSettings,
    StudySettings,
)
from bertvision_stream.settings.problems import Problem
from bertvision_stream.settings.tasks import TASKS

MAX_DEFAULT_STRIDE = 128
"""`data.stride` where windows are long enough; it is a third of them where they are not."""

MIN_STEP = 16
"""Tokens that `data.stride` leaves of a window: for the question, and to move on by."""

_POOLS = "answers of {task} are spans of tokens: its heads keep them all and pool none"
_ONE_TOKEN = "answers of {task} are spans of tokens, and this head reads the first token alone"
_LEAVE_OUT = "Leave {key} out."
_OTHER_KINDS = "Take adapter_pooler, scalar_mix or mean_layers."
_OTHER = "Leave cls out of {key}."


def check_spans(
    tasks: Sequence[str], data: DataSettings, head: HeadSettings, search: SearchSettings
) -> Iterator[Problem]:
    """What is wrong with the settings of tasks whose answers are spans, or with keys of theirs.

    Args:
        tasks: Of the run, expanded.
        data: `data.*`.
        head: `head.*`.
        search: `search.*`.
    """
    spans = [TASKS[name] for name in tasks if name in TASKS and TASKS[name].per_token]
    if not spans:
        if data.stride is not None:
            wrong = "only squad_v2 has windows that share tokens; this run has no such task"
            yield Problem("data.stride", wrong, "Leave data.stride out.", involves=("task",))
        return
    task = spans[0]
    max_length = data.max_length or task.max_length
    stride = data.stride or min(MAX_DEFAULT_STRIDE, max_length // 3)
    if stride > max_length - MIN_STEP:
        key = "data.max_length" if data.stride is None else "data.stride"
        wrong = (
            f"windows of data.max_length={max_length} tokens that share data.stride={stride} leave "
            f"less than {MIN_STEP} for the question and to move on by"
        )
        advice = "Raise data.max_length" + (" or lower data.stride." if data.stride else ".")
        involved = {"data.stride", "data.max_length", "task"} - {key}
        yield Problem(key, wrong, advice, involves=tuple(sorted(involved)))
    searched = dict(_flat(search.space))
    kinds = searched.get("head.kind")
    for key, is_given, wrong, advice in (
        ("head.pool", head.pool != HeadSettings.model_fields["pool"].default, _POOLS, _LEAVE_OUT),
        ("head.kind", head.kind == "cls", _ONE_TOKEN, _OTHER_KINDS),
        ("search.space.head.pool", searched.get("head.pool") is not None, _POOLS, _LEAVE_OUT),
        ("search.space.head.kind", isinstance(kinds, list) and "cls" in kinds, _ONE_TOKEN, _OTHER),
    ):
        if is_given:
            wrong, advice = wrong.format(task=task.name), advice.format(key=key)
            yield Problem(key, wrong, advice, involves=("task",))


def _flat(written: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of `search.space`, which may be nested."""
    for name, value in written.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_study(
    mode: str,
    study: StudySettings,
    *,
    given: Collection[str],
    num_trainers: int,
) -> Iterator[Problem]:
    """What is wrong with `study.*`, or with other keys beside them.

    Args:
        mode: Of the run.
        study: `study.*`.
        given: Dotted keys that the user has set.
        num_trainers: `train.num_trainers`.
    """
    if mode != "study":
        for name in StudySettings.model_fields:
            if getattr(study, name) is not None:
                wrong = f"only mode=study has a use for this, and mode is {mode}"
                advice = f"Leave study.{name} out, or take mode=study."
                yield Problem(f"study.{name}", wrong, advice, involves=("mode",))
        return
    if study.fractions is None and study.finetune_epochs is None:
        wrong = "not given, nor is study.finetune_epochs: there is nothing to compare"
        advice = "For example study.fractions=[0.01,0.1,1.0], or study.finetune_epochs=[0,0.3,1]"
        involved = ("mode", "study.finetune_epochs")
        yield Problem("study.fractions", wrong, advice, involves=involved)
    for key, name in (("data.train_fraction", "fractions"), ("finetune.epochs", "finetune_epochs")):
        if key in given and getattr(study, name) is not None:
            wrong = f"study.{name} says this already"
            yield Problem(key, wrong, f"Leave {key} out.", involves=("mode", f"study.{name}"))
    if num_trainers > 1:
        wrong = "all heads of a stream of a study are held by one trainer"
        yield Problem(
            "train.num_trainers", wrong, "Leave train.num_trainers out.", involves=("mode",)
        )
