"""What AdamW does to the parameters of a head, and how its learning rate goes."""

from __future__ import annotations

import pytest
import torch
from tiny import HIDDEN_SIZE, MAX_LENGTH, NUM_LAYERS, task_settings

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.training.optimizer import learning_rate, make_adamw


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("head.share_layers=false", "head.skip=mix"),
        ("head.pool=attention",),
        ("head.kind=cls",),
    ],
)
def test_no_bias_is_decayed(options: tuple[str, ...]):
    """Without a gradient only decay moves parameters."""
    settings = task_settings("cola", *options)
    head = Head(settings.head, HeadShape(NUM_LAYERS, HIDDEN_SIZE, 2, MAX_LENGTH), seed=1)
    optimizer = make_adamw(head, lr=0.1, weight_decay=0.5)
    for parameter in head.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in head.named_parameters():
        is_matrix = name in ("features.weight", "output.weight")
        assert bool((parameter < 1).all() if is_matrix else (parameter == 1).all()), name


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate(1.0, step, 10, warmup_ratio=0.2) for step in range(10)]
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates == pytest.approx(expected)


def test_learning_rate_without_warmup_starts_at_its_peak():
    rates = [learning_rate(0.5, step, 2, warmup_ratio=0) for step in range(2)]
    assert rates == [0.5, 0.25]
    assert learning_rate(0.5, 0, 1, warmup_ratio=0) == 0.5
