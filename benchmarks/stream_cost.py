"""What the feature stream itself costs for a block, with extractors and trainers that do nothing.

The real `FeatureStream` runs on four simulated nodes. Here tens of processes share the cores of one
machine, and on a cluster the stream has cores of its own. So the CPU time that the stream's process
takes for a block stands beside the blocks a second that are seen here. The actors do without torch,
as tens of them share few cores.
"""

import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster

from actors.cluster import ENVIRONMENT
from actors.ray_private import OWN_CLUSTER
from actors.records import BlockReceipt, DeliveryReply, EpochEnd
from actors.stream import FeatureStream
from actors.stream_actors import on_this_node
from benchmarks.processes import cpu_time, thread_times
from benchmarks.results import turns
from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats

NUM_NODES = 4
STORE_BYTES = 128 * 2**20  # of each node
BLOCKS_PER_EPOCH = 100
LEAST_SECONDS = 1.5  # epochs are run until so much time has passed

# Above the 100 KiB up to which Ray sends a result inside its messages: like every real block, these
# lie in the object store, and the stream keeps account of where.
BLOCK_SHAPE = (64, 1024)
BLOCK_BYTES = 2 * 64 * 1024


@dataclass(frozen=True)
class ActorCounts:
    """The actors that take part; the first node has the stream and all trainers."""

    extractors: int
    nodes: int
    trainers: int


ALONE = ActorCounts(1, 1, 1)
MANY_TRAINERS = ActorCounts(1, 1, 8)
ONE_NODE, FOUR_NODES = ActorCounts(8, 1, 1), ActorCounts(8, 4, 1)
MANY_EXTRACTORS = ActorCounts(32, 4, 1)
MANY_OF_BOTH = ActorCounts(32, 4, 8)

# One thing changes at a time: trainers, then nodes, then extractors.
LAYOUTS = (
    ALONE,
    ActorCounts(1, 1, 2),
    ActorCounts(1, 1, 4),
    MANY_TRAINERS,
    ONE_NODE,
    ActorCounts(8, 2, 1),
    FOUR_NODES,
    MANY_EXTRACTORS,
    MANY_OF_BOTH,
)


@dataclass(frozen=True)
class Cost:
    """What blocks cost in one layout.

    Attributes:
        blocks_per_second: The rate that was seen here, where all processes share the cores.
        cpu_seconds: CPU time of the stream's process for a block, all its threads together.
        thread_seconds: The part of it that falls to the busiest thread.
    """

    blocks_per_second: float
    cpu_seconds: float
    thread_seconds: float

    @property
    def core_rate(self) -> float:
        """Blocks a second that one core would reach with nothing on it but the stream."""
        return 1 / self.cpu_seconds

    @property
    def thread_rate(self) -> float:
        """Blocks a second that several cores would reach, as a thread takes one of them at most."""
        return 1 / self.thread_seconds


class IdleExtractor:
    """Returns the same zeros for every block."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
        self._info = DeviceInfo("cpu", "bf16", node, int(resources["object_store_memory"]))
        self._block = np.zeros(BLOCK_SHAPE, dtype=np.int16)

    def info(self) -> DeviceInfo:
        return self._info

    @ray.method(num_returns=2)
    def extract(self, key: BlockKey) -> Any:  # Ray splits the tuple
        """The same as `FeatureExtractor.extract`, with an array in place of an `EncodedBlock`."""
        return self._block, BlockReceipt(0.0)


class IdleTrainer:
    """Takes deliveries in order, as `HeadTraining` does, and does nothing with them."""

    def __init__(self) -> None:
        self._at = Position(0, 0)

    def restart(self) -> None:
        """Go back to the first epoch, for another stream."""
        self._at = Position(0, 0)

    def position(self) -> Position:
        return self._at

    def consume_all(
        self, deliveries: Sequence[tuple[Position, BlockKey]], *blocks: np.ndarray
    ) -> list[DeliveryReply]:
        return [self.consume(position, key) for position, key in deliveries]

    def consume(self, position: Position, key: BlockKey) -> DeliveryReply:
        status = DeliveryStatus.CONSUMED
        if position > self._at:
            status = DeliveryStatus.TOO_EARLY
        elif position < self._at:
            status = DeliveryStatus.DUPLICATE
        else:
            self._at = position.next
        return DeliveryReply(status, 0.0, 0.0, 0.0)

    def end_epoch(self, epoch: int) -> EpochEnd:
        self._at = Position(epoch + 1, 0)
        return EpochEnd({}, frozenset())


class PlanOfLargeBlocks(StreamPlan):
    """A plan whose small blocks stand for those of GPUs, which are delivered one at a time."""

    @property
    def blocks_at_once(self) -> int:
        return 1


@dataclass(frozen=True)
class StartedExtractors:
    """In place of an `ExtractorSpec`: extractors that were started before and outlive a stream.

    Attributes:
        handles: The extractors, in the order in which they are handed out.
        num_cpus: The same as in `ExtractorSpec`.
        num_gpus: The same as in `ExtractorSpec`.
    """

    handles: tuple[ActorHandle, ...]
    num_cpus: float = 0.0
    num_gpus: float = 0.0

    def start(self, index: int) -> ActorHandle:
        return self.handles[index]


def measure_layouts(repeats: int) -> dict[ActorCounts, Cost]:
    """Start nodes and actors, and run all layouts in turns.

    This process must not be in a cluster: it starts one of several nodes, and ends it.

    Args:
        repeats: The number of turns; the medians over them are returned.
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
        extractors, trainers = _start_actors()
        costs: dict[ActorCounts, list[Cost]] = {layout: [] for layout in LAYOUTS}
        for layout in turns(repeats, LAYOUTS):
            share = layout.extractors // layout.nodes
            chosen = [h for node in extractors[: layout.nodes] for h in node[:share]]
            costs[layout].append(_run(layout, chosen, trainers[: layout.trainers]))
        return {layout: _median(its_costs) for layout, its_costs in costs.items()}
    finally:
        ray.shutdown()
        cluster.shutdown()


def _start_actors() -> tuple[list[list[ActorHandle]], list[ActorHandle]]:
    """The extractors of each node, and the trainers: as many as any layout takes."""

    def start(kind: type, node: int) -> ActorHandle:
        on_node = {f"node-{node}": 0.001}  # the node that has this custom resource
        handle: Any = ray.remote(kind).options(num_cpus=0, resources=on_node).remote()
        return handle

    counts = [
        max(layout.extractors // layout.nodes for layout in LAYOUTS if layout.nodes > node)
        for node in range(NUM_NODES)
    ]
    extractors = [
        [start(IdleExtractor, node) for _ in range(count)] for node, count in enumerate(counts)
    ]
    trainers = [start(IdleTrainer, 0) for _ in range(max(each.trainers for each in LAYOUTS))]
    ray.get([handle.info.remote() for node in extractors for handle in node])
    ray.get([trainer.position.remote() for trainer in trainers])
    return extractors, trainers


def _run(
    layout: ActorCounts, extractors: Sequence[ActorHandle], trainers: Sequence[ActorHandle]
) -> Cost:
    """Run a new stream: one epoch to warm up, then the epochs that count."""
    ray.get([trainer.restart.remote() for trainer in trainers])
    plan = _plan(layout)
    stream: Any = (
        ray.remote(FeatureStream)
        .options(num_cpus=0, scheduling_strategy=on_this_node())
        .remote(
            plan,
            StartedExtractors(tuple(extractors)),
            layout.extractors,
            list(trainers),
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


def _plan(layout: ActorCounts) -> StreamPlan:
    """A plan of blocks of one size, of which none is kept."""
    keys = [BlockKey(TRAIN, i) for i in range(BLOCKS_PER_EPOCH)]
    block_bytes = dict.fromkeys(keys, BLOCK_BYTES)
    budget = plan_budget(
        block_bytes,
        (),
        num_train=len(keys),
        seed=1,
        settings=StreamSettings(cache=0),
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
    return Cost(*map(statistics.median, zip(*map(astuple, costs), strict=True)))
