"""Extraction against the model alone, and the padding that packing leaves.

The model alone is a tight loop over the same micro-batches, whose padded ids and masks are made
beforehand, and whose outputs are let go. An extractor makes them, packs the hidden states of all
layers into a block, encodes it and hands it to Ray's object store. Both are actors of one thread,
and take turns block by block.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from actors.extractor import ExtractorSpec
from benchmarks.inputs import Inputs, cluster, load_inputs, make_extractor
from benchmarks.results import ratios, table
from bertvision_stream.models.backbone import Backbone, micro_batches
from bertvision_stream.stream.blocks import TRAIN, Block, BlockKey
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.utils.devices import keep_freed_memory
from bertvision_stream.utils.torch_environment import TORCH_ENVIRONMENT

KEYS = ("backbone=minilm", "data.path=../shared/data/glue")
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TIMED = ("cola", "stsb", "rte")
BLOCKS = 12


def pass_lengths(backbone: Backbone, block: Block) -> list[np.ndarray]:
    """The lengths of the examples of each forward pass for a block, int64 [b], ascending."""
    runs = micro_batches(
        block.lengths, max_tokens=backbone.micro_batch_tokens, max_padding=backbone.max_padding
    )
    return [block.lengths[run] for run in runs]


def padded_batches(
    backbone: Backbone, corpus: Corpus, block: Block
) -> Iterator[Mapping[str, torch.Tensor]]:
    """The inputs of each forward pass for a block, as an extractor makes them, on its device."""
    ids, types = corpus.packed_tokens(block)
    first = 0
    for lengths in pass_lengths(backbone, block):
        last = first + int(lengths.sum())
        mask = np.arange(lengths[-1]) < lengths[:, None]
        yield backbone.padded_inputs(mask, ids[first:last], types[first:last])
        first = last


def count_padding(backbone: Backbone, blocks: Sequence[Block]) -> tuple[int, int, int]:
    """Returns the forward passes of blocks, their real tokens, and the padding beside these."""
    passes = [lengths for block in blocks for lengths in pass_lengths(backbone, block)]
    real = sum(int(lengths.sum()) for lengths in passes)
    return len(passes), real, sum(len(each) * int(each[-1]) for each in passes) - real


class ModelAlone:
    """An actor that runs the model on the micro-batches of some blocks, and nothing else."""

    def __init__(self, inputs: Inputs, keys: Sequence[BlockKey]):
        torch.set_num_threads(1)
        keep_freed_memory()
        backbone = make_extractor(inputs).backbone
        self._model = backbone.model
        self._batches = {
            key: list(padded_batches(backbone, inputs.corpus, inputs.corpus.block(key)))
            for key in keys
        }

    @torch.inference_mode()
    def run(self, key: BlockKey) -> None:
        for batch in self._batches[key]:
            self._model(**batch)


def _compare(inputs: Inputs, repeats: int) -> tuple[float, float, list[float]]:
    """Tokens a second of the model alone and of an extractor, and their ratio in each turn."""
    blocks = inputs.corpus.blocks[TRAIN]
    chosen = np.random.default_rng(0).permutation(len(blocks))[:BLOCKS]
    keys = [blocks[i].key for i in chosen]
    tokens = sum(blocks[i].num_tokens for i in chosen)
    spec = ExtractorSpec(
        run="benchmark",
        weights=ray.put(inputs.weights),
        corpus=ray.put(inputs.corpus),
        codec=inputs.settings.extract.codec,
        dtype=inputs.settings.backbone.dtype,
        num_cpus=0,
        num_gpus=0,
        num_threads=1,
    )
    extractor: Any = spec.start(0)
    environment = {"env_vars": TORCH_ENVIRONMENT}
    actor: Any = ray.remote(ModelAlone).options(num_cpus=0, runtime_env=environment)
    model = actor.remote(inputs, keys)
    alone, extracted = [], []
    for repeat in range(repeats + 1):  # the first turn warms up
        seconds = [0.0, 0.0]
        for key in keys:
            start = time.perf_counter()
            ray.get(model.run.remote(key))
            middle = time.perf_counter()
            _, receipt = extractor.extract.remote(key)
            ray.get(receipt)
            seconds[0] += middle - start
            seconds[1] += time.perf_counter() - middle
            del _, receipt
        if repeat:
            alone.append(seconds[0])
            extracted.append(seconds[1])
    for handle in (extractor, model):
        ray.kill(handle)
    medians = statistics.median(alone), statistics.median(extracted)
    return tokens / medians[0], tokens / medians[1], ratios(alone, extracted)


def measure(repeats: int) -> list[str]:
    """Lines of Markdown."""
    speeds = []
    with cluster():
        for task in TIMED:
            alone, extracted, shares = _compare(load_inputs([f"task={task}", *KEYS]), repeats)
            spread = f"{min(shares):.3f} to {max(shares):.3f}"
            share = f"{statistics.median(shares):.3f} ({spread})"
            speeds.append([task, f"{alone:,.0f}", f"{extracted:,.0f}", share])
    paddings = []
    for task in TASKS:
        inputs = load_inputs([f"task={task}", *KEYS])
        blocks = [block for split in inputs.corpus.blocks.values() for block in split]
        _, real, padded = count_padding(make_extractor(inputs).backbone, blocks)
        paddings.append([task, f"{real:,}", f"{padded:,}", f"{padded / real:.2%}"])
    return [
        "Tokens a second of one thread: the model alone, in a tight loop over micro-batches made "
        "beforehand, and an extractor, up to the block in the object store.",
        "",
        *table(
            ["task", "model alone", "extractor", "extractor / model alone (lowest to highest)"],
            speeds,
        ),
        "",
        "Padding that forward passes compute, over all blocks of a task:",
        "",
        *table(["task", "real tokens", "padded beside them", "share of real tokens"], paddings),
    ]
