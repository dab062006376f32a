"""The byte budget: how much of the object store blocks may take, and which of them are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey, strata
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.units import format_bytes

# The share of the object store that blocks may take. The rest is for what Ray itself needs, and for
# blocks that are freed but not gone yet.
STORE_SHARE = 0.7

# The blocks in flight at once: for each extractor one that is being made, one that is queued and
# one that is delivered; and a few more, so that a slow step of a trainer stalls no extractor.
BLOCKS_PER_EXTRACTOR = 3
SPARE_BLOCKS = 2


def max_blocks(num_extractors: int) -> int:
    """The number of blocks in flight that keeps all extractors busy."""
    return BLOCKS_PER_EXTRACTOR * num_extractors + SPARE_BLOCKS


@dataclass(frozen=True)
class Budget:
    """The limits on bytes, and the blocks that are kept for later epochs.

    Attributes:
        total_bytes: The most bytes of blocks that exist at once.
        window_bytes: The most bytes of blocks in flight: those that are being made, wait, or are
            delivered while a trainer has not replied yet.
        pinned: The blocks that are kept for later epochs. Their bytes and those of the window are
            together never more than the total.
        pinned_bytes: The bytes of the pinned blocks.
        epoch_bytes: The bytes that one epoch delivers.
        store_share: The share of the object store of each node that blocks may take.
    """

    total_bytes: int
    window_bytes: int
    pinned: frozenset[BlockKey]
    pinned_bytes: int
    epoch_bytes: int
    store_share: float

    @property
    def cached_share(self) -> float:
        """The share of the bytes of an epoch, from the second epoch on, that the cache holds."""
        return self.pinned_bytes / self.epoch_bytes


def plan_budget(
    block_bytes: Mapping[BlockKey, int],
    validation: Sequence[BlockKey],
    *,
    num_train: int,
    seed: int,
    settings: StreamSettings,
    store_bytes: int,
    num_nodes: int,
    num_extractors: int,
) -> Budget:
    """Decide how many bytes to use, and which blocks to keep.

    Args:
        block_bytes: The bytes of each block, of all splits.
        validation: The validation blocks.
        num_train: The number of training blocks.
        seed: The seed of the run.
        settings: `stream.budget`, with `auto` as many bytes as are of use, up to a share of the
            object store; and `stream.cache`, with `auto` what the budget leaves beside a window
            that keeps all extractors busy.
        store_bytes: The room for blocks in the object stores of all nodes together.
        num_nodes: The number of nodes.
        num_extractors: The number of extractors to keep busy.

    Raises:
        ConfigError: The budget is too small for two blocks, or larger than the object store.
    """
    budget, cache = settings.budget, settings.cache
    largest = max(block_bytes.values())
    epoch_bytes = sum(block_bytes.values())
    smallest = 2 * largest
    comfortable = max_blocks(num_extractors) * largest
    available = int(store_bytes * STORE_SHARE)
    if budget == "auto":
        wanted = comfortable + (epoch_bytes if cache == "auto" else cache)
        total = min(wanted, available)
        if total < smallest:
            raise ConfigError(
                f"the object store of {format_bytes(store_bytes)} is too small: two blocks of "
                f"{format_bytes(largest)} must fit into {STORE_SHARE:.0%} of it. Lower "
                f"extract.block_tokens, or give Ray a larger object store."
            )
    else:
        total = budget
        if total < smallest:
            raise ConfigError(
                f"stream.budget={budget} ({format_bytes(budget)}) is too small for two blocks, the "
                f"least that lets extraction and training overlap. The smallest that would do is "
                f"{smallest} ({format_bytes(smallest)}); or lower extract.block_tokens, or take "
                f"extract.codec=int8."
            )
        if total > store_bytes:
            raise ConfigError(
                f"stream.budget={budget} ({format_bytes(budget)}) is more than Ray's object store "
                f"holds: {store_bytes} ({format_bytes(store_bytes)}). Lower it or leave it out."
            )
    # The window comes first. If the cache left it too little, extractors and trainers would wait
    # for each other, and every epoch would be slower than without the cache.
    window = min(comfortable, max(smallest, total // 2))
    cache_bytes = total - window if cache == "auto" else min(cache, total - smallest)
    if num_nodes > 1:
        # A block lies whole on one node. So each node needs room for two blocks in flight, and a
        # third one is for the gap that is too small for another block.
        in_stores = max(available, total) - 3 * largest * num_nodes
        cache_bytes = max(min(cache_bytes, in_stores), 0)
    pinned = choose_pinned(
        block_bytes, validation, num_train=num_train, seed=seed, cache_bytes=cache_bytes
    )
    pinned_bytes = sum(block_bytes[key] for key in pinned)
    return Budget(
        total_bytes=total,
        window_bytes=total - pinned_bytes,
        pinned=pinned,
        pinned_bytes=pinned_bytes,
        epoch_bytes=epoch_bytes,
        store_share=max(STORE_SHARE, total / store_bytes),
    )


def choose_pinned(
    block_bytes: Mapping[BlockKey, int],
    validation: Sequence[BlockKey],
    *,
    num_train: int,
    seed: int,
    cache_bytes: int,
) -> frozenset[BlockKey]:
    """Choose the blocks that are kept once they are made, and never evicted within a run.

    Each epoch reads every block once, in a new order. With room for a share s of the bytes, a cache
    that evicts the least recently used block has mostly dropped a block before it is read again:
    its hit rate is s + (1 - s) ln(1 - s), 15 % at s = 0.5. A fixed set of blocks has a hit rate of
    exactly s, and no policy can do better, as each block is read once between two reads of any
    other (Mohan et al., PVLDB 14(5), 2021, show this for raw data, with the MinIO cache of CoorDL).

    Validation blocks come first, as every head reads them in every epoch. Training blocks follow
    stratum by stratum. The order of an epoch takes one block of each stratum in turn (see
    `blocks.epoch_order`). The pinned blocks are thus spread evenly over every epoch, so that
    extraction and training overlap all the time, and yet the order does not depend on the cache.
    With m of the 8 strata pinned whole, at most 2 (8 - m) blocks in a row need a forward pass,
    however long the epoch is; in an order by chance alone, such rows would grow with the epoch.

    Args:
        block_bytes: The bytes of each block.
        validation: The validation blocks.
        num_train: The number of training blocks.
        seed: The seed of the strata.
        cache_bytes: The most bytes to keep.
    """
    order = [BlockKey(TRAIN, int(i)) for s in strata(num_train, seed=seed) for i in s]
    pinned = set()
    left = cache_bytes
    for key in [*validation, *order]:
        if block_bytes[key] <= left:
            pinned.add(key)
            left -= block_bytes[key]
    return frozenset(pinned)
