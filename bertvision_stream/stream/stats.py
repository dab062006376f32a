"""What a feature stream counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DeviceInfo:
    """Where an actor runs and what it computes on.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: The dtype of products, `bf16` or `fp32`.
        node: Ray's id of the node.
        store_bytes: The capacity of that node's object store, in bytes.
    """

    device: str
    dtype: str
    node: str
    store_bytes: int

    def __str__(self) -> str:
        return f"{self.device} in {self.dtype}"


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

    def reset_held_blocks(self) -> None:
        """All blocks went with the stream that owned them."""
        self.held_blocks = self.held_bytes = self.cached_blocks = self.cache_bytes = 0


@dataclass(frozen=True)
class StoreStats:
    """Bytes that the object stores have written to disk since they started, and hold now."""

    spilled_bytes: int
    fallback_bytes: int
    used_bytes: int

    def since(self, before: StoreStats) -> StoreStats:
        """What was written to disk after `before`, and what is held now."""
        return StoreStats(
            self.spilled_bytes - before.spilled_bytes,
            self.fallback_bytes - before.fallback_bytes,
            self.used_bytes,
        )
