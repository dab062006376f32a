"""The engine that computes with Ray actors, on all cores and GPUs of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ray.exceptions import RayActorError

from actors.cluster import cluster_resources
from actors.finetune import run_finetune
from actors.ray_private import store_counters
from actors.stream_actors import start_stream_actors
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.finetune import FinetuneOptions
from bertvision_stream.models.job import Job, PlannedJob
from bertvision_stream.models.prepare import FinetuneResult
from bertvision_stream.modes.engine import ignore_checkpoint
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.outcome import StreamOutcome, StreamState, epoch_lines
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.log import log


class RayEngine:
    """Runs jobs on the Ray cluster that this process is connected to: see `modes.engine.Engine`."""

    def resources(self) -> ClusterResources:
        """The resources of all nodes together."""
        return cluster_resources()

    def fine_tune(
        self, job: PlannedJob, weights: BackboneWeights, options: FinetuneOptions
    ) -> FinetuneResult:
        """Fine-tune under Ray Train, on `finetune.num_workers` workers."""
        return run_finetune(job, weights, options)

    def run(
        self,
        job: Job,
        heads: Mapping[str, HeadJob],
        *,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[Checkpoint], None] = ignore_checkpoint,
    ) -> StreamOutcome:
        """Start the actors of a stream, run all epochs and end the actors; see `Engine.run`."""
        began = time.perf_counter()
        store_before = store_counters()
        state = StreamState.of(checkpoint)
        num_epochs = job.plan.num_epochs
        stream_actors = start_stream_actors(job, [heads], checkpoint=checkpoint, stats=state.stats)
        try:
            extractor, trainer = stream_actors.ready()
            start_seconds = time.perf_counter() - began
            log.info(
                f"streaming: {job.placement.num_extractors} extractors on {extractor}, "
                f"a head trainer on {trainer}"
            )
            while state.active and (epoch := len(state.epoch_seconds)) < num_epochs:
                epoch_start = time.perf_counter()
                stream_actors.run_epoch(epoch, last_epoch=num_epochs - 1)
                (end,) = stream_actors.last_ends
                state = state.after_epoch(
                    stream_actors.stats,
                    time.perf_counter() - epoch_start,
                    active=bool(end.active),
                )
                (reached,) = stream_actors.checkpoints
                assert reached is not None
                # The state is kept before the epoch is announced: whoever reads that an epoch is
                # finished can resume after it.
                on_epoch(state.saved_in(reached))
                for line in epoch_lines(end.records.items(), job.task, num_epochs):
                    log.info("%s", line)
            ((results, bert_logits),) = stream_actors.results()
        except RayActorError as error:
            raise StreamError(f"an actor was lost: {error}") from error
        finally:
            stream_actors.stop()
        return StreamOutcome(
            heads=results,
            bert_logits=bert_logits,
            stats=state.stats,
            budget=job.plan.budget,
            store=store_counters().since(store_before),
            extractor=extractor,
            trainer=trainer,
            deaths=tuple(stream_actors.deaths),
            began=began,
            start_seconds=start_seconds,
            epoch_seconds=state.epoch_seconds,
        )
