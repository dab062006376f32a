"""`mode=plan`: its numbers against those of real blocks; nothing is started for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from span_rows import generated_rows, split_of, wordpiece
from tiny import (
    CPU,
    HIDDEN_SIZE,
    MAX_LENGTH,
    NUM_LAYERS,
    save_model,
    task_settings,
    tiny_classifier,
    tiny_tokenizer,
)

from actors.cluster import planned_cluster
from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.data.tokenize import tokenize, tokens_of
from bertvision_stream.models.backbone import Backbone, load_classifier, load_config
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.modes import plan as planning
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.plan import calibrate, made_up_model, make_plan, sample_blocks
from bertvision_stream.modes.planned_backbone import find_planned
from bertvision_stream.modes.preparation import plan_job, tokenize_task
from bertvision_stream.report.plan import RunPlan, plan_json, render_plan
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import Speeds
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.utils.errors import BackboneError, ConfigError

GIVEN = ("plan.extractors=64", "plan.tokens_per_second=1000")
STORE = 64 * 2**20


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_model(folder)
    return folder


def rows(name: str, count: int, *, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 50, n)) for n in rng.integers(3, 30, count)]
    return Split(name, [(text,) for text in texts], rng.integers(0, 2, count))


DATA = TaskData(TASKS["cola"], rows(TRAIN, 150, seed=0), (rows("validation", 60, seed=1),), ())


@pytest.fixture
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and a small object store, whatever it has."""
    resources = {"CPU": 2, "GPU": 0, "object_store_memory": STORE}
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(resources))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def plan_with(encoder: Path | str, *overrides: str) -> RunPlan:
    length = f"data.max_length={MAX_LENGTH}"
    settings = task_settings("cola", "mode=plan", f"backbone={encoder}", length, *overrides)
    inputs = TaskInputs(settings, DATA, "", find_planned(settings))
    return make_plan(inputs, planned_cluster(settings))


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2)])
def test_bytes_are_those_of_real_blocks(this_machine: None, encoder: Path, layers: tuple[int, ...]):
    options = (*GIVEN, "extract.codec=int8", "backbone.dtype=fp32")
    plan = plan_with(encoder, *options, f"extract.layers={list(layers)}")
    assert plan.chosen.codec == "int8"
    assert {each.codec for each in plan.codecs} == {"bf16", "int8", "fp32"}
    stores = {
        s.name: tokenize(s, tiny_tokenizer(), MAX_LENGTH) for s in (DATA.train, *DATA.validation)
    }
    model, _ = load_classifier(str(encoder), num_labels=2)
    dtype = next(model.parameters()).dtype
    backbone = Backbone(model, device=CPU, dtype=dtype, layers=layers)
    for each in plan.codecs:
        corpus = Corpus.pack(stores, block_tokens=each.block_tokens, seed=42)
        extractor = BlockExtractor(backbone, corpus, each.codec)  # type: ignore[arg-type]
        blocks = [extractor.extract(b.key) for split in corpus.blocks.values() for b in split]
        assert each.blocks == len(blocks)
        assert each.epoch_bytes == sum(block.nbytes for block in blocks)
        assert each.block_bytes == max(block.nbytes for block in blocks)
        hidden = [block.hidden.nbytes + block.scales.nbytes for block in blocks]
        tokens = sum(store.num_tokens for store in stores.values())
        assert each.token_bytes == sum(hidden) / tokens
    split_tokens = (plan.counts["train_tokens"], plan.counts["validation_tokens"])
    assert split_tokens == tuple(s.num_tokens for s in stores.values())
    assert plan.dump_bytes == 210 * len(layers) * MAX_LENGTH * HIDDEN_SIZE * 4
    # The forward pass goes through all layers, whichever are kept.
    assert plan.forward_flops == plan_with(encoder, *options).forward_flops
    written = plan_json(plan)
    assert (written["num_layers"], written["layers"]) == (NUM_LAYERS, list(layers))
    assert f"16 wide; kept are {', '.join(map(str, layers))})" in render_plan(plan)


def test_windows_are_planned_as_they_are(this_machine: None, tmp_path: Path):
    tiny_classifier(per_token=True, vocab_size=len(wordpiece())).save_pretrained(tmp_path)
    wordpiece().save_pretrained(tmp_path)
    splits = [split_of(generated_rows(n, seed=n), name) for n, name in ((60, TRAIN), (20, "v"))]
    length = f"data.max_length={MAX_LENGTH}"
    settings = task_settings("squad_v2", "mode=plan", f"backbone={tmp_path}", length)
    data = TaskData(TASKS["squad_v2"], splits[0], (splits[1],), ())
    inputs = TaskInputs(settings, data, "", find_planned(settings))
    plan = make_plan(inputs, planned_cluster(settings))
    stores = {s.name: tokens_of(s, wordpiece(), settings.data) for s in splits}
    num_windows = plan.counts["train_examples"]
    assert num_windows == stores[TRAIN].num_examples > 60
    model, _ = load_classifier(str(tmp_path), num_labels=2, per_token=True)
    corpus = Corpus.pack(stores, block_tokens=plan.chosen.block_tokens, seed=42)
    extractor = BlockExtractor(
        Backbone(model, device=CPU, dtype=torch.float32), corpus, settings.extract.codec
    )
    blocks = [extractor.extract(b.key) for split in corpus.blocks.values() for b in split]
    assert plan.chosen.epoch_bytes == sum(block.nbytes for block in blocks)
    assert plan.calibration is not None
    assert plan.calibration.train_tokens_per_second > 0
    text = render_plan(plan)
    assert f"windows     {num_windows:,} for training" in text
    json.dumps(plan_json(plan), allow_nan=False)


def test_a_cluster_that_is_not_there(
    this_machine: None, encoder: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(planning, "calibrate", never)
    was_running = ray.is_initialized()
    options = ("plan.nodes=8", "plan.network_gbps=0.001", "plan.store=1MiB", "finetune.epochs=0")
    plan = plan_with(encoder, *GIVEN, *options, "extract.block_tokens=64")
    assert ray.is_initialized() == was_running
    assert plan.speeds == Speeds(
        extractors=64,
        extract_tokens_per_second=1000,
        nodes=8,
        network_bytes_per_second=125_000,
    )
    assert plan.job.cluster.store_bytes == 8 * 2**20
    assert plan.calibration is None
    assert (plan.first.bottleneck, plan.later.bottleneck) == (None, None)
    assert plan.first.transfer == plan.chosen.epoch_bytes * 7 / 8 / 125_000
    tokens = plan.counts["train_tokens"] + plan.counts["validation_tokens"]
    assert plan.first.extraction == tokens / 64_000
    assert plan.finetune_seconds == 0
    json.dumps(plan_json(plan), allow_nan=False)
    text = render_plan(plan)
    assert "from the speeds given; nothing was measured" in text
    assert "1 trainer of a speed not given" in text
    assert "bottleneck  not known, as the heads may be slower than all else" in text
    assert "streaming   at least " in text
    assert "*" not in text.partition("ESTIMATES")[2]
    assert "give plan.head_tokens_per_second" in " ".join(text.split())
    shown = text.replace(str(encoder), "an-encoder")  # whose folder has a long name in tests
    assert max(map(len, shown.splitlines())) <= 100


def test_with_all_speeds_given_the_slowest_stage_is_named(this_machine: None, encoder: Path):
    options = ("plan.nodes=8", "plan.network_gbps=0.001", "plan.head_tokens_per_second=1e9")
    plan = plan_with(encoder, *GIVEN, *options, "plan.store=1MiB", "extract.block_tokens=64")
    assert plan.first.bottleneck == "transfer"
    assert "bottleneck  transfer in every epoch (*)" in render_plan(plan)


def test_this_machine_is_measured(this_machine: None, encoder: Path):
    plan = plan_with(encoder, "plan.heads=2", "train.epochs=3")
    measured = plan.calibration
    assert measured is not None
    assert measured.extract_tokens_per_second > 0
    assert (measured.threads, measured.heads, measured.device) == (1, 2, "cpu")
    assert plan.speeds == Speeds(
        extractors=2,
        extract_tokens_per_second=measured.extract_tokens_per_second,
        train_tokens_per_second=measured.train_tokens_per_second,
        shared_cores=2,
    )
    assert plan.later.extraction == 0  # all of it is kept
    assert plan.stream_seconds == plan.first.total + 2 * plan.later.total
    json.dumps(plan_json(plan), allow_nan=False)
    text = render_plan(plan)
    assert f"ESTIMATES, from {measured.tokens:,} tokens measured here" in text
    assert "2 extractors at " in text


@pytest.mark.ray
def test_the_cluster_that_is_joined_is_planned_for(cluster: ClusterResources, encoder: Path):
    joined = plan_with(encoder, "plan.tokens_per_second=1000", "ray.address=auto")
    assert (joined.speeds.extractors, joined.speeds.shared_cores) == (2, 2)
    assert joined.job.cluster.store_bytes == cluster.store_bytes
    wider = plan_with(encoder, "plan.tokens_per_second=1000", "ray.address=auto", "plan.nodes=3")
    assert (wider.speeds.extractors, wider.speeds.nodes) == (6, 3)
    assert wider.job.cluster.store_bytes == 3 * cluster.store_bytes


def test_a_budget_that_another_codec_does_not_fit_into(this_machine: None, encoder: Path):
    block = ("extract.block_tokens=64", "extract.codec=int8")
    plan = plan_with(encoder, *GIVEN, *block, "stream.budget=10KiB")
    fitting = {each.codec: each.forecast is not None for each in plan.codecs}
    assert fitting == {"int8": True, "bf16": False, "fp32": False}
    assert "too small for two blocks" in plan.codecs[1].refused
    assert "too small" in render_plan(plan)
    with pytest.raises(ConfigError, match="too small for two blocks"):
        plan_with(encoder, *GIVEN, "extract.block_tokens=64", "stream.budget=10KiB")


def test_the_sample_has_examples_of_all_lengths():
    store = tokenize(rows(TRAIN, 3000, seed=3), tiny_tokenizer(), MAX_LENGTH)
    sample = sample_blocks(store, block_tokens=256, seed=0).blocks[TRAIN]
    ids = np.concatenate([block.example_ids for block in sample])
    assert len(set(ids.tolist())) == len(ids)
    for block in sample:
        np.testing.assert_array_equal(block.lengths, store.lengths[block.example_ids])
    assert np.concatenate([b.lengths for b in sample]).mean() == pytest.approx(
        store.lengths.mean(), rel=0.1
    )


def test_a_made_up_model_has_finite_states(encoder: Path):
    store = tokenize(DATA.train, tiny_tokenizer(), MAX_LENGTH)
    config = load_config(str(encoder))
    model = made_up_model(config, DATA.task)
    corpus = sample_blocks(store, block_tokens=256, seed=0)
    backbone = Backbone(model, device=CPU, dtype=next(model.parameters()).dtype)
    block = BlockExtractor(backbone, corpus, "fp32").extract(corpus.blocks[TRAIN][0].key)
    assert np.isfinite(block.hidden).all()
    assert block.hidden.std() > 0
    options = ("mode=plan", "backbone.dtype=fp32", "plan.head_tokens_per_second=1000")
    settings = task_settings(
        "cola", f"backbone={encoder}", f"data.max_length={MAX_LENGTH}", *options
    )
    tokenized = tokenize_task(TaskInputs(settings, DATA, "", find_planned(settings)))
    here = ClusterResources(num_cpus=1, num_gpus=0, num_nodes=1, store_bytes=STORE)
    job = plan_job(tokenized, here, Placement(1, 1, 0, 1, 0, 1))
    found = calibrate(job, forward_flops=1e6)
    assert found.train_tokens_per_second is None
    assert found.dtype == "fp32"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bertvision_stream.models.sources.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: None)


def test_a_known_backbone_that_is_not_here(offline: None):
    for name, shape in {
        "bert-large-uncased": (24, 1024, 4096, 16),
        "google-bert/bert-base-cased": (12, 768, 3072, 12),
    }.items():
        planned = find_planned(task_settings("cola", "mode=plan", f"backbone={name}"))
        config = planned.config(None)
        assert planned.source is None
        assert shape == (
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        same = name.endswith("-uncased")
        assert planned.note.endswith("which is the same" if same else "an approximation")


def test_a_given_shape(offline: None, encoder: Path):
    shape = ("plan.layers=5", "plan.hidden_size=96")
    for name in ("someone/some-bert", str(encoder)):
        planned = find_planned(task_settings("cola", "mode=plan", f"backbone={name}", *shape))
        config = planned.config(None)
        assert (config.num_hidden_layers, config.hidden_size) == (5, 96)
        assert config.hidden_size % config.num_attention_heads == 0
        assert "5 layers of 96 are taken as given" in planned.note
    assert planned.tokenizer_source == str(encoder)


def test_an_unknown_backbone_that_is_not_here(offline: None):
    with pytest.raises(BackboneError, match=r"say how large it is: plan\.layers=24 plan\.hidden_"):
        find_planned(task_settings("cola", "mode=plan", "backbone=someone/some-bert"))


def test_the_command_leaves_a_plan_and_nothing_else(encoder: Path, tmp_path: Path):
    lines = [
        f"{text},{label}"
        for (text,), label in zip(DATA.train.texts, DATA.train.labels, strict=True)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["text,about", *lines]))
    arguments = [
        "task=custom",
        "mode=plan",
        f"backbone={encoder}",
        "data.path=rows.csv",
        "data.text_columns=text",
        "data.label_column=about",
        f"data.max_length={MAX_LENGTH}",
        "run_name=paper",
        *GIVEN,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bertvision_stream.run", *arguments],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    folder = "outputs/custom/paper"
    files = ("config.json", "plan.json", "plan.txt", "run.log")
    assert left == {"rows.csv", *(f"{folder}/{name}" for name in files)}
    assert (tmp_path / folder / "plan.txt").read_text() in done.stdout
    plan = json.loads((tmp_path / folder / "plan.json").read_text())
    assert plan["speeds"]["extractors"] == 64
    assert plan["estimates"]["first_epoch_seconds"]["bottleneck"] is None
