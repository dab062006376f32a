"""What actors send to each other besides blocks, and what Ray's errors mean to a stream.

The records are small and frozen, and hold no tensor: the feature stream reads them without torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from actors.object_store import STORE_FULL
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.plan import DeliveryStatus
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.errors import StreamError, TrainerLostError
from bertvision_stream.utils.mapped_files import disk_file_at

if TYPE_CHECKING:
    import torch

# The bound on every retry: of a block, of the start of an extractor, of the deliveries from one
# position, and of an epoch. A cause that lasts is reported then, instead of being tried for ever.
MAX_ATTEMPTS = 3

# What Ray says of a process that died, before it lists common causes; and of an actor by its name.
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes include|$)")
_ACTOR_NAME = re.compile(r"^\s*name: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class BlockReceipt:
    """An extractor returns it beside a block, to say that the block is made.

    The stream awaits the receipt, which is small, and so never fetches the block itself. Where the
    block could not be made, awaiting the receipt raises the error.

    Attributes:
        seconds: The time that the extractor was busy with the block.
    """

    seconds: float


@dataclass(frozen=True)
class DeliveryReply:
    """A trainer's reply to the delivery of a block.

    Attributes:
        status: What the trainer did with the block.
        mean_loss: The mean, over its heads, of their training losses in the epoch so far.
        busy_seconds: The time that the trainer worked on the block.
        wait_seconds: The time that the trainer had nothing to do before the delivery.
    """

    status: DeliveryStatus
    mean_loss: float
    busy_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """What a trainer reports at the end of an epoch.

    Attributes:
        records: The record of each head that trained in the epoch, by name; None where it diverged.
        active: The names of the heads that train in the next epoch too.
    """

    records: Mapping[str, EpochRecord | None]
    active: frozenset[str]


@dataclass(frozen=True)
class EpochReport:
    """What the feature stream reports at the end of an epoch.

    Attributes:
        ends: The report of each trainer, in the order of the trainers.
        stats: The totals of the stream so far.
    """

    ends: tuple[EpochEnd, ...]
    stats: StreamStats


def device_info(device: "torch.device", dtype: "torch.dtype") -> DeviceInfo:
    """What the actor that calls this runs on."""
    name = "bf16" if str(dtype) == "torch.bfloat16" else "fp32"
    node = ray.get_runtime_context().get_node_id()
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
    store_bytes = int(resources["object_store_memory"])
    # An array of this size lies in the object store, and is read where it lies.
    array = ray.get(ray.put(np.zeros(2**20, np.uint8)))
    return DeviceInfo(device.type, name, node, store_bytes, disk_file_at(array.ctypes.data))


class LostBlockError(Exception):
    """A trainer could not read a block, or got it out of order.

    The stream answers it by asking the trainers for their positions and delivering again from the
    earliest of them.
    """


def delivery_fault(keys: Sequence[BlockKey], error: BaseException) -> Exception:
    """The exception that tells the stream what a failed delivery means.

    Args:
        keys: The blocks that were delivered together.
        error: What the trainer's call raised in place of its replies.

    Returns:
        A `LostBlockError` where a block was lost with its node, a `TrainerLostError` where the
        trainer died, and a `StreamError` where the trainer itself failed.
    """
    among = f"block {keys[0]}" if len(keys) == 1 else f"one of {', '.join(map(str, keys))}"
    if isinstance(error, ObjectLostError):
        return LostBlockError(f"{among} was lost with its node")
    if isinstance(error, RayActorError):
        return TrainerLostError(f"a head trainer was lost at {among}: {cause_of(error)}")
    cause = cause_of(error) if isinstance(error, RayError) else repr(error)
    return StreamError(f"a head trainer failed on {among}: {cause}")


def cause_of(error: RayError) -> str:
    """The cause of an error of Ray's, in one line.

    Ray's errors carry whole tracebacks, and their last line says what happened.
    """
    if isinstance(error, STORE_FULL):
        return "Ray's object store is full"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    if isinstance(error, RayTaskError):
        return last
    if (detail := _EXIT_DETAIL.search(last)) is not None:
        return f"its process ended unexpectedly: {detail[1]}"
    return f"{type(error).__name__}: {last}"


def death_of(error: RayActorError) -> str:
    """Which actor died, and of what, in one line."""
    named = _ACTOR_NAME.search(str(error))
    return f"{named[1] if named else 'an actor'} died: {cause_of(error)}"
