"""What actors tell each other besides blocks: small frozen records, no tensor, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from bertvision_stream.results import EpochRecord


@dataclass(frozen=True)
class DeviceInfo:
    """What an actor computes on: `cpu` or `cuda`, in `bf16` or `fp32`."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Receipt:
    """Comes with a block, and is small: the block is made. Fetching it raises where it is not."""

    seconds: float


@dataclass(frozen=True)
class Ack:
    """A block is consumed. `wait_seconds` is how long the trainer had nothing to do before it."""

    mean_loss: float
    busy_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """Records of the heads that trained in an epoch (None: it failed), and whether any goes on."""

    records: Mapping[str, EpochRecord | None]
    active: bool
