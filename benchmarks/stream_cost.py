"""What the feature stream itself costs for a block, with extractors and trainers that do nothing.

The real `FeatureStream` on four simulated nodes. On this machine tens of processes share its cores,
and on a cluster the stream has cores of its own. So beside the blocks a second seen here stands the
CPU time that the stream's process takes for a block.
"""

import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster

from actors.cluster import ENVIRONMENT, OWN_CLUSTER
from actors.stream import FeatureStream
from actors.stream_actors import on_this_node
from benchmarks.do_nothing import (
    BLOCK_BYTES,
    IdleExtractor,
    IdleTrainer,
    PlanOfLargeBlocks,
    StartedExtractors,
    start_actor,
)
from benchmarks.processes import cpu_time, thread_times
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StreamStats

NUM_NODES = 4
STORE_BYTES = 128 * 2**20  # of each node
BLOCKS_PER_EPOCH = 100
LEAST_SECONDS = 1.5  # epochs are run until so much time has passed


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


def measure_layouts(repeats: int) -> dict[Layout, Cost]:
    """Start nodes and actors, and run all layouts in turns; this process must not be in a cluster.

    Args:
        repeats: Turns; medians of them count.
    """
    os.environ.update(ENVIRONMENT)
    cluster = Cluster()
    for i in range(NUM_NODES):
        head: dict[str, Any] = (
            {"_system_config": OWN_CLUSTER, "include_dashboard": False} if i == 0 else {}
        )
        cluster.add_node(
            num_cpus=0, object_store_memory=STORE_BYTES, resources={f"node-{i}": 1}, **head
        )
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        actors = _start_actors()
        costs: dict[Layout, list[Cost]] = {layout: [] for layout in LAYOUTS}
        for _ in range(repeats):
            for layout, its_costs in costs.items():
                its_costs.append(_run(layout, actors))
        return {layout: _median(its_costs) for layout, its_costs in costs.items()}
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
        .options(num_cpus=0, scheduling_strategy=on_this_node())
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
    return PlanOfLargeBlocks(
        seed=1,
        num_epochs=10**6,  # more than are ever run
        same_order=False,
        num_train=len(keys),
        validation=(),
        block_bytes=block_bytes,
        block_tokens=dict.fromkeys(keys, 1),
        budget=budget,
    )


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.blocks_per_second for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
        statistics.median(cost.thread_seconds for cost in costs),
    )
