"""What actors tell each other besides blocks: small frozen records, no tensor, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from bertvision_stream.plan import Reception, StreamStats
from bertvision_stream.results import EpochRecord

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeviceInfo:
    """Where an actor runs and what it computes on.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: `bf16` or `fp32`.
        node: Ray's id of its node.
        store_bytes: Capacity of that node's object store.
    """

    device: str
    dtype: str
    node: str
    store_bytes: int

    @classmethod
    def here(cls, device: "torch.device", dtype: "torch.dtype") -> "DeviceInfo":
        """For an actor to tell of itself."""
        name = "bf16" if str(dtype) == "torch.bfloat16" else "fp32"
        node = ray.get_runtime_context().get_node_id()
        resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
        return cls(device.type, name, node, int(resources["object_store_memory"]))

    def __str__(self) -> str:
        return f"{self.device} in {self.dtype}"


@dataclass(frozen=True)
class Receipt:
    """Comes with a block, and is small: the block is made. Fetching it raises where it is not."""

    seconds: float


@dataclass(frozen=True)
class Ack:
    """The answer to a delivery.

    `wait_seconds` is how long the trainer had nothing to do before it.
    """

    reception: Reception
    mean_loss: float
    busy_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """Records of the heads that trained in an epoch (None: it failed), and who goes on."""

    records: Mapping[str, EpochRecord | None]
    active: frozenset[str]


@dataclass(frozen=True)
class EpochReport:
    """What each trainer reports at the end of an epoch, and the stream's totals so far."""

    ends: tuple[EpochEnd, ...]
    stats: StreamStats
