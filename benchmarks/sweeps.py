"""What a later epoch of a stream costs, with one setting varied at a time.

    python -m benchmarks.sweeps [--repeats N] [key=value ...]

Cache share, extractors, length of examples, block size and codec; each variant is a stream of its
own with one head, and the variants of a sweep take turns. And a full cache over ten epochs against
what cannot be spared: one extraction, and ten epochs of the head on blocks that lie in its memory.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ray

from actors.cluster import connect
from benchmarks.cache_sweep import HeadAlone
from benchmarks.inputs import Inputs, load_inputs, run_streamed
from benchmarks.processes import cpu_seconds
from benchmarks.results import ratios, with_spread
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.utils.units import format_bytes

DEFAULTS = (
    "task=rte",
    "backbone=minilm",
    "data.path=../shared/data/glue",
    "data.train_fraction=0.5",
)
EPOCHS = 3
MANY_EPOCHS = 10
BLOCK_TOKENS = 2048


@dataclass(frozen=True)
class Variant:
    """One stream: settings beside the common ones, share of its bytes that is kept, block size."""

    label: str
    keys: tuple[str, ...] = ()
    cached: float = 0.0
    block_tokens: int = BLOCK_TOKENS


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
    """Later epochs of a variant, and facts that are the same in all of them."""

    tokens: int = 0
    extracted: int = 0
    peak_bytes: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, inputs: Inputs, cached: float) -> None:
        """Run the stream once more."""
        cpu: list[float] = []

        def keep(checkpoint: Checkpoint) -> None:
            cpu.append(cpu_seconds())

        plan, outcome = run_streamed(inputs, cache=int(inputs.epoch_bytes * cached), keep=keep)
        later = plan.num_epochs - 1
        self.tokens = sum(plan.block_tokens.values())
        self.extracted = (outcome.stats.tokens_extracted - self.tokens) // later
        self.peak_bytes = outcome.stats.peak_bytes
        self.wall.append(sum(outcome.epoch_seconds[1:]) / later)
        self.cpu.append((cpu[-1] - cpu[0]) / later)


def sweep(title: str, variants: Sequence[Variant], repeats: int, keys: Sequence[str]) -> list[str]:
    """A table, of which the first variant is what the others are compared with."""

    @cache
    def inputs_of(variant: Variant) -> Inputs:
        options = [*keys, f"train.epochs={EPOCHS}", *variant.keys]
        return load_inputs(options, block_tokens=variant.block_tokens)

    samples = {variant: Samples() for variant in variants}
    for repeat in range(repeats):
        for variant, its_samples in samples.items():
            its_samples.add(inputs_of(variant), variant.cached)
            print(f"{title}, {variant.label}, turn {repeat + 1}", file=sys.stderr, flush=True)
    first = next(iter(samples.values()))
    lines = [
        f"| {title} | tokens a second | time of a token, ratio | CPU time of a token, ratio "
        "| tokens extracted | most bytes at once |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for variant, its in samples.items():
        tokens = first.tokens / its.tokens
        wall = tokens * statistics.median(ratios(its.wall, first.wall))
        cpu = tokens * statistics.median(ratios(its.cpu, first.cpu))
        lines.append(
            f"| {variant.label} | {its.tokens / statistics.median(its.wall):,.0f} "
            f"| {wall:.2f} | {cpu:.2f} "
            f"| {its.extracted:,} | {format_bytes(its.peak_bytes)} |"
        )
    return lines


def measure(repeats: int, keys: Sequence[str] = DEFAULTS) -> list[str]:
    """Lines of markdown."""
    lines = [
        f"A later epoch of a stream with one head, mean of {EPOCHS - 1}; the first line of each "
        "table is what the others are compared with."
    ]
    connect(None)
    for title, variants in SWEEPS.items():
        lines += ["", *sweep(title, variants, repeats, keys)]
    ray.shutdown()
    return lines


def measure_full_cache(repeats: int, keys: Sequence[str] = DEFAULTS) -> list[str]:
    """Lines of markdown."""
    inputs = load_inputs([*keys, f"train.epochs={MANY_EPOCHS}"])
    connect(None)
    streamed: list[float] = []
    floor: list[float] = []
    extraction: list[float] = []
    for repeat in range(repeats):
        _, outcome = run_streamed(inputs, cache=inputs.epoch_bytes)
        streamed.append(outcome.seconds)
        cores = int(ray.cluster_resources()["CPU"])
        alone: Any = ray.remote(HeadAlone).options(num_cpus=0).remote(inputs, cores)
        extraction.append(ray.get(alone.extraction_seconds.remote()))
        ray.get(alone.start.remote())
        heads = [ray.get(alone.run_epoch.remote())[0] for _ in range(MANY_EPOCHS)]
        floor.append(extraction[-1] + sum(heads))
        ray.kill(alone)
        print(f"full cache, turn {repeat + 1}", file=sys.stderr, flush=True)
    ray.shutdown()
    return [
        f"{MANY_EPOCHS} epochs with all blocks kept: {statistics.median(streamed):.1f} s. One "
        "extraction in one process with all cores "
        f"({statistics.median(extraction):.1f} s), and then the epochs of the head alone on blocks "
        f"in its memory: {statistics.median(floor):.1f} s. Ratio, median and range: "
        f"{with_spread(ratios(streamed, floor))}."
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("keys", nargs="*", default=list(DEFAULTS), help="settings")
    options = parser.parse_args()
    for part in (measure, measure_full_cache):
        print("\n".join(part(options.repeats, options.keys)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
