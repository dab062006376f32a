"""The two parts of a token's features, for many heads at once: adapters, and the skip beside them.

A part makes features of tokens, then pools them or multiplies them with the last layer's weights.
Shapes: H heads; F_i features that the part has for one head; K layers that a skip mixes.
"""

from collections.abc import Sequence

import torch

from bertvision_stream.heads.adapter_pooler import AdapterPooler, adapt
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.segments import pad_segments, segment_mean, segment_sum


class AdapterStack:
    """Adapters, `x [T, L, H, A]` in fp32, from one product for all heads."""

    def __init__(self, poolers: Sequence[AdapterPooler]):
        self._weight_PDN = torch.cat([pooler.weight for pooler in poolers], dim=-1)
        self._bias_PN = torch.cat([pooler.bias for pooler in poolers], dim=-1)  # N = H * A
        self._num_heads = len(poolers)
        self.num_features = poolers[0].widths[0]  # L * A

    def features(self, hidden_TLD: torch.Tensor) -> torch.Tensor:
        adapted_TLN = adapt(hidden_TLD, self._weight_PDN, self._bias_PN)
        return adapted_TLN.unflatten(-1, (self._num_heads, -1))

    def means(self, x_TLHA: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Means over the tokens of each example, [H, B, F_i]."""
        means_BLHA = segment_mean(x_TLHA.flatten(1), lengths_B).unflatten(1, x_TLHA.shape[1:])
        return means_BLHA.movedim(2, 0).flatten(2)

    def scores(self, x_TLHA: torch.Tensor, queries_HF: torch.Tensor) -> torch.Tensor:
        """Products of the features with each head's query, [T, H]."""
        queries_HLA = queries_HF.unflatten(1, (x_TLHA.shape[1], -1))
        return (x_TLHA * queries_HLA.movedim(0, 1)).sum((1, 3))

    def sums(
        self, x_TLHA: torch.Tensor, weights_TH: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Sums over the tokens of each example, weighted for each head: [H, B, F_i]."""
        weighted = x_TLHA * weights_TH[:, None, :, None]
        sums_BLHA = segment_sum(weighted.flatten(1), lengths_B).unflatten(1, x_TLHA.shape[1:])
        return sums_BLHA.movedim(2, 0).flatten(2)

    def logits(
        self, x_TLHA: torch.Tensor, weight_HCSF: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Products of all positions with their weights, [H, B, C]."""
        weight_HCSLA = weight_HCSF.unflatten(-1, (x_TLHA.shape[1], -1))
        return torch.einsum("bslha,hcsla->hbc", pad_segments(x_TLHA, lengths_B), weight_HCSLA)

    def token_logits(self, x_TLHA: torch.Tensor, weight_HCF: torch.Tensor) -> torch.Tensor:
        """Products of each token's features with the weights, [H, T, C]."""
        weight_HCLA = weight_HCF.unflatten(-1, (x_TLHA.shape[1], -1))
        return torch.einsum("tlha,hcla->htc", x_TLHA, weight_HCLA)


class SkipStack:
    """Mixes of layers, from `x [T, K, D]`: pooled as they are for all heads, and mixed after that.

    All that happens to a mix is linear in it, so the order does not matter but to the time.
    """

    def __init__(self, heads: Sequence[Head]):
        self._shares_HK = _layer_shares(heads)
        self.num_features = heads[0].shape.hidden_size  # D

    def features(self, hidden_TLD: torch.Tensor) -> torch.Tensor:
        return hidden_TLD[:, -self._shares_HK.shape[1] :]

    def means(self, x_TKD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Means over the tokens of each example, [H, B, F_i]."""
        means = [segment_mean(layer_TD.float(), lengths_B) for layer_TD in x_TKD.unbind(1)]
        return torch.einsum("kbd,hk->hbd", torch.stack(means), self._shares_HK)

    def scores(self, x_TKD: torch.Tensor, queries_HF: torch.Tensor) -> torch.Tensor:
        """Products of the features with each head's query, [T, H]."""
        scores_TKH = x_TKD.float() @ queries_HF.T
        return torch.einsum("tkh,hk->th", scores_TKH, self._shares_HK)

    def sums(
        self, x_TKD: torch.Tensor, weights_TH: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Sums over the tokens of each example, weighted for each head: [H, B, F_i]."""
        x_BSKD = pad_segments(x_TKD.float(), lengths_B)
        weights_BSH = pad_segments(weights_TH, lengths_B)
        sums_BHKD = torch.einsum("bskd,bsh->bhkd", x_BSKD, weights_BSH)
        return torch.einsum("bhkd,hk->hbd", sums_BHKD, self._shares_HK)

    def logits(
        self, x_TKD: torch.Tensor, weight_HCSF: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Products of all positions with their weights, [H, B, C]."""
        x_BSKD = pad_segments(x_TKD.float(), lengths_B)
        logits_BKHC = torch.einsum("bskd,hcsd->bkhc", x_BSKD, weight_HCSF)
        return torch.einsum("bkhc,hk->hbc", logits_BKHC, self._shares_HK)

    def token_logits(self, x_TKD: torch.Tensor, weight_HCF: torch.Tensor) -> torch.Tensor:
        """Products of each token's features with the weights, [H, T, C]."""
        logits_TKHC = torch.einsum("tkd,hcd->tkhc", x_TKD.float(), weight_HCF)
        return torch.einsum("tkhc,hk->htc", logits_TKHC, self._shares_HK)


def _layer_shares(heads: Sequence[Head]) -> torch.Tensor:
    """What each head takes of each of the last K layers, [H, K]."""
    mixes = [head.mix for head in heads if head.mix is not None]
    if mixes:
        gammas_H = torch.stack([mix.gamma for mix in mixes])
        weights_HK = torch.stack([mix.weights for mix in mixes])
        return gammas_H.unsqueeze(-1) * weights_HK.softmax(dim=-1)
    num_mixed = heads[0].shape.num_layers if heads[0].kind == "mean_layers" else 1
    return heads[0].output.weight.new_full((len(heads), num_mixed), 1 / num_mixed)
