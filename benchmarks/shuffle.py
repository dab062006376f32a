"""Training on blocks against a full shuffle: the scores of the same head, over several seeds.

    python -m benchmarks.shuffle [--seeds 1,2,3] [key=value ...]

Blocks: rows are permuted once, blocks are permuted and their rows too in each epoch, as in a run.
Full shuffle: every epoch draws its batches from one permutation of all rows. Everything else is
equal: hidden states (extracted once, kept in memory), initial weights, batch size, schedule.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.inputs import CPU, Inputs, load_inputs
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.stream.blocks import TRAIN, BlockKey, epoch_sequence
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.batches import Batch, OpenBlock, join
from bertvision_stream.training.fit import train_together
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining, make_training
from bertvision_stream.utils.devices import pick_dtype


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas")
    parser.add_argument("keys", nargs="*", default=["task=demo"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = load_inputs(options.keys)
    dtype = pick_dtype(inputs.settings.backbone.dtype, CPU)
    backbone = Backbone(inputs.weights.build(), device=CPU, dtype=dtype)
    scores: dict[str, list[float]] = {"blocks": [], "full shuffle": []}
    for seed in map(int, options.seeds.split(",")):
        corpus = Corpus.pack(inputs.corpus.stores, block_tokens=2048, seed=seed)
        extractor = BlockExtractor(backbone, corpus, "bf16")
        blocks = {
            b.key: extractor.extract(b.key) for split in corpus.blocks.values() for b in split
        }
        for name in scores:
            scores[name].append(_score(inputs, corpus, blocks, name, seed))
    metric = inputs.data.task.metrics[0]
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " ".join(f"{value:.4f}" for value in values)
        print(f"{name:<13} {metric} {statistics.mean(values):.4f} +- {spread:.4f}  ({each})")
    return 0


def _score(
    inputs: Inputs, corpus: Corpus, blocks: dict[BlockKey, EncodedBlock], name: str, seed: int
) -> float:
    """The headline metric after the last epoch."""
    settings = inputs.settings.model_copy(update={"seed": seed})
    training = make_training(
        corpus, inputs.data.task, {"head": HeadJob(settings)}, inputs.shape, device=CPU
    )
    fit = training.fits["head"]
    for epoch in range(settings.train.epochs):
        if name == "blocks":
            keys = epoch_sequence(len(corpus.blocks[TRAIN]), [], seed=seed, epoch=epoch)
            for index, key in enumerate(keys):
                training.consume(Position(epoch, index), key, blocks[key])
        else:
            for batch in _shuffled(training, blocks, fit.batch_size, seed, epoch):
                train_together([fit], batch)
            training.position = Position(epoch, len(corpus.blocks[TRAIN]))
        for key in corpus.validation_keys:
            training.consume(training.position, key, blocks[key])
        training.end_epoch(epoch)
    scores = fit.history[-1].scores[inputs.data.validation[0].name]
    return scores[inputs.data.task.metrics[0]]


def _shuffled(
    training: HeadTraining,
    blocks: dict[BlockKey, EncodedBlock],
    batch_size: int,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    """Batches of one permutation of all training rows."""
    corpus = training.corpus
    labels = corpus.stores[TRAIN].labels
    opened = [
        OpenBlock(
            blocks[block.key],
            block.lengths,
            labels[block.example_ids],
            device=CPU,
            dtype=training.dtype,
        )
        for block in corpus.blocks[TRAIN]
    ]
    rows = [(block, np.array([row])) for block in opened for row in range(block.num_rows)]
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    for first in range(0, len(order), batch_size):
        chosen = (rows[i] for i in order[first : first + batch_size])
        yield join([block.take(row) for block, row in chosen])


if __name__ == "__main__":
    sys.exit(main())
