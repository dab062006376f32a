"""AdapterPooler: a small projection of every layer's states (BERTVision's LayerWeightShare)."""

import torch
from torch import nn

from bertvision_stream.heads.recurring import in_recurring_shapes
from bertvision_stream.heads.scalar_mix import ScalarMix


class AdapterPooler(nn.Module):
    """`a = gelu(x W + b)` for every token and layer, and a skip beside it.

    With `share_layers` one `W [D, A]` serves all layers; otherwise each layer has its own.
    Products run in the dtype of the input (bf16 or fp32), with fp32 weights behind them; the rest
    in fp32.

    Args:
        num_layers: L, the number of layers of hidden states.
        hidden_size: D, the width of a hidden state.
        adapter_dim: A, the width of an adapter's output.
        share_layers: Whether all layers share one projection.
        skip: What stands beside the adapters: `last` (the last layer's state), `mix` (a scalar
            mix of all layers) or `none`.
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
        return adapt(hidden_TLD, self.weight, self.bias).flatten(1), *self.skip_part(hidden_TLD)

    def output_norms(self, hidden_TLD: torch.Tensor) -> torch.Tensor:
        """Euclidean norm of each token's adapter output, by layer: [T, L] in fp32."""
        return adapt(hidden_TLD, self.weight, self.bias).norm(dim=-1)

    def skip_part(self, hidden_TLD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What stands beside the adapters: one part [T, D] in fp32, or no part."""
        if self.mix is not None:
            return (self.mix(hidden_TLD),)
        return (hidden_TLD[:, -1].float(),) if self.skip == "last" else ()


def adapt(
    hidden_TLD: torch.Tensor, weight_PDN: torch.Tensor, bias_PN: torch.Tensor
) -> torch.Tensor:
    """`gelu(x W + b)` of every token and layer: [T, L, D] to fp32 [T, L, N].

    Args:
        hidden_TLD: Hidden states in bf16 or fp32, the dtype of the product.
        weight_PDN: One projection for all layers (P = 1) or one for each (P = L). N is A, or H * A
            for H heads side by side.
        bias_PN: The bias of the projection.
    """
    weight_PDN, bias_PN = weight_PDN.to(hidden_TLD.dtype), bias_PN.to(hidden_TLD.dtype)

    def compute(hidden_TLD: torch.Tensor) -> torch.Tensor:
        if len(weight_PDN) == 1:
            adapted_TLN = hidden_TLD @ weight_PDN[0] + bias_PN
        else:
            adapted_LTN = torch.bmm(hidden_TLD.transpose(0, 1), weight_PDN)
            adapted_TLN = adapted_LTN.transpose(0, 1) + bias_PN
        return nn.functional.gelu(adapted_TLN.float())

    return in_recurring_shapes(compute, hidden_TLD)
