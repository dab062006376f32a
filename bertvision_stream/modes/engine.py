"""What runs a job: with Ray's actors, or in this process. Modes are handed one and know no more."""

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
    """Keeps no checkpoint."""


class Engine(Protocol):
    """Runs what takes time. `RayEngine` does it with actors, `LocalEngine` in this process."""

    def resources(self) -> ClusterResources:
        """The resources that there are to run on."""

    def fine_tune(
        self, job: PlannedJob, weights: BackboneWeights, options: FinetuneOptions
    ) -> FinetuneResult:
        """Fine-tune a classifier on the training split of the job, and evaluate it.

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
            checkpoint: The state to resume from; None begins anew.
            on_epoch: Called after each epoch with all that is needed to resume from there.

        Raises:
            StreamError: A block could not be made, or an actor could not be started or died too
                often.
        """


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        settings: The settings of the training that follows, the best values included.
        head: The settings of its head; their seed is that of the best head's initialisation.
        summary: What the report says of the search.
    """

    settings: TaskSettings
    head: TaskSettings
    summary: SearchSummary


class Runtime(Protocol):
    """What the command line hands to the modes, so that they import neither `actors` nor `tune`."""

    def start_engine(self, address: str | None) -> Engine:
        """Start what computes; `address` is `ray.address`.

        Raises:
            ConfigError: There is no cluster at the address.
        """

    def planned_cluster(self, settings: TaskSettings) -> ClusterResources:
        """The cluster that `mode=plan` plans for, with nothing started."""

    def search(self, job: Job, after: TaskSettings, folder: Path, *, resume: bool) -> SearchResult:
        """Run the trials of `search.*`, write their analysis and pick the best.

        Args:
            job: The task, with the rows that a search takes.
            after: The settings of the training that follows, but for what is searched.
            folder: The folder of the run.
            resume: Whether to resume an interrupted search.

        Raises:
            SearchError: All trials failed or diverged, or the search itself failed.
            StreamError: A block could not be made, or an actor died again and again.
        """

    def stop(self) -> None:
        """End what was started, or leave the cluster that was joined."""
