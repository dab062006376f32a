"""The actor that holds heads and trains them on delivered blocks, and how it is started."""

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

# A process that holds a handle of an actor imports the actor's module. The feature stream holds
# handles of trainers and must do without torch, so that whatever imports torch is imported late.
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
    """A head that a trainer is to take up.

    Attributes:
        head: What the head is and learns from.
        checkpoint: The state from which the head resumes; None starts it.
    """

    head: HeadJob
    checkpoint: Checkpoint | None


class HeadTrainer:
    """Trains heads on blocks, in the order in which the blocks are delivered.

    Args:
        spec: How this trainer is started.
        heads: What each head is and learns from, by its name.
        checkpoint: The state from which the heads resume; None starts them.
    """

    def __init__(
        self, spec: TrainerSpec, heads: Mapping[str, HeadJob], checkpoint: Checkpoint | None = None
    ):
        import torch

        from bertvision_stream.training.head_training import HeadTraining
        from bertvision_stream.training.metrics import import_metrics
        from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype

        # Several threads of torch would wait for each other in each product, and spin meanwhile on
        # cores that extractors share. `num_threads` below is for whole heads side by side instead.
        torch.set_num_threads(1)
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
        self._idle_since: float | None = None  # None: before the first block no wait is counted

    def info(self) -> DeviceInfo:
        """What the trainer runs on; the call returns once the trainer is ready."""
        return device_info(self._training.device, self._training.dtype)

    def update(self, attach: Mapping[str, Attachment], detach: Iterable[str]) -> None:
        """Add and remove heads, between two epochs.

        Args:
            attach: The heads to add by name; a head of the same name is replaced.
            detach: The names of the heads to remove.
        """
        for name in detach:
            self._training.detach(name)
        for name, (head, checkpoint) in attach.items():
            self._training.attach(name, head, checkpoint)
        self._metrics.set_heads(self._training.fits)

    def position(self) -> Position:
        """The position of the next delivery that it has not consumed."""
        return self._training.position

    def consume_all(
        self, deliveries: Sequence[tuple[Position, BlockKey]], *blocks: EncodedBlock
    ) -> list[DeliveryReply]:
        """Consume several blocks in order; a call costs as much for one block as for several.

        Args:
            deliveries: The position and the key of each block.
            blocks: The blocks. Ray replaces refs by what they stand for only in arguments of their
                own, and not inside a list.
        """
        return [
            self.consume(position, key, encoded)
            for (position, key), encoded in zip(deliveries, blocks, strict=True)
        ]

    def consume(self, position: Position, key: BlockKey, encoded: EncodedBlock) -> DeliveryReply:
        """Train or evaluate the heads on one block.

        When this returns, the trainer keeps nothing of the block: the stream then counts its bytes
        as free.
        """
        start = time.perf_counter()
        wait_seconds = 0.0 if self._idle_since is None else start - self._idle_since
        status = self._training.consume(position, key, encoded)
        losses = {name: fit.mean_loss for name, fit in self._training.fits.items()}
        self._metrics.set_losses(losses)
        self._idle_since = time.perf_counter()
        mean_loss = sum(losses.values()) / max(len(losses), 1)
        return DeliveryReply(status, mean_loss, self._idle_since - start, wait_seconds)

    def end_epoch(self, epoch: int) -> EpochEnd:
        """Close the epoch after its last block, and report it."""
        end = EpochEnd(self._training.end_epoch(epoch), self._training.active)
        self._idle_since = time.perf_counter()
        return end

    def checkpoint(self) -> Checkpoint:
        """The whole state of the training, between two epochs."""
        return self._training.checkpoint()

    def results(self) -> tuple[dict[str, HeadResult], dict[str, np.ndarray]]:
        """The result of each head by name, and BERT's own validation logits by split."""
        return self._training.results(), self._training.bert_logits


@dataclass(frozen=True)
class TrainerSpec:
    """How to start a head trainer, be it the first or the replacement of one that died.

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
        """Start a trainer; its methods return once it is ready.

        Args:
            number: A number that no trainer of the stream has had; names of actors are unique.
            heads: What each head is and learns from, by its name.
            checkpoint: The state from which the heads resume; None starts them.
        """
        actor: Any = ray.remote(HeadTrainer).options(
            name=f"{self.name}-{number}",
            # A trainer reserves no core, but shares those of the extractors: see `Placement`.
            num_cpus=0,
            num_gpus=self.num_gpus,
            # A trainer that needs a GPU runs wherever Ray finds one. Any other runs on the node of
            # the driver: the run ends with that node anyway, so that no other node can stop it.
            scheduling_strategy="DEFAULT" if self.num_gpus else on_this_node(),
        )
        handle: ActorHandle = actor.remote(self, heads, checkpoint)
        return handle
