"""Heads against NumPy formulas, BERTVision's layout, and neighbours that must not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from tiny import one_thread  # noqa: F401

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.scalar_mix import ScalarMix
from bertvision_stream.heads.segments import (
    pad_segments,
    segment_mean,
    segment_softmax,
    segment_starts,
    segment_sum,
)
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.settings.groups import HeadSettings

L, D, C, S = 4, 12, 3, 9
SHAPE = HeadShape(num_layers=L, hidden_size=D, num_outputs=C, max_length=S)
LENGTHS = torch.tensor([1, 4, S, 2])

EVERY_HEAD = [
    HeadSettings(skip=skip, pool=pool, share_layers=share, adapter_dim=5)
    for skip, pool, share in itertools.product(
        ("last", "mix", "none"), ("mean", "cls", "attention", "flatten"), (True, False)
    )
] + [HeadSettings(kind=kind) for kind in ("scalar_mix", "mean_layers", "cls")]
EVERY_HEAD += [
    head.model_copy(update={"start": "bert"})
    for head in EVERY_HEAD
    if head.share_layers and head.skip != "none"
]
BERT = torch.randn(len(LENGTHS), C, generator=torch.Generator().manual_seed(3))


def name_of(settings: HeadSettings) -> str:
    begins = "-bert" if settings.start == "bert" else ""
    if settings.kind != "adapter_pooler":
        return f"{settings.kind}{begins}"
    share = "shared" if settings.share_layers else "own"
    return f"{settings.skip}-{settings.pool}-{share}{begins}"


every_head = pytest.mark.parametrize("settings", EVERY_HEAD, ids=name_of)


def random_hidden(num_tokens: int = int(LENGTHS.sum()), *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, L, D, generator=generator)


def make_head(settings: HeadSettings, *, seed: int = 0) -> Head:
    """A head whose parameters are all random: new ones hold zeros that would hide mistakes."""
    head = Head(settings, SHAPE, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return head


def expected_logits(
    head: Head, settings: HeadSettings, hidden_SLD: np.ndarray, bert_C: np.ndarray
) -> np.ndarray:
    """The logits [C] of one example by the formulas, in float64."""
    state = {name: p.numpy().astype(np.float64) for name, p in head.state_dict().items()}

    def mixed(prefix: str) -> np.ndarray:
        shares = softmax(state[f"{prefix}.weights"])
        return state[f"{prefix}.gamma"] * sum(
            share * hidden_SLD[:, layer] for layer, share in enumerate(shares)
        )

    if settings.kind == "adapter_pooler":
        features = []
        for layer in range(L):
            own = 0 if settings.share_layers else layer
            z = hidden_SLD[:, layer] @ state["features.weight"][own] + state["features.bias"][own]
            features.append(z * (1 + erf(z / np.sqrt(2))) / 2)  # gelu
        if settings.skip != "none":
            features.append(hidden_SLD[:, -1] if settings.skip == "last" else mixed("features.mix"))
        tokens_SF = np.concatenate(features, axis=1)
        pool = settings.pool
    else:
        kinds = {
            "scalar_mix": lambda: mixed("features"),
            "mean_layers": lambda: hidden_SLD.mean(axis=1),
            "cls": lambda: hidden_SLD[:, -1],
        }
        tokens_SF = kinds[settings.kind]()
        pool = "cls" if settings.kind == "cls" else "mean"
    if pool == "mean":
        pooled = tokens_SF.mean(axis=0)
    elif pool == "cls":
        pooled = tokens_SF[0]
    elif pool == "attention":
        pooled = softmax(tokens_SF @ state["pool.query"]) @ tokens_SF
    else:
        pooled = np.zeros((S, tokens_SF.shape[1]))
        pooled[: len(tokens_SF)] = tokens_SF
        pooled = pooled.ravel()
    logits = state["output.weight"] @ pooled + state["output.bias"]
    return logits + state["bert_scale"] * bert_C if settings.start == "bert" else logits


@every_head
def test_logits_follow_the_formulas(settings: HeadSettings):
    head, hidden = make_head(settings), random_hidden()
    examples = hidden.double().split(LENGTHS.tolist())
    expected = [
        expected_logits(head, settings, example.numpy(), bert.numpy())
        for example, bert in zip(examples, BERT.double(), strict=True)
    ]
    logits = head(hidden, LENGTHS, BERT)
    assert logits.shape == (len(LENGTHS), C)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@every_head
def test_every_parameter_has_a_gradient(settings: HeadSettings):
    head = make_head(settings)
    logits = head(random_hidden(), LENGTHS, BERT)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@every_head
def test_logits_do_not_depend_on_the_neighbours(settings: HeadSettings):
    head, hidden = make_head(settings), random_hidden()
    with torch.no_grad():
        together = head(hidden, LENGTHS, BERT)
        states = hidden.split(LENGTHS.tolist())
        for i, own in enumerate(states):
            alone = head(own, LENGTHS[i : i + 1], BERT[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)
            spoilt = [s if j == i else torch.full_like(s, torch.nan) for j, s in enumerate(states)]
            assert torch.equal(head(torch.cat(spoilt), LENGTHS, BERT)[i], together[i])


@every_head
def test_products_in_bf16_are_close_to_fp32(settings: HeadSettings):
    head, hidden = make_head(settings), random_hidden().bfloat16()
    in_bf16, in_fp32 = head(hidden, LENGTHS, BERT), head(hidden.float(), LENGTHS, BERT)
    assert in_bf16.dtype == torch.float32
    assert (in_bf16 - in_fp32).abs().max() < 0.03 * in_fp32.abs().max()


@pytest.mark.parametrize("share_layers", [True, False])
def test_flatten_without_skip_is_bertvisions_adapter_pooler(share_layers: bool):
    settings = HeadSettings(pool="flatten", skip="none", adapter_dim=5, share_layers=share_layers)
    head = make_head(settings)
    batch = 6
    x_BSLD = random_hidden(batch * S).reshape(batch, S, L, D)
    theirs = bertvision_adapter_pooler(
        x_BSLD, list(head.features.weight), list(head.features.bias), head.output, adapter_dim=5
    )
    ours = head(x_BSLD.flatten(0, 1), torch.full((batch,), S))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def bertvision_adapter_pooler(
    x_BSLD: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    output: torch.nn.Linear,
    *,
    adapter_dim: int,
) -> torch.Tensor:
    """AP_GLUE as published: layers are the last axis after the adapters, [B, S, A, L]."""
    adapted = []
    for layer in range(L):
        own = layer if len(weights) > 1 else 0
        projected_BSA = torch.nn.functional.linear(x_BSLD[:, :, layer], weights[own].T, biases[own])
        adapted.append(torch.nn.functional.gelu(projected_BSA))
    adapted_BSAL = torch.stack(adapted, dim=-1)
    batch, positions = x_BSLD.shape[:2]
    pooled = adapted_BSAL.reshape(batch, positions, adapter_dim * L).flatten(1)
    # Its inner order is (A, L) and ours is (L, A).
    classifier = torch.nn.Linear(positions * adapter_dim * L, C)
    weight = output.weight.reshape(C, positions, L, adapter_dim).transpose(2, 3)
    classifier.load_state_dict({"weight": weight.reshape(C, -1), "bias": output.bias})
    return classifier(pooled)


def test_scalar_mix_starts_as_the_mean_and_follows_its_formula():
    mix, hidden = ScalarMix(L), random_hidden()
    torch.testing.assert_close(mix(hidden), hidden.mean(dim=1))
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        mix.gamma.fill_(2.5)
    exp = np.exp([1.0, -2.0, 0.5, 3.0])
    expected = 2.5 * np.einsum("l,tld->td", exp / exp.sum(), hidden.double().numpy())
    np.testing.assert_allclose(mix(hidden).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_attention_starts_as_the_mean():
    mean = Head(HeadSettings(pool="mean"), SHAPE, seed=3)
    attention = Head(HeadSettings(pool="attention"), SHAPE, seed=3)
    attention.output.load_state_dict(mean.output.state_dict())
    hidden = random_hidden()
    torch.testing.assert_close(attention(hidden, LENGTHS), mean(hidden, LENGTHS))


def test_parameters_of_the_default_head_on_minilm():
    shape = HeadShape(num_layers=7, hidden_size=384, num_outputs=2, max_length=128)
    assert Head(HeadSettings(), shape, seed=0).num_parameters == 7154


@every_head
def test_the_seed_alone_makes_the_weights(settings: HeadSettings):
    torch.manual_seed(1)
    first = Head(settings, SHAPE, seed=5).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = Head(settings, SHAPE, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Head(settings, SHAPE, seed=6).state_dict()
    begins_at_zero = settings.start == "bert"
    assert torch.equal(first["output.weight"], other["output.weight"]) == begins_at_zero


@every_head
def test_a_head_begins_as_bert_to_the_bit_or_with_weights_of_its_own(settings: HeadSettings):
    head, hidden = Head(settings, SHAPE, seed=5), random_hidden()
    assert torch.equal(head(hidden, LENGTHS, BERT), BERT) == (settings.start == "bert")
    if settings.start == "bert":
        with pytest.raises(ValueError, match="needs BERT's own logits"):
            head(hidden, LENGTHS)


def test_dropout_draws_from_a_generator_of_the_heads_own():
    settings, hidden = HeadSettings(dropout=0.5), random_hidden()
    alone, among_others = (Head(settings, SHAPE, seed=5) for _ in range(2))
    outputs = [alone(hidden, LENGTHS) for _ in range(3)]
    before = torch.get_rng_state()
    for expected in outputs:
        assert torch.equal(among_others(hidden, LENGTHS), expected)
        torch.rand(3)  # a neighbour draws
        Head(settings, SHAPE, seed=9)(hidden, LENGTHS)
    assert not torch.equal(outputs[0], outputs[1])
    torch.set_rng_state(before)
    alone(hidden, LENGTHS)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_ends_with_training():
    head, hidden = Head(HeadSettings(dropout=0.4), SHAPE, seed=5), random_hidden()
    copies = 4000
    logits = head(hidden.repeat(copies, 1, 1), LENGTHS.repeat(copies))
    without = head.eval()(hidden, LENGTHS)
    torch.testing.assert_close(logits.reshape(copies, -1, C).mean(0), without, rtol=0, atol=0.05)
    assert torch.equal(head(hidden, LENGTHS, BERT), without)


def test_segments_against_loops():
    x_TF = random_hidden().flatten(1)
    scores_T = x_TF[:, 0] * 20
    parts, score_parts = x_TF.split(LENGTHS.tolist()), scores_T.split(LENGTHS.tolist())
    means = torch.stack([part.mean(dim=0) for part in parts])
    torch.testing.assert_close(segment_mean(x_TF, LENGTHS), means)
    sums = torch.stack([part.sum(dim=0) for part in parts])
    torch.testing.assert_close(segment_sum(x_TF, LENGTHS), sums)
    assert segment_starts(LENGTHS).tolist() == [0, 1, 5, 14]
    shares = torch.cat([part.softmax(dim=0) for part in score_parts])
    torch.testing.assert_close(segment_softmax(scores_T, LENGTHS), shares)
    padded = pad_segments(x_TF, LENGTHS, value=7.0)
    assert padded.shape == (len(LENGTHS), S, L * D)
    for row, part in zip(padded, parts, strict=True):
        assert torch.equal(row[: len(part)], part)
        assert (row[len(part) :] == 7.0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sums_of_segments_are_those_of_segment_reduce_bit_for_bit(reduction: str):
    segment = {"sum": segment_sum, "mean": segment_mean}[reduction]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 200, (17,), generator=generator)
        shape = (int(lengths.sum()), int(torch.randint(1, 300, (), generator=generator)))
        values = torch.randn(shape, generator=generator)
        fast, slow = (values.clone().requires_grad_() for _ in range(2))
        actual = segment(fast, lengths)
        expected = torch.segment_reduce(slow, reduction, lengths=lengths)
        gradient = torch.randn(actual.shape, generator=generator)
        actual.backward(gradient)
        expected.backward(gradient)
        assert torch.equal(actual, expected)
        assert torch.equal(fast.grad, slow.grad)
