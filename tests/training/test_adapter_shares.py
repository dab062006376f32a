"""The share of each layer in the norm of the adapters' output, for reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf
from test_fit import CLASSES, ScaledValidation, make_corpus, settings_of, shape_of, train
from tiny import CPU, NUM_LAYERS, RandomExtractor, one_thread  # noqa: F401

from bertvision_stream.heads.head import Head
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import ADAPTERS_MEASURED_ON, make_training


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("head.share_layers=false", "head.skip=mix"),
        ("head.pool=cls",),
        ("head.pool=cls", "head.share_layers=false", "train.patience=1"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_shares_of_the_layers_in_the_adapters_output(options: tuple[str, ...]):
    """Example by example in float64, with the weights of the epoch that was chosen."""
    corpus = make_corpus()
    extractor = ScaledValidation(corpus, factor=-1.0)  # the first epoch is the best
    result = train({"head": settings_of(*options, "train.epochs=3")}, extractor=extractor)["head"]
    assert result.chosen_epoch == (1 if "train.patience=1" in options else 3)
    weight, bias = (
        result.state[f"features.{name}"].double().numpy() for name in ("weight", "bias")
    )
    norms = np.zeros(NUM_LAYERS)
    for key in corpus.validation_keys:
        for row in corpus.block(key).example_ids[::ADAPTERS_MEASURED_ON].tolist():
            hidden = extractor.hidden(key.split, row).double().numpy()
            if "head.pool=cls" in options:
                hidden = hidden[:1]
            for layer in range(NUM_LAYERS):
                own = layer if "head.share_layers=false" in options else 0
                z = hidden[:, layer] @ weight[own] + bias[own]
                gelu = z * (1 + erf(z / np.sqrt(2))) / 2
                norms[layer] += np.sqrt((gelu**2).sum(axis=1)).sum()
    assert result.adapter_shares == pytest.approx((norms / norms.sum()).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "with_report", "measured_in"),
    [
        ((), True, [3]),
        (("train.patience=9",), True, [1, 2, 3]),
        ((), False, []),
        (("train.patience=9",), False, []),
    ],
)
def test_adapters_are_measured_only_where_the_result_can_be_used(
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    with_report: bool,
    measured_in: list[int],
):
    measure, calls = Head.adapter_norms, []

    def counted(head: Head, *batch: torch.Tensor) -> torch.Tensor | None:
        calls.append(head)
        return measure(head, *batch)

    monkeypatch.setattr(Head, "adapter_norms", counted)
    extractor = RandomExtractor(make_corpus())
    heads = {"head": HeadJob(settings_of("train.epochs=3", *options), with_report=with_report)}
    training = make_training(extractor.corpus, CLASSES, heads, shape_of(CLASSES), device=CPU)
    epochs = []
    for epoch, _ in enumerate(train_in_process(extractor, training), start=1):
        epochs += [epoch] if calls else []
        calls.clear()
    assert epochs == measured_in
    shares = training.results()["head"].adapter_shares
    assert len(shares) == (NUM_LAYERS if measured_in else 0)


@pytest.mark.parametrize("kind", ["scalar_mix", "mean_layers", "cls"])
def test_heads_without_adapters_have_no_shares(kind: str):
    settings = settings_of(f"head.kind={kind}", "train.epochs=1")
    assert train({"head": settings})["head"].adapter_shares == ()
