"""What a run costs: tokens, blocks, bytes, operations and seconds, computed without any tensor.

Tokens, blocks and bytes are exact unless something dies, because they come from the plan that the
stream will follow. Seconds are estimates: work divided by speeds that were measured or assumed, for
stages (extraction, transfer, heads) that overlap fully. `mode=plan`, `docs/plan.md` and
`docs/scaling.md` all use these functions.

L is the number of encoder layers + 1, D the hidden size, A the adapter size. Speeds are in tokens,
bytes or floating-point operations a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bertvision_stream.stream.plan import StreamPlan

Stage = Literal["extraction", "transfer", "heads"]

GIGABIT_BYTES = 10**9 / 8
"""The bytes in a gigabit, as networks count it."""


@dataclass(frozen=True)
class EpochWork:
    """The work of one epoch, training and validation together.

    Attributes:
        tokens: The tokens that are delivered to the trainers.
        extracted_tokens: The tokens among them that need a forward pass.
        num_bytes: The bytes of hidden states that are delivered.
    """

    tokens: int
    extracted_tokens: int
    num_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a stream does over all its epochs, exact to the token unless something dies.

    Attributes:
        epochs: The number of epochs.
        blocks_extracted: The blocks that are made by a forward pass.
        blocks_from_cache: The blocks that are delivered without a forward pass.
        tokens_extracted: The tokens of the blocks that are made.
        tokens_spared: The tokens of the blocks that are delivered without a forward pass.
        cache_bytes: The bytes that are kept between epochs.
    """

    epochs: int
    blocks_extracted: int
    blocks_from_cache: int
    tokens_extracted: int
    tokens_spared: int
    cache_bytes: int

    @property
    def spared_share(self) -> float:
        """The share of the tokens of all epochs that need no forward pass."""
        return self.tokens_spared / (self.tokens_spared + self.tokens_extracted)


def forecast(plan: StreamPlan, *, epochs: int) -> Forecast:
    """Count what the stream of a plan does in a number of epochs."""
    first, later = epoch_work(plan, first=True), epoch_work(plan, first=False)
    cached_epochs = max(epochs - 1, 0)  # the first epoch finds nothing in the cache
    spared = cached_epochs * (later.tokens - later.extracted_tokens)
    from_cache = cached_epochs * len(plan.budget.pinned)
    return Forecast(
        epochs=epochs,
        blocks_extracted=epochs * len(plan.block_tokens) - from_cache,
        blocks_from_cache=from_cache,
        tokens_extracted=epochs * first.tokens - spared,
        tokens_spared=spared,
        cache_bytes=plan.budget.pinned_bytes,
    )


def epoch_work(plan: StreamPlan, *, first: bool) -> EpochWork:
    """Count the work of the first epoch, which extracts every block, or of any later one."""
    tokens = sum(plan.block_tokens.values())
    cached = 0 if first else sum(plan.block_tokens[key] for key in plan.budget.pinned)
    return EpochWork(tokens, tokens - cached, plan.budget.epoch_bytes)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Who works, and how fast.

    Attributes:
        extractors: The number of extractors.
        extract_tokens_per_second: The speed of one extractor.
        trainers: The number of trainers. Each is delivered every block, for its part of the heads.
        train_tokens_per_second: The speed of one trainer with all its heads; None if unknown.
        nodes: The number of nodes that the extractors are spread over. Each trainer is on one.
        network_bytes_per_second: The speed of each node's link, in each direction.
        shared_cores: The number of CPU cores that extractors and trainers of one thread each share;
            None if none of them waits for another's core.
    """

    extractors: int
    extract_tokens_per_second: float
    trainers: int = 1
    train_tokens_per_second: float | None = None
    nodes: int = 1
    network_bytes_per_second: float = math.inf
    shared_cores: int | None = None


@dataclass(frozen=True)
class EpochSeconds:
    """The seconds of an epoch.

    Attributes:
        extraction: The time in which all extractors, side by side, are busy.
        transfer: The time in which the busiest link of the network is busy.
        heads: The time in which one trainer is busy; None if its speed is unknown.
        total: The time of the epoch, in which the stages overlap.
        bottleneck: The stage that the others wait for; None if the speed of the heads is unknown,
            which often are the slowest.
    """

    extraction: float
    transfer: float
    heads: float | None
    total: float
    bottleneck: Stage | None


def epoch_seconds(work: EpochWork, speeds: Speeds) -> EpochSeconds:
    """Estimate how long an epoch takes.

    The stages overlap, so that an epoch takes as long as the slowest of them. If extractors and
    trainers share the cores of a machine, it takes at least all their work divided by the cores.
    """
    cores = speeds.shared_cores
    extract_work = work.extracted_tokens / speeds.extract_tokens_per_second
    heads = work.tokens / speeds.train_tokens_per_second if speeds.train_tokens_per_second else None
    stages: dict[Stage, float] = {
        "extraction": extract_work / min(speeds.extractors, cores or speeds.extractors),
        "transfer": transfer_seconds(
            work.num_bytes, nodes=speeds.nodes, bytes_per_second=speeds.network_bytes_per_second
        ),
        "heads": heads or 0.0,
    }
    total = max(stages.values())
    if cores:
        total = max(total, (extract_work + speeds.trainers * stages["heads"]) / cores)
    slowest = max(stages, key=lambda stage: stages[stage])
    bottleneck = None if heads is None else slowest
    return EpochSeconds(stages["extraction"], stages["transfer"], heads, total, bottleneck)


def run_seconds(first: EpochSeconds, later: EpochSeconds, *, epochs: int) -> float:
    """The seconds of all epochs of a stream, without its start."""
    return first.total + (epochs - 1) * later.total


def trials_at_once(
    *, num_trials: int, epochs: int, shared_seconds: float, start_seconds: float
) -> int:
    """How many trials of a search should run side by side for the search to take the least time.

    N trials of E epochs, K at a time, take `E ceil(N / K)` epochs of their stream. Each epoch costs
    S seconds whatever the number of heads that it feeds, and each of the K processes takes P
    seconds to start. The sum of both is least near `K = sqrt(N E S / P)`.

    Args:
        num_trials: N.
        epochs: E.
        shared_seconds: S.
        start_seconds: P.
    """

    def seconds(at_once: int) -> float:
        rounds = math.ceil(num_trials / at_once)
        return rounds * epochs * shared_seconds + at_once * start_seconds

    return min(range(1, num_trials + 1), key=seconds)


def transfer_seconds(num_bytes: int, *, nodes: int, bytes_per_second: float) -> float:
    """The seconds that the blocks of an epoch take over the network.

    A block lies on the node that made it, even in the cache, and a trainer on the same node reads
    it there. Of N nodes the others make (N - 1) / N of the bytes, and in every epoch these come in
    through the link of each trainer's node. No node sends more than that.

    Args:
        num_bytes: The bytes of hidden states that the epoch delivers.
        nodes: The number of nodes that the extractors are spread over.
        bytes_per_second: The speed of each node's link, in each direction.
    """
    return num_bytes * (nodes - 1) / nodes / bytes_per_second


def break_even_tokens_per_second(token_bytes: int, bytes_per_second: float) -> float:
    """The tokens a second that a link carries.

    A node whose extractors are faster makes hidden states again in less time than it takes to move
    them. The trainer then belongs beside the extractors, and only gradients or heads, which are
    small, should travel.
    """
    return bytes_per_second / token_bytes


def dump_bytes(num_examples: int, *, num_layers: int, max_length: int, hidden_size: int) -> int:
    """The bytes of BERTVision's layout on disk: padded examples, L layers, 4 bytes a number."""
    return num_examples * num_layers * max_length * hidden_size * 4


def mean_attended_tokens(lengths: Sequence[int]) -> float:
    """The tokens that a token attends to, on average over all tokens (not over examples).

    Long examples have more tokens, each of which attends to more: `sum(s^2) / sum(s)`.
    """
    return sum(int(s) ** 2 for s in lengths) / sum(int(s) for s in lengths)


def forward_flops(
    *, num_layers: int, hidden_size: int, intermediate_size: int, attended: float
) -> float:
    """The floating-point operations of an encoder's forward pass for one token.

    A product of two numbers and its addition to a sum count as two. Each of the L - 1 encoder
    layers multiplies a token by four matrices `[D, D]` (queries, keys, values, output) and two
    `[D, F]`, and takes two products with each attended token (scores, weighted values). Embeddings,
    softmax and norms are left out, as is the classifier, which sees one token an example.

    Args:
        num_layers: L.
        hidden_size: D.
        intermediate_size: F, the width of the feed-forward layers.
        attended: The number of tokens that a token attends to, see `mean_attended_tokens`.
    """
    d, f = hidden_size, intermediate_size
    return (num_layers - 1) * 2 * (4 * d * d + 2 * d * f + 2 * attended * d)


def adapter_flops(*, num_layers: int, hidden_size: int, adapter_dim: int) -> float:
    """The floating-point operations of one training step of an AdapterPooler for one token.

    The L states are multiplied by `[D, A]`, and once more for the gradient of the weights. Frozen
    hidden states need no gradient. What comes after the adapters is small in comparison.
    """
    return 2 * 2 * num_layers * hidden_size * adapter_dim


def extract_tokens_per_second(
    *,
    forward_flops: float,
    flops_per_second: float,
    token_bytes: int,
    copy_bytes_per_second: float = math.inf,
) -> float:
    """The tokens a second of an extractor on a device that nobody has measured.

    A block is copied to the host during the next one's forward pass: the slower of both counts.

    Args:
        forward_flops: The operations of the backbone for one token.
        flops_per_second: The operations that the device really does, not those of its data sheet.
        token_bytes: The bytes of one token's hidden states, as they are stored.
        copy_bytes_per_second: The speed of copies from the device into the object store.
    """
    return min(flops_per_second / forward_flops, copy_bytes_per_second / token_bytes)


def train_tokens_per_second(
    *,
    heads: int,
    adapter_flops: float,
    flops_per_second: float,
    token_bytes: int,
    copy_bytes_per_second: float,
    step_seconds: float,
    step_tokens: float,
) -> float:
    """The tokens a second of a trainer on a device that nobody has measured.

    A trainer copies a block to its device and then takes its steps, so that their times add up.

    Args:
        heads: The number of heads that it trains.
        adapter_flops: The operations of a training step of one head, for one token.
        flops_per_second: The operations that the device really does of these narrow products.
        token_bytes: The bytes of one token's hidden states, as they are stored.
        copy_bytes_per_second: The speed of copies from the object store to the device.
        step_seconds: The time of a step of all heads, however few tokens it has.
        step_tokens: The number of tokens in a batch.
    """
    return 1 / (
        token_bytes / copy_bytes_per_second
        + heads * adapter_flops / flops_per_second
        + step_seconds / step_tokens
    )
