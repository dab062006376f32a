"""The control plane alone: what the feature stream itself costs for a block, and what that bounds.

From the CPU time that the stream takes for a block follows the rate that one core of its own would
reach, and from that with how many GPUs, and of which speed, the stream would bound a run.
"""

import os
from collections.abc import Mapping

from benchmarks.layouts import A100, BLOCK_TOKENS, FASTEST, H100, QQP_BASE, QQP_LARGE, Case, Layout
from benchmarks.results import table
from benchmarks.stream_cost import (
    ALONE,
    BLOCK_BYTES,
    FOUR_NODES,
    MANY_EXTRACTORS,
    MANY_OF_BOTH,
    MANY_TRAINERS,
    ONE_NODE,
    ActorCounts,
    Cost,
    measure_layouts,
)
from bertvision_stream.stream.cost_model import GIGABIT_BYTES, break_even_tokens_per_second

NUM_GPUS = 64
CASES = (QQP_BASE, QQP_LARGE)
LINK_GIGABITS = 400  # of a trainer's node, each second
BLOCK_SIZES = (512, 2048, 8192, 16384)

Costs = Mapping[ActorCounts, Cost]


def measure(repeats: int) -> list[str]:
    """Start nodes and actors, and run all layouts in turns; this process must not be in a cluster.

    Args:
        repeats: The number of turns.

    Returns:
        Tables and text in Markdown, without a heading.
    """
    costs = measure_layouts(repeats)
    return [
        f"Medians of {repeats} turns, {os.cpu_count()} cores for all processes, blocks of "
        f"{BLOCK_BYTES // 1024} KiB:",
        "",
        *_layout_table(costs),
        "",
        _layout_text(costs),
        "",
        *_block_table(costs),
        "",
        *_gpu_table(costs),
        "",
        _bounds_text(costs),
    ]


def largest_gpu_rate(blocks_per_second: float, *, block_tokens: int, num_gpus: int) -> float:
    """Tokens a second of each GPU above which they would wait for the stream.

    Args:
        blocks_per_second: What the stream can deliver.
        block_tokens: Tokens of a block.
        num_gpus: GPUs that make blocks.
    """
    return blocks_per_second * block_tokens / num_gpus


def smallest_block(blocks_per_second: float, *, gpu_rate: float, num_gpus: int) -> float:
    """Tokens of a block below which GPUs would wait for the stream.

    Args:
        blocks_per_second: What the stream can deliver.
        gpu_rate: Tokens a second of each GPU.
        num_gpus: GPUs that make blocks.
    """
    return num_gpus * gpu_rate / blocks_per_second


def _layout_table(costs: Costs) -> list[str]:
    header = ["extractors", "on nodes", "trainers", "blocks/s here, cores shared"]
    header += ["the stream's CPU time for a block", "of that in its busiest thread"]
    header += ["blocks/s on one core of its own", "on several cores, at most"]
    rows = [
        [
            f"{layout.extractors}",
            f"{layout.nodes}",
            f"{layout.trainers}",
            f"{cost.blocks_per_second:.0f}",
            f"{1000 * cost.cpu_seconds:.2f} ms",
            f"{1000 * cost.thread_seconds:.2f} ms",
            f"{cost.core_rate:.0f}",
            f"{cost.thread_rate:.0f}",
        ]
        for layout, cost in costs.items()
    ]
    return table(header, rows)


def _layout_text(costs: Costs) -> str:
    alone, many = costs[ALONE].cpu_seconds, costs[MANY_TRAINERS].cpu_seconds
    each = (many - alone) / (MANY_TRAINERS.trainers - ALONE.trainers)
    nodes = costs[FOUR_NODES].cpu_seconds / costs[ONE_NODE].cpu_seconds
    extractors = costs[MANY_EXTRACTORS].cpu_seconds / costs[FOUR_NODES].cpu_seconds
    return (
        f"A block takes {1000 * (alone - each):.2f} ms of the stream's CPU time to have it made, "
        f"and {1000 * each:.2f} ms for each trainer that it is delivered to. Four nodes in the "
        f"place of one change that by a factor of {nodes:.2f}, 32 extractors in the place of 8 by "
        f"{extractors:.2f}. All of that is time on the cores of this machine; others differ."
    )


def _block_table(costs: Costs) -> list[str]:
    """Block sizes against the stream's bound, and against the link that blocks travel over."""
    one, many = costs[MANY_EXTRACTORS].core_rate, costs[MANY_OF_BOTH].core_rate
    header = ["tokens in a block", f"{MANY_EXTRACTORS.trainers} trainer, tokens/s of a GPU"]
    header += [
        f"{MANY_OF_BOTH.trainers} trainers",
        *(f"the link, {case.backbone}" for case in CASES),
    ]
    rows = []
    for tokens in BLOCK_SIZES:
        rates = [largest_gpu_rate(r, block_tokens=tokens, num_gpus=NUM_GPUS) for r in (one, many)]
        rates += [_link_rate(case) / NUM_GPUS for case in CASES]
        rows.append([f"{tokens:,}", *(f"{rate:,.0f}" for rate in rates)])
    return [
        f"The most that each of {NUM_GPUS} GPUs can do before they wait for a stream on one core "
        f"of its own, at the rates of {MANY_EXTRACTORS.extractors} extractors on "
        f"{MANY_EXTRACTORS.nodes} nodes ({one:.0f} blocks/s with {MANY_EXTRACTORS.trainers} "
        f"trainer, {many:.0f} with {MANY_OF_BOTH.trainers}); and before blocks of bf16 fill a link "
        f"of {LINK_GIGABITS} Gb/s into a trainer's node:",
        "",
        *table(header, rows),
    ]


def _gpu_table(costs: Costs) -> list[str]:
    one, many = costs[MANY_EXTRACTORS].core_rate, costs[MANY_OF_BOTH].core_rate
    header = ["backbone, GPU", "tokens/s of a GPU"]
    header += [f"smallest block, {MANY_EXTRACTORS.trainers} trainer"]
    header += [f"{MANY_OF_BOTH.trainers} trainers", "bf16 into each trainer"]
    header += [
        f"GPUs that a stream keeps busy with blocks of {BLOCK_TOKENS:,}, "
        f"{MANY_EXTRACTORS.trainers} trainer"
    ]
    rows = []
    for case in CASES:
        for gpu in (A100, H100):
            rate = Layout(case, gpu).made_rate
            blocks = [smallest_block(r, gpu_rate=rate, num_gpus=NUM_GPUS) for r in (one, many)]
            gigabits = NUM_GPUS * rate * case.token_bytes() / GIGABIT_BYTES
            rows.append(
                [
                    f"{case.backbone}, {gpu.name}",
                    f"{rate:,.0f}",
                    *(f"{tokens:,.0f} tokens" for tokens in blocks),
                    f"{gigabits:,.0f} Gb/s",
                    f"{one * BLOCK_TOKENS / rate:.1f}",
                ]
            )
    return [
        f"What GPUs can do on QQP, by the assumptions of docs/scaling.md "
        f"and without copies, and the smallest block with which {NUM_GPUS} of them do not wait for "
        f"the stream:",
        "",
        *table(header, rows),
    ]


def _bounds_text(costs: Costs) -> str:
    """The block sizes from which on the link bounds a stream before its control plane does."""
    sizes = [
        f"{_link_rate(case) / costs[layout].core_rate:,.0f} tokens of {case.backbone} with "
        f"{layout.trainers} trainer{'s' if layout.trainers > 1 else ''}"
        for layout in (MANY_EXTRACTORS, MANY_OF_BOTH)
        for case in CASES
    ]
    return (
        f"By the assumptions of docs/scaling.md no trainer takes more than "
        f"{FASTEST.train_rate / BLOCK_TOKENS:.0f} blocks of {BLOCK_TOKENS:,} tokens a "
        f"second, copies to its GPU included: with blocks of that size it waits for no stream that "
        f"delivers more, however many GPUs extract, and the table above is out of its reach. "
        f"Both bounds are shared by all GPUs, however many there are. Above {', '.join(sizes)} in "
        f"a block, a link of {LINK_GIGABITS} Gb/s into a trainer's node is full before one core of "
        f"the stream is; below, the stream bounds. Blocks that are consumed on the node that made "
        f"them take no link, and the stream's bound alone remains."
    )


def _link_rate(case: Case) -> float:
    """Tokens a second that the link into a trainer's node carries."""
    return break_even_tokens_per_second(case.token_bytes(), LINK_GIGABITS * GIGABIT_BYTES)
