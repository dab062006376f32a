"""Extraction: one block's tokens to its encoded hidden states, on a CPU or a GPU."""

import threading

import numpy as np
import torch

from bertvision_stream.models.backbone import Backbone
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.codecs import EncodedBlock, encode
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.utils.log import log


class BlockExtractor:
    """Runs the backbone on blocks. Safe to call from two threads, which is what keeps a GPU busy.

    On a GPU the forward pass and the encoding are queued under a lock; the copy to a pinned buffer
    runs on a stream of its own, and the caller waits for it outside the lock, while another
    caller's forward pass runs.
    """

    def __init__(self, backbone: Backbone, corpus: Corpus, codec: Codec):
        self.backbone = backbone
        self.corpus = corpus
        self.codec = codec
        self._forward = threading.Lock()
        on_gpu = backbone.device.type == "cuda"
        self._copy_stream = torch.cuda.Stream(backbone.device) if on_gpu else None

    def extract(self, key: BlockKey) -> EncodedBlock:
        """The block's hidden states and BERT's logits, encoded, in host memory."""
        block = self.corpus.block(key)
        input_ids, token_type_ids = self.corpus.packed_tokens(block)
        with self._forward:
            hidden_TLD, logits = self._forward_fitting(input_ids, token_type_ids, block.lengths)
            parts = encode(hidden_TLD, logits, self.codec)
            if self._copy_stream is None:
                return EncodedBlock(*(part.numpy() for part in parts))
            computed = torch.cuda.current_stream(self.backbone.device).record_event()
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(computed)
            pinned = []
            for part in parts:
                part.record_stream(self._copy_stream)  # not to be reused before the copy is done
                host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
                pinned.append(host.copy_(part, non_blocking=True))
            copied = self._copy_stream.record_event()
        copied.synchronize()
        return EncodedBlock(*(part.numpy() for part in pinned))

    def _forward_fitting(
        self, input_ids_T: np.ndarray, token_type_ids_T: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A forward pass whose micro-batches are halved, for good, as often as memory ends.

        The last bits of the numbers may depend on the size of micro-batches.

        Raises:
            torch.OutOfMemoryError: With the longest example alone it ends as well.
        """
        while True:
            try:
                return self.backbone.forward_packed(input_ids_T, token_type_ids_T, lengths_B)
            except torch.OutOfMemoryError:
                halved = self.backbone.micro_batch_tokens // 2
                if self.backbone.micro_batch_tokens <= lengths_B[-1]:
                    raise
                self.backbone.micro_batch_tokens = max(halved, int(lengths_B[-1]))
                log.warning(
                    "the device is out of memory: micro-batches of at most %d tokens from now on",
                    self.backbone.micro_batch_tokens,
                )
            if self.backbone.device.type == "cuda":
                torch.cuda.empty_cache()


def validation_logits(
    backbone: Backbone, corpus: Corpus, objective: Objective
) -> dict[str, np.ndarray]:
    """BERT's own logits on every validation split, float32 [R, C] as `objective` keeps them."""
    logits = {s: objective.empty_logits(corpus.stores[s]) for s in corpus.validation_splits}
    for key in corpus.validation_keys:
        block = corpus.block(key)
        _, found = backbone.forward_packed(*corpus.packed_tokens(block), block.lengths)
        rows = objective.rows(corpus.stores[key.split], block.example_ids)
        logits[key.split][rows] = found.cpu().numpy()
    return logits
