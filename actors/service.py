"""Start the actors of a run, stream all epochs, and bring home what came of it."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.cluster import (
    TORCH_ENVIRONMENT,
    ClusterResources,
    Placement,
    StoreStats,
    store_stats,
)
from actors.extractor import ExtractorSpec
from actors.records import DeviceInfo, EpochEnd
from actors.stream import FeatureStream
from actors.trainer import HeadTrainer
from bertvision_stream.backbone import BackboneWeights
from bertvision_stream.blocks import TRAIN
from bertvision_stream.budget import Budget, max_blocks, plan_budget
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.corpus import Corpus
from bertvision_stream.errors import BertvisionError, StreamError
from bertvision_stream.fit import HeadResult
from bertvision_stream.heads import HeadShape
from bertvision_stream.plan import StreamPlan, StreamStats
from bertvision_stream.settings import TaskSettings
from bertvision_stream.tasks import Task


@dataclass(frozen=True)
class StreamOutcome:
    """What a stream leaves behind.

    Attributes:
        heads: Results by name.
        bert_logits: BERT's own validation logits by split: float32 [N, C].
        stats: Totals.
        budget: The decision on bytes.
        store: Bytes that went to disk while it ran.
        extractor: What extractors ran on.
        trainer: What trainers ran on.
        start_seconds: Until all actors were ready.
        seconds: From then to the end of the last epoch.
    """

    heads: Mapping[str, HeadResult]
    bert_logits: Mapping[str, np.ndarray]
    stats: StreamStats
    budget: Budget
    store: StoreStats
    extractor: DeviceInfo
    trainer: DeviceInfo
    start_seconds: float
    seconds: float


def plan_stream(
    settings: TaskSettings,
    corpus: Corpus,
    block_format: BlockFormat,
    *,
    num_extractors: int,
    cluster: ClusterResources,
) -> StreamPlan:
    """What is to be streamed, within which limits.

    Raises:
        ConfigError: The budget or the object store is too small.
    """
    blocks = [block for split in corpus.blocks.values() for block in split]
    block_bytes = {
        block.key: block_format.block_bytes(block.num_tokens, block.num_examples)
        for block in blocks
    }
    validation = tuple(corpus.validation_keys)
    return StreamPlan(
        seed=corpus.seed,
        num_epochs=settings.train.epochs,
        num_train=len(corpus.blocks[TRAIN]),
        validation=validation,
        block_bytes=block_bytes,
        block_tokens={block.key: block.num_tokens for block in blocks},
        budget=plan_budget(
            block_bytes,
            validation,
            num_train=len(corpus.blocks[TRAIN]),
            seed=corpus.seed,
            budget=settings.stream.budget,
            cache=settings.stream.cache,
            store_bytes=cluster.store_bytes,
            num_extractors=num_extractors,
        ),
        max_blocks=max_blocks(num_extractors),
    )


def run_stream(
    plan: StreamPlan,
    placement: Placement,
    *,
    settings: TaskSettings,
    task: Task,
    corpus: Corpus,
    weights: BackboneWeights,
    heads: Mapping[str, TaskSettings],
    shape: HeadShape,
    show_progress: bool,
    say: Callable[[str], None],
) -> StreamOutcome:
    """Start extractors, a trainer and the feature stream, run all epochs, and end the actors.

    Raises:
        StreamError: A block could not be made, an actor could not be started or was lost.
    """
    start = time.perf_counter()
    disk_before = store_stats()
    run = f"{task.name}-{uuid.uuid4().hex[:6]}"  # names of actors are unique in a job
    corpus_ref = ray.put(corpus)
    spec = ExtractorSpec(
        run=run,
        weights=ray.put(weights),
        corpus=corpus_ref,
        codec=settings.extract.codec,
        dtype=settings.backbone.dtype,
        num_cpus=placement.extractor_cpus,
        num_gpus=placement.extractor_gpus,
        num_threads=placement.extractor_threads,
    )
    trainer: Any = (
        ray.remote(HeadTrainer)
        .options(
            name=f"{run}-head-trainer",
            num_cpus=0,
            num_gpus=placement.trainer_gpus,
            runtime_env={"env_vars": TORCH_ENVIRONMENT},
        )
        .remote(corpus_ref, task, heads, shape, num_threads=placement.trainer_threads)
    )
    stream: Any = (
        ray.remote(FeatureStream)
        .options(name=f"{run}-feature-stream", num_cpus=0)
        .remote(plan, spec, placement.num_extractors, [trainer], show_progress=show_progress)
    )
    try:
        extractor_info, trainer_info = ray.get([stream.start.remote(), trainer.info.remote()])
        ready = time.perf_counter()
        say(
            f"streaming: {placement.num_extractors} extractors on {extractor_info.device} in "
            f"{extractor_info.dtype}, a head trainer on {trainer_info.device} in "
            f"{trainer_info.dtype}"
        )
        for epoch in range(plan.num_epochs):
            ends: list[EpochEnd] = ray.get(stream.run_epoch.remote(epoch))
            for line in _epoch_lines(ends, plan.num_epochs):
                say(line)
            if not any(end.active for end in ends):
                break
        seconds = time.perf_counter() - ready
        stats = ray.get(stream.stats.remote())
        results, bert_logits = ray.get(trainer.results.remote())
    except RayTaskError as error:
        if isinstance(error.cause, BertvisionError):
            raise error.cause from None
        raise StreamError(f"an actor failed: {error}") from error
    except RayActorError as error:
        raise StreamError(f"an actor was lost: {error}") from error
    finally:
        ray.kill(stream)  # extractors are its own and end with it
        ray.kill(trainer)
    disk = store_stats()
    return StreamOutcome(
        heads=results,
        bert_logits=bert_logits,
        stats=stats,
        budget=plan.budget,
        store=StoreStats(
            disk.spilled_bytes - disk_before.spilled_bytes,
            disk.fallback_bytes - disk_before.fallback_bytes,
        ),
        extractor=extractor_info,
        trainer=trainer_info,
        start_seconds=ready - start,
        seconds=seconds,
    )


def _epoch_lines(ends: Sequence[EpochEnd], num_epochs: int) -> Iterator[str]:
    """One line for each head that trained in an epoch."""
    for end in ends:
        for name, record in end.records.items():
            if record is None:
                yield f"{name}: stopped"
                continue
            scores = ", ".join(
                f"{split} {metric} {value:.4f}"
                for split, metrics in record.scores.items()
                for metric, value in metrics.items()
            )
            yield (
                f"epoch {record.epoch}/{num_epochs}: loss {record.loss:.4f}, "
                f"validation loss {record.validation_loss:.4f}, {scores}"
            )
