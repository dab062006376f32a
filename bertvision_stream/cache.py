"""Which blocks stay in memory between epochs: a pure policy."""

from collections.abc import Mapping, Sequence

from bertvision_stream.blocks import TRAIN, BlockKey, strata


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
