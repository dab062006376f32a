"""Extraction against the model alone, and the padding that packing leaves.

    python -m benchmarks.extraction [--repeats N] [key=value ...]

The model alone is a tight loop over the same micro-batches, whose padded ids and masks are made
beforehand, and whose outputs are let go. An extractor makes them, packs the hidden states of all
layers into a block, encodes it and hands it to Ray's object store. Both are actors of one thread,
and take turns block by block.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from actors.cluster import connect
from actors.extractor import ExtractorSpec
from benchmarks.inputs import Inputs, load_inputs, make_extractor
from bertvision_stream.models.backbone import MICRO_BATCH_TOKENS, micro_batches
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.utils.devices import keep_freed_memory
from bertvision_stream.utils.torch_environment import TORCH_ENVIRONMENT

DEFAULTS = ("backbone=minilm", "data.path=../shared/data/glue")
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TIMED = ("cola", "stsb", "rte")
BLOCKS = 12


class ModelAlone:
    """An actor that runs the model on the micro-batches of some blocks, and nothing else."""

    def __init__(self, inputs: Inputs, keys: Sequence[BlockKey]):
        torch.set_num_threads(1)
        keep_freed_memory()
        backbone = make_extractor(inputs).backbone
        self._model = backbone.model
        self._batches = {}
        for key in keys:
            block = inputs.corpus.block(key)
            ids, types = inputs.corpus.packed_tokens(block)
            first, batches = 0, []
            for run in micro_batches(block.lengths, max_tokens=backbone.micro_batch_tokens):
                lengths = block.lengths[run]
                last = first + int(lengths.sum())
                mask = np.arange(lengths[-1]) < lengths[:, None]
                batches.append(backbone.padded_inputs(mask, ids[first:last], types[first:last]))
                first = last
            self._batches[key] = batches

    @torch.inference_mode()
    def run(self, key: BlockKey) -> None:
        for batch in self._batches[key]:
            self._model(**batch)


def padding(inputs: Inputs) -> tuple[int, int]:
    """Real tokens of all blocks, and padded ones that are computed beside them."""
    real = padded = 0
    for split in inputs.corpus.blocks.values():
        for block in split:
            for run in micro_batches(block.lengths, max_tokens=MICRO_BATCH_TOKENS["cpu"]):
                lengths = block.lengths[run]
                real += int(lengths.sum())
                padded += int(lengths[-1]) * len(lengths) - int(lengths.sum())
    return real, padded


def compare(inputs: Inputs, repeats: int) -> tuple[float, float, list[float]]:
    """Tokens a second of the model alone and of an extractor, and the ratio in each turn."""
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
    ratios = [a / e for a, e in zip(alone, extracted, strict=True)]
    return tokens / statistics.median(alone), tokens / statistics.median(extracted), ratios


def measure(repeats: int, keys: Sequence[str] = DEFAULTS) -> list[str]:
    """Lines of markdown."""
    lines = [
        "Tokens a second of one thread: the model alone, in a tight loop over micro-batches made "
        "beforehand, and an extractor, up to the block in the object store.",
        "",
        "| task | model alone | extractor | extractor / model alone (lowest to highest) |",
        "|---|---:|---:|---:|",
    ]
    connect(None)
    for task in TIMED:
        alone, extracted, ratios = compare(load_inputs([f"task={task}", *keys]), repeats)
        lines.append(
            f"| {task} | {alone:,.0f} | {extracted:,.0f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    ray.shutdown()
    lines += [
        "",
        "Padding that forward passes compute, over all blocks of a task:",
        "",
        "| task | real tokens | padded beside them | share of real tokens |",
        "|---|---:|---:|---:|",
    ]
    for task in TASKS:
        real, padded = padding(load_inputs([f"task={task}", *keys]))
        lines.append(f"| {task} | {real:,} | {padded:,} | {padded / real:.2%} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("keys", nargs="*", default=list(DEFAULTS), help="settings")
    options = parser.parse_args()
    print("\n".join(measure(options.repeats, options.keys)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
