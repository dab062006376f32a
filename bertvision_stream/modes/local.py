"""The engine that needs no Ray: extraction and training in this process, one block at a time.

It serves notebooks and small machines. The tests compare streamed results with those of this
engine: the plan, the blocks and the order of the steps are the same in every engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch

from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.finetune import FinetuneOptions, finetune
from bertvision_stream.models.job import Job, PlannedJob
from bertvision_stream.models.prepare import FinetuneResult, evaluate_classifier
from bertvision_stream.modes.engine import ignore_checkpoint
from bertvision_stream.stream.blocks import TRAIN, BlockKey, epoch_sequence
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.stream.plan import Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StoreStats, StreamStats
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining, make_training
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.outcome import StreamOutcome, StreamState, epoch_lines
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.devices import memory_bytes, pick_dtype
from bertvision_stream.utils.log import log

# The share of a machine's memory that Ray gives to its object store. This engine counts with the
# same share, so that it decides on blocks and cache as `RayEngine` would.
STORE_SHARE_OF_MEMORY = 0.3


class LocalEngine:
    """Fine-tunes, extracts and trains in this process, on a GPU where there is one."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def resources(self) -> ClusterResources:
        """The cores and the memory of this machine, and a GPU if it has any."""
        memory = memory_bytes()
        return ClusterResources(
            num_cpus=os.cpu_count() or 1,
            num_gpus=int(self._device.type == "cuda"),
            num_nodes=1,
            store_bytes=int(STORE_SHARE_OF_MEMORY * memory),
            memory_bytes=int((1 - STORE_SHARE_OF_MEMORY) * memory),
        )

    def fine_tune(
        self, job: PlannedJob, weights: BackboneWeights, options: FinetuneOptions
    ) -> FinetuneResult:
        """Fine-tune in this process, with the same numbers as `RayEngine` with one worker."""
        start = time.perf_counter()
        model = finetune(
            weights.build(),
            job.stores[TRAIN],
            make_objective(job.task),
            options,
            device=self._device,
        )
        arrays, logits = evaluate_classifier(model, job.corpus, job.task, options, self._device)
        seconds = time.perf_counter() - start
        return FinetuneResult(replace(weights, arrays=arrays), logits, seconds)

    def run(
        self,
        job: Job,
        heads: Mapping[str, HeadJob],
        *,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[Checkpoint], None] = ignore_checkpoint,
    ) -> StreamOutcome:
        """Run all epochs; see `Engine.run`. Blocks are cached as the plan's budget says."""
        began = time.perf_counter()
        settings, state = job.settings, StreamState.of(checkpoint)
        dtype = pick_dtype(settings.backbone.dtype, self._device)
        model = job.backbone.weights.build()
        backbone = Backbone(model, device=self._device, dtype=dtype, layers=job.layers)
        extractor = BlockExtractor(backbone, job.corpus, settings.extract.codec)
        blocks = CachedBlocks(extractor, job.plan, state.stats)
        training = make_training(job.corpus, job.task, heads, job.shape, device=self._device)
        if checkpoint is not None:
            training.restore(checkpoint)
        ready = epoch_start = time.perf_counter()
        log.info(
            "streaming: extraction on %s, heads on %s, in this process", *self._infos(job, training)
        )
        for records in train_in_process(blocks, training):
            seconds, epoch_start = time.perf_counter() - epoch_start, time.perf_counter()
            state = state.after_epoch(blocks.stats, seconds, active=bool(training.active))
            on_epoch(state.saved_in(training.checkpoint()))
            for line in epoch_lines(records.items(), job.task, job.plan.num_epochs):
                log.info("%s", line)
        extractor_info, trainer_info = self._infos(job, training)
        return StreamOutcome(
            heads=training.results(),
            bert_logits=training.bert_logits,
            stats=state.stats,
            budget=job.plan.budget,
            store=StoreStats(0, 0, 0),
            extractor=extractor_info,
            trainer=trainer_info,
            deaths=(),
            began=began,
            start_seconds=ready - began,
            epoch_seconds=state.epoch_seconds,
        )

    def _infos(self, job: Job, training: HeadTraining) -> tuple[DeviceInfo, DeviceInfo]:
        """What the extraction and the heads are computed on."""
        dtypes = pick_dtype(job.settings.backbone.dtype, self._device), training.dtype
        names = ("bf16" if dtype == torch.bfloat16 else "fp32" for dtype in dtypes)
        first, second = (
            DeviceInfo(self._device.type, name, "this process", job.cluster.store_bytes)
            for name in names
        )
        return first, second


class BlockSource(Protocol):
    """Makes the blocks of a corpus."""

    @property
    def corpus(self) -> Corpus:
        """The tokens, labels and blocks."""

    def extract(self, key: BlockKey) -> EncodedBlock:
        """The hidden states of a block and BERT's logits for it, encoded."""


class CachedBlocks:
    """Extracts blocks and keeps those that the budget pins, with the counts of a feature stream.

    Args:
        extractor: The extractor of the blocks.
        plan: The plan, which says how large each block is and which blocks are kept.
        stats: The totals so far, which are kept up to date.
    """

    def __init__(self, extractor: BlockExtractor, plan: StreamPlan, stats: StreamStats):
        self.corpus = extractor.corpus
        self.stats = stats
        stats.reset_held_blocks()
        self._extractor = extractor
        self._plan = plan
        self._kept: dict[BlockKey, EncodedBlock] = {}
        self._passing_bytes = 0  # those of the last block, if it is not kept
        self._delivered = 0

    def extract(self, key: BlockKey) -> EncodedBlock:
        """The block, from the cache or by a forward pass; the block before it no longer counts."""
        epoch = self._delivered // len(self._plan.block_bytes)
        self._delivered += 1
        if self._passing_bytes:
            self.stats.drop(self._passing_bytes, kept=False)
            self._passing_bytes = 0
        if key in self._kept:
            self.stats.blocks_from_cache += 1
            return self._kept[key]
        num_bytes = self._plan.block_bytes[key]
        self.stats.hold(num_bytes)
        start = time.perf_counter()
        block = self._extractor.extract(key)
        seconds = time.perf_counter() - start
        self.stats.count_extracted(epoch, self._plan.block_tokens[key], seconds)
        if key in self._plan.budget.pinned:
            self._kept[key] = block
            self.stats.keep(num_bytes)
        else:
            self._passing_bytes = num_bytes
        return block


def train_in_process(
    blocks: BlockSource, training: HeadTraining
) -> Iterator[dict[str, EpochRecord | None]]:
    """Train heads on all epochs that are left, from the position of the training on.

    Args:
        blocks: Makes the blocks, each when it is needed.
        training: The heads and their position.

    Yields:
        After each epoch the record of each head that trained in it, by name; None where the head
        diverged.
    """
    corpus = blocks.corpus
    while training.active:
        epoch = training.position.epoch
        sequence = epoch_sequence(
            len(corpus.blocks[TRAIN]), corpus.validation_keys, seed=corpus.seed, epoch=epoch
        )
        for index, key in enumerate(sequence):
            training.consume(Position(epoch, index), key, blocks.extract(key))
        yield training.end_epoch(epoch)
