"""The settings of a run, and the settings of one task of it.

A default of None depends on the task; `Settings.for_task` fills it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from bertvision_stream.settings.checks import check_settings
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
from bertvision_stream.settings.schema import dotted_items
from bertvision_stream.settings.search_space import Space, resolve_space
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS, Task
from bertvision_stream.settings.types import (
    AtLeastOne,
    Fraction,
    MaxLength,
    Positive,
    RunFolders,
    Seed,
    Seeds,
    TaskChoice,
    UserPath,
)

# The tasks recommend learning rates for BERT-base; a smaller model takes larger steps.
_MINILM_LR = 1e-4
# Only the recommended hyperparameters of this are read; the rest of `custom` follows from its data.
_CUSTOM = Task(name="custom", kind="classification", text_columns=(), metrics=())


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
    output_dir: UserPath = Field(
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

    is_resolved: ClassVar[bool] = False
    """Whether every default is filled in, so that nobody can tell what the user has given."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks to run, `glue` and lists expanded, in order, none twice."""
        names = (self.task,) if isinstance(self.task, str) else self.task
        expanded = [task for name in names for task in (GLUE_TASKS if name == "glue" else (name,))]
        return tuple(dict.fromkeys(expanded))

    def problems(self) -> Iterable[Problem]:
        return check_settings(self)

    def runs(self) -> list[TaskSettings]:
        """The settings of each run: of every task, for every seed."""
        seeds = self.seeds or (self.seed,)
        return [self.for_task(name, seed=seed) for name in self.tasks for seed in seeds]

    def for_task(self, name: str, *, seed: int | None = None) -> TaskSettings:
        """Returns a copy for one task, with every default that depends on the task filled in.

        This is not for `mode=predict`, which takes the settings of a task from its run.

        Args:
            name: The name of the task.
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
        stride = task.default_stride(max_length)
        searching = self.mode == "search"
        defaults: dict[str, dict[str, Any]] = {
            "backbone": {"name": backbone},
            "data": {
                "max_length": max_length,
                "stride": stride,
                "train_fraction": task.search_fraction if searching else 1.0,
            },
            "finetune": {"lr": finetune_lr, "batch_size": task.batch_size},
            "train": {"batch_size": task.batch_size},
        }
        values = self.model_dump() | {"task": name, "seeds": None}
        for group, group_defaults in defaults.items():
            for key, default in group_defaults.items():
                if values[group][key] is None:
                    values[group][key] = default
        # What was given for the other tasks of a list is of no use to this one.
        if name == "demo":
            values["data"]["path"] = None
        if stride is None:
            values["data"]["stride"] = None
        if seed is not None:
            values["seed"] = seed
            if self.run_name is not None and self.seeds is not None:
                values["run_name"] = f"{self.run_name}-seed{seed}"
        space, _ = self.search_space(finetune_lr) if searching else ({}, [])
        values["search"]["space"] = {key: dimension.written for key, dimension in space.items()}
        if self.mode == "study":
            study = values["study"]
            study["fractions"] = study["fractions"] or (values["data"]["train_fraction"],)
            study["finetune_epochs"] = study["finetune_epochs"] or (self.finetune.epochs,)
            study["seeds"] = study["seeds"] or (values["seed"],)
            # The study itself draws its fractions, from all rows.
            values["data"]["train_fraction"] = 1.0
        return TaskSettings.model_validate(values)

    def after_search(self, name: str, *, seed: int | None = None) -> TaskSettings:
        """Returns what `for_task` does, for the training that follows a search.

        Its mode is `train`, on all training examples unless `data.train_fraction` was given.
        """
        return self.model_copy(update={"mode": "train"}).for_task(name, seed=seed)

    def search_space(self, finetune_lr: float = _MINILM_LR) -> tuple[Space, list[Problem]]:
        """What is searched, and what is wrong with it.

        Args:
            finetune_lr: The rate around which a search of the backbone varies the learning rate
                unless told otherwise; no problem depends on it.
        """
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


class ResolvedBackbone(BackboneSettings):
    """The `BackboneSettings` of one task."""

    name: str


class ResolvedData(DataSettings):
    """The `DataSettings` of one task."""

    max_length: MaxLength
    train_fraction: Fraction


class ResolvedFinetune(FinetuneSettings):
    """The `FinetuneSettings` of one task."""

    lr: Positive
    batch_size: AtLeastOne


class ResolvedTrain(TrainSettings):
    """The `TrainSettings` of one task."""

    batch_size: AtLeastOne


class TaskSettings(Settings):
    """What to run for one task, with nothing left to fill in.

    `search.space` holds all that is searched, with the dimensions that are searched by default;
    `search_space.read_space` reads it.
    """

    is_resolved: ClassVar[bool] = True

    task: str
    backbone: ResolvedBackbone
    data: ResolvedData
    finetune: ResolvedFinetune
    train: ResolvedTrain


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with their dotted keys."""
    return dict(dotted_items(values))
