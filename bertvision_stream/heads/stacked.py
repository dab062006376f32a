"""Heads of equal shape computed together: one matrix product for the adapters of all.

By the same formulas as the heads one by one, which stay the oracle; results differ by rounding.
What is small is left to each head: its last layer, loss and optimiser cost a tenth of a step.
"""

from collections.abc import Sequence

import torch

from bertvision_stream.heads.adapter_pooler import AdapterPooler
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.pooling import AttentionPool, FlattenPool
from bertvision_stream.heads.segments import segment_softmax
from bertvision_stream.heads.stacked_parts import AdapterStack, SkipStack

Parts = Sequence[AdapterStack | SkipStack]

# Features of all tokens that heads are computed with at once: 64 Mi are 256 MiB in fp32, and about
# five times that with gradients. More at once are no faster, and long windows would fill memory.
MAX_FEATURES = 2**26


def num_together(head: Head, num_tokens: int) -> int:
    """How many heads like this one are computed together on a batch of so many tokens."""
    return max(1, MAX_FEATURES // max(head.token_width * num_tokens, 1))


def stacked_logits(
    heads: Sequence[Head],
    hidden_TLD: torch.Tensor,
    lengths_B: torch.Tensor,
    bert_logits: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The logits of each head: up to rounding, those of `head(hidden_TLD, lengths_B, bert_logits)`.

    Parameters stay the heads' own: a backward pass from the losses brings each its gradient.
    Dropout draws from a head's own generator what it would draw alone.

    Args:
        heads: Heads of one `stack_key`; a single one is just called.
        hidden_TLD: Packed hidden states in bf16 or fp32, which need no gradient.
        lengths_B: The number of tokens of each example.
        bert_logits: BERT's own logits in fp32, [B, C] or [T, C], for heads that begin as BERT.

    Raises:
        ValueError: The heads differ in more than values, seeds and dropout.
    """
    first = heads[0]
    for i, head in enumerate(heads):
        if head.stack_key != first.stack_key:
            raise ValueError(
                "only heads of equal settings (but dropout) and shape are computed together: the "
                f"first has {first.stack_key}, number {i + 1} has {head.stack_key}; group heads "
                "by stack_key"
            )
    flatten = isinstance(first.pool, FlattenPool)
    drops = any(head.training and head.dropout for head in heads)
    # A mask of all positions or tokens costs more than the rest.
    if len(heads) == 1 or (drops and (flatten or first.pool is None)):
        return [head(hidden_TLD, lengths_B, bert_logits) for head in heads]
    hidden_TLD, lengths_B = first.tokens_read(hidden_TLD, lengths_B)
    parts = _parts(heads)
    if first.pool is None or flatten:
        products = (
            _token_logits(heads, parts, hidden_TLD)
            if first.pool is None
            else _flat_logits(heads, parts, hidden_TLD, lengths_B)
        )
        pairs = zip(heads, products, strict=True)
        return [head.logits(product + head.output.bias, bert_logits) for head, product in pairs]
    if isinstance(first.pool, AttentionPool):
        pooled_HBF = _attended(heads, parts, hidden_TLD, lengths_B)
    else:  # the mean of all tokens, or of the first alone
        pooled_HBF = _means(parts, hidden_TLD, lengths_B)
    pairs = zip(heads, pooled_HBF, strict=True)
    return [head.classify(pooled_BF, bert_logits) for head, pooled_BF in pairs]


def _parts(heads: Sequence[Head]) -> Parts:
    """What the features of the heads consist of."""
    poolers = [head.features for head in heads if isinstance(head.features, AdapterPooler)]
    if not poolers:
        return [SkipStack(heads)]
    if poolers[0].skip == "none":
        return [AdapterStack(poolers)]
    return [AdapterStack(poolers), SkipStack(heads)]


def _means(parts: Parts, hidden_TLD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Means of the tokens' features, [H, B, F]."""
    return torch.cat([part.means(part.features(hidden_TLD), lengths_B) for part in parts], dim=-1)


def _attended(
    heads: Sequence[Head], parts: Parts, hidden_TLD: torch.Tensor, lengths_B: torch.Tensor
) -> torch.Tensor:
    """Sums of the tokens' features weighted by each head's attention, [H, B, F]."""
    queries_HF = torch.stack([head.get_parameter("pool.query") for head in heads])
    queries = queries_HF.split([part.num_features for part in parts], dim=-1)
    features = [part.features(hidden_TLD) for part in parts]
    scores = [p.scores(x, query) for p, x, query in zip(parts, features, queries, strict=True)]
    weights_TH = segment_softmax(torch.stack(scores).sum(0), lengths_B)
    sums = [p.sums(x, weights_TH, lengths_B) for p, x in zip(parts, features, strict=True)]
    return torch.cat(sums, dim=-1)


def _token_logits(heads: Sequence[Head], parts: Parts, hidden_TLD: torch.Tensor) -> torch.Tensor:
    """Each token's features times the weights, without bias: [H, T, C]."""
    weight_HCF = torch.stack([head.output.weight for head in heads])
    part_weights = weight_HCF.split([part.num_features for part in parts], dim=-1)
    logits = [
        part.token_logits(part.features(hidden_TLD), weight)
        for part, weight in zip(parts, part_weights, strict=True)
    ]
    return torch.stack(logits).sum(0)


def _flat_logits(
    heads: Sequence[Head], parts: Parts, hidden_TLD: torch.Tensor, lengths_B: torch.Tensor
) -> torch.Tensor:
    """Each position's features times its weights, without bias: [H, B, C]."""
    longest, max_length = int(lengths_B.max()), heads[0].shape.max_length
    weights = [head.output.weight.unflatten(1, (max_length, -1)) for head in heads]
    # Positions that no example has would multiply zeros.
    weight_HCSF = torch.stack([weight_CSF[:, :longest] for weight_CSF in weights])
    part_weights = weight_HCSF.split([part.num_features for part in parts], dim=-1)
    logits = [
        part.logits(part.features(hidden_TLD), weight, lengths_B)
        for part, weight in zip(parts, part_weights, strict=True)
    ]
    return torch.stack(logits).sum(0)
