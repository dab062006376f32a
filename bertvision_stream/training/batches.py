"""From blocks to training batches of exactly the batch size; what is left waits for more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bertvision_stream.stream.codecs import EncodedBlock, decode, scales_tensor, stored_tensor
from bertvision_stream.stream.corpus import packed_positions
from bertvision_stream.utils.device_copy import to_device


@dataclass(frozen=True)
class Batch:
    """Packed examples: hidden [T, L, D] in bf16 or fp32, lengths [B], labels [B] or [B, 2].

    With BERT's own logits in fp32, of every example [B, C] or of every token [T, C].
    """

    hidden_TLD: torch.Tensor
    lengths_B: torch.Tensor
    labels_B: torch.Tensor
    bert_logits: torch.Tensor


class OpenBlock:
    """An encoded block on a device, from which rows are taken.

    Args:
        encoded: The block.
        lengths_B: The number of tokens of each example of the block, int64 [B].
        labels_B: The labels of the examples, [B] or [B, 2].
        device: The device on which batches are wanted.
        dtype: The dtype of the batches' hidden states.
    """

    def __init__(
        self,
        encoded: EncodedBlock,
        lengths_B: np.ndarray,
        labels_B: np.ndarray,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        # The block goes to the device in its stored form, half or a quarter of the bytes of fp32,
        # and only the rows of a batch are decoded there.
        scales = scales_tensor(encoded)
        self._stored = to_device(stored_tensor(encoded), device)
        self._scales = None if scales is None else scales.to(device)
        self._bert_logits = encoded.logits
        self._lengths_B = lengths_B
        self._starts_B = np.cumsum(lengths_B) - lengths_B
        self._labels_B = labels_B
        self._device = device
        self._dtype = dtype

    @property
    def num_rows(self) -> int:
        """The number of examples of the block."""
        return len(self._lengths_B)

    def take(self, rows: np.ndarray) -> Batch:
        """Rows by number, as a copy: a view would keep the block's memory in the object store."""
        lengths = self._lengths_B[rows]
        positions = packed_positions(self._starts_B[rows], lengths)
        positions_T = torch.from_numpy(positions).to(self._device)
        scales = None if self._scales is None else self._scales.index_select(0, positions_T)
        of_tokens = len(self._bert_logits) != self.num_rows
        bert_logits = self._bert_logits[positions if of_tokens else rows]
        return Batch(
            decode(self._stored.index_select(0, positions_T), scales, self._dtype),
            torch.from_numpy(lengths).to(self._device),
            torch.from_numpy(self._labels_B[rows]).to(self._device),
            torch.from_numpy(bert_logits).to(self._device),
        )


class BatchCutter:
    """Cuts a stream of rows into batches of `batch_size`, across the borders of blocks.

    Yields:
        Batches of exactly `batch_size` examples; `flush` yields the smaller last one of an epoch.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._waiting: list[Batch] = []

    def push(self, block: OpenBlock, row_order: np.ndarray) -> Iterator[Batch]:
        """Take rows of a block in this order: all of its rows, or some."""
        first = 0
        while first < len(row_order):
            waiting = sum(len(part.labels_B) for part in self._waiting)
            last = min(first + self.batch_size - waiting, len(row_order))
            self._waiting.append(block.take(row_order[first:last]))
            if waiting + last - first == self.batch_size:
                yield from self.flush()
            first = last

    def flush(self) -> Iterator[Batch]:
        """The rows that wait, as one batch; nothing where none wait."""
        parts, self._waiting = self._waiting, []
        if parts:
            yield parts[0] if len(parts) == 1 else join(parts)


def join(parts: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    return Batch(
        torch.cat([part.hidden_TLD for part in parts]),
        torch.cat([part.lengths_B for part in parts]),
        torch.cat([part.labels_B for part in parts]),
        torch.cat([part.bert_logits for part in parts]),
    )
