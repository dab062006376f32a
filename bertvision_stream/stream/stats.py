"""The counts of a feature stream and of the object stores."""

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
        store_file: The file on disk that holds that object store; empty where memory holds it, as
            it should.
    """

    device: str
    dtype: str
    node: str
    store_bytes: int
    store_file: str = ""

    def __str__(self) -> str:
        return f"{self.device} in {self.dtype}"


@dataclass
class StreamStats:
    """Running totals of a feature stream.

    Attributes:
        blocks_extracted: The blocks that were made by a forward pass.
        blocks_from_cache: The blocks that were delivered without one.
        blocks_failed: The attempts to make a block that failed.
        blocks_lost: The blocks that were lost with their node, or dropped after another fault.
        extractors_lost: The extractors that died and were replaced.
        tokens_extracted: The tokens of the blocks that were made.
        tokens_by_epoch: The same by the epoch that a block was made for.
        held_blocks: The blocks that exist or are being made.
        held_bytes: The bytes of the held blocks.
        peak_bytes: The highest value of `held_bytes` so far.
        cached_blocks: The held blocks that are kept for later epochs.
        cache_bytes: The bytes of the cached blocks.
        extract_seconds: The time in which extractors were busy, summed over them.
        extract_wait_seconds: The time in which extractors had no block to make, summed over them.
        train_seconds: The time in which trainers were busy, summed over them.
        train_wait_seconds: The time in which trainers waited for a block, summed over them.
    """

    blocks_extracted: int = 0
    blocks_from_cache: int = 0
    blocks_failed: int = 0
    blocks_lost: int = 0
    extractors_lost: int = 0
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
        """Count a block that was made.

        Args:
            epoch: The epoch that the block was made for, counted from 0.
            num_tokens: The tokens of the block.
            seconds: The time that it took.
        """
        self.blocks_extracted += 1
        self.tokens_extracted += num_tokens
        self.tokens_by_epoch[epoch] = self.tokens_by_epoch.get(epoch, 0) + num_tokens
        self.extract_seconds += seconds

    def hold(self, num_bytes: int) -> None:
        """Count a block that is to be made, from now on."""
        self.held_blocks += 1
        self.held_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def keep(self, num_bytes: int) -> None:
        """Count a held block as kept for later epochs."""
        self.cached_blocks += 1
        self.cache_bytes += num_bytes

    def drop(self, num_bytes: int, *, kept: bool) -> None:
        """Count a block no longer, as it is freed or could not be made.

        Args:
            num_bytes: The bytes of the block.
            kept: Whether it was kept for later epochs.
        """
        self.held_blocks -= 1
        self.held_bytes -= num_bytes
        if kept:
            self.cached_blocks -= 1
            self.cache_bytes -= num_bytes

    def reset_held_blocks(self) -> None:
        """Count no block as held: all blocks of a stream vanish with it, as it owns them."""
        self.held_blocks = self.held_bytes = self.cached_blocks = self.cache_bytes = 0


@dataclass(frozen=True)
class StoreStats:
    """The counters of the object stores of all nodes together.

    Attributes:
        spilled_bytes: The bytes that were spilled to disk since the stores started.
        fallback_bytes: The bytes that were allocated on disk, as memory was full, since then.
        used_bytes: The bytes that the stores hold now.
    """

    spilled_bytes: int
    fallback_bytes: int
    used_bytes: int

    def since(self, before: StoreStats) -> StoreStats:
        """The bytes that went to disk after `before` was read, and the bytes that are held now."""
        return StoreStats(
            self.spilled_bytes - before.spilled_bytes,
            self.fallback_bytes - before.fallback_bytes,
            self.used_bytes,
        )
