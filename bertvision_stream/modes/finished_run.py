"""A finished run, opened by its folder: its settings and its task. This needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertvision_stream.data.custom import custom_task
from bertvision_stream.models.sources import locate_linked_backbone
from bertvision_stream.modes.run_folder import CONFIG, METRICS
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.utils.errors import ConfigError

MODEL = "model"
# The same as in models/head_config.py, which is not imported here as it loads transformers.
_MODEL_TYPE = "adapter_pooler"


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
        ConfigError: This is not the folder of a run, or its run is not finished or has no head.
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
    if source := facts.get("backbone_source"):
        locate_linked_backbone(str(folder / MODEL), source, facts.get("backbone_revision"))
    try:
        settings = TaskSettings.model_validate(config)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise _error(
            name, f"{CONFIG} holds settings that this version does not know, {where}"
        ) from error
    return FinishedRun(folder, settings, _task(settings, facts), facts["head"]["kind"])


def _task(settings: TaskSettings, model: dict[str, Any]) -> Task:
    """The task of a run; for `task=custom` with the labels in the configuration of its model."""
    if settings.task in TASKS:
        return TASKS[settings.task]
    regression = model["problem_type"] == "regression"
    names = (
        ()
        if regression
        else tuple(model["id2label"][str(i)] for i in range(len(model["id2label"])))
    )
    columns, label_column = settings.data.text_columns, settings.data.label_column
    assert columns is not None  # the settings of task=custom must name both
    assert label_column is not None
    return custom_task(names, columns, label_column)


def _read(name: str, path: Path) -> dict[str, Any]:
    """Read a file of JSON with an object in it; `name` is the folder as the user wrote it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise _error(name, f"{path} cannot be read: {error}") from error
    return content


def _error(name: str, why: str) -> ConfigError:
    """The error that says why the folder `name` cannot be opened."""
    return ConfigError(f"run={name}: {why}")
