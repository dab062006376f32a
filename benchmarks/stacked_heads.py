"""Many heads computed together against the same heads one by one: a training step of each.

A step is the forward pass, the loss, the backward pass and an AdamW of each head, on one batch of
random hidden states of MiniLM's shape. One thread, and its own CPU time, so that neighbours on the
machine disturb little; both ways take turns, and the median counts.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.results import table
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.heads.stacked import stacked_logits
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import HeadSettings
from bertvision_stream.utils.devices import keep_freed_memory

COUNTS = (1, 4, 16, 32)
NUM_TOKENS, NUM_EXAMPLES = 1024, 32
SHAPE = HeadShape(num_layers=7, hidden_size=384, num_outputs=2, max_length=128)


class Steps:
    """A training step of `num_heads` heads, in either way.

    Args:
        settings: The settings `head.*`.
        num_heads: The number of heads.
        dtype: The dtype of the hidden states and so of the products.
    """

    def __init__(self, settings: HeadSettings, num_heads: int, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(NUM_TOKENS, SHAPE.num_layers, SHAPE.hidden_size, generator=generator)
        self._hidden_TLD = hidden.to(dtype)
        self._lengths_B = torch.arange(NUM_EXAMPLES) * 2 + 1  # their sum is NUM_TOKENS
        self._labels_B = torch.arange(NUM_EXAMPLES) % SHAPE.num_outputs
        self._heads = [Head(settings, SHAPE, seed=seed) for seed in range(num_heads)]
        self._optimizers = [torch.optim.AdamW(h.parameters(), fused=True) for h in self._heads]

    def one_by_one(self) -> None:
        for head, optimizer in zip(self._heads, self._optimizers, strict=True):
            loss = self._loss(head(self._hidden_TLD, self._lengths_B))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def stacked(self) -> None:
        logits = stacked_logits(self._heads, self._hidden_TLD, self._lengths_B)
        losses = [self._loss(logits_BC) for logits_BC in logits]
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses)
        for optimizer in self._optimizers:
            optimizer.step()

    def _loss(self, logits_BC: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits_BC, self._labels_B)


def milliseconds(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median CPU time of each step, in turns, after two turns that warm up."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 2):
        for step, own in zip(steps, times, strict=True):
            start = time.process_time()
            step()
            if repeat >= 2:
                own.append(1e3 * (time.process_time() - start))
    return [statistics.median(own) for own in times]


def measure(repeats: int) -> list[str]:
    """Lines of Markdown."""
    settings = load_settings(["task=demo"]).head
    torch.set_num_threads(1)
    keep_freed_memory()
    single = Steps(settings, 1, torch.bfloat16).one_by_one
    rows = []
    for num_heads in COUNTS:
        fp32 = Steps(settings, num_heads, torch.float32)
        bf16 = Steps(settings, num_heads, torch.bfloat16)
        steps = [fp32.one_by_one, bf16.one_by_one, fp32.stacked, bf16.stacked, single]
        *four, one = milliseconds(steps, repeats)
        rows.append(
            [
                f"{num_heads}",
                *(f"{each:.1f}" for each in four),
                f"{four[1] / four[3]:.2f} times faster",
                f"{four[3] / one:.2f}",
            ]
        )
    header = ["heads", "one by one, fp32", "one by one, bf16", "stacked, fp32", "stacked, bf16"]
    header += ["stacked against one by one, bf16", "stacked, bf16, in steps of one head"]
    return [
        f"Milliseconds of a training step on {NUM_TOKENS:,} tokens in memory, one thread, "
        f"{settings.kind} heads of adapter_dim={settings.adapter_dim}.",
        "",
        *table(header, rows),
    ]
