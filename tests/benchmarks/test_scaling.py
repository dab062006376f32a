"""`docs/scaling.md` is what its module writes, by the numbers of `mode=plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import HIDDEN_SIZE, MAX_LENGTH, NUM_LAYERS, save_model, task_settings

from actors.cluster import planned_cluster
from benchmarks.layouts import A100, L4, QQP_LARGE, T4, Case, Layout, Rows
from benchmarks.scaling import DOCUMENT, count, render
from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.models.backbone import load_tokenizer
from bertvision_stream.models.sources import MINILM, locate
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.plan import make_plan
from bertvision_stream.modes.planned_backbone import find_planned
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN


def test_the_committed_document_is_what_the_module_writes():
    assert DOCUMENT.read_text(encoding="utf-8") == render(), (
        "docs/scaling.md is stale: python -m benchmarks.scaling"
    )


@pytest.mark.parametrize("cached", [False, True])
def test_a_layout_is_estimated_as_mode_plan_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
):
    resources = {"CPU": 2, "GPU": 0, "object_store_memory": 2**26}
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(resources))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    save_model(tmp_path)
    texts = [(" ".join(["w1"] * n),) for n in np.random.default_rng(0).integers(3, 30, 210)]
    labels = np.arange(210) % 2
    train, validation = (
        Split(name, texts[part], labels[part])
        for name, part in ((TRAIN, slice(150)), ("validation", slice(150, 210)))
    )
    tokens = sum(len(text.split()) + 2 for (text,) in texts)  # [CLS] and [SEP]
    rows = Rows("cola", 150, 60, 210, 210, tokens, tokens * 20)
    layout = Layout(
        Case(rows, "tiny", NUM_LAYERS, HIDDEN_SIZE),
        T4,
        num_gpus=16,
        network=100,
        cached=cached,
    )
    settings = task_settings(
        "cola",
        "mode=plan",
        f"backbone={tmp_path}",
        f"data.max_length={MAX_LENGTH}",
        "plan.extractors=16",
        "extract.num_gpus=1",
        f"plan.tokens_per_second={layout.extract_rate}",
        f"plan.head_tokens_per_second={layout.train_rate}",
        "plan.nodes=2",
        "plan.network_gbps=100",
        "plan.store=200GiB",
        f"stream.cache={'auto' if cached else 0}",
    )
    data = TaskData(TASKS["cola"], train, (validation,), ())
    inputs = TaskInputs(settings, data, "", find_planned(settings))
    plan = make_plan(inputs, planned_cluster(settings))
    assert plan.counts["train_tokens"] + plan.counts["validation_tokens"] == rows.tokens
    assert plan.chosen.token_bytes == layout.case.token_bytes()
    assert plan.chosen.cached_share == layout.plan.budget.cached_share == cached
    assert plan.speeds == layout.speeds
    assert (plan.first, plan.later) == (layout.epoch(first=True), layout.epoch(first=False))


def test_with_enough_gpus_extraction_bounds_no_longer():
    for gpu in (T4, L4, A100):
        layout = Layout(QQP_LARGE, gpu, codec="int8")
        enough = layout.enough_gpus
        for n in range(1, enough + 2):
            bottleneck = replace(layout, num_gpus=n).epoch(first=True).bottleneck
            assert (bottleneck == "extraction") == (n < enough)


def test_tokens_of_a_sample_are_counted(tmp_path: Path):
    folder = tmp_path / "cola"
    folder.mkdir()
    sentences = {"train": ["a dog barks .", "a dog"], "validation": ["cats sleep all day ."]}
    for split, rows in sentences.items():
        lines = [json.dumps({"sentence": s, "label": i % 2}) for i, s in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = load_tokenizer(locate(MINILM))
    lengths = [len(tokenizer(s)["input_ids"]) for rows in sentences.values() for s in rows]
    assert list(count(["task=cola", f"data.path={tmp_path}"])) == [
        f"cola: sample_rows=3, sample_examples=3, sample_tokens={sum(lengths)}, "
        f"sample_squares={sum(n * n for n in lengths)}"
    ]
