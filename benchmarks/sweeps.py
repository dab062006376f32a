"""What a later epoch of a stream costs, with one setting varied at a time.

Cache share, extractors, length of examples, block size and codec: each variant is a stream of its
own with one head, and the variants of a sweep take turns. And ten epochs with a full cache against
what cannot be spared: one extraction, and ten epochs of the head on blocks that lie in its memory.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ray
import torch

from benchmarks.inputs import (
    BLOCK_TOKENS,
    CountedBlocks,
    Inputs,
    cluster,
    load_inputs,
    make_head,
    make_job,
    run_head,
)
from benchmarks.processes import cpu_seconds
from benchmarks.results import ratios, table, turns, with_spread
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.utils.units import format_bytes

KEYS = (
    "task=rte",
    "backbone=minilm",
    "data.path=../shared/data/glue",
    "data.train_fraction=0.5",
)
EPOCHS = 3
MANY_EPOCHS = 10


@dataclass(frozen=True)
class Variant:
    """One stream: settings beside the common ones, share of its bytes that is kept, block size."""

    label: str
    keys: tuple[str, ...] = ()
    cached: float = 0.0
    block_tokens: int = BLOCK_TOKENS

    def __str__(self) -> str:
        return self.label


SWEEPS = {
    "bytes kept between epochs": [
        Variant(f"{share:.0%}", cached=share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ],
    "extractors, of one thread each": [
        Variant(str(count), (f"extract.num_extractors={count}",)) for count in (1, 2)
    ],
    "examples of at most so many tokens": [
        Variant(str(length), (f"data.max_length={length}",)) for length in (256, 128, 64, 32)
    ],
    "tokens of a block": [
        Variant(f"{tokens:,}", block_tokens=tokens) for tokens in (512, 1024, 2048, 4096, 8192)
    ],
    "codec, nothing kept": [
        Variant(codec, (f"extract.codec={codec}",)) for codec in ("bf16", "int8", "fp32")
    ],
    "codec, all kept": [
        Variant(codec, (f"extract.codec={codec}",), cached=1.0)
        for codec in ("bf16", "int8", "fp32")
    ],
}


@dataclass
class Samples:
    """The later epochs of a variant, and facts that are the same in all turns."""

    tokens: int = 0
    extracted: int = 0
    peak_bytes: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, inputs: Inputs, cached: float) -> None:
        """Run the stream once more."""
        cpu: list[float] = []
        job = make_job(inputs, cache=int(inputs.epoch_bytes * cached))
        outcome = run_head(job, on_epoch=lambda checkpoint: cpu.append(cpu_seconds()))
        later = job.plan.num_epochs - 1
        self.tokens = sum(job.plan.block_tokens.values())
        self.extracted = (outcome.stats.tokens_extracted - self.tokens) // later
        self.peak_bytes = outcome.stats.peak_bytes
        self.wall.append(sum(outcome.epoch_seconds[1:]) / later)
        self.cpu.append((cpu[-1] - cpu[0]) / later)


def measure(repeats: int) -> list[str]:
    """Lines of Markdown, a table for each sweep."""
    lines = [
        f"A later epoch of a stream with one head, mean of {EPOCHS - 1}; the first line of each "
        "table is what the others are compared with."
    ]
    with cluster():
        for title, variants in SWEEPS.items():
            lines += ["", *_sweep(title, variants, repeats)]
    return lines


def _sweep(title: str, variants: Sequence[Variant], repeats: int) -> list[str]:
    @cache
    def inputs_of(variant: Variant) -> Inputs:
        keys = [*KEYS, f"train.epochs={EPOCHS}", *variant.keys]
        return load_inputs(keys, block_tokens=variant.block_tokens)

    samples = {variant: Samples() for variant in variants}
    for variant in turns(repeats, variants):
        samples[variant].add(inputs_of(variant), variant.cached)
    first = samples[variants[0]]
    rows = []
    for variant, its in samples.items():
        tokens = first.tokens / its.tokens  # both ratios are those of a token, not of an epoch
        rows.append(
            [
                variant.label,
                f"{its.tokens / statistics.median(its.wall):,.0f}",
                f"{tokens * statistics.median(ratios(its.wall, first.wall)):.2f}",
                f"{tokens * statistics.median(ratios(its.cpu, first.cpu)):.2f}",
                f"{its.extracted:,}",
                format_bytes(its.peak_bytes),
            ]
        )
    header = [title, "tokens a second", "time of a token, ratio", "CPU time of a token, ratio"]
    return table([*header, "tokens extracted", "most bytes at once"], rows)


class HeadAlone:
    """An actor that makes all blocks and then trains the head on them, without a stream.

    It is an actor because Ray's workers have a lower priority than their driver (15 nice levels),
    and so have the actors of the stream that it is compared with.
    """

    def train(self, inputs: Inputs, num_threads: int) -> tuple[float, float]:
        """Returns the seconds of making the blocks with so many threads, and of all epochs."""
        start = time.perf_counter()
        torch.set_num_threads(num_threads)
        blocks = CountedBlocks(inputs, hold=True)
        for split in inputs.corpus.blocks.values():
            for block in split:
                blocks.extract(block.key)
        made = time.perf_counter()
        torch.set_num_threads(1)
        for _ in train_in_process(blocks, make_head(inputs)):
            pass
        return made - start, time.perf_counter() - made


def measure_full_cache(repeats: int) -> list[str]:
    """One line of Markdown."""
    inputs = load_inputs([*KEYS, f"train.epochs={MANY_EPOCHS}"])
    streamed: list[float] = []
    extraction: list[float] = []
    alone: list[float] = []
    with cluster():
        for _ in turns(repeats, ["full cache"]):
            outcome = run_head(make_job(inputs, cache=inputs.epoch_bytes))
            streamed.append(sum(outcome.epoch_seconds))
            cores = int(ray.cluster_resources()["CPU"])
            head: Any = ray.remote(HeadAlone).options(num_cpus=0).remote()
            extract_seconds, train_seconds = ray.get(head.train.remote(inputs, cores))
            extraction.append(extract_seconds)
            alone.append(extract_seconds + train_seconds)
            ray.kill(head)
    return [
        f"{MANY_EPOCHS} epochs with all blocks kept: {statistics.median(streamed):.1f} s. One "
        "extraction in one process with all cores "
        f"({statistics.median(extraction):.1f} s), and then the epochs of the head alone on blocks "
        f"in its memory: {statistics.median(alone):.1f} s. Ratio, median and range: "
        f"{with_spread(ratios(streamed, alone))}."
    ]
