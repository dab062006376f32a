"""Losses of examples, for heads and for the fine-tuning alike."""

from typing import Literal

import torch
from torch import nn

from bertvision_stream.heads.segments import pad_segments

Reduction = Literal["mean", "none"]
"""What becomes of the losses of examples: their mean, or the loss of each, [B]."""


def example_loss(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Cross-entropy, or the squared error where there is one output."""
    if logits_BC.shape[1] == 1:
        labels = labels_B.to(logits_BC.dtype)
        return nn.functional.mse_loss(logits_BC.squeeze(-1), labels, reduction=reduction)
    return nn.functional.cross_entropy(logits_BC, labels_B, reduction=reduction)


def span_loss(
    logits_T2: torch.Tensor,
    labels_W2: torch.Tensor,
    lengths_W: torch.Tensor,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Mean of the cross-entropies of start and end over a window's own tokens.

    Args:
        logits_T2: The start and end logits of packed tokens.
        labels_W2: The positions in the window of the answer's first and last token, int64.
        lengths_W: The number of tokens of each window.
        reduction: Whether to return the mean over the windows, or the loss of each.
    """
    padded_WS2 = pad_segments(logits_T2, lengths_W, -torch.inf)
    losses_W = nn.functional.cross_entropy(padded_WS2, labels_W2, reduction="none").mean(dim=1)
    return losses_W.mean() if reduction == "mean" else losses_W
