"""The inputs of each task of a run: its settings, its rows and the source of its backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bertvision_stream.data.load import find_rows, load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.heads.shape import kept_layers
from bertvision_stream.models.sources import locate, num_encoder_layers
from bertvision_stream.modes.planned_backbone import find_planned
from bertvision_stream.utils.errors import Mistakes

if TYPE_CHECKING:
    from bertvision_stream.modes.planned_backbone import PlannedBackbone
    from bertvision_stream.settings.settings import Settings, TaskSettings


@dataclass(frozen=True)
class TaskInputs:
    """The inputs of a task.

    Attributes:
        settings: The settings of the task.
        data: The rows of the task.
        source: The folder or the hub id that the backbone comes from; empty for `mode=plan`.
        planned: What is known of the backbone without its weights; for `mode=plan` only.
        after_search: The settings of the training that follows a search; for `mode=search` only.
    """

    settings: TaskSettings
    data: TaskData
    source: str
    planned: PlannedBackbone | None = None
    after_search: TaskSettings | None = None


def read_all_inputs(settings: Settings) -> list[TaskInputs]:
    """Read the inputs of all runs; those that differ only in the seed share the rows in memory.

    They do not where the seed draws the rows.

    Args:
        settings: The settings of all runs.

    Raises:
        DataError: The rows of a task cannot be found or used.
        BackboneError: The backbone cannot be found.
        UserError: Several of these, told together.
    """
    _check_paths(settings.runs())
    found: list[TaskInputs] = []
    mistakes = Mistakes()
    for each in settings.runs():
        last = found[-1] if found else None
        same_task = last is not None and last.settings.task == each.task
        # The seed draws the sample of a fraction, and the rows that task=custom holds out.
        drawn = each.task == "custom" or each.data.train_fraction < 1
        if last is not None and same_task and not drawn:
            inputs = replace(last, settings=each)
        else:
            with mistakes.noting(each.task):
                inputs = read_inputs(each)
            if mistakes:  # the rest is only looked at for further ones
                continue
        if settings.mode == "search":
            after = settings.after_search(each.task, seed=each.seed)
            inputs = replace(inputs, after_search=after)
        found.append(inputs)
    mistakes.tell()
    return found


def _check_paths(runs: list[TaskSettings]) -> None:
    """Look for all files of rows, before those of the first run are read."""
    mistakes = Mistakes()
    for each in runs:
        with mistakes.noting(each.task):
            find_rows(each)
    for each in runs if mistakes else ():
        with mistakes.noting(each.task):
            _find_backbone(each)
    mistakes.tell()


def inputs_after_search(after: TaskSettings, best: TaskSettings) -> TaskInputs:
    """Read the inputs of the training that follows a search.

    The rows are drawn with the seed of the run, as those of the trials were. The seed of the best
    trial may be another one: it belongs to the fine-tuning, which is then found again, and must not
    change which rows are held out for validation.

    Args:
        after: The settings of that training, without the values that were searched.
        best: The same settings with the best values.

    Raises:
        DataError: The rows cannot be found or used.
        BackboneError: The backbone cannot be found.
    """
    return replace(read_inputs(after), settings=best)


def read_inputs(settings: TaskSettings) -> TaskInputs:
    """Read the rows and locate the backbone of one run; this loads neither torch nor Ray.

    Args:
        settings: The settings of the run.

    Raises:
        DataError: The rows cannot be found or used.
        BackboneError: The backbone cannot be found.
        UserError: Both, told together.
    """
    mistakes = Mistakes()
    with mistakes.noting():
        source, planned = _find_backbone(settings)
    # Rows on the hub take too long to look for mistakes there when there is one already.
    if not mistakes or settings.data.path is not None:
        with mistakes.noting():
            data = load_task_data(settings)
    mistakes.tell()
    return TaskInputs(settings, data, source, planned)


def _find_backbone(settings: TaskSettings) -> tuple[str, PlannedBackbone | None]:
    """The source of the backbone and what is known of it: see `TaskInputs`.

    Raises:
        BackboneError: It cannot be found.
        ConfigError: It lacks a layer of `extract.layers`; looked for now, where that is cheap.
    """
    revision, planned = settings.backbone.revision, None
    num_layers: int | None = None
    if settings.mode == "plan":
        planned = find_planned(settings)
        source, num_layers = planned.source or "", planned.num_encoder_layers
    else:
        source = locate(settings.backbone.name, revision)
    if settings.extract.layers != "all":
        num_layers = num_layers or num_encoder_layers(source, revision)
        if num_layers is not None:
            kept_layers(num_layers + 1, settings.extract.layers)
    return "" if planned else source, planned
