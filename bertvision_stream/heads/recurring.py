"""Training batches cut where their shapes recur, as a new shape costs a CPU time."""

from collections.abc import Callable

import torch


def in_recurring_shapes(
    compute: Callable[[torch.Tensor], torch.Tensor], x_T: torch.Tensor
) -> torch.Tensor:
    """`compute(x_T)`, in two parts where that spares a CPU the making of kernels.

    oneDNN makes a kernel for each shape of a bf16 product and of a GELU, which takes as long as a
    small training step, and batches seldom repeat their number of tokens. A multiple of 16 or 32
    tokens, and the few that are left, do. What is evaluated has the same shapes in each epoch.

    Args:
        compute: A function that treats each token by itself, [T, ...] to [T, ...].
        x_T: Packed tokens.
    """
    num_tokens = len(x_T)
    cut = num_tokens - num_tokens % (32 if num_tokens >= 256 else 16)
    if 0 < cut < num_tokens and x_T.is_cpu and torch.is_grad_enabled():
        return torch.cat([compute(x_T[:cut]), compute(x_T[cut:])])
    return compute(x_T)
