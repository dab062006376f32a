"""Which objective a task has: the one place where the kind of a task decides."""

from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.training.objectives.example import ExampleObjective
from bertvision_stream.training.objectives.span import SpanObjective


def make_objective(task: Task) -> Objective:
    """The objective of a task."""
    return SpanObjective(task) if task.kind == "span" else ExampleObjective(task)
