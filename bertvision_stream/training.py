"""Heads trained side by side on one stream of blocks: what a head trainer does, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from bertvision_stream.batches import BatchCutter, OpenBlock
from bertvision_stream.blocks import TRAIN, BlockKey, epoch_sequence, row_order
from bertvision_stream.codecs import EncodedBlock
from bertvision_stream.corpus import Corpus
from bertvision_stream.devices import pick_dtype
from bertvision_stream.fit import HeadFit, HeadResult
from bertvision_stream.heads import Head, HeadShape
from bertvision_stream.results import EpochRecord
from bertvision_stream.settings import TaskSettings
from bertvision_stream.tasks import Task

if TYPE_CHECKING:  # it brings transformers, which a trainer does without
    from bertvision_stream.extract import BlockExtractor


class HeadTraining:
    """Feeds each block to every head, in the order in which the blocks come.

    Args:
        corpus: Blocks, labels and the seed of the row orders.
        fits: The heads by name.
        device: Where the heads compute.
        dtype: The dtype of the heads' products, bf16 or fp32.
    """

    def __init__(
        self,
        corpus: Corpus,
        fits: Mapping[str, HeadFit],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.corpus = corpus
        self.fits = fits
        self.device = device
        self.dtype = dtype
        self.bert_logits: dict[str, np.ndarray] = {
            split: np.full((corpus.stores[split].num_examples, 0), np.nan, dtype=np.float32)
            for split in corpus.validation_splits
        }
        # Heads with the same batch size share the batches.
        self._cutters = {fit.batch_size: BatchCutter(fit.batch_size) for fit in fits.values()}

    def consume(self, epoch: int, key: BlockKey, encoded: EncodedBlock) -> None:
        """Train on a training block, or evaluate on a validation block. Nothing of it is kept.

        Args:
            epoch: Counted from 0, as in the epoch plan.
            key: The block's name.
            encoded: Its hidden states and BERT's logits.
        """
        block = self.corpus.block(key)
        labels_B = self.corpus.stores[key.split].labels[block.example_ids]
        opened = OpenBlock(encoded, block.lengths, labels_B, device=self.device, dtype=self.dtype)
        if key.split == TRAIN:
            rows = row_order(block, seed=self.corpus.seed, epoch=epoch)
            for size, cutter in self._cutters.items():
                for batch in cutter.push(opened, rows):
                    for fit in self._active(size):
                        fit.train_batch(batch)
            for fit in self._active():
                fit.check_finite(f"in epoch {epoch + 1}, at block {key}")
            return
        self._end_training()
        self._keep_bert_logits(key.split, block.example_ids, encoded.logits)
        everything = opened.take(np.arange(opened.num_rows))
        for fit in self._active():
            fit.evaluate_batch(key.split, block.example_ids, everything)

    def end_epoch(self) -> dict[str, EpochRecord | None]:
        """Close the epoch of every head that still trains; None for one that has just failed."""
        self._end_training()
        return {name: fit.end_epoch() for name, fit in self.fits.items() if fit.active}

    def results(self) -> dict[str, HeadResult]:
        """What is left of each head."""
        return {name: fit.result() for name, fit in self.fits.items()}

    @property
    def active(self) -> bool:
        """Whether any head still trains."""
        return any(fit.active for fit in self.fits.values())

    def _active(self, batch_size: int | None = None) -> list[HeadFit]:
        return [
            fit for fit in self.fits.values() if fit.active and batch_size in (None, fit.batch_size)
        ]

    def _end_training(self) -> None:
        """The last, smaller batch of the epoch, once its training blocks are through."""
        for size, cutter in self._cutters.items():
            for batch in cutter.flush():
                for fit in self._active(size):
                    fit.train_batch(batch)

    def _keep_bert_logits(self, split: str, ids: np.ndarray, logits_BC: np.ndarray) -> None:
        if not self.bert_logits[split].shape[1]:
            shape = (len(self.bert_logits[split]), logits_BC.shape[1])
            self.bert_logits[split] = np.full(shape, np.nan, dtype=np.float32)
        self.bert_logits[split][ids] = logits_BC


def make_training(
    corpus: Corpus,
    task: Task,
    heads: Mapping[str, TaskSettings],
    shape: HeadShape,
    *,
    device: torch.device,
) -> HeadTraining:
    """Heads, optimisers and all from settings: the same in an actor and in one process.

    Args:
        corpus: Blocks and labels.
        task: What is learned.
        heads: Settings by the name of the head: `head`, `train` and `seed` of each count.
        shape: What the heads read and write.
        device: Where they compute.
    """
    fits = {
        name: HeadFit(
            Head(settings.head, shape, seed=settings.seed),
            settings.train,
            task,
            train_labels=corpus.stores[TRAIN].labels,
            validation_labels={s: corpus.stores[s].labels for s in corpus.validation_splits},
            device=device,
        )
        for name, settings in heads.items()
    }
    precision = next(iter(heads.values())).train.precision
    return HeadTraining(corpus, fits, device=device, dtype=pick_dtype(precision, device))


def train_in_process(
    extractor: BlockExtractor, training: HeadTraining
) -> Iterator[dict[str, EpochRecord | None]]:
    """The whole job in one process, each block extracted in every epoch: the oracle of the stream.

    Yields:
        The records of each epoch by head.
    """
    corpus = extractor.corpus
    epoch = 0
    while training.active:
        for key in epoch_sequence(
            len(corpus.blocks[TRAIN]), corpus.validation_keys, seed=corpus.seed, epoch=epoch
        ):
            training.consume(epoch, key, extractor.extract(key))
        yield training.end_epoch()
        epoch += 1
