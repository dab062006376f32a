"""What each task of a run begins with: its settings, its rows, and where its backbone is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.models.sources import locate
from bertvision_stream.modes.planned_backbone import find_planned

if TYPE_CHECKING:
    from bertvision_stream.modes.planned_backbone import PlannedBackbone
    from bertvision_stream.settings.settings import Settings, TaskSettings


@dataclass(frozen=True)
class TaskInputs:
    """A task's settings and rows, and where its backbone is; for `mode=plan`, what is known of it.

    Attributes:
        settings: The settings of the task.
        data: The rows of the task.
        source: The folder or the hub id of the backbone; empty for `mode=plan`.
        planned: What is known of the backbone, for `mode=plan` alone.
        after_search: The settings of the training that follows a search, for `mode=search` alone.
    """

    settings: TaskSettings
    data: TaskData
    source: str
    planned: PlannedBackbone | None = None
    after_search: TaskSettings | None = None


def read_all_inputs(settings: Settings) -> list[TaskInputs]:
    """The inputs of every run; seeds of a task share its rows, unless these are drawn by the seed.

    Raises:
        DataError: The rows of a task cannot be found or used.
        BackboneError: The backbone cannot be found.
    """
    found: list[TaskInputs] = []
    for each in settings.runs():
        last = found[-1] if found else None
        same_task = last is not None and last.settings.task == each.task
        drawn = each.task == "custom" or each.data.train_fraction < 1
        if last is not None and same_task and not drawn:
            inputs = replace(last, settings=each)
        else:
            inputs = read_inputs(each)
        if settings.mode == "search":
            after = settings.after_search(each.task, seed=each.seed)
            inputs = replace(inputs, after_search=after)
        found.append(inputs)
    return found


def inputs_after_search(after: TaskSettings, best: TaskSettings) -> TaskInputs:
    """The inputs of the training that follows a search.

    Its rows are drawn with the seed of the run, as those of the trials were, and not with the best
    trial's, which is that of its fine-tuning: that one is found again, and the rows held out stay
    the same.

    Args:
        after: Its settings but for what was searched.
        best: The same with the best values.

    Raises:
        DataError: The rows cannot be found or used.
        BackboneError: The backbone cannot be found.
    """
    return replace(read_inputs(after), settings=best)


def read_inputs(settings: TaskSettings) -> TaskInputs:
    """Read the rows and find the backbone, without torch and Ray.

    Raises:
        DataError: The rows cannot be found or used.
        BackboneError: The backbone cannot be found.
    """
    if settings.mode == "plan":
        planned = find_planned(settings)
        return TaskInputs(settings, load_task_data(settings), "", planned)
    source = locate(settings.backbone.name, settings.backbone.revision)
    return TaskInputs(settings, load_task_data(settings), source)
