"""What an error of Ray's means for a stream, and one line for people."""

from collections.abc import Sequence

from ray.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)

from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.utils.errors import StreamError, TrainerLostError

# Of whatever fails: a block, an extractor's start, a position of a stream, an epoch.
MAX_ATTEMPTS = 3


class LostBlockError(Exception):
    """A trainer could not have a block, or not in its turn: deliver again from its position."""


def delivery_fault(keys: Sequence[BlockKey], error: BaseException) -> Exception:
    """What a failed delivery means: a lost block, a lost trainer, or a trainer's own failure.

    Args:
        keys: The blocks that were delivered together.
        error: What came in the place of their acknowledgements.
    """
    among = f"block {keys[0]}" if len(keys) == 1 else f"one of {', '.join(map(str, keys))}"
    if isinstance(error, ObjectLostError):
        return LostBlockError(f"{among} was lost with its node")
    if isinstance(error, RayActorError):
        return TrainerLostError(f"a head trainer was lost at {among}: {cause_of(error)}")
    cause = cause_of(error) if isinstance(error, RayError) else repr(error)
    return StreamError(f"a head trainer failed on {among}: {cause}")


def cause_of(error: RayError) -> str:
    """One line: Ray's errors carry whole tracebacks, whose last line says what happened."""
    if isinstance(error, OutOfDiskError | ObjectStoreFullError):
        return (
            "Ray's object store is full; lower stream.budget or extract.block_tokens, or give Ray "
            "a larger object store"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    return last if isinstance(error, RayTaskError) else f"{type(error).__name__}: {last}"
