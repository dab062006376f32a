"""The actor that holds heads and trains them on delivered blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.actor import ActorHandle

from actors.cluster import on_this_node
from actors.metrics import HeadMetrics
from actors.records import DeliveryReply, EpochEnd, device_info
from bertvision_stream.stream.stats import DeviceInfo
from bertvision_stream.training.head_job import HeadJob

# Whoever holds a handle of an actor imports its module: the feature stream, which needs no torch.
if TYPE_CHECKING:
    import numpy as np

    from bertvision_stream.heads.shape import HeadShape
    from bertvision_stream.settings.tasks import Task
    from bertvision_stream.stream.blocks import BlockKey
    from bertvision_stream.stream.codecs import EncodedBlock
    from bertvision_stream.stream.plan import Position
    from bertvision_stream.training.checkpoint import Checkpoint
    from bertvision_stream.training.fit import HeadResult


class Attachment(NamedTuple):
    """A head to be held by a trainer, and where it resumes; None starts it."""

    head: HeadJob
    checkpoint: Checkpoint | None


class HeadTrainer:
    """Trains heads on blocks, in the order in which they are delivered.

    Args:
        spec: How this trainer is started.
        heads: What each head is and learns from, by its name.
        checkpoint: Where the heads resume; None starts them.
    """

    def __init__(
        self, spec: TrainerSpec, heads: Mapping[str, HeadJob], checkpoint: Checkpoint | None = None
    ):
        import torch

        from bertvision_stream.training.head_training import HeadTraining
        from bertvision_stream.training.metrics import import_metrics
        from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype

        torch.set_num_threads(1)  # they would wait for each other, and spin where cores are shared
        keep_freed_memory()
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._training = HeadTraining(
            ray.get(spec.corpus),
            spec.task,
            spec.shape,
            device=device,
            dtype=pick_dtype(spec.precision, device),
            stack_heads=spec.stack_heads,
            num_threads=spec.num_threads if device.type == "cpu" else 1,
        )
        for name, head in heads.items():
            self._training.attach(name, head)
        if checkpoint is not None:
            self._training.restore(checkpoint)
        import_metrics(spec.task.metrics)
        self._metrics = HeadMetrics(spec.tags)
        self._metrics.set_heads(self._training.fits)
        self._idle_since: float | None = None  # nobody waits before the first block

    def info(self) -> DeviceInfo:
        """Answers once the trainer is ready."""
        return device_info(self._training.device, self._training.dtype)

    def update(self, attach: Mapping[str, Attachment], detach: Iterable[str]) -> None:
        """Let heads come and go, between two epochs.

        Args:
            attach: The new heads by name; a head of the same name is replaced.
            detach: The names of the heads to let go.
        """
        for name in detach:
            self._training.detach(name)
        for name, (head, checkpoint) in attach.items():
            self._training.attach(name, head, checkpoint)
        self._metrics.set_heads(self._training.fits)

    def position(self) -> Position:
        """The next delivery that it wants."""
        return self._training.position

    def consume_all(
        self, deliveries: Sequence[tuple[Position, BlockKey]], *blocks: EncodedBlock
    ) -> list[DeliveryReply]:
        """Consume blocks, one after the other: a call costs as much for one as for several."""
        return [
            self.consume(position, key, encoded)
            for (position, key), encoded in zip(deliveries, blocks, strict=True)
        ]

    def consume(self, position: Position, key: BlockKey, encoded: EncodedBlock) -> DeliveryReply:
        """Train or evaluate on one block; when this returns, nothing of the block is kept."""
        start = time.perf_counter()
        wait_seconds = 0.0 if self._idle_since is None else start - self._idle_since
        status = self._training.consume(position, key, encoded)
        losses = {name: fit.mean_loss for name, fit in self._training.fits.items()}
        self._metrics.set_losses(losses)
        self._idle_since = time.perf_counter()
        mean_loss = sum(losses.values()) / max(len(losses), 1)
        return DeliveryReply(status, mean_loss, self._idle_since - start, wait_seconds)

    def end_epoch(self, epoch: int) -> EpochEnd:
        """Close the epoch, after its last block."""
        end = EpochEnd(self._training.end_epoch(epoch), self._training.active)
        self._idle_since = time.perf_counter()
        return end

    def checkpoint(self) -> Checkpoint:
        """The whole state between two epochs."""
        return self._training.checkpoint()

    def results(self) -> tuple[dict[str, HeadResult], dict[str, np.ndarray]]:
        """Every head's result by name, and BERT's own validation logits by split."""
        return self._training.results(), self._training.bert_logits


@dataclass(frozen=True)
class TrainerSpec:
    """How to start a head trainer, the first one and one that takes the place of a lost one.

    Attributes:
        name: The beginning of the actor's name.
        corpus: A ref of the `Corpus`.
        task: What is learned.
        shape: What heads read and write.
        precision: `train.precision`.
        stack_heads: `train.stack_heads`.
        num_gpus: The GPUs of the trainer, a fraction allowed.
        num_threads: The CPU threads for heads that are not computed together, without a GPU.
        tags: The tags of its metrics.
    """

    name: str
    corpus: ray.ObjectRef
    task: Task
    shape: HeadShape
    precision: str
    stack_heads: bool
    num_gpus: float
    num_threads: int
    tags: Mapping[str, str]

    def start(
        self, number: int, heads: Mapping[str, HeadJob], checkpoint: Checkpoint | None
    ) -> ActorHandle:
        """Start a trainer; it answers once it is ready."""
        actor: Any = ray.remote(HeadTrainer).options(
            name=f"{self.name}-{number}",
            num_cpus=0,
            num_gpus=self.num_gpus,
            # Without a GPU to look for: where the driver is, as nothing goes on without that node.
            scheduling_strategy="DEFAULT" if self.num_gpus else on_this_node(),
        )
        handle: ActorHandle = actor.remote(self, heads, checkpoint)
        return handle
