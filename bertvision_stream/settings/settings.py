"""The settings of a run, and the settings of one task of it.

Defaults of None that depend on the task are filled in by `Settings.for_task`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from bertvision_stream.settings.checks import MAX_DEFAULT_STRIDE, check_spans, check_study
from bertvision_stream.settings.groups import (
    BackboneSettings,
    DataSettings,
    EvaluateSettings,
    ExportSettings,
    ExtractSettings,
    FinetuneSettings,
    HeadSettings,
    PlanSettings,
    PredictSettings,
    RaySettings,
    SearchSettings,
    SettingsGroup,
    StreamSettings,
    StudySettings,
    TrainSettings,
    default_means,
)
from bertvision_stream.settings.problems import Problem
from bertvision_stream.settings.search_space import Space, resolve_space
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS, Task
from bertvision_stream.settings.types import (
    TASKS_IN_WORDS,
    AtLeastOne,
    Fraction,
    MaxLength,
    Positive,
    RunFolders,
    Seed,
    Seeds,
    TaskChoice,
    raise_problems,
)

_MINILM_LR = 1e-4  # Fine-tuning rate for a small model; the tasks' own rates are for BERT.
# Here for its recommended hyperparameters; what else `custom` is, its data tell.
_CUSTOM = Task(name="custom", kind="classification", text_columns=(), metrics=())
# What mode=predict does not take from its run.
_FOR_PREDICTION = ("task", "mode", "run", "output_dir", "run_name", "data.path", "predict.source")
_CUSTOM_NEEDS = {
    "path": "a csv, jsonl or parquet file, or a folder of them: data.path=reviews.csv",
    "text_columns": "the column of the texts, or a pair of them: data.text_columns=title",
    "label_column": "the column of the labels: data.label_column=stars",
}


class Settings(SettingsGroup):
    """What to run."""

    task: TaskChoice = Field(
        default=(),
        description="What to learn.",
        json_schema_extra=default_means(
            "none; only mode=predict does without, as its run knows the task"
        ),
    )
    mode: Literal["train", "search", "finetune", "predict", "plan", "study"] = Field(
        default="train",
        description="train fits a head; search tries many and trains the best; finetune stops "
        "after the backbone's fine-tuning; predict scores new rows (data.path) with a finished "
        "run; plan says what a run would cost; study compares amounts of data or fine-tuning.",
    )
    run: RunFolders | None = Field(
        default=None,
        description="For mode=predict: the run that has learned. Of several, each scores the rows "
        "of its task.",
        json_schema_extra=default_means("none"),
    )
    seed: Seed = Field(default=42, description="Seed of everything random.")
    seeds: Seeds | None = Field(
        default=None,
        description="Run each task once for each of these seeds, in place of seed: the table at "
        "the end has means and standard deviations.",
        json_schema_extra=default_means("none"),
    )
    output_dir: str = Field(
        default="outputs", description="Folder of results: output_dir/TASK/RUN_NAME/ for each task."
    )
    run_name: str | None = Field(
        default=None,
        pattern=r"^\w[\w.-]*$",
        description="Name of the folder of this run.",
        json_schema_extra=default_means("made up")
        | {"allowed": "a folder name of letters, digits, dots, dashes and underscores"},
    )
    resume: bool = Field(
        default=False,
        description="Go on with the interrupted run of the same settings, if there is one.",
    )
    backbone: BackboneSettings = BackboneSettings()
    data: DataSettings = DataSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    extract: ExtractSettings = ExtractSettings()
    stream: StreamSettings = StreamSettings()
    head: HeadSettings = HeadSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    predict: PredictSettings = PredictSettings()
    plan: PlanSettings = PlanSettings()
    study: StudySettings = StudySettings()
    ray: RaySettings = RaySettings()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks to run, `glue` and lists expanded, in order, none twice."""
        names = (self.task,) if isinstance(self.task, str) else self.task
        expanded = [task for name in names for task in (GLUE_TASKS if name == "glue" else (name,))]
        return tuple(dict.fromkeys(expanded))

    def runs(self) -> list[TaskSettings]:
        """The settings of each run: of every task, for every seed."""
        seeds = self.seeds or (self.seed,)
        return [self.for_task(name, seed=seed) for name in self.tasks for seed in seeds]

    def for_task(self, name: str, *, seed: int | None = None) -> TaskSettings:
        """Returns a copy for one task, every default that depends on the task filled in.

        Not for `mode=predict`, which takes them from its run.

        Args:
            name: Of the task.
            seed: One of `seeds`; None takes `seed`.

        Raises:
            ValueError: If `name` is not one of `tasks`.
        """
        if name not in self.tasks:
            raise ValueError(f"{name} is not among the tasks of this run: {', '.join(self.tasks)}")
        task = TASKS.get(name, _CUSTOM)
        backbone = self.backbone.name or ("minilm" if name == "demo" else "bert-base-uncased")
        finetune_lr = _MINILM_LR if backbone == "minilm" else task.finetune_lr
        max_length = self.data.max_length or task.max_length
        searching = self.mode == "search"
        defaults: dict[str, dict[str, Any]] = {
            "backbone": {"name": backbone},
            "data": {
                "max_length": max_length,
                "stride": min(MAX_DEFAULT_STRIDE, max_length // 3) if task.per_token else None,
                "train_fraction": task.search_fraction if searching else 1.0,
            },
            "finetune": {"lr": finetune_lr, "batch_size": task.batch_size},
            "train": {"batch_size": task.batch_size},
        }
        values = self.model_dump() | {"task": name, "seeds": None}
        if seed is not None:
            values["seed"] = seed
            if self.run_name is not None and self.seeds is not None:
                values["run_name"] = f"{self.run_name}-seed{seed}"
        for group, group_defaults in defaults.items():
            for key, default in group_defaults.items():
                if values[group][key] is None:
                    values[group][key] = default
        space, _ = self._space(finetune_lr) if searching else ({}, [])
        values["search"]["space"] = {key: dimension.written for key, dimension in space.items()}
        if self.mode == "study":
            study = values["study"]
            study["fractions"] = study["fractions"] or (values["data"]["train_fraction"],)
            study["finetune_epochs"] = study["finetune_epochs"] or (self.finetune.epochs,)
            study["seeds"] = study["seeds"] or (values["seed"],)
            values["data"]["train_fraction"] = 1.0  # of these rows
        # What was for the other tasks of a list.
        if name == "demo":
            values["data"]["path"] = None
        if not task.per_token:
            values["data"]["stride"] = None
        return TaskSettings.model_validate(values)

    def after_search(self, name: str, *, seed: int | None = None) -> TaskSettings:
        """As `for_task`, for the training that follows a search.

        In `mode=train`, on all training examples unless `data.train_fraction` was given.
        """
        return self.model_copy(update={"mode": "train"}).for_task(name, seed=seed)

    def _space(self, finetune_lr: float) -> tuple[Space, list[Problem]]:
        """What is searched, and what is wrong with it."""
        groups = {"train": self.train, "head": self.head, "finetune": self.finetune}
        fixed = {
            f"{name}.{key}": getattr(group, key)
            for name, group in groups.items()
            for key in group.model_fields_set
            if getattr(group, key) is not None
        }
        return resolve_space(
            self.search.space,
            target=self.search.target,
            fixed=fixed,
            head_kind=self.head.kind,
            finetune_lr=finetune_lr,
        )

    @model_validator(mode="after")
    def _combination_fits(self) -> Settings:
        if self.mode == "predict":
            raise_problems([*self._check_prediction()])
            return self
        raise_problems(
            [
                *self._missing_keys(),
                *self._check_data(),
                *self._keys_without_effect(),
                *self._check_plan(),
                *check_spans(self.tasks, self.data, self.head, self.search),
                *self._check_search(),
                *self._check_study(),
                *self._check_seeds(),
            ]
        )
        return self

    def _missing_keys(self) -> Iterator[Problem]:
        if not self.tasks:
            wrong = f"not given; must be {TASKS_IN_WORDS}"
            yield Problem("task", wrong, "For a first look: task=demo", involves=("mode",))
        for key, value in (("run", self.run), ("predict.source", self.predict.source)):
            if value not in (None, "head"):
                wrong = f"only mode=predict has a use for this, and mode is {self.mode}"
                advice = f"Leave {key} out, or take mode=predict."
                yield Problem(key, wrong, advice, involves=("mode",))

    def _check_prediction(self) -> Iterator[Problem]:
        if self.run is None:
            wrong = "not given, but mode=predict needs it"
            advice = "Name the folder of a finished run: run=outputs/cola/20261123-171336"
            yield Problem("run", wrong, advice, involves=("mode",))
        for key in self._given():
            if key not in _FOR_PREDICTION:
                wrong = "mode=predict takes this from the run"
                yield Problem(key, wrong, f"Leave {key} out.", involves=("mode",))

    def _given(self) -> Iterator[str]:
        """The dotted keys whose values are not their defaults."""
        for name, field in Settings.model_fields.items():
            value, default = getattr(self, name), field.get_default()
            if isinstance(value, SettingsGroup):
                for key in type(value).model_fields:
                    if getattr(value, key) != getattr(default, key):
                        yield f"{name}.{key}"
            elif value != default:
                yield name

    def _check_data(self) -> Iterator[Problem]:
        if "custom" in self.tasks and len(self.tasks) > 1:
            wrong = "custom cannot share a run with other tasks, for the data keys are those of one"
            yield Problem("task", wrong, "Run task=custom by itself.")
        elif "custom" in self.tasks:
            for name, need in _CUSTOM_NEEDS.items():
                if getattr(self.data, name) is None:
                    wrong = "not given, but task=custom needs it"
                    yield Problem(f"data.{name}", wrong, f"Name {need}", involves=("task",))
        else:
            for name in ("text_columns", "label_column"):
                if getattr(self.data, name) is not None:
                    wrong = "only for task=custom: the columns of other tasks are fixed"
                    advice = f"Leave data.{name} out."
                    yield Problem(f"data.{name}", wrong, advice, involves=("task",))
            if self.tasks == ("demo",) and self.data.path is not None:
                wrong = "the demo task is generated and reads no data"
                advice = "Leave data.path out, or take task=custom for data of your own."
                yield Problem("data.path", wrong, advice, involves=("task",))

    def _keys_without_effect(self) -> Iterator[Problem]:
        on_backbone = self.mode == "search" and self.search.target == "backbone"
        if self.finetune.epochs == 0 and (on_backbone or self.mode == "finetune"):
            what = "a search of the fine-tuning" if on_backbone else "mode=finetune"
            advice = "Give finetune.epochs a number above 0."
            involved = ("mode", "search.target")
            wrong = f"{what} with 0 epochs would do nothing"
            yield Problem("finetune.epochs", wrong, advice, involves=involved)
        if self.mode == "train" and self.train.num_trainers > 1:
            wrong = "mode=train fits one head, and one head is held by one trainer"
            advice = "Leave train.num_trainers out."
            yield Problem("train.num_trainers", wrong, advice, involves=("mode",))

    def _check_plan(self) -> Iterator[Problem]:
        if self.mode == "plan":
            default = PlanSettings.model_fields["network_gbps"].default
            if self.plan.nodes == 1 and self.plan.network_gbps != default:
                wrong = "within one node nothing crosses a network, and plan.nodes is 1"
                advice = "Leave plan.network_gbps out, or give more nodes."
                yield Problem("plan.network_gbps", wrong, advice, involves=("plan.nodes",))
            return
        for name, field in PlanSettings.model_fields.items():
            if getattr(self.plan, name) != field.default:
                wrong = f"only mode=plan has a use for this, and mode is {self.mode}"
                advice = f"Leave plan.{name} out, or take mode=plan."
                yield Problem(f"plan.{name}", wrong, advice, involves=("mode",))

    def _check_seeds(self) -> Iterator[Problem]:
        if self.seeds is None:
            return
        if self.mode not in ("train", "search"):
            wrong = f"mode={self.mode} leaves no scores to compare"
            advice = "Leave seeds out."
            if self.mode == "study":
                wrong, advice = "a study has its own", "Take study.seeds."
            yield Problem("seeds", wrong, advice, involves=("mode",))
        if "seed" in self.model_fields_set:
            yield Problem("seed", "seeds says this already", "Leave one out.", involves=("seeds",))

    def _check_study(self) -> Iterator[Problem]:
        groups = {"data": self.data, "finetune": self.finetune}
        given = [
            f"{name}.{key}" for name, group in groups.items() for key in group.model_fields_set
        ]
        yield from check_study(
            self.mode, self.study, given=given, num_trainers=self.train.num_trainers
        )

    def _check_search(self) -> Iterator[Problem]:
        if self.mode == "search":
            # Any learning rate will do: it moves a default range and is at fault for nothing.
            _, problems = self._space(_MINILM_LR)
            for problem in problems:
                yield replace(problem, involves=("mode", *problem.involves))
            return
        for name, field in SearchSettings.model_fields.items():
            if getattr(self.search, name) != field.get_default(call_default_factory=True):
                wrong = f"only mode=search has a use for this, and mode is {self.mode}"
                advice = f"Leave search.{name} out, or take mode=search."
                yield Problem(f"search.{name}", wrong, advice, involves=("mode",))


class ResolvedBackbone(BackboneSettings):
    """`BackboneSettings` of one task."""

    name: str


class ResolvedData(DataSettings):
    """`DataSettings` of one task."""

    max_length: MaxLength
    train_fraction: Fraction


class ResolvedFinetune(FinetuneSettings):
    """`FinetuneSettings` of one task."""

    lr: Positive
    batch_size: AtLeastOne


class ResolvedTrain(TrainSettings):
    """`TrainSettings` of one task."""

    batch_size: AtLeastOne


class TaskSettings(Settings):
    """What to run for one task, with nothing left to fill in.

    `search.space` holds all that is searched, defaults included: `search_space.read_space`.
    """

    task: str
    backbone: ResolvedBackbone
    data: ResolvedData
    finetune: ResolvedFinetune
    train: ResolvedTrain

    def _check_search(self) -> Iterator[Problem]:
        yield from ()  # They were found before defaults and given values became one.

    def _check_study(self) -> Iterator[Problem]:
        yield from ()  # Likewise.


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
