"""The byte budget: how much of the object store hidden states may take, and what it is spent on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey, strata
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.units import format_bytes

# Of the object store's capacity: the rest is for what Ray needs and for blocks freed but not yet
# gone.
STORE_SHARE = 0.7

# In flight at once: for each extractor one block being made, one queued and one delivered, and a
# few more so that a slow trainer step stalls nobody.
BLOCKS_PER_EXTRACTOR = 3
SPARE_BLOCKS = 2


def max_blocks(num_extractors: int) -> int:
    """Blocks in flight that keep all extractors busy."""
    return BLOCKS_PER_EXTRACTOR * num_extractors + SPARE_BLOCKS


@dataclass(frozen=True)
class Budget:
    """How the bytes are spent.

    Attributes:
        total_bytes: Limit of the bytes of hidden states that exist at once.
        window_bytes: For blocks in flight: being made, waiting, delivered but not acknowledged.
        pinned: Blocks kept between epochs; their bytes and the window's never pass the total.
        pinned_bytes: Their bytes.
        epoch_bytes: Bytes that one epoch delivers.
        store_share: Share of each node's object store that blocks may take.
    """

    total_bytes: int
    window_bytes: int
    pinned: frozenset[BlockKey]
    pinned_bytes: int
    epoch_bytes: int
    store_share: float

    @property
    def cached_share(self) -> float:
        """Share of an epoch's bytes that comes from the cache, from the second epoch on."""
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
        block_bytes: Bytes of each block, of all splits.
        validation: The validation blocks.
        num_train: Number of training blocks.
        seed: The run's seed.
        settings: `stream.budget`: `auto` is what is useful, up to a share of the object store; and
            `stream.cache`: `auto` is what the budget leaves beside a comfortable window.
        store_bytes: Room in the object stores of all nodes together.
        num_nodes: Number of them.
        num_extractors: Extractors to keep busy.

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
    # The window comes first: a cache that starves it would make every epoch slower, not faster.
    window = min(comfortable, max(smallest, total // 2))
    cache_bytes = total - window if cache == "auto" else min(cache, total - smallest)
    if num_nodes > 1:
        # A block lies on one node; each node keeps room for two that pass, and a gap may be left.
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
    """The blocks that are kept once they are made, and never evicted within a run.

    An epoch reads every block once, in a new order. With room for a share s of the bytes, a least
    recently used cache has mostly dropped a block by the time that it comes round again: it hits
    s + (1 - s) ln(1 - s) of the time, 15 % at s = 0.5. A fixed set hits exactly s, and no policy
    can do better, as each block is read once between two reads of any other (CoorDL's MinIO cache,
    Mohan et al., PVLDB 14(5), 2021, makes the point for raw data).

    Validation blocks go first: every head reads them in every epoch. Training blocks follow stratum
    by stratum. An epoch's order takes one block of each stratum in turn (see `blocks.epoch_order`),
    so the pinned ones are spread evenly through every epoch, and extraction and training overlap
    all along, while the order itself knows nothing of the cache. With m of the 8 strata pinned
    whole, at most 2 (8 - m) blocks in a row need a forward pass, however long the epoch is; by
    chance alone it would be ever more.

    Args:
        block_bytes: Bytes of each block.
        validation: The validation blocks.
        num_train: Number of training blocks.
        seed: The seed of the strata.
        cache_bytes: Most bytes to keep.
    """
    order = [BlockKey(TRAIN, int(i)) for s in strata(num_train, seed=seed) for i in s]
    pinned = set()
    left = cache_bytes
    for key in [*validation, *order]:
        if block_bytes[key] <= left:
            pinned.add(key)
            left -= block_bytes[key]
    return frozenset(pinned)
