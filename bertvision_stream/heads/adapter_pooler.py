"""AdapterPooler: a small projection of every layer's states (BERTVision's LayerWeightShare)."""

import torch
from torch import nn

from bertvision_stream.heads.scalar_mix import ScalarMix


class AdapterPooler(nn.Module):
    """`a = gelu(x W + b)` for every token and layer, and a skip beside it.

    With `share_layers` one `W [D, A]` serves all layers; otherwise each layer has its own.
    Products run in the dtype of the input (bf16 or fp32), with fp32 weights behind them; the rest
    in fp32.

    Args:
        num_layers: L.
        hidden_size: D.
        adapter_dim: A.
        share_layers: Whether all layers share one projection.
        skip: What stands beside the adapters: `last` (the last layer's state), `mix` (a scalar
            mix of
            all layers) or `none`.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, *, adapter_dim: int, share_layers: bool, skip: str
    ):
        super().__init__()
        projections = 1 if share_layers else num_layers
        self.weight = nn.Parameter(torch.empty(projections, hidden_size, adapter_dim))
        self.bias = nn.Parameter(torch.zeros(projections, adapter_dim))
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        self.skip = skip
        self.mix = ScalarMix(num_layers) if skip == "mix" else None
        adapters = num_layers * adapter_dim
        self.widths = (adapters,) if skip == "none" else (adapters, hidden_size)

    def forward(self, hidden_TLD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states [T, L, D] to parts in fp32: adapters [T, L * A], and the skip [T, D]."""
        dtype = hidden_TLD.dtype
        if len(self.weight) == 1:
            adapted_TLA = hidden_TLD @ self.weight[0].to(dtype) + self.bias.to(dtype)
        else:
            adapted_LTA = torch.bmm(hidden_TLD.transpose(0, 1), self.weight.to(dtype))
            adapted_TLA = adapted_LTA.transpose(0, 1) + self.bias.to(dtype)
        adapters = nn.functional.gelu(adapted_TLA.float()).flatten(1)
        if self.skip == "none":
            return (adapters,)
        skip = hidden_TLD[:, -1].float() if self.mix is None else self.mix(hidden_TLD)
        return adapters, skip
