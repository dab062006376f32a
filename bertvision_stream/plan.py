"""What the feature stream knows of a run: names, orders and bytes, and no tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from bertvision_stream.blocks import BlockKey, epoch_sequence
from bertvision_stream.budget import Budget, max_blocks

# A call costs a trainer's node some 2 ms, about a fifth of the time that a small block trains.
# Large ones are worth calls of their own, and may have to cross the network first.
BLOCKS_AT_ONCE = 8
BYTES_AT_ONCE = 128 * 2**20


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A place in the stream: an epoch, and the number of a delivery in it, both from 0."""

    epoch: int
    index: int

    def __str__(self) -> str:
        return f"delivery {self.index} of epoch {self.epoch + 1}"

    @property
    def next(self) -> "Position":
        return Position(self.epoch, self.index + 1)


class Reception(Enum):
    """What became of a delivery."""

    CONSUMED = "consumed"
    DUPLICATE = "consumed before"  # delivered again after a fault: nothing is trained twice
    TOO_EARLY = "refused, as a delivery before it is missing"


@dataclass(frozen=True)
class StreamPlan:
    """All that is to be delivered, and within which limits.

    Attributes:
        seed: Of the epoch orders.
        num_epochs: Epochs at most; fewer where all heads stop early.
        same_order: Whether every epoch has the order of the first. A search wants that: a head that
            joins late is then given what it would have been given from the start.
        num_train: Number of training blocks.
        validation: Validation blocks, delivered at the end of each epoch.
        block_bytes: Bytes of each block.
        block_tokens: Tokens of each block.
        budget: How many bytes may exist, and which blocks are kept.
    """

    seed: int
    num_epochs: int
    same_order: bool
    num_train: int
    validation: tuple[BlockKey, ...]
    block_bytes: Mapping[BlockKey, int]
    block_tokens: Mapping[BlockKey, int]
    budget: Budget

    def sequence(self, epoch: int) -> list[BlockKey]:
        """The deliveries of an epoch (counted from 0), in order."""
        epoch = 0 if self.same_order else epoch
        return epoch_sequence(self.num_train, self.validation, seed=self.seed, epoch=epoch)

    def deliveries(self, start: Position, last_epoch: int) -> Iterator[tuple[Position, BlockKey]]:
        """All deliveries from `start` to the end of `last_epoch`, over the borders of epochs."""
        for epoch in range(start.epoch, last_epoch + 1):
            first = start.index if epoch == start.epoch else 0
            for index, key in enumerate(self.sequence(epoch)[first:], start=first):
                yield Position(epoch, index), key

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest block."""
        return max(self.block_bytes.values())

    @property
    def blocks_at_once(self) -> int:
        """Most blocks that a trainer is given in one call, which takes as long as for one."""
        return min(max(BYTES_AT_ONCE // self.largest_bytes, 1), BLOCKS_AT_ONCE)

    def most_in_flight(self, num_extractors: int) -> int:
        """Most blocks being made, waiting or delivered: what keeps all actors busy."""
        return max_blocks(num_extractors) + 2 * (self.blocks_at_once - 1)


@dataclass
class StreamStats:
    """Running totals of a feature stream.

    Attributes:
        blocks_extracted: Blocks made by a forward pass.
        blocks_from_cache: Blocks delivered without one.
        blocks_failed: Attempts to make a block that failed and were made again.
        blocks_lost: Blocks made that were lost with their node, or dropped after another fault.
        tokens_extracted: Tokens of the blocks made.
        tokens_by_epoch: The same by the epoch for which a block was made first.
        held_blocks: Blocks that exist or are being made.
        held_bytes: Their bytes.
        peak_bytes: The most that `held_bytes` has been.
        cached_blocks: Of those that exist, the ones kept for later epochs.
        cache_bytes: Their bytes.
        extract_seconds: Sum of the extractors' busy time.
        extract_wait_seconds: Sum of the time in which extractors had no block to make.
        train_seconds: Sum of the trainers' busy time.
        train_wait_seconds: Sum of the time in which trainers waited for a block.
    """

    blocks_extracted: int = 0
    blocks_from_cache: int = 0
    blocks_failed: int = 0
    blocks_lost: int = 0
    tokens_extracted: int = 0
    tokens_by_epoch: dict[int, int] = field(default_factory=dict)
    held_blocks: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0
    cached_blocks: int = 0
    cache_bytes: int = 0
    extract_seconds: float = 0.0
    extract_wait_seconds: float = 0.0
    train_seconds: float = 0.0
    train_wait_seconds: float = 0.0

    def count_extracted(self, epoch: int, num_tokens: int, seconds: float) -> None:
        """One more block was made, for `epoch`."""
        self.blocks_extracted += 1
        self.tokens_extracted += num_tokens
        self.tokens_by_epoch[epoch] = self.tokens_by_epoch.get(epoch, 0) + num_tokens
        self.extract_seconds += seconds

    def hold(self, num_bytes: int) -> None:
        """One more block is being made."""
        self.held_blocks += 1
        self.held_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def keep(self, num_bytes: int) -> None:
        """A block that is held stays for later epochs."""
        self.cached_blocks += 1
        self.cache_bytes += num_bytes

    def drop(self, num_bytes: int, *, kept: bool) -> None:
        """A block is gone, or was never made."""
        self.held_blocks -= 1
        self.held_bytes -= num_bytes
        if kept:
            self.cached_blocks -= 1
            self.cache_bytes -= num_bytes

    def drop_all(self) -> None:
        """All blocks went with the stream that owned them."""
        self.held_blocks = self.held_bytes = self.cached_blocks = self.cache_bytes = 0
