"""Blocks: which examples travel together, in which order, and how many bytes they take.

Everything here is a pure function of token counts, a seed and an epoch, so that extractors,
trainers, the feature stream and a process that resumes a run agree without talking to each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.settings.types import Codec

TRAIN = "train"

# Rows are sorted by length only inside chunks of about this many, so that a block's rows are alike
# in length and yet the blocks of one epoch differ in length and content.
CHUNK_EXAMPLES = 1000

# Blocks are dealt into this many strata, and each stretch of an epoch holds one block of every
# stratum. A cache that pins whole strata is then hit evenly through every epoch (see budget.py).
NUM_STRATA = 8


@dataclass(frozen=True, slots=True)
class BlockKey:
    """The name of a block: a split and its number in that split."""

    split: str
    index: int

    def __str__(self) -> str:
        return f"{self.split}[{self.index}]"


@dataclass(frozen=True)
class Block:
    """A fixed group of examples of similar length, extracted, moved and cached as one.

    Attributes:
        key: The name of the block.
        example_ids: The rows of the split that are in the block, int64 [B], in the order in which
            their tokens are packed.
        lengths: The number of tokens of each example, int64 [B], ascending.
    """

    key: BlockKey
    example_ids: np.ndarray
    lengths: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.example_ids)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def pack_blocks(split: str, lengths: np.ndarray, *, block_tokens: int, seed: int) -> list[Block]:
    """Cut a split into blocks of at most `block_tokens` tokens.

    Rows are permuted by the seed, cut into chunks, sorted by length inside a chunk and cut into
    blocks.

    Args:
        split: The name of the split. It is a part of the seed, so that no two splits share a
            permutation.
        lengths: The number of tokens of each example, int64 [N].
        block_tokens: The most tokens of a block.
        seed: The seed of the run.

    Raises:
        ValueError: An example has more than `block_tokens` tokens.
    """
    if len(lengths) and lengths.max() > block_tokens:
        raise ValueError(
            f"an example of {lengths.max()} tokens does not fit into a block of {block_tokens}"
        )
    shuffled = _rng(seed, split).permutation(len(lengths))
    blocks: list[Block] = []
    for chunk in np.array_split(shuffled, max(1, round(len(lengths) / CHUNK_EXAMPLES))):
        by_length = chunk[np.argsort(lengths[chunk], kind="stable")]
        for ids in _cut(by_length, lengths[by_length], block_tokens):
            blocks.append(Block(BlockKey(split, len(blocks)), ids, lengths[ids]))
    return blocks


def _cut(ids: np.ndarray, lengths: np.ndarray, block_tokens: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `ids`: at most `block_tokens` tokens, nearly equal token counts."""
    if not len(ids):
        return
    ends = np.cumsum(lengths)
    first = 0
    while first < len(ids):
        before = ends[first] - lengths[first]
        left = ends[-1] - before
        target = left / np.ceil(left / block_tokens)  # equal shares: no small leftover block
        last = int(np.searchsorted(ends, before + target, side="right"))
        # The first example past the target still joins where the block has room for it.
        if last < len(ids) and ends[last] - before <= block_tokens:
            last += 1
        yield ids[first:last]
        first = last


def strata(num_blocks: int, *, seed: int) -> list[np.ndarray]:
    """Deal the training blocks into strata of nearly equal size, by the seed alone."""
    dealt = _rng(seed, "strata").permutation(num_blocks)
    return [dealt[i::NUM_STRATA] for i in range(min(NUM_STRATA, num_blocks))]


def epoch_order(num_blocks: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the training blocks in one epoch: a permutation, int64 [num_blocks].

    Every stratum is permuted, then each round takes one block of every stratum, in a random order.
    """
    rng = _rng(seed, "epoch", epoch)
    # Strata differ in size by one block: the last round takes what the larger ones have left.
    columns = [rng.permutation(stratum) for stratum in strata(num_blocks, seed=seed)]
    order: list[int] = []
    for round_index in range(max((len(c) for c in columns), default=0)):
        members = [int(c[round_index]) for c in columns if round_index < len(c)]
        order.extend(members[i] for i in rng.permutation(len(members)))
    return np.array(order, dtype=np.int64)


def row_order(block: Block, *, seed: int, epoch: int) -> np.ndarray:
    """The order of a training block's rows in one epoch: a permutation, int64 [B]."""
    return _rng(seed, "rows", epoch, block.key.index).permutation(block.num_examples)


def epoch_sequence(
    num_train: int, validation: Sequence[BlockKey], *, seed: int, epoch: int
) -> list[BlockKey]:
    """All deliveries of an epoch in order: the training blocks, then every validation block."""
    order = epoch_order(num_train, seed=seed, epoch=epoch)
    return [BlockKey(TRAIN, int(i)) for i in order] + list(validation)


def _rng(seed: int, *words: str | int) -> np.random.Generator:
    """A generator for one purpose: the same words give the same numbers, on any machine."""
    entropy = [seed]
    # A length before each word: without it ("ab", "c") and ("a", "bc") would be the same.
    for word in words:
        entropy += [word] if isinstance(word, int) else [len(word), *word.encode()]
    return np.random.default_rng(entropy)


def pick_block_tokens(
    *, num_tokens: int, longest: int, token_bytes: int, most_bytes: int, on_gpu: bool
) -> int:
    """The block size of `extract.block_tokens=auto`.

    Large enough that moving a block costs little beside making it; small enough that the budget
    holds several, and that even a small training set has some tens of blocks to permute.

    Args:
        num_tokens: The number of tokens of the training split.
        longest: The number of tokens of the longest example of any split.
        token_bytes: The bytes of one token's hidden states.
        most_bytes: The most bytes that a block may have.
        on_gpu: Whether extractors have a GPU, which wants larger forward passes.
    """
    wanted = min(8192 if on_gpu else 4096, num_tokens // 32, most_bytes // token_bytes)
    return max(wanted, 512, longest)


STORED_BYTES: Mapping[Codec, int] = {"bf16": 2, "int8": 1, "fp32": 4}
"""The bytes of one stored value."""


@dataclass(frozen=True)
class BlockFormat:
    """What fixes a block's size: layers kept and width, the codec, the number of BERT's logits.

    With `per_token` every token has logits, and not every example.
    """

    num_layers: int
    hidden_size: int
    num_logits: int
    codec: Codec
    per_token: bool = False

    @classmethod
    def of(cls, shape: HeadShape, codec: Codec) -> "BlockFormat":
        """The format of blocks for heads of a shape; BERT has as many logits as a head."""
        return cls(shape.num_layers, shape.hidden_size, shape.num_outputs, codec, shape.per_token)

    @property
    def token_bytes(self) -> int:
        """The bytes of one token's hidden states of the L layers that are kept."""
        values = self.num_layers * self.hidden_size * STORED_BYTES[self.codec]
        # `int8` has one scale in fp32 for each token and layer.
        return values + (4 * self.num_layers if self.codec == "int8" else 0)

    def block_bytes(self, num_tokens: int, num_examples: int) -> int:
        """The exact bytes of an encoded block's arrays, known before it is extracted."""
        num_rows = num_tokens if self.per_token else num_examples
        return num_tokens * self.token_bytes + num_rows * self.num_logits * 4
