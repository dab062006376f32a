"""What each kind of task is learned and judged by."""

from bertvision_stream.objectives.base import Contestants, Objective
from bertvision_stream.objectives.example import ExampleObjective
from bertvision_stream.objectives.span import SpanObjective
from bertvision_stream.tasks import Task

__all__ = ["Contestants", "Objective", "make_objective"]


def make_objective(task: Task) -> Objective:
    """The objective of a task."""
    return SpanObjective(task) if task.kind == "span" else ExampleObjective(task)
