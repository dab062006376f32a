"""Heads that give every token logits, for tasks whose answers are spans."""

from __future__ import annotations

import pytest
import torch
from span_tasks import MAX_LENGTH
from test_heads import D, L, random_hidden
from test_stacked import GRADIENTS, LOGITS, distance
from tiny import (  # noqa: F401
    CPU,
    HIDDEN_SIZE,
    MODEL_TYPES,
    NUM_LAYERS,
    RandomExtractor,
    one_thread,
    task_settings,
    tiny_classifier,
    tiny_tokenizer,
)

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.heads.stacked import stacked_logits
from bertvision_stream.settings.groups import HeadSettings
from bertvision_stream.training.losses import span_loss

SHAPE = HeadShape(NUM_LAYERS, HIDDEN_SIZE, 2, MAX_LENGTH, per_token=True)

TOKEN_HEADS = [
    HeadSettings(adapter_dim=5, skip=skip, share_layers=share)
    for skip in ("last", "mix", "none")
    for share in (True, False)
] + [
    HeadSettings(kind="scalar_mix"),
    HeadSettings(kind="mean_layers"),
    HeadSettings(adapter_dim=5, start="bert"),
]
BERT = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))


every_head = pytest.mark.parametrize(
    "settings", TOKEN_HEADS, ids=lambda s: f"{s.kind}-{s.skip}-{s.share_layers}-{s.start}"
)


def token_head(settings: HeadSettings, *, seed: int = 0, per_token: bool = True) -> Head:
    """With parameters that are all random."""
    head = Head(settings, HeadShape(L, D, 2, 1, per_token), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return head


@every_head
def test_a_tokens_logits_are_those_of_an_example_of_that_token_alone(settings: HeadSettings):
    """The head for sentences, whose formulas are tested, has nothing to pool then."""
    hidden = random_hidden(50)
    sentences = token_head(settings, per_token=False)
    expected = sentences(hidden, torch.ones(50, dtype=torch.long), BERT)
    head = token_head(settings)
    assert head.num_parameters == sentences.num_parameters
    logits = head(hidden, torch.tensor([20, 30]), BERT)
    assert logits.shape == (50, 2)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(head(hidden[20:], torch.tensor([30]), BERT[20:]), expected[20:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@every_head
def test_heads_together_are_as_one_by_one(
    settings: HeadSettings, dropout: float, dtype: torch.dtype
):
    hidden, lengths = random_hidden(50).to(dtype), torch.tensor([20, 30])
    labels = torch.tensor([[3, 5], [0, 0]])
    dropouts = (dropout, 0.0, dropout / 2)
    heads = [
        [
            token_head(settings.model_copy(update={"dropout": value}), seed=seed)
            for seed, value in enumerate(dropouts)
        ]
        for _ in range(2)
    ]
    together = stacked_logits(heads[0], hidden, lengths, BERT)
    alone = [head(hidden, lengths, BERT) for head in heads[1]]
    for logits in (together, alone):
        torch.autograd.backward([span_loss(values, labels, lengths) for values in logits])
    for stacked, oracle, actual, expected in zip(*heads, together, alone, strict=True):
        assert distance(actual, expected) < LOGITS[dtype]
        parameters = dict(oracle.named_parameters())
        for name, parameter in stacked.named_parameters():
            if name == "output.bias":  # it shifts all tokens alike, and so no probability
                assert parameter.grad.abs().max() < 1e-5
            else:
                assert distance(parameter.grad, parameters[name].grad) < GRADIENTS[dtype], name


@pytest.mark.parametrize("settings", [HeadSettings(kind="cls"), HeadSettings(pool="attention")])
def test_a_head_that_pools_is_refused(settings: HeadSettings):
    with pytest.raises(ValueError, match="has no token logits"):
        Head(settings, SHAPE, seed=0)
