"""The rules on combinations of settings: each function takes settings and yields what is wrong.

The rule on a single value stands with its type, in `types` and `groups`. The models of settings
call these functions when they are validated, so nothing here imports them at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bertvision_stream.settings.problems import Problem
from bertvision_stream.settings.schema import dotted_items
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.settings.types import TASKS_IN_WORDS

if TYPE_CHECKING:
    from bertvision_stream.settings.groups import HeadSettings, PlanSettings, StreamSettings
    from bertvision_stream.settings.settings import Settings

ADAPTER_OPTIONS = ("adapter_dim", "share_layers", "skip", "pool")
"""Settings of a head that only `adapter_pooler` has."""

MIN_STEP = 16
"""Tokens of a window that `data.stride` has to leave: for the question, and to move on by."""

_MODE_OF = {
    "run": "predict",
    "predict": "predict",
    "search": "search",
    "plan": "plan",
    "study": "study",
}
"""The only mode that has a use for a key or for a group of keys."""

# Keys that mode=predict does not take from the run that has learned.
_FOR_PREDICTION = ("task", "mode", "run", "output_dir", "run_name", "data.path", "predict.source")
_CUSTOM_NEEDS = {
    "path": "a csv, jsonl or parquet file, or a folder of them: data.path=reviews.csv",
    "text_columns": "the column of the texts, or a pair of them: data.text_columns=title",
    "label_column": "the column of the labels: data.label_column=stars",
}


def check_cache(stream: StreamSettings) -> Iterator[Problem]:
    """The cache lies within the budget."""
    if stream.budget != "auto" and stream.cache != "auto" and stream.cache > stream.budget:
        wrong = (
            "the cache is part of the budget and cannot be larger: "
            f"{stream.cache:,} > {stream.budget:,} bytes"
        )
        advice = "Raise stream.budget or lower stream.cache."
        yield Problem("stream.cache", wrong, advice, involves=("stream.budget",))


def check_head(head: HeadSettings) -> Iterator[Problem]:
    """A head has the options of its own kind only."""
    if head.kind == "adapter_pooler":
        return
    for name in ADAPTER_OPTIONS:
        if getattr(head, name) != type(head).model_fields[name].default:
            wrong = f"only adapter_pooler has this option, and head.kind is {head.kind}"
            advice = f"Leave head.{name} out, or take head.kind=adapter_pooler."
            yield Problem(f"head.{name}", wrong, advice, involves=("head.kind",))


def check_planned(plan: PlanSettings) -> Iterator[Problem]:
    """The shape of a planned backbone is whole, and a speed is either given or measured."""
    for given, missing in (("layers", "hidden_size"), ("hidden_size", "layers")):
        if getattr(plan, given) is not None and getattr(plan, missing) is None:
            wrong = "a shape takes plan.layers and plan.hidden_size, "
            wrong += f"and plan.{missing} is not given"
            yield Problem(f"plan.{given}", wrong, f"Give plan.{missing} as well.")
    if plan.heads > 1 and plan.head_tokens_per_second is not None:
        wrong = "only measures with so many heads, and plan.head_tokens_per_second is given"
        advice = "Leave one of the two out."
        yield Problem("plan.heads", wrong, advice, involves=("plan.head_tokens_per_second",))


def check_settings(settings: Settings) -> Iterator[Problem]:
    """All rules on combinations that go across groups.

    Some of them ask what the user has given. They are left out for the settings of one task, where
    defaults have been filled in as if they were given: they were applied before that.
    """
    if settings.mode == "predict":
        yield from check_prediction(settings)
        return
    if not settings.tasks:
        wrong = f"not given; must be {TASKS_IN_WORDS}"
        yield Problem("task", wrong, "For a first look: task=demo", involves=("mode",))
    if not settings.is_resolved:
        yield from keys_of_other_modes(settings)
        yield from check_search(settings)
        yield from check_study(settings)
    yield from check_data(settings)
    yield from keys_without_effect(settings)
    yield from check_spans(settings)
    yield from check_seeds(settings)


def check_prediction(settings: Settings) -> Iterator[Problem]:
    """`mode=predict` has a run, from which it takes nearly everything else."""
    if settings.run is None:
        wrong = "not given, but mode=predict needs it"
        advice = "Name the folder of a finished run: run=outputs/cola/20261123-171336"
        yield Problem("run", wrong, advice, involves=("mode",))
    for key in _changed_keys(settings):
        if key not in _FOR_PREDICTION:
            wrong = "mode=predict takes this from the run"
            yield Problem(key, wrong, f"Leave {key} out.", involves=("mode",))


def keys_of_other_modes(settings: Settings) -> Iterator[Problem]:
    """Keys that only another mode has a use for."""
    for key in _changed_keys(settings):
        mode = _MODE_OF.get(key.partition(".")[0], settings.mode)
        if mode != settings.mode:
            wrong = f"only mode={mode} has a use for this, and mode is {settings.mode}"
            advice = f"Leave {key} out, or take mode={mode}."
            yield Problem(key, wrong, advice, involves=("mode",))


def check_search(settings: Settings) -> Iterator[Problem]:
    """What is searched can be searched."""
    if settings.mode == "search":
        _, problems = settings.search_space()
        for problem in problems:
            yield replace(problem, involves=("mode", *problem.involves))


def check_study(settings: Settings) -> Iterator[Problem]:
    """A study has something to compare, given once, and one trainer."""
    if settings.mode != "study":
        return
    study = settings.study
    if study.fractions is None and study.finetune_epochs is None:
        wrong = "not given, nor is study.finetune_epochs: there is nothing to compare"
        advice = "For example study.fractions=[0.01,0.1,1.0], or study.finetune_epochs=[0,0.3,1]"
        involved = ("mode", "study.finetune_epochs")
        yield Problem("study.fractions", wrong, advice, involves=involved)
    for group, name, of_study in (
        ("data", "train_fraction", "fractions"),
        ("finetune", "epochs", "finetune_epochs"),
    ):
        is_given = name in getattr(settings, group).model_fields_set
        if is_given and getattr(study, of_study) is not None:
            key, wrong = f"{group}.{name}", f"study.{of_study} says this already"
            yield Problem(key, wrong, f"Leave {key} out.", involves=("mode", f"study.{of_study}"))


def check_data(settings: Settings) -> Iterator[Problem]:
    """A task of the user's own names its data and runs alone; other tasks know their columns."""
    data, tasks = settings.data, settings.tasks
    if "custom" in tasks and len(tasks) > 1:
        wrong = "custom cannot share a run with other tasks, for the data keys are those of one"
        yield Problem("task", wrong, "Run task=custom by itself.")
    elif "custom" in tasks:
        for name, need in _CUSTOM_NEEDS.items():
            if getattr(data, name) is None:
                wrong = "not given, but task=custom needs it"
                yield Problem(f"data.{name}", wrong, f"Name {need}", involves=("task",))
    else:
        for name in ("text_columns", "label_column"):
            if getattr(data, name) is not None:
                wrong = "only for task=custom: the columns of other tasks are fixed"
                yield Problem(f"data.{name}", wrong, f"Leave data.{name} out.", involves=("task",))
        if data.no_label != "refuse":
            wrong = "only for task=custom: the labels of other tasks are known"
            yield Problem("data.no_label", wrong, "Leave data.no_label out.", involves=("task",))
        if tasks == ("demo",) and data.path is not None:
            wrong = "the demo task is generated and reads no data"
            advice = "Leave data.path out, or take task=custom for data of your own."
            yield Problem("data.path", wrong, advice, involves=("task",))


def keys_without_effect(settings: Settings) -> Iterator[Problem]:
    """Values that the run which is asked for could do nothing with."""
    mode = settings.mode
    on_backbone = mode == "search" and settings.search.target == "backbone"
    if settings.finetune.epochs == 0 and (on_backbone or mode == "finetune"):
        what = "a search of the fine-tuning" if on_backbone else "mode=finetune"
        wrong, advice = f"{what} with 0 epochs would do nothing", "Give finetune.epochs a number"
        involved = ("mode", "search.target")
        yield Problem("finetune.epochs", wrong, f"{advice} above 0.", involves=involved)
    one_trainer = {
        "train": "mode=train fits one head, and one head is held by one trainer",
        "study": "all heads of a stream of a study are held by one trainer",
    }
    if settings.train.num_trainers > 1 and mode in one_trainer:
        advice = "Leave train.num_trainers out."
        yield Problem("train.num_trainers", one_trainer[mode], advice, involves=("mode",))
    default = type(settings.plan).model_fields["network_gbps"].default
    if mode == "plan" and settings.plan.nodes == 1 and settings.plan.network_gbps != default:
        wrong = "within one node nothing crosses a network, and plan.nodes is 1"
        advice = "Leave plan.network_gbps out, or give more nodes."
        yield Problem("plan.network_gbps", wrong, advice, involves=("plan.nodes",))


_POOLS = "answers of {task} are spans of tokens: its heads keep them all and pool none"
_ONE_TOKEN = "answers of {task} are spans of tokens, and this head reads the first token alone"
_LEAVE_OUT = "Leave {key} out."
_OTHER_KINDS = "Take adapter_pooler, scalar_mix or mean_layers."
_OTHER = "Leave cls out of {key}."


def check_spans(settings: Settings) -> Iterator[Problem]:
    """Windows move on, and heads keep their tokens, where answers are spans of tokens."""
    data, head = settings.data, settings.head
    spans = [TASKS[name] for name in settings.tasks if name in TASKS and TASKS[name].per_token]
    if not spans:
        if data.stride is not None:
            wrong = "only squad_v2 has windows that share tokens; this run has no such task"
            yield Problem("data.stride", wrong, "Leave data.stride out.", involves=("task",))
        return
    task = spans[0]
    max_length = data.max_length or task.max_length
    stride = data.stride or task.default_stride(max_length)
    if stride is not None and stride > max_length - MIN_STEP:
        key = "data.max_length" if data.stride is None else "data.stride"
        wrong = (
            f"windows of data.max_length={max_length} tokens that share data.stride={stride} leave "
            f"less than {MIN_STEP} for the question and to move on by"
        )
        advice = "Raise data.max_length" + (" or lower data.stride." if data.stride else ".")
        involved = {"data.stride", "data.max_length", "task"} - {key}
        yield Problem(key, wrong, advice, involves=tuple(sorted(involved)))
    searched = dict(dotted_items(settings.search.space))
    kinds = searched.get("head.kind")
    for key, is_given, wrong, advice in (
        ("head.pool", head.pool != type(head).model_fields["pool"].default, _POOLS, _LEAVE_OUT),
        ("head.kind", head.kind == "cls", _ONE_TOKEN, _OTHER_KINDS),
        ("search.space.head.pool", searched.get("head.pool") is not None, _POOLS, _LEAVE_OUT),
        ("search.space.head.kind", isinstance(kinds, list) and "cls" in kinds, _ONE_TOKEN, _OTHER),
    ):
        if is_given:
            wrong, advice = wrong.format(task=task.name), advice.format(key=key)
            yield Problem(key, wrong, advice, involves=("task",))


def check_seeds(settings: Settings) -> Iterator[Problem]:
    """Several seeds are for a mode that leaves scores to compare, and they replace the one seed."""
    if settings.seeds is None:
        return
    if settings.mode == "study":
        yield Problem("seeds", "a study has its own", "Take study.seeds.", involves=("mode",))
    elif settings.mode not in ("train", "search"):
        wrong = f"mode={settings.mode} leaves no scores to compare"
        yield Problem("seeds", wrong, "Leave seeds out.", involves=("mode",))
    if "seed" in settings.model_fields_set:
        yield Problem("seed", "seeds says this already", "Leave one out.", involves=("seeds",))


def _changed_keys(settings: Settings) -> Iterator[str]:
    """The dotted keys whose values are not their defaults."""
    for name, field in type(settings).model_fields.items():
        value, default = getattr(settings, name), field.get_default(call_default_factory=True)
        members = getattr(type(value), "model_fields", None)
        if members is None and value != default:
            yield name
        for key in members or ():
            if getattr(value, key) != getattr(default, key):
                yield f"{name}.{key}"
