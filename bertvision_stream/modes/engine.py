"""The interfaces through which modes compute: an engine that runs jobs, and a runtime around it.

A mode is handed an engine or a runtime, and does not know whether Ray is behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bertvision_stream.models.backbone import BackboneWeights
    from bertvision_stream.models.finetune import FinetuneOptions
    from bertvision_stream.models.job import Job, PlannedJob
    from bertvision_stream.models.prepare import FinetuneResult
    from bertvision_stream.report.records import SearchSummary
    from bertvision_stream.settings.settings import TaskSettings
    from bertvision_stream.stream.placement import ClusterResources
    from bertvision_stream.training.checkpoint import Checkpoint
    from bertvision_stream.training.head_job import HeadJob
    from bertvision_stream.training.outcome import StreamOutcome


def ignore_checkpoint(checkpoint: Checkpoint) -> None:
    """Keep no checkpoint; the default of `Engine.run`."""


class Engine(Protocol):
    """Fine-tunes, extracts and trains: `RayEngine` with actors, `LocalEngine` in this process."""

    def resources(self) -> ClusterResources:
        """The resources that the engine can use."""

    def fine_tune(
        self, job: PlannedJob, weights: BackboneWeights, options: FinetuneOptions
    ) -> FinetuneResult:
        """Fine-tune a classifier on the training split of the job, and evaluate it.

        Args:
            job: The task, with its corpus and the resources of the cluster.
            weights: The weights to begin with.
            options: The hyperparameters.

        Raises:
            StreamError: The fine-tuning failed.
        """

    def run(
        self,
        job: Job,
        heads: Mapping[str, HeadJob],
        *,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[Checkpoint], None] = ignore_checkpoint,
    ) -> StreamOutcome:
        """Stream all epochs of the job to the heads.

        Args:
            job: The task, ready to have heads trained on it.
            heads: What each head is and learns from, by its name.
            checkpoint: The state to resume from; None starts the heads.
            on_epoch: Called after each epoch with the state to resume from.

        Raises:
            StreamError: A block could not be made, or an actor could not be started or died too
                often.
        """


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        settings: The settings of the training that follows, with the best values.
        head_seed: The seed of its head, the one that initialised the best head; it may differ from
            that of the settings.
        summary: What the report says about the search.
    """

    settings: TaskSettings
    head_seed: int
    summary: SearchSummary


class Runtime(Protocol):
    """What the command line hands to the modes, so that they import neither `actors` nor `tune`."""

    def start_engine(self, address: str | None) -> Engine:
        """Start the engine.

        Args:
            address: `ray.address`.

        Raises:
            ConfigError: There is no cluster at the address.
        """

    def planned_cluster(self, settings: TaskSettings) -> ClusterResources:
        """The resources that `mode=plan` plans for, with no actor started.

        Args:
            settings: `ray.address`, `plan.nodes` and `plan.store`.
        """

    def search(self, job: Job, after: TaskSettings, folder: Path, *, resume: bool) -> SearchResult:
        """Run the trials of a search, write their analysis and pick the best.

        Args:
            job: The task, with the rows that a search takes.
            after: The settings of the training that follows, without the values that are searched.
            folder: The folder of the run.
            resume: Whether to resume an interrupted search.

        Raises:
            SearchError: All trials failed or diverged, or the search itself failed.
            StreamError: A block could not be made, or an actor died again and again.
        """

    def stop(self) -> None:
        """End the cluster that was started, or leave the one that was joined."""
