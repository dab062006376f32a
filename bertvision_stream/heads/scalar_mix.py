"""Scalar mix of layers (Tenney et al. 2019, arXiv:1905.05950; first in ELMo, arXiv:1802.05365)."""

import torch
from torch import nn

from bertvision_stream.heads.recurring import in_recurring_shapes


class ScalarMix(nn.Module):
    """`gamma * sum_l softmax(w)_l x_l`: one learned weight for each layer and one scale.

    Args:
        num_layers: L, the number of layers of hidden states.
    """

    def __init__(self, num_layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, hidden_TLD: torch.Tensor) -> torch.Tensor:
        """Hidden states [T, L, D] to mixed ones [T, D], fp32; the sum runs in the input's dtype."""
        share_L = self.weights.softmax(dim=0).to(hidden_TLD.dtype)
        mixed_TD = in_recurring_shapes(lambda x_TLD: share_L @ x_TLD, hidden_TLD)
        return self.gamma * mixed_TD.float()
