"""A task's tokens and blocks: all that is needed to make any block again, anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.stream.blocks import TRAIN, Block, BlockKey, pack_blocks
from bertvision_stream.utils.hashing import hash_contents


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token stores and blocks of the training split (`train`) and of the validation splits.

    Attributes:
        stores: The tokens and labels by split.
        blocks: The blocks by split; the position of a block in its list is its index.
        seed: The seed of blocks, epoch orders and row orders.
    """

    stores: Mapping[str, TokenStore]
    blocks: Mapping[str, list[Block]]
    seed: int

    @classmethod
    def pack(cls, stores: Mapping[str, TokenStore], *, block_tokens: int, seed: int) -> "Corpus":
        """Pack every split into blocks of at most `block_tokens` tokens."""
        blocks = {
            split: pack_blocks(split, store.lengths, block_tokens=block_tokens, seed=seed)
            for split, store in stores.items()
        }
        return cls(stores, blocks, seed)

    def block(self, key: BlockKey) -> Block:
        """The block of that name."""
        return self.blocks[key.split][key.index]

    @property
    def num_blocks(self) -> int:
        """The number of blocks of all splits: the deliveries of an epoch."""
        return sum(len(blocks) for blocks in self.blocks.values())

    def fingerprint(self) -> str:
        """A hash of all tokens, labels and blocks: what a resumed run must find unchanged."""
        parts: list[Any] = [repr((self.seed, list(self.stores)))]
        for store in self.stores.values():
            parts += store.arrays
        for blocks in self.blocks.values():
            for block in blocks:
                parts += [f"{block.key} of {block.num_examples}", block.example_ids]
        return hash_contents(parts)

    @property
    def validation_keys(self) -> list[BlockKey]:
        """The names of the validation blocks, in the order in which every epoch delivers them."""
        return [b.key for split, blocks in self.blocks.items() if split != TRAIN for b in blocks]

    @property
    def validation_splits(self) -> list[str]:
        """The names of the validation splits."""
        return [split for split in self.stores if split != TRAIN]

    def packed_tokens(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and token type ids of a block, one example after another: int [T] each."""
        store = self.stores[block.key.split]
        positions_T = packed_positions(store.offsets[block.example_ids], block.lengths)
        return store.input_ids[positions_T], store.token_type_ids[positions_T]


def packed_positions(starts_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """The positions of the tokens of B examples, one example after another: int64 [T].

    They are `starts[i], starts[i] + 1, ...`, `lengths[i]` of them, for every i in turn.
    """
    packed_starts_B = np.cumsum(lengths_B) - lengths_B
    return np.repeat(starts_B - packed_starts_B, lengths_B) + np.arange(lengths_B.sum())
