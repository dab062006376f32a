"""A finished run, opened by its folder: its settings and its task. This needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, PositiveInt, ValidationError, model_validator

from bertvision_stream.data.custom import custom_task
from bertvision_stream.models.sources import locate_linked_backbone
from bertvision_stream.modes.run_folder import CONFIG, METRICS
from bertvision_stream.settings.settings import HeadSettings, TaskSettings
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import read_json

MODEL = "model"
# The same as in models/head_config.py, which is not imported here as it loads transformers.
_MODEL_TYPE = "adapter_pooler"

_WAY_OUT = "Restore that file, or train the head again."


class ModelFacts(BaseModel):
    """What is read of the configuration of an exported model before torch is loaded.

    Attributes:
        head: The settings of the head.
        max_tokens: The most tokens of an example.
        backbone_config: The configuration of the encoder.
        backbone_source: Where the backbone is; None where it is with the head.
        backbone_revision: The branch, tag or commit of a hub id.
        problem_type: None where answers are spans.
        id2label: The names of the outputs, which transformers leaves out where they are these.
    """

    head: HeadSettings
    max_tokens: PositiveInt
    backbone_config: dict[str, Any]
    backbone_source: str | None = None
    backbone_revision: str | None = None
    problem_type: Literal["regression", "single_label_classification"] | None = None
    id2label: dict[int, str] = {0: "LABEL_0", 1: "LABEL_1"}

    @model_validator(mode="after")
    def _labels_are_counted_from_0(self) -> Self:
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("the labels in id2label are not counted from 0")
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes, in order; empty for regression."""
        if self.problem_type == "regression":
            return ()
        return tuple(self.id2label[i] for i in range(len(self.id2label)))


@dataclass(frozen=True)
class FinishedRun:
    """A finished run that has exported a head.

    Attributes:
        folder: The folder of its results.
        settings: The settings of the run; of a search, those with which it began.
        task: The task that the head has learned.
        head_kind: `head.kind` of the head.
    """

    folder: Path
    settings: TaskSettings
    task: Task
    head_kind: str

    @property
    def model(self) -> Path:
        """The folder of the exported model."""
        return self.folder / MODEL


def open_finished_run(name: str) -> FinishedRun:
    """Open a finished run.

    Args:
        name: The folder of its results, as the user has written it.

    Raises:
        ConfigError: This is not the folder of a run, or its run is not finished, has no head or is
            damaged.
        BackboneError: The backbone that the head refers to does not exist any more.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise _error(name, "there is no such folder")
    if not (folder / CONFIG).is_file():
        raise _error(
            name,
            f"this is not the folder of a run, which holds {CONFIG}; runs are in "
            f"OUTPUT_DIR/TASK/RUN_NAME",
        )
    config = _read(name, folder / CONFIG)
    mode = config.get("mode")
    if mode not in ("train", "search"):
        raise _error(name, f"it was made by mode={mode}, which leaves no head")
    if not (folder / METRICS).is_file():
        raise _error(name, "it is not finished; go on with its command and resume=true")
    model = folder / MODEL / "config.json"
    facts = _read(name, model) if model.is_file() else {}
    if facts.get("model_type") != _MODEL_TYPE:
        raise _error(name, f"there is no exported model in {folder / MODEL}")
    try:
        exported = ModelFacts.model_validate(facts)
    except ValidationError as error:
        raise _error(
            name, f"{model} is damaged, or of another version: {_first(error)}. {_WAY_OUT}"
        ) from error
    if source := exported.backbone_source:
        locate_linked_backbone(str(folder / MODEL), source, exported.backbone_revision)
    try:
        settings = TaskSettings.model_validate(config)
    except ValidationError as error:
        raise _error(
            name,
            f"{CONFIG} is damaged, or holds settings that this version does not know: "
            f"{_first(error)}",
        ) from error
    return FinishedRun(folder, settings, _task(name, settings, exported), exported.head.kind)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _task(name: str, settings: TaskSettings, model: ModelFacts) -> Task:
    """The task of a run; for `task=custom` with the labels in the configuration of its model."""
    if settings.task in TASKS:
        return TASKS[settings.task]
    columns, label_column = settings.data.text_columns, settings.data.label_column
    if columns is None or label_column is None:  # the settings of task=custom must name both
        raise _error(name, f"{CONFIG} is damaged: it names no columns of text and labels")
    return custom_task(model.label_names, columns, label_column)


def _read(name: str, path: Path) -> dict[str, Any]:
    """Read a file of JSON with an object in it; `name` is the folder as the user wrote it."""
    try:
        return read_json(path, _WAY_OUT)
    except ConfigError as error:
        raise _error(name, str(error)) from error


def _error(name: str, why: str) -> ConfigError:
    """The error that says why the folder `name` cannot be opened."""
    return ConfigError(f"run={name}: {why}")
