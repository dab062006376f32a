"""Streaming and training in one process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator

from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.stream.blocks import TRAIN, epoch_sequence
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_training import HeadTraining
from bertvision_stream.training.records import EpochRecord


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
        sequence = epoch_sequence(
            len(corpus.blocks[TRAIN]), corpus.validation_keys, seed=corpus.seed, epoch=epoch
        )
        for index, key in enumerate(sequence):
            training.consume(Position(epoch, index), key, extractor.extract(key))
        yield training.end_epoch(epoch)
        epoch += 1
