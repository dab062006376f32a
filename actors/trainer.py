"""The actor that holds heads and trains them on delivered blocks."""

import time
from collections.abc import Mapping

import numpy as np
import ray
import torch

from actors.records import Ack, DeviceInfo, EpochEnd
from bertvision_stream.blocks import BlockKey
from bertvision_stream.codecs import EncodedBlock
from bertvision_stream.corpus import Corpus
from bertvision_stream.fit import HeadResult
from bertvision_stream.heads import HeadShape
from bertvision_stream.settings import TaskSettings
from bertvision_stream.tasks import Task
from bertvision_stream.training import make_training


class HeadTrainer:
    """Trains heads on blocks, in the order in which they are delivered.

    Args:
        corpus: Blocks and labels, from the object store.
        task: What is learned.
        heads: Settings of each head by name: its `head`, `train` and `seed`.
        shape: What the heads read and write.
        num_threads: CPU threads of the heads' products.
    """

    def __init__(
        self,
        corpus: Corpus,
        task: Task,
        heads: Mapping[str, TaskSettings],
        shape: HeadShape,
        *,
        num_threads: int,
    ):
        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._training = make_training(corpus, task, heads, shape, device=device)
        self._idle_since: float | None = None  # nobody waits before the first block

    def info(self) -> DeviceInfo:
        """Answers once the trainer is ready."""
        dtype = "bf16" if self._training.dtype == torch.bfloat16 else "fp32"
        return DeviceInfo(self._training.device.type, dtype)

    def consume(self, epoch: int, key: BlockKey, encoded: EncodedBlock) -> Ack:
        """Train or evaluate on one block; when this returns, nothing of the block is kept."""
        start = time.perf_counter()
        wait_seconds = 0.0 if self._idle_since is None else start - self._idle_since
        self._training.consume(epoch, key, encoded)
        losses = [fit.mean_loss for fit in self._training.fits.values()]
        self._idle_since = time.perf_counter()
        return Ack(sum(losses) / len(losses), self._idle_since - start, wait_seconds)

    def end_epoch(self) -> EpochEnd:
        """Close the epoch, after its last block."""
        end = EpochEnd(self._training.end_epoch(), self._training.active)
        self._idle_since = time.perf_counter()
        return end

    def results(self) -> tuple[dict[str, HeadResult], dict[str, np.ndarray]]:
        """Every head's result by name, and BERT's own validation logits by split."""
        return self._training.results(), self._training.bert_logits
