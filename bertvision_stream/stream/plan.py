"""What the feature stream knows of a run: names, orders and bytes, and no tensor."""

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


class DeliveryStatus(Enum):
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


def choose_block_tokens(
    settings: TaskSettings,
    stores: Mapping[str, TokenStore],
    block_format: BlockFormat,
    *,
    store_bytes: int,
    num_extractors: int,
    on_gpu: bool,
) -> int:
    """The block size that is asked for, or one that suits the data and the memory.

    Args:
        settings: `extract.block_tokens` and `stream.budget`.
        stores: Tokens of every split.
        block_format: What fixes a token's bytes.
        store_bytes: Room in the object store.
        num_extractors: How many blocks are in flight.
        on_gpu: Whether extractors have GPUs.

    Raises:
        ConfigError: It is less than the longest example.
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
    """What was decided about memory, in one line for people.

    Args:
        plan: The decision.
        store_bytes: Room in the object store.
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
) -> StreamPlan:
    """What is to be streamed, within which limits.

    Args:
        settings: The settings of the task.
        corpus: The blocks.
        block_format: Fixes the bytes of a block.
        num_extractors: How many extractors make them.
        num_nodes: The nodes of the cluster.
        store_bytes: The room in their object stores together.
        same_order: Whether every epoch has the order of the first.

    Raises:
        ConfigError: The budget or the object store is too small.
    """
    blocks = [block for split in corpus.blocks.values() for block in split]
    block_bytes = {
        block.key: block_format.block_bytes(block.num_tokens, block.num_examples)
        for block in blocks
    }
    validation = tuple(corpus.validation_keys)
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
            settings=settings.stream,
            store_bytes=store_bytes,
            num_nodes=num_nodes,
            num_extractors=num_extractors,
        ),
    )
