"""Ray's object store when it is full: waiting until others need less of it, and what it holds.

A store that we share with others can be full for some time, and nothing that we have computed
should be lost by that: what does not fit is tried again for `FULL_SECONDS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from actors.ray_private import store_counters
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.log import log
from bertvision_stream.utils.units import format_bytes

# Ray speaks of a full disk also where spilling to disk is switched off.
STORE_FULL = (OutOfDiskError, ObjectStoreFullError)

# How long a full store is waited for.
FULL_SECONDS = 600.0

# The first pause before another attempt, and the longest; each is twice as long as the one before.
# Ray frees memory with a delay: 0.05 s in a cluster that we start, up to a second in others.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0

T = TypeVar("T")


def pauses() -> Iterator[float]:
    """The pauses in seconds between attempts, which end when a full store was waited for enough."""
    waited, pause = 0.0, FIRST_PAUSE_SECONDS
    while waited < FULL_SECONDS:
        yield pause
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def put(what: str, value: T, our_bytes: int) -> ray.ObjectRef[T]:
    """Call `ray.put`, again and again while the object store is full.

    Args:
        what: What the value is, as messages name it.
        value: What is put into the object store.
        our_bytes: The bytes in the stores that are this run's, this value included.

    Raises:
        StreamError: The object store stayed full.
    """
    for attempt, pause in enumerate(pauses()):
        try:
            return ray.put(value)
        except STORE_FULL:
            if attempt == 0:
                log.warning("%s", waiting_text(f"{what} does not fit", our_bytes))
            time.sleep(pause)
    raise StreamError(f"{what} does not fit: {full_text(our_bytes)}")


def wait_for_room(value: object) -> None:
    """Return once a value fits into the object store twice, or was waited for enough.

    A worker calls this before it returns the value: Ray has one attempt at that. Ray Train passes
    the value on, so that for a moment there are two.
    """
    for pause in pauses():
        refs: list[ray.ObjectRef] = []  # freed at once, with the list
        try:
            refs += [ray.put(value)]
            refs += [ray.put(value)]
        except STORE_FULL:
            refs.clear()
            time.sleep(pause)
        else:
            return


def waiting_text(what: str, our_bytes: int) -> str:
    """Text for people: something waits for a full store.

    Args:
        what: What does not fit or has failed.
        our_bytes: The bytes in the stores that are this run's.
    """
    return (
        f"{what}: Ray's object store is full{_held(our_bytes)}; it is tried again for up to "
        f"{FULL_SECONDS / 60:.0f} minutes"
    )


def full_text(our_bytes: int) -> str:
    """Text for people: a store stayed full, what it holds, and the ways out.

    Args:
        our_bytes: The bytes in the stores that are this run's.
    """
    return (
        f"Ray's object store stayed full for {FULL_SECONDS / 60:.0f} minutes{_held(our_bytes)}. "
        f"Run it when others need less of the store, or give Ray a larger object store. With "
        f"resume=true the same command goes on with all that is finished."
    )


def _held(our_bytes: int) -> str:
    """What the object stores of all nodes hold; nothing where Ray does not tell."""
    try:
        used = store_counters().used_bytes
        total = int(ray.cluster_resources().get("object_store_memory", 0))
    except Exception:  # a node of ours or Ray's control service may be ending
        return ""
    ours = min(our_bytes, used)
    return (
        f" (of its {format_bytes(total)} this run holds {format_bytes(ours)}, and others "
        f"{format_bytes(used - ours)})"
    )
