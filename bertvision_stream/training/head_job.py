"""What a trainer is told of one head. Imports no torch: the feature stream passes it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertvision_stream.settings.settings import TaskSettings


@dataclass(frozen=True, eq=False)
class HeadJob:
    """A head to be trained.

    Attributes:
        settings: The settings of the head: its `head`, `train` and `seed`.
        rows: The training rows that the head learns from, int64, ascending and each of them once;
            None if it learns from all.
        with_report: Whether a report will be written of the head itself, and not only of its
            scores. A trial of a search has none, and so does without what only a report needs.
    """

    settings: TaskSettings
    rows: np.ndarray | None = None
    with_report: bool = True
