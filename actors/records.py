"""What actors tell each other besides blocks: small frozen records, no tensor, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from bertvision_stream.stream.plan import DeliveryStatus
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.training.records import EpochRecord

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockReceipt:
    """Comes with a block, and is small: the block is made. Fetching it raises where it is not."""

    seconds: float


@dataclass(frozen=True)
class DeliveryReply:
    """The answer to a delivery.

    `wait_seconds` is how long the trainer had nothing to do before it.
    """

    reception: DeliveryStatus
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


def device_info(device: "torch.device", dtype: "torch.dtype") -> DeviceInfo:
    """Returns what the actor that calls this runs on."""
    name = "bf16" if str(dtype) == "torch.bfloat16" else "fp32"
    node = ray.get_runtime_context().get_node_id()
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
    return DeviceInfo(device.type, name, node, int(resources["object_store_memory"]))
