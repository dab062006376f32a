"""Extractors and trainers that answer at once, so that a feature stream's own work remains.

Of the processes of a benchmark only the driver loads torch: tens of these actors share few cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.records import BlockReceipt, DeliveryReply, EpochEnd
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo

# Above the 100 KiB up to which Ray sends a result inside its messages: as every real block, these
# lie in the object store, and the stream keeps account of where.
BLOCK_SHAPE = (64, 1024)
BLOCK_BYTES = 2 * 64 * 1024


class IdleExtractor:
    """Gives away the same zeros for every block."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
        self._info = DeviceInfo("cpu", "bf16", node, int(resources["object_store_memory"]))
        self._block = np.zeros(BLOCK_SHAPE, dtype=np.int16)

    def info(self) -> DeviceInfo:
        return self._info

    @ray.method(num_returns=2)
    def extract(self, key: BlockKey) -> Any:  # Ray splits the tuple
        """As `FeatureExtractor.extract`, with an array in the place of an `EncodedBlock`."""
        return self._block, BlockReceipt(0.0)


class IdleTrainer:
    """Takes deliveries in order, as `HeadTraining` does, and drops them."""

    def __init__(self) -> None:
        self._at = Position(0, 0)

    def restart(self) -> None:
        """Back to the first epoch, for another stream."""
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
    """Its small blocks stand for those of GPUs, which are handed over one at a time."""

    @property
    def blocks_at_once(self) -> int:
        return 1


@dataclass(frozen=True)
class StartedExtractors:
    """In the place of an `ExtractorSpec`: extractors that are there already, and outlive a stream.

    Attributes:
        handles: They are handed out in this order.
        num_cpus: As `ExtractorSpec`.
        num_gpus: As `ExtractorSpec`.
    """

    handles: tuple[ActorHandle, ...]
    num_cpus: float = 0.0
    num_gpus: float = 0.0

    def start(self, index: int) -> ActorHandle:
        return self.handles[index]


def start_actor(of: type, *, node: str) -> ActorHandle:
    """Start an actor on the node that has the custom resource `node`."""
    handle: Any = ray.remote(of).options(num_cpus=0, resources={node: 0.001}).remote()
    return handle
