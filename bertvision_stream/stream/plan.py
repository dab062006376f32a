"""The plan of a stream: which blocks are delivered, in which order, within which limits.

It holds the names and sizes of blocks and no tensor, so that it is small and needs no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import (
    TRAIN,
    BlockFormat,
    BlockKey,
    epoch_sequence,
    pick_block_tokens,
)
from bertvision_stream.stream.budget import STORE_SHARE, Budget, max_blocks, plan_budget
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.units import format_bytes

# The most blocks, and the most bytes, that a trainer is given in one call. A call costs the node of
# a trainer some 2 ms, about a fifth of the time that it trains on a small block. Large blocks are
# worth calls of their own: they take longer to train on, and may have to cross the network first.
BLOCKS_AT_ONCE = 8
BYTES_AT_ONCE = 128 * 2**20


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A place in the order of deliveries.

    Attributes:
        epoch: The epoch, counted from 0.
        index: The number of the delivery in its epoch, counted from 0.
    """

    epoch: int
    index: int

    def __str__(self) -> str:
        return f"delivery {self.index} of epoch {self.epoch + 1}"

    @property
    def next(self) -> "Position":
        """The position after this one in the same epoch."""
        return Position(self.epoch, self.index + 1)


class DeliveryStatus(Enum):
    """What a trainer has done with a delivery."""

    CONSUMED = "consumed"
    # A block that is delivered again after a fault is ignored, so that no row is trained on twice.
    DUPLICATE = "consumed before"
    TOO_EARLY = "refused, as a delivery before it is missing"


@dataclass(frozen=True)
class StreamPlan:
    """The blocks to deliver, their order and the limits.

    Attributes:
        seed: The seed of the orders of the epochs.
        num_epochs: The number of epochs; fewer are run if all heads stop early.
        same_order: Whether every epoch has the order of the first. A search needs this: a head that
            joins late is then given the blocks in the order that it would have had from the start.
        num_train: The number of training blocks.
        validation: The validation blocks, which are delivered at the end of each epoch.
        block_bytes: The bytes of each block.
        block_tokens: The tokens of each block.
        budget: The limit on bytes, and the blocks that are kept for later epochs.
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
        """The blocks of an epoch (counted from 0), in the order of delivery."""
        epoch = 0 if self.same_order else epoch
        return epoch_sequence(self.num_train, self.validation, seed=self.seed, epoch=epoch)

    def deliveries(self, start: Position, last_epoch: int) -> Iterator[tuple[Position, BlockKey]]:
        """All deliveries from `start` to the end of `last_epoch`, in order."""
        for epoch in range(start.epoch, last_epoch + 1):
            first = start.index if epoch == start.epoch else 0
            for index, key in enumerate(self.sequence(epoch)[first:], start=first):
                yield Position(epoch, index), key

    @property
    def largest_bytes(self) -> int:
        """The bytes of the largest block."""
        return max(self.block_bytes.values())

    @property
    def blocks_at_once(self) -> int:
        """The most blocks that a trainer is given in one call, which costs as much as for one."""
        return min(max(BYTES_AT_ONCE // self.largest_bytes, 1), BLOCKS_AT_ONCE)

    def most_in_flight(self, num_extractors: int) -> int:
        """The number of blocks in flight (made, queued or delivered) that keeps all actors busy."""
        return max_blocks(num_extractors) + 2 * (self.blocks_at_once - 1)


def choose_block_tokens(
    settings: TaskSettings,
    stores: Mapping[str, TokenStore],
    block_format: BlockFormat,
    *,
    store_bytes: int,
    num_extractors: int,
    on_gpu: bool,
) -> int:
    """The most tokens of a block: as the settings say, or as suits the data and the memory.

    Args:
        settings: `extract.block_tokens` and `stream.budget`.
        stores: The tokens of every split.
        block_format: The format of blocks, which fixes the bytes of a token.
        store_bytes: The room for blocks in the object stores of all nodes together.
        num_extractors: The number of extractors, which fixes how many blocks are in flight.
        on_gpu: Whether the extractors have GPUs.

    Raises:
        ConfigError: `extract.block_tokens` is less than the longest example has.
    """
    longest = max(int(store.lengths.max()) for store in stores.values())
    budget = settings.stream.budget
    total = int(store_bytes * STORE_SHARE) if budget == "auto" else budget
    block_tokens = settings.extract.block_tokens
    if block_tokens == "auto":
        return pick_block_tokens(
            num_tokens=stores[TRAIN].num_tokens,
            longest=longest,
            token_bytes=block_format.token_bytes,
            most_bytes=total // max_blocks(num_extractors),
            on_gpu=on_gpu,
        )
    if block_tokens < longest:
        raise ConfigError(
            f"extract.block_tokens={block_tokens} is less than the longest example's {longest}"
        )
    return block_tokens


def describe_budget(plan: StreamPlan, *, store_bytes: int, codec: str) -> str:
    """One line for people about what was decided on memory.

    Args:
        plan: The plan.
        store_bytes: The room for blocks in the object stores of all nodes together.
        codec: `extract.codec`.
    """
    budget, num_blocks, later = plan.budget, len(plan.block_bytes), plan.num_epochs - 1
    text = (
        f"memory: an epoch delivers {format_bytes(budget.epoch_bytes)} in {num_blocks} blocks; "
        f"Ray's object store has room for {format_bytes(store_bytes)}, the budget is "
        f"{format_bytes(budget.total_bytes)}, of which {format_bytes(budget.pinned_bytes)} "
        f"({budget.cached_share:.0%} of an epoch) are kept for later epochs"
    )
    if later and budget.pinned:
        spared = sum(plan.block_tokens[key] for key in budget.pinned) * later
        share = len(budget.pinned) * later / (num_blocks * plan.num_epochs)
        text += f": {share:.0%} of all blocks need no forward pass, which spares {spared:,} tokens"
    if later and budget.cached_share < 1 and codec != "int8":
        text += "; extract.codec=int8 would " + ("halve" if codec == "bf16" else "quarter")
        text += " the bytes of an epoch"
    return text


def plan_stream(
    settings: TaskSettings,
    corpus: Corpus,
    block_format: BlockFormat,
    *,
    num_extractors: int,
    num_nodes: int,
    store_bytes: int,
    same_order: bool = False,
    epochs_done: int = 0,
) -> StreamPlan:
    """Plan a stream: its blocks, their order and the limits.

    Args:
        settings: The settings of the task.
        corpus: The corpus, which is packed into blocks.
        block_format: The format of blocks, which fixes their bytes.
        num_extractors: The number of extractors.
        num_nodes: The number of nodes of the cluster.
        store_bytes: The room for blocks in the object stores of all nodes together.
        same_order: Whether every epoch has the order of the first.
        epochs_done: The epochs that an interrupted run has finished, which is resumed.

    Raises:
        ConfigError: The budget or the object store is too small.
    """
    blocks = [block for split in corpus.blocks.values() for block in split]
    block_bytes = {
        block.key: block_format.block_bytes(block.num_tokens, block.num_examples)
        for block in blocks
    }
    validation = tuple(corpus.validation_keys)
    stream = settings.stream
    if settings.train.epochs - epochs_done <= 1 and settings.mode != "search":
        stream = stream.model_copy(update={"cache": 0})  # no later epoch would read it
    return StreamPlan(
        seed=corpus.seed,
        num_epochs=settings.train.epochs,
        same_order=same_order,
        num_train=len(corpus.blocks[TRAIN]),
        validation=validation,
        block_bytes=block_bytes,
        block_tokens={block.key: block.num_tokens for block in blocks},
        budget=plan_budget(
            block_bytes,
            validation,
            num_train=len(corpus.blocks[TRAIN]),
            seed=corpus.seed,
            settings=stream,
            store_bytes=store_bytes,
            num_nodes=num_nodes,
            num_extractors=num_extractors,
        ),
    )
