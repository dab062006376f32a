"""Poolings: from features of tokens, in parts `[T, F_i]`, to one vector an example, `[B, F]`.

The parts (adapter outputs, skip) stay apart until they are pooled: no gradient is then computed for
a skip that has no parameters, and the wide `[T, sum F_i]` is never made.
"""

from collections.abc import Sequence

import torch
from torch import nn

from bertvision_stream.heads.segments import (
    pad_segments,
    segment_mean,
    segment_softmax,
    segment_starts,
    segment_sum,
)


class MeanPool(nn.Module):
    """Mean over an example's tokens."""

    def forward(self, parts: Sequence[torch.Tensor], lengths_B: torch.Tensor) -> torch.Tensor:
        return torch.cat([segment_mean(part, lengths_B) for part in parts], dim=-1)


class ClsPool(nn.Module):
    """The first token's features."""

    def forward(self, parts: Sequence[torch.Tensor], lengths_B: torch.Tensor) -> torch.Tensor:
        starts_B = segment_starts(lengths_B)
        return torch.cat([part[starts_B] for part in parts], dim=-1)


class AttentionPool(nn.Module):
    """A learned query: softmax over an example's tokens of a linear score, then the weighted sum.

    Args:
        widths: F_i, the number of features of each part.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.widths = tuple(widths)
        # Zero scores: training starts from the mean.
        self.query = nn.Parameter(torch.zeros(sum(widths)))

    def forward(self, parts: Sequence[torch.Tensor], lengths_B: torch.Tensor) -> torch.Tensor:
        queries = self.query.split(self.widths)
        scores_T = torch.stack([p @ q for p, q in zip(parts, queries, strict=True)]).sum(0)
        weights_T1 = segment_softmax(scores_T, lengths_B).unsqueeze(-1)
        return torch.cat([segment_sum(part * weights_T1, lengths_B) for part in parts], dim=-1)


class FlattenPool(nn.Module):
    """All tokens side by side, as in BERTVision: position p has its own weights in the next layer.

    Positions past an example's end are zeros and so add nothing to its logits.

    Args:
        max_length: S, the number of positions.
    """

    def __init__(self, max_length: int):
        super().__init__()
        self.max_length = max_length

    def forward(self, parts: Sequence[torch.Tensor], lengths_B: torch.Tensor) -> torch.Tensor:
        padded = pad_segments(torch.cat(list(parts), dim=-1), lengths_B)  # [B, longest, F]
        lacking = self.max_length - padded.shape[1]
        return nn.functional.pad(padded, (0, 0, 0, lacking)).flatten(1)  # [B, S * F]


def make_pool(name: str, widths: Sequence[int], max_length: int) -> nn.Module:
    """The pooling of `head.pool`: `mean`, `cls`, `attention` or `flatten`.

    Args:
        name: The value of `head.pool`.
        widths: F_i, the number of features of each part.
        max_length: S, the number of positions of `flatten`.

    Raises:
        ValueError: There is no such pooling.
    """
    match name:
        case "mean":
            return MeanPool()
        case "cls":
            return ClsPool()
        case "attention":
            return AttentionPool(widths)
        case "flatten":
            return FlattenPool(max_length)
    raise ValueError(f"{name!r} is no pooling")
