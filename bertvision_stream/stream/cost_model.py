"""What a run costs, on paper: tokens, bytes, operations and seconds. Plain arithmetic, no tensor.

Tokens, blocks and bytes are exact where nothing dies: they come from the plan that the stream will
follow. Seconds are estimates: they divide work by speeds that were measured or assumed, and take
the stages of the stream (extraction, transfer, heads) to overlap fully. `mode=plan`, the comparison
at the end of a run, `docs/plan.md` and `docs/scaling.md` all use these functions.

L is encoder layers + 1, D the hidden size, A the adapter size; speeds are in tokens, bytes or
floating-point operations a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bertvision_stream.stream.plan import StreamPlan

Stage = Literal["extraction", "transfer", "heads"]

GIGABIT_BYTES = 10**9 / 8
"""Bytes in a gigabit, as networks count it."""


@dataclass(frozen=True)
class EpochWork:
    """The work of one epoch, training and validation together.

    Attributes:
        tokens: Tokens delivered to the trainers.
        extracted_tokens: Those of them that need a forward pass.
        num_bytes: Bytes of hidden states delivered.
    """

    tokens: int
    extracted_tokens: int
    num_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a stream does over all its epochs, to the token, where nothing dies.

    Attributes:
        epochs: How many.
        blocks_extracted: Blocks made by a forward pass.
        blocks_from_cache: Blocks delivered without one.
        tokens_extracted: Tokens of the blocks made.
        tokens_spared: Tokens of the blocks delivered without a forward pass.
        cache_bytes: Bytes kept between epochs.
    """

    epochs: int
    blocks_extracted: int
    blocks_from_cache: int
    tokens_extracted: int
    tokens_spared: int
    cache_bytes: int

    @property
    def spared_share(self) -> float:
        """Share of the tokens of all epochs that need no forward pass."""
        return self.tokens_spared / (self.tokens_spared + self.tokens_extracted)


def forecast(plan: StreamPlan, *, epochs: int) -> Forecast:
    """What the stream of a plan does in so many epochs."""
    later = max(epochs - 1, 0)
    tokens = sum(plan.block_tokens.values())
    spared = later * sum(plan.block_tokens[key] for key in plan.budget.pinned)
    from_cache = later * len(plan.budget.pinned)
    return Forecast(
        epochs=epochs,
        blocks_extracted=epochs * len(plan.block_tokens) - from_cache,
        blocks_from_cache=from_cache,
        tokens_extracted=epochs * tokens - spared,
        tokens_spared=spared,
        cache_bytes=plan.budget.pinned_bytes,
    )


def epoch_work(plan: StreamPlan, *, first: bool) -> EpochWork:
    """The work of the first epoch, which extracts everything, or of any later one."""
    tokens = sum(plan.block_tokens.values())
    cached = 0 if first else sum(plan.block_tokens[key] for key in plan.budget.pinned)
    return EpochWork(tokens, tokens - cached, plan.budget.epoch_bytes)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Who works, and how fast.

    Attributes:
        extractors: How many there are.
        extract_tokens_per_second: Of one extractor.
        trainers: How many there are; each is delivered every block, for its part of the heads.
        train_tokens_per_second: Of one trainer, with all its heads; None where it is not known.
        nodes: Nodes that the extractors are spread over; each trainer is on one of them.
        network_bytes_per_second: Of each node's link, in each direction.
        shared_cores: CPU cores that extractors and trainers of one thread each share; None where
            nobody waits for another's core.
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
    """Seconds that each stage of an epoch is busy, and the epoch's own.

    Attributes:
        extraction: All extractors side by side.
        transfer: Over the busiest link.
        heads: One trainer; None where its speed is not known.
        total: Of the epoch, as the stages overlap.
        bottleneck: The stage that the others wait for.
    """

    extraction: float
    transfer: float
    heads: float | None
    total: float
    bottleneck: Stage


def epoch_seconds(work: EpochWork, speeds: Speeds) -> EpochSeconds:
    """Estimate how long an epoch takes.

    The stages overlap, so that an epoch takes as long as the slowest. Where extractors and trainers
    share the cores of a machine, it also takes all their work divided by the cores.
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
    bottleneck = max(stages, key=lambda stage: stages[stage])
    return EpochSeconds(stages["extraction"], stages["transfer"], heads, total, bottleneck)


def run_seconds(first: EpochSeconds, later: EpochSeconds, *, epochs: int) -> float:
    """Seconds of all epochs of a stream, its start-up apart."""
    return first.total + (epochs - 1) * later.total


def trials_at_once(
    *, num_trials: int, epochs: int, shared_seconds: float, start_seconds: float
) -> int:
    """How many trials of a search should run side by side for it to take the least time.

    N trials of E epochs, K at a time, take `E ceil(N / K)` epochs of their stream. Each epoch costs
    S seconds whatever the number of heads that it feeds, and each of the K processes P seconds to
    start. The sum of both is least near `K = sqrt(N E S / P)`.

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
    """Seconds that an epoch's blocks take over the network.

    A block lies on the node that made it, in the cache as well, and is read there by whoever is on
    the same node. Of N nodes the others make (N - 1) / N of the bytes, and these come in through
    the link of each trainer's node in every epoch. What a node sends is never more than that.

    Args:
        num_bytes: Bytes of hidden states that the epoch delivers.
        nodes: Nodes that the extractors are spread over.
        bytes_per_second: Of each node's link, in each direction.
    """
    return num_bytes * (nodes - 1) / nodes / bytes_per_second


def break_even_tokens_per_second(token_bytes: int, bytes_per_second: float) -> float:
    """Tokens a second that a link carries.

    A node whose extractors are faster than this makes hidden states again in less time than it
    takes to move them: the trainer belongs beside the extractor then, and only gradients or heads,
    which are small, should travel.
    """
    return bytes_per_second / token_bytes


def dump_bytes(num_examples: int, *, num_layers: int, max_length: int, hidden_size: int) -> int:
    """What BERTVision's layout takes on disk: padded examples, all layers, 4 bytes a number."""
    return num_examples * num_layers * max_length * hidden_size * 4


def mean_attended_tokens(lengths: Sequence[int]) -> float:
    """Tokens that a token attends to, on average over all tokens (not over examples).

    Long examples have more tokens, each of which attends to more: `sum(s^2) / sum(s)`.
    """
    return sum(int(s) ** 2 for s in lengths) / sum(int(s) for s in lengths)


def forward_flops(
    *, num_layers: int, hidden_size: int, intermediate_size: int, attended: float
) -> float:
    """Floating-point operations of an encoder's forward pass for one token.

    A product of one number with another and their sum count as two. In each of the L - 1 encoder
    layers four products with `[D, D]` (queries, keys, values, output), two with `[D, F]`, and two
    of the attention, scores and weighted values, with each attended token. Embeddings, softmax and
    norms are left out, as is the classifier, which sees one token an example.

    Args:
        num_layers: L.
        hidden_size: D.
        intermediate_size: F, width of the feed-forward layers.
        attended: Tokens attended to, see `mean_attended_tokens`.
    """
    d, f = hidden_size, intermediate_size
    return (num_layers - 1) * 2 * (4 * d * d + 2 * d * f + 2 * attended * d)


def adapter_flops(*, num_layers: int, hidden_size: int, adapter_dim: int) -> float:
    """Floating-point operations of one training step of an AdapterPooler for one token.

    The product of L states with `[D, A]`, and once more for the gradient of the weights. Frozen
    hidden states need no gradient. What comes after the adapters is small beside it.
    """
    return 2 * 2 * num_layers * hidden_size * adapter_dim


def extract_tokens_per_second(
    *,
    forward_flops: float,
    flops_per_second: float,
    token_bytes: int,
    copy_bytes_per_second: float = math.inf,
) -> float:
    """Tokens a second of an extractor on a device that nobody has measured.

    A block is copied to the host while the next one's forward pass runs: the slower of both counts.

    Args:
        forward_flops: Of the backbone, for one token.
        flops_per_second: What the device does of them, not what its data sheet says.
        token_bytes: Bytes of one token's hidden states, as they are stored.
        copy_bytes_per_second: From the device into the object store.
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
    """Tokens a second of a trainer on a device that nobody has measured.

    A trainer copies a block to its device and then takes its steps: their times add up.

    Args:
        heads: How many it trains.
        adapter_flops: Of a training step of one of them, for one token.
        flops_per_second: What the device does of these narrow products.
        token_bytes: Bytes of one token's hidden states, as they are stored.
        copy_bytes_per_second: From the object store to the device.
        step_seconds: What a step of all heads takes however few tokens it has.
        step_tokens: Tokens of a batch.
    """
    return 1 / (
        token_bytes / copy_bytes_per_second
        + heads * adapter_flops / flops_per_second
        + step_seconds / step_tokens
    )


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        extract_tokens_per_second: Of one extractor: forward pass and codec.
        train_tokens_per_second: Of one trainer, with all its heads; None where it was not asked
            for.
        tokens: Tokens that were extracted for it.
        seconds: What it took in all.
        device: `cpu` or `cuda`.
        dtype: Of the forward pass, `bf16` or `fp32`.
        threads: CPU threads.
        heads: Heads that were trained.
    """

    extract_tokens_per_second: float
    train_tokens_per_second: float | None
    tokens: int
    seconds: float
    device: str
    dtype: str
    threads: int
    heads: int
