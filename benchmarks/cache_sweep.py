"""The cache at 0, 25, 50, 75 and 100 % of an epoch's bytes: forward passes, bytes, time, losses.

    python -m benchmarks.cache_sweep [--repeats N] [--epochs N] [key=value ...]

Later epochs are those after the first. For each size it prints the tokens that a later epoch
extracted beside those of the blocks that are not pinned, the most bytes that ever existed beside
the budget, and what a later epoch takes: the median, the shortest, and the CPU time of all
processes. The full cache is compared with the same training in one process, one thread, on blocks
that lie in its memory: after each streamed epoch comes one of those, and the ratios of such pairs
count, as a shared machine is not always as fast. That process is an actor too, as Ray's workers
have a lower priority than their driver (15 nice levels). Repeats go through all sizes again.
Anything that is not as promised ends it with an error: other losses, tokens that differ from the
prediction by more than one block, more bytes than the budget, any byte on disk.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from actors.cluster import connect
from benchmarks.inputs import CPU, Inputs, load_inputs, make_extractor, run_streamed
from benchmarks.processes import cpu_seconds
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.units import format_bytes

FULL = 100
PERCENTS = f"{FULL},75,50,25,0"


class HeldBlocks(BlockExtractor):
    """Makes every block beforehand, and holds them all."""

    def __init__(self, inputs: Inputs):
        maker = make_extractor(inputs)
        super().__init__(maker.backbone, maker.corpus, maker.codec)
        splits = inputs.corpus.blocks.values()
        self._held = {block.key: maker.extract(block.key) for split in splits for block in split}

    def extract(self, key: BlockKey) -> EncodedBlock:
        return self._held[key]


class HeadAlone:
    """An actor that trains the same head in one process, an epoch at a time, without a stream.

    Args:
        inputs: What it trains on.
        num_threads: Of making the blocks, beforehand; the head has one.
    """

    def __init__(self, inputs: Inputs, num_threads: int = 1):
        torch.set_num_threads(num_threads)
        start = time.perf_counter()
        self._blocks = HeldBlocks(inputs)
        self._extraction_seconds = time.perf_counter() - start
        torch.set_num_threads(1)
        self._inputs = inputs

    def extraction_seconds(self) -> float:
        """What making the blocks took."""
        return self._extraction_seconds

    def start(self) -> None:
        """From the first epoch, now or again."""
        inputs = self._inputs
        heads = {"head": HeadJob(inputs.settings)}
        self._training = make_training(
            inputs.corpus, inputs.data.task, heads, inputs.shape, device=CPU
        )
        self._epochs = train_in_process(self._blocks, self._training)

    def run_epoch(self) -> tuple[float, float]:
        """Seconds, and seconds of CPU time."""
        wall, cpu = time.perf_counter(), time.process_time()
        next(self._epochs)
        return time.perf_counter() - wall, time.process_time() - cpu

    def losses(self) -> list[float]:
        return [record.loss for record in self._training.results()["head"].history]


@dataclass
class Sample:
    """Later epochs: seconds of each, CPU seconds of all processes and of the trainer alone."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    trainer_cpu: list[float] = field(default_factory=list)
    facts: str = ""


def check(plan: StreamPlan, outcome: StreamOutcome, losses: list[float]) -> tuple[int, int]:
    """What was promised.

    Returns:
        Tokens that a later epoch extracts, as measured where it was furthest off, and as predicted.
    """
    predicted = sum(n for key, n in plan.block_tokens.items() if key not in plan.budget.pinned)
    by_epoch = outcome.stats.tokens_by_epoch
    later = [by_epoch.get(epoch, 0) for epoch in range(1, plan.num_epochs)]
    furthest = max(later, key=lambda tokens: abs(tokens - predicted))
    if abs(furthest - predicted) > max(plan.block_tokens.values()):
        raise SystemExit(f"tokens of later epochs: {later}, predicted: {predicted}")
    if outcome.stats.peak_bytes > plan.budget.total_bytes:
        raise SystemExit(f"{outcome.stats.peak_bytes} bytes, budget {plan.budget.total_bytes}")
    if outcome.store.spilled_bytes or outcome.store.fallback_bytes:
        raise SystemExit(f"hidden states went to disk: {outcome.store}")
    streamed = [record.loss for record in outcome.heads["head"].history]
    if streamed != losses:
        raise SystemExit(f"DIFFERENT LOSSES\nin process: {losses}\nstreamed:   {streamed}")
    return furthest, predicted


def measure(
    inputs: Inputs, cache: int, sample: Sample, head_alone: Any, alone: Sample | None
) -> None:
    """One stream; with `alone`, an epoch of the head alone follows each of its epochs."""
    cpu: list[float] = []
    trainer_cpu: list[float] = []
    cpu_then = trainer_then = 0.0

    def keep(checkpoint: Checkpoint) -> None:
        nonlocal cpu_then, trainer_then
        cpu.append(cpu_seconds() - cpu_then)
        trainer_cpu.append(cpu_seconds("trainer") - trainer_then)
        if alone is not None:
            seconds = ray.get(head_alone.run_epoch.remote())
            if len(cpu) > 1:
                alone.wall.append(seconds[0])
                alone.cpu.append(seconds[1])
        cpu_then, trainer_then = cpu_seconds(), cpu_seconds("trainer")

    if alone is not None:
        ray.get(head_alone.start.remote())
    plan, outcome = run_streamed(inputs, cache=cache, keep=keep)
    furthest, predicted = check(plan, outcome, ray.get(head_alone.losses.remote()))
    sample.wall += outcome.epoch_seconds[1:]
    sample.cpu += cpu[1:]
    sample.trainer_cpu += trainer_cpu[1:]
    sample.facts = (
        f"{furthest:>9,}  {predicted:>9,}  {format_bytes(outcome.stats.peak_bytes):>8}  "
        f"{format_bytes(plan.budget.total_bytes):>8}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--percents", default=PERCENTS, help="sizes, separated by commas; 100 too")
    parser.add_argument("keys", nargs="*", default=["task=demo"], help="settings")
    options = parser.parse_args()
    if options.repeats * (options.epochs - 1) < 2:
        parser.error("quartiles want two later epochs or more: raise --repeats or --epochs")
    inputs = load_inputs([f"train.epochs={options.epochs}", *options.keys])
    connect(None)
    head_alone: Any = ray.remote(HeadAlone).options(num_cpus=0).remote(inputs)
    alone = Sample()
    samples = {int(percent): Sample() for percent in options.percents.split(",")}
    for repeat in range(options.repeats):
        for percent, sample in samples.items():
            cache = inputs.epoch_bytes * percent // 100
            measure(inputs, cache, sample, head_alone, alone if percent == FULL else None)
            later = sample.wall[1 - options.epochs :]
            print(
                f"repeat {repeat + 1}, {percent} %: an epoch {statistics.median(later):.2f} s",
                flush=True,
            )
        print(
            f"repeat {repeat + 1}, head alone: {statistics.median(alone.wall):.2f} s "
            f"({statistics.median(alone.cpu):.2f} s CPU)",
            flush=True,
        )
    print("\n cache  extracted  predicted      peak    budget   median   ratio  shortest      CPU")
    uncached = statistics.median(samples[min(samples)].wall)
    for percent, sample in sorted(samples.items()):
        median = statistics.median(sample.wall)
        print(
            f"{percent:4} %  {sample.facts}  {median:5.2f} s  "
            f"{median / uncached:6.3f}  {min(sample.wall):6.2f} s "
            f"{statistics.median(sample.cpu):6.2f} s"
        )
    print("\nfull cache / head alone on blocks in memory, median of pairs (quartiles):")
    for name, values in (
        ("wall time", ratios(samples[FULL].wall, alone.wall)),
        ("CPU time of the trainer", ratios(samples[FULL].trainer_cpu, alone.cpu)),
        ("CPU time of all processes", ratios(samples[FULL].cpu, alone.cpu)),
    ):
        low, median, high = statistics.quantiles(values, n=4)
        print(f"  {name} {median:.3f} ({low:.3f} to {high:.3f}; lowest {min(values):.3f})")
    print("the same losses everywhere; 0 bytes on disk")
    ray.shutdown()
    return 0


def ratios(streamed: list[float], alone: list[float]) -> list[float]:
    return [s / a for s, a in zip(streamed, alone, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
