"""The control plane alone: what the feature stream itself costs for a block, and what that bounds.

    python -m benchmarks.control_plane [--repeats N]

The real `FeatureStream` on four simulated nodes, with extractors and trainers that do nothing. On
this machine tens of processes share its cores, and on a cluster the stream has cores of its own. So
beside the blocks a second seen here stands the CPU time that the stream's process takes for a
block, and the rate that one core of its own would reach with it.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster

from actors.cluster import ENVIRONMENT, OWN_CLUSTER
from actors.crew import here
from actors.stream import FeatureStream
from benchmarks.do_nothing import (
    BLOCK_BYTES,
    IdleExtractor,
    IdleTrainer,
    StartedExtractors,
    start_actor,
)
from benchmarks.layouts import FASTEST
from benchmarks.processes import cpu_time, thread_times
from bertvision_stream.blocks import TRAIN, BlockKey
from bertvision_stream.budget import max_blocks, plan_budget
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.cost_model import (
    GIGABIT_BYTES,
    break_even_tokens_per_second,
    forward_flops,
)
from bertvision_stream.plan import StreamPlan, StreamStats

NUM_NODES = 4
STORE_BYTES = 128 * 2**20  # of each node
BLOCKS_PER_EPOCH = 100
LEAST_SECONDS = 1.5  # epochs are run until so much time has passed

NUM_GPUS = 64
UTILISATION = 0.4  # of a GPU's peak, assumed
ATTENDED_TOKENS = 128
LINK_GIGABITS = 400  # of a trainer's node, each second
BLOCK_TOKENS = (512, 2048, 8192, 16384)
GPU_BLOCK_TOKENS = 8192  # of extract.block_tokens=auto, where there is a GPU and rows enough

# Published peaks of dense bf16, in floating-point operations a second.
GPUS = {"A100": 312e12, "H100 SXM": 989e12}


@dataclass(frozen=True)
class Layout:
    """Who takes part; the first of the nodes has the stream and all trainers."""

    extractors: int
    nodes: int
    trainers: int


ALONE = Layout(1, 1, 1)
MANY_TRAINERS = Layout(1, 1, 8)
ONE_NODE, FOUR_NODES = Layout(8, 1, 1), Layout(8, 4, 1)
MANY_EXTRACTORS = Layout(32, 4, 1)
MANY_OF_BOTH = Layout(32, 4, 8)

# One thing changes at a time: trainers, then nodes, then extractors.
LAYOUTS = (
    ALONE,
    Layout(1, 1, 2),
    Layout(1, 1, 4),
    MANY_TRAINERS,
    ONE_NODE,
    Layout(8, 2, 1),
    FOUR_NODES,
    MANY_EXTRACTORS,
    MANY_OF_BOTH,
)


@dataclass(frozen=True)
class Encoder:
    """Sizes of a BERT: encoder layers + 1, hidden size, width of the feed-forward layers."""

    num_layers: int
    hidden_size: int
    intermediate_size: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's hidden states of all layers, in bf16."""
        return BlockFormat(self.num_layers, self.hidden_size, 2, "bf16").token_bytes

    def tokens_per_second(self, peak_flops: float) -> float:
        """Forward passes of a GPU, at the assumed utilisation.

        Args:
            peak_flops: Floating-point operations a second.
        """
        flops = forward_flops(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            attended=ATTENDED_TOKENS,
        )
        return UTILISATION * peak_flops / flops


ENCODERS = {"BERT-base": Encoder(13, 768, 3072), "BERT-large": Encoder(25, 1024, 4096)}


@dataclass(frozen=True)
class Cost:
    """What blocks cost in one layout.

    Attributes:
        blocks_per_second: Seen here, where all processes share the cores.
        cpu_seconds: CPU time of the stream's process for a block, all its threads together.
        thread_seconds: The part of it that falls to the busiest thread.
    """

    blocks_per_second: float
    cpu_seconds: float
    thread_seconds: float

    @property
    def core_rate(self) -> float:
        """Blocks a second that one core would reach with nothing but the stream on it."""
        return 1 / self.cpu_seconds

    @property
    def thread_rate(self) -> float:
        """Blocks a second with as many cores as the stream likes: a thread has no more than one."""
        return 1 / self.thread_seconds


@dataclass(frozen=True)
class _Actors:
    """All that there are; a layout takes some of them. `extractors` by node."""

    extractors: Sequence[Sequence[ActorHandle]]
    trainers: Sequence[ActorHandle]

    def extractors_of(self, layout: Layout) -> tuple[ActorHandle, ...]:
        """As many from each node."""
        share = layout.extractors // layout.nodes
        return tuple(handle for node in self.extractors[: layout.nodes] for handle in node[:share])


def measure(repeats: int) -> list[str]:
    """Start nodes and actors, and run all layouts in turns; this process must not be in a cluster.

    Args:
        repeats: Turns; medians of them count.

    Returns:
        Tables and text in Markdown, without a heading.
    """
    costs = _measure_layouts(repeats)
    medians = {layout: _median(its_costs) for layout, its_costs in costs.items()}
    return [
        *_layout_table(medians, repeats),
        "",
        _layout_text(medians),
        "",
        *_block_table(medians),
        "",
        *_gpu_table(medians),
        "",
        _bounds_text(medians),
    ]


def largest_gpu_rate(blocks_per_second: float, *, block_tokens: int, num_gpus: int) -> float:
    """Tokens a second of each GPU above which they would wait for the stream.

    Args:
        blocks_per_second: What the stream can deliver.
        block_tokens: Tokens of a block.
        num_gpus: GPUs that make blocks.
    """
    return blocks_per_second * block_tokens / num_gpus


def smallest_block(blocks_per_second: float, *, gpu_rate: float, num_gpus: int) -> float:
    """Tokens of a block below which GPUs would wait for the stream.

    Args:
        blocks_per_second: What the stream can deliver.
        gpu_rate: Tokens a second of each GPU.
        num_gpus: GPUs that make blocks.
    """
    return num_gpus * gpu_rate / blocks_per_second


def _measure_layouts(repeats: int) -> dict[Layout, list[Cost]]:
    os.environ.update(ENVIRONMENT)
    cluster = Cluster()
    for i in range(NUM_NODES):
        head = {"_system_config": OWN_CLUSTER, "include_dashboard": False} if i == 0 else {}
        cluster.add_node(
            num_cpus=0, object_store_memory=STORE_BYTES, resources={f"node-{i}": 1}, **head
        )
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        actors = _start_actors()
        costs: dict[Layout, list[Cost]] = {layout: [] for layout in LAYOUTS}
        for _ in range(repeats):
            for layout, its_costs in costs.items():
                its_costs.append(_run(layout, actors))
        return costs
    finally:
        ray.shutdown()
        cluster.shutdown()


def _start_actors() -> _Actors:
    num_extractors = [
        max(layout.extractors // layout.nodes for layout in LAYOUTS if layout.nodes > i)
        for i in range(NUM_NODES)
    ]
    extractors = [
        [start_actor(IdleExtractor, node=f"node-{i}") for _ in range(count)]
        for i, count in enumerate(num_extractors)
    ]
    num_trainers = max(layout.trainers for layout in LAYOUTS)
    trainers = [start_actor(IdleTrainer, node="node-0") for _ in range(num_trainers)]
    ray.get([handle.info.remote() for node in extractors for handle in node])
    ray.get([trainer.position.remote() for trainer in trainers])
    return _Actors(extractors, trainers)


def _run(layout: Layout, actors: _Actors) -> Cost:
    """A stream of its own, one epoch to warm up, then the epochs that count."""
    trainers = list(actors.trainers[: layout.trainers])
    ray.get([trainer.restart.remote() for trainer in trainers])
    plan = _plan(layout)
    stream: Any = (
        ray.remote(FeatureStream)
        .options(num_cpus=0, scheduling_strategy=here())
        .remote(
            plan,
            StartedExtractors(actors.extractors_of(layout)),
            layout.extractors,
            trainers,
            stats=StreamStats(),
            tags={"task": "none", "run": "none"},
            show_progress=False,
        )
    )
    ray.get(stream.start.remote())
    pid = ray.get(stream.__ray_call__.remote(lambda stream: os.getpid()))
    last_epoch = plan.num_epochs - 1
    ray.get(stream.run_epoch.remote(0, last_epoch))
    cpu, threads, start = cpu_time(pid), thread_times(pid), time.perf_counter()
    epoch, seconds = 0, 0.0
    while seconds < LEAST_SECONDS:
        epoch += 1
        ray.get(stream.run_epoch.remote(epoch, last_epoch))
        seconds = time.perf_counter() - start
    num_blocks = epoch * BLOCKS_PER_EPOCH
    busiest = max(after - threads.get(i, 0.0) for i, after in thread_times(pid).items())
    cost = Cost(num_blocks / seconds, (cpu_time(pid) - cpu) / num_blocks, busiest / num_blocks)
    ray.kill(stream)
    return cost


def _plan(layout: Layout) -> StreamPlan:
    """Blocks of one size, of which none is kept."""
    keys = [BlockKey(TRAIN, i) for i in range(BLOCKS_PER_EPOCH)]
    block_bytes = dict.fromkeys(keys, BLOCK_BYTES)
    budget = plan_budget(
        block_bytes,
        (),
        num_train=len(keys),
        seed=1,
        budget="auto",
        cache=0,
        store_bytes=layout.nodes * STORE_BYTES,
        num_nodes=layout.nodes,
        num_extractors=layout.extractors,
    )
    return StreamPlan(
        seed=1,
        num_epochs=10**6,  # more than are ever run
        same_order=False,
        num_train=len(keys),
        validation=(),
        block_bytes=block_bytes,
        block_tokens=dict.fromkeys(keys, 1),
        budget=budget,
        max_blocks=max_blocks(layout.extractors),
    )


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.blocks_per_second for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
        statistics.median(cost.thread_seconds for cost in costs),
    )


def _layout_table(costs: Mapping[Layout, Cost], repeats: int) -> list[str]:
    lines = [
        f"Medians of {repeats} turns, {os.cpu_count()} cores for all processes, blocks of "
        f"{BLOCK_BYTES // 1024} KiB:",
        "",
        "| extractors | on nodes | trainers | blocks/s here, cores shared | the stream's CPU time "
        "for a block | of that in its busiest thread | blocks/s on one core of its own "
        "| on several cores, at most |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for layout, cost in costs.items():
        lines.append(
            f"| {layout.extractors} | {layout.nodes} | {layout.trainers} "
            f"| {cost.blocks_per_second:.0f} | {1000 * cost.cpu_seconds:.2f} ms "
            f"| {1000 * cost.thread_seconds:.2f} ms | {cost.core_rate:.0f} "
            f"| {cost.thread_rate:.0f} |"
        )
    return lines


def _layout_text(costs: Mapping[Layout, Cost]) -> str:
    alone, many = costs[ALONE].cpu_seconds, costs[MANY_TRAINERS].cpu_seconds
    each = (many - alone) / (MANY_TRAINERS.trainers - ALONE.trainers)
    nodes = costs[FOUR_NODES].cpu_seconds / costs[ONE_NODE].cpu_seconds
    extractors = costs[MANY_EXTRACTORS].cpu_seconds / costs[FOUR_NODES].cpu_seconds
    return (
        f"A block takes {1000 * (alone - each):.2f} ms of the stream's CPU time to have it made, "
        f"and {1000 * each:.2f} ms for each trainer that it is delivered to. Four nodes in the "
        f"place of one change that by a factor of {nodes:.2f}, 32 extractors in the place of 8 by "
        f"{extractors:.2f}. All of that is time on the cores of this machine; others differ."
    )


def _block_table(costs: Mapping[Layout, Cost]) -> list[str]:
    """Block sizes against the stream's bound, and against the link that blocks travel over."""
    one, many = costs[MANY_EXTRACTORS].core_rate, costs[MANY_OF_BOTH].core_rate
    lines = [
        f"The most that each of {NUM_GPUS} GPUs can do before they wait for a stream on one core "
        f"of its own, at the rates of {MANY_EXTRACTORS.extractors} extractors on "
        f"{MANY_EXTRACTORS.nodes} nodes ({one:.0f} blocks/s with {MANY_EXTRACTORS.trainers} "
        f"trainer, {many:.0f} with {MANY_OF_BOTH.trainers}); and before blocks of bf16 fill a link "
        f"of {LINK_GIGABITS} Gb/s into a trainer's node:",
        "",
        f"| tokens in a block | {MANY_EXTRACTORS.trainers} trainer, tokens/s of a GPU "
        f"| {MANY_OF_BOTH.trainers} trainers"
        + "".join(f" | the link, {name}" for name in ENCODERS)
        + " |",
        "|---:|---:|---:|" + "---:|" * len(ENCODERS),
    ]
    links = "".join(f" | {_link_rate(encoder) / NUM_GPUS:,.0f}" for encoder in ENCODERS.values())
    for tokens in BLOCK_TOKENS:
        rates = [largest_gpu_rate(r, block_tokens=tokens, num_gpus=NUM_GPUS) for r in (one, many)]
        lines.append(f"| {tokens:,} | {rates[0]:,.0f} | {rates[1]:,.0f}{links} |")
    return lines


def _gpu_table(costs: Mapping[Layout, Cost]) -> list[str]:
    one, many = costs[MANY_EXTRACTORS].core_rate, costs[MANY_OF_BOTH].core_rate
    lines = [
        f"What GPUs can do, at {UTILISATION:.0%} of their published dense bf16 peak and "
        f"{ATTENDED_TOKENS} tokens attended to, and the smallest block with which {NUM_GPUS} of "
        f"them do not wait for the stream:",
        "",
        f"| backbone | GPU | tokens/s of a GPU | smallest block, {MANY_EXTRACTORS.trainers} "
        f"trainer | {MANY_OF_BOTH.trainers} trainers | bf16 into each trainer "
        f"| GPUs that a stream keeps busy with blocks of {GPU_BLOCK_TOKENS:,}, "
        f"{MANY_EXTRACTORS.trainers} trainer |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, encoder in ENCODERS.items():
        for gpu, peak in GPUS.items():
            rate = encoder.tokens_per_second(peak)
            blocks = [smallest_block(r, gpu_rate=rate, num_gpus=NUM_GPUS) for r in (one, many)]
            gigabits = NUM_GPUS * rate * encoder.token_bytes / GIGABIT_BYTES
            lines.append(
                f"| {name} | {gpu} | {rate:,.0f} | {blocks[0]:,.0f} tokens "
                f"| {blocks[1]:,.0f} tokens | {gigabits:,.0f} Gb/s "
                f"| {one * GPU_BLOCK_TOKENS / rate:.1f} |"
            )
    return lines


def _bounds_text(costs: Mapping[Layout, Cost]) -> str:
    """From which block size on the link bounds a stream before its control plane does."""
    sizes = [
        f"{_link_rate(encoder) / costs[layout].core_rate:,.0f} tokens of {name} with "
        f"{layout.trainers} trainer{'s' if layout.trainers > 1 else ''}"
        for layout in (MANY_EXTRACTORS, MANY_OF_BOTH)
        for name, encoder in ENCODERS.items()
    ]
    return (
        f"By the assumptions of docs/scaling.md no trainer takes more than "
        f"{FASTEST.train_rate / GPU_BLOCK_TOKENS:.0f} blocks of {GPU_BLOCK_TOKENS:,} tokens a "
        f"second, copies to its GPU included: with blocks of that size it waits for no stream that "
        f"delivers more, however many GPUs extract, and the table above is out of its reach. "
        f"Both bounds are shared by all GPUs, however many there are. Above {', '.join(sizes)} in "
        f"a block, a link of {LINK_GIGABITS} Gb/s into a trainer's node is full before one core of "
        f"the stream is; below, the stream bounds. Blocks that are consumed on the node that made "
        f"them take no link, and the stream's bound alone remains."
    )


def _link_rate(encoder: Encoder) -> float:
    """Tokens a second that the link into a trainer's node carries."""
    return break_even_tokens_per_second(encoder.token_bytes, LINK_GIGABITS * GIGABIT_BYTES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("\n".join(measure(options.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
