"""What the feature stream knows of a run: names, orders and bytes, and no tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

from bertvision_stream.blocks import BlockKey, epoch_sequence
from bertvision_stream.budget import Budget


@dataclass(frozen=True)
class StreamPlan:
    """All that is to be delivered, and within which limits.

    Attributes:
        seed: Of the epoch orders.
        num_epochs: Epochs at most; fewer where all heads stop early.
        num_train: Number of training blocks.
        validation: Validation blocks, delivered at the end of each epoch.
        block_bytes: Bytes of each block.
        block_tokens: Tokens of each block.
        budget: How many bytes may exist, and which blocks are kept.
        max_blocks: Most blocks in flight at once.
    """

    seed: int
    num_epochs: int
    num_train: int
    validation: tuple[BlockKey, ...]
    block_bytes: Mapping[BlockKey, int]
    block_tokens: Mapping[BlockKey, int]
    budget: Budget
    max_blocks: int

    def sequence(self, epoch: int) -> list[BlockKey]:
        """The deliveries of an epoch (counted from 0), in order."""
        return epoch_sequence(self.num_train, self.validation, seed=self.seed, epoch=epoch)


@dataclass
class StreamStats:
    """Running totals of a feature stream.

    Attributes:
        blocks_extracted: Blocks made by a forward pass.
        blocks_from_cache: Blocks delivered without one.
        blocks_failed: Attempts to make a block that failed and were made again.
        tokens_extracted: Tokens of the blocks made.
        held_bytes: Bytes of blocks that exist or are being made.
        peak_bytes: The most that `held_bytes` has been.
        cache_bytes: Bytes of blocks kept for later epochs.
        extract_seconds: Sum of the extractors' busy time.
        train_seconds: Sum of the trainers' busy time.
        train_wait_seconds: Sum of the time in which trainers waited for a block.
    """

    blocks_extracted: int = 0
    blocks_from_cache: int = 0
    blocks_failed: int = 0
    tokens_extracted: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0
    extract_seconds: float = 0.0
    train_seconds: float = 0.0
    train_wait_seconds: float = 0.0

    def hold(self, num_bytes: int) -> None:
        self.held_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
