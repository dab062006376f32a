"""Heads computed together against the same heads one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from test_heads import (
    BERT,
    EVERY_HEAD,
    LENGTHS,
    SHAPE,
    C,
    every_head,
    make_head,
    name_of,
    random_hidden,
)
from tiny import one_thread  # noqa: F401
from torch import nn

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.heads.stacked import stacked_logits
from bertvision_stream.settings.groups import HeadSettings

Logits = Callable[[Sequence[Head], torch.Tensor], list[torch.Tensor]]

STARTS = (LENGTHS.cumsum(0) - LENGTHS).tolist()
# Errors as a share of the largest number. fp32: sums in another order; the most that was seen is
# 7e-7 in logits, 2e-6 in gradients. bf16 rounds by up to 2**-9 = 0.002: mixes of layers are rounded
# one by one and not in a stack, and the gradients of products are rounded from sums in another
# order; seen: 0.002 and 0.015, and 0.075 of the gamma of a mix, a small sum of large numbers.
LOGITS = {torch.float32: 5e-6, torch.bfloat16: 0.01}
GRADIENTS = {torch.float32: 2e-5, torch.bfloat16: 0.1}
# Of fifty losses, which are about 1.5. Where a gradient is nearly zero, AdamW makes much of how it
# was rounded. Seen: 3e-5, and in bf16 0.018 with mixes of layers.
LOSSES = {torch.float32: 2e-4, torch.bfloat16: 0.06}

both_dtypes = pytest.mark.parametrize("dtype", LOGITS, ids=["fp32", "bf16"])


def make_heads(settings: HeadSettings, dropouts: Sequence[float] = (0, 0, 0)) -> list[Head]:
    """Heads that differ in values, seeds and dropout."""
    return [
        make_head(settings.model_copy(update={"dropout": dropout}), seed=seed)
        for seed, dropout in enumerate(dropouts)
    ]


def together(heads: Sequence[Head], hidden: torch.Tensor) -> list[torch.Tensor]:
    return stacked_logits(heads, hidden, LENGTHS, BERT)


def one_by_one(heads: Sequence[Head], hidden: torch.Tensor) -> list[torch.Tensor]:
    return [head(hidden, LENGTHS, BERT) for head in heads]


def backward(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> list[float]:
    """The losses; gradients are those of their sum."""
    losses = [nn.functional.cross_entropy(logits_BC, labels) for logits_BC in logits]
    torch.autograd.backward(losses)
    return [loss.item() for loss in losses]


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, as a share of the largest number."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_same_step(stacked: Sequence[Head], alone: Sequence[Head], hidden: torch.Tensor) -> None:
    """Forward and backward pass."""
    labels = torch.tensor([0, 1, 2, 0])
    actual, expected = together(stacked, hidden), one_by_one(alone, hidden)
    for logits in (actual, expected):
        backward(logits, labels)
    for head, oracle, logits, others in zip(stacked, alone, actual, expected, strict=True):
        assert logits.shape == (len(LENGTHS), C)
        assert logits.dtype == torch.float32
        assert distance(logits, others) < LOGITS[hidden.dtype]
        parameters = dict(oracle.named_parameters())
        for name, parameter in head.named_parameters():
            assert parameter.grad.dtype == torch.float32
            error = distance(parameter.grad, parameters[name].grad)
            assert error < GRADIENTS[hidden.dtype], name


@both_dtypes
@every_head
def test_logits_and_gradients_are_those_of_one_by_one(settings: HeadSettings, dtype: torch.dtype):
    assert_same_step(make_heads(settings), make_heads(settings), random_hidden().to(dtype))


@every_head
def test_dropout_is_each_heads_own(settings: HeadSettings):
    stacked, alone = (make_heads(settings, (0.5, 0, 0.2)) for _ in range(2))
    for step in range(3):  # generators go on where they were
        for head in (*stacked, *alone):
            head.zero_grad()
        assert_same_step(stacked, alone, random_hidden(seed=step))
    dropped = together(stacked, random_hidden())
    for head in (*stacked, *alone):
        head.eval()
    with torch.no_grad():
        actual, expected = together(stacked, random_hidden()), one_by_one(alone, random_hidden())
    for logits, others in zip(actual, expected, strict=True):
        assert not logits.requires_grad
        assert distance(logits, others) < LOGITS[torch.float32]
    assert [distance(a, b) > 0.01 for a, b in zip(dropped, actual, strict=True)] == [
        True,
        False,
        True,
    ]


@every_head
def test_bf16_is_as_close_to_fp32_as_it_is_one_by_one(settings: HeadSettings):
    heads, hidden = make_heads(settings), random_hidden(400).bfloat16()
    lengths, bert = torch.full((100,), 4), BERT.repeat(25, 1)
    with torch.no_grad():
        for stacked, alone, exact in zip(
            stacked_logits(heads, hidden, lengths, bert),
            [head(hidden, lengths, bert) for head in heads],
            [head(hidden.float(), lengths, bert) for head in heads],
            strict=True,
        ):
            errors = [(logits - exact).square().mean().sqrt() for logits in (stacked, alone)]
            assert errors[0] <= 1.05 * errors[1] + 1e-6


def train(
    settings: HeadSettings, logits: Logits, dtype: torch.dtype
) -> tuple[list[Head], list[list[float]]]:
    """Fifty steps of AdamW for each head, on batches that differ: the heads and all losses."""
    # With dropout, stacked heads that flatten are computed one by one.
    dropout = 0 if settings.pool == "flatten" else 0.2
    heads = make_heads(settings, (0, dropout, 0))
    optimizers = [torch.optim.AdamW(head.parameters(), lr=1e-2, fused=True) for head in heads]
    losses = []
    for step in range(50):
        hidden = random_hidden(seed=step)
        labels = (hidden[STARTS, -1, 0] > 0).long()
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(backward(logits(heads, hidden.to(dtype)), labels))
        for optimizer in optimizers:
            optimizer.step()
    return heads, losses


@both_dtypes
@pytest.mark.parametrize("settings", EVERY_HEAD[::5] + EVERY_HEAD[-3:-2], ids=name_of)
def test_training_is_that_of_one_by_one(settings: HeadSettings, dtype: torch.dtype):
    stacked, its_losses = train(settings, together, dtype)
    alone, losses = train(settings, one_by_one, dtype)
    assert sum(map(sum, losses[-10:])) < sum(map(sum, losses[:10]))
    torch.testing.assert_close(its_losses, losses, rtol=0, atol=LOSSES[dtype])
    hidden = random_hidden(seed=99).to(dtype)
    for logits, others in zip(together(stacked, hidden), one_by_one(alone, hidden), strict=True):
        assert distance(logits, others) < LOSSES[dtype]


@both_dtypes
@every_head
def test_a_single_head_is_itself_bit_for_bit(settings: HeadSettings, dtype: torch.dtype):
    stacked, alone = (make_heads(settings, [0.2]) for _ in range(2))
    hidden = random_hidden().to(dtype)
    for heads, logits in ((stacked, together), (alone, one_by_one)):
        backward(logits(heads, hidden), torch.tensor([0, 1, 2, 0]))
    for parameter, other in zip(stacked[0].parameters(), alone[0].parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


@every_head
def test_a_head_that_is_not_finite_leaves_the_others_alone(settings: HeadSettings):
    hidden, labels = random_hidden(), torch.tensor([0, 1, 2, 0])
    sound, mixed = make_heads(settings), make_heads(settings)
    with torch.no_grad():
        for parameter in mixed[1].parameters():
            parameter.fill_(torch.nan)
    expected, actual = together(sound, hidden), together(mixed, hidden)
    backward(expected, labels)
    backward(actual, labels)
    assert actual[1].isnan().all()
    for i in (0, 2):
        assert torch.equal(actual[i], expected[i])
        for parameter, other in zip(mixed[i].parameters(), sound[i].parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad)


@every_head
def test_an_example_does_not_reach_its_neighbours(settings: HeadSettings):
    heads, hidden = make_heads(settings), random_hidden()
    spoilt = hidden.clone()
    spoilt[STARTS[1] : STARTS[2]] = torch.nan
    with torch.no_grad():
        logits = zip(together(heads, spoilt), together(heads, hidden), strict=True)
    for actual, expected in logits:
        assert actual[1].isnan().all()
        torch.testing.assert_close(actual[[0, 2, 3]], expected[[0, 2, 3]])


def test_each_heads_loss_alone_reaches_only_its_own_parameters():
    heads = make_heads(HeadSettings(skip="mix", pool="attention", adapter_dim=5))
    together(heads, random_hidden())[1].sum().backward()
    for i, head in enumerate(heads):
        for parameter in head.parameters():
            reached = parameter.grad is not None and bool(parameter.grad.any())
            assert reached == (i == 1)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (HeadSettings(adapter_dim=8), SHAPE),
        (HeadSettings(share_layers=False), SHAPE),
        (HeadSettings(skip="mix"), SHAPE),
        (HeadSettings(pool="attention"), SHAPE),
        (HeadSettings(kind="cls"), SHAPE),
        (HeadSettings(start="bert"), SHAPE),
        (HeadSettings(), HeadShape(SHAPE.num_layers, SHAPE.hidden_size, 2, SHAPE.max_length)),
    ],
)
def test_heads_of_different_shape_are_refused(settings: HeadSettings, shape: HeadShape):
    heads = [Head(HeadSettings(), SHAPE, seed=0), Head(settings, shape, seed=0)]
    assert heads[0].stack_key != heads[1].stack_key
    with pytest.raises(ValueError, match=r"number 2 has .*; group heads by stack_key$"):
        together(heads, random_hidden())


def test_dropout_and_seed_do_not_part_heads():
    first = Head(HeadSettings(dropout=0.1), SHAPE, seed=0)
    assert first.stack_key == Head(HeadSettings(dropout=0.5), SHAPE, seed=1).stack_key
    assert len({first.stack_key, Head(HeadSettings(), SHAPE, seed=2).stack_key}) == 1
