"""The measurements of one GPU, in small on a CPU, and what is fitted to them."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import Trained, known_gpu, sample_lengths
from benchmarks.layouts import (
    ASSUMED,
    CODECS,
    H100,
    QQP,
    QQP_BASE,
    SQUAD,
    SQUAD_LARGE,
    Case,
    Layout,
    Rows,
)

SMALL = ("BERT-small", 3, 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_data_sheets_are_found_by_the_name_of_the_driver(name: str, expected: str | None):
    found = known_gpu(name)
    assert (found and found.name) == expected


@pytest.mark.parametrize("rows", [QQP, SQUAD])
def test_lengths_are_as_they_were_counted(rows: Rows):
    lengths = sample_lengths(rows, 10**6)
    assert lengths.sum() == pytest.approx(10**6, rel=0.02)
    assert lengths.mean() == pytest.approx(rows.example_tokens, rel=0.02)
    assert (lengths**2).sum() / lengths.sum() == pytest.approx(rows.attended, rel=0.02)
    assert lengths.max() <= rows.settings.max_length


def test_what_trainers_take_is_fitted_as_it_was_assumed():
    actual = replace(
        ASSUMED,
        copy_bytes_per_second=25e9,
        step_seconds=2e-3,
        head_step_seconds=0.5e-3,
        span_head_step_seconds=1.5e-3,
    )
    trained = {}
    for case in (QQP_BASE, SQUAD_LARGE):
        for codec in CODECS:
            for heads in gpu.HEADS:
                layout = Layout(case, H100, codec=codec, heads=heads, assumed=actual)
                steps = 10_000 / (case.rows.settings.batch_size * case.rows.example_tokens)
                trained[case, codec, heads] = Trained(10_000, steps, [10_000 / layout.train_rate])
    found = gpu.fit_trainers(H100, trained)
    assert astuple(found) == pytest.approx(astuple(actual), rel=1e-3)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_all_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "SIZES", ((512, 512, 0.04), (1024, 512, 1.0)))
    monkeypatch.setattr(gpu, "HEADS", (1, 2))
    monkeypatch.setattr(gpu_parts, "PRODUCT", 64)
    monkeypatch.setattr(gpu, "BLOCK_TOKENS", 512)
    monkeypatch.setattr(gpu, "COPIED_BYTES", 10**5)
    monkeypatch.setattr(gpu, "known_gpu", lambda name: H100)
    cases = [Case(QQP, *SMALL), Case(SQUAD, *SMALL)]
    lines = gpu.measure(1, device=torch.device("cpu"), cases=cases, num_tokens=2000)
    rows = [line.split(" | ") for line in lines if line.startswith(("| QQP", "| SQuAD"))]
    # Forward, sizes and comparison; two codecs of extractors; two of trainers of one head and two.
    assert len(rows) == 2 * (3 + 2 + 4)
    numbers = [cell.strip(" |%").replace(",", "") for row in rows for cell in row[2:]]
    assert all(np.isfinite(float(number)) for number in numbers)
    assert any(line.startswith("**The assumptions, beside") for line in lines)
