"""The engine without Ray: the same numbers, the plan's cache, a run from rows to results."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import make_job
from tiny import (
    CPU,
    HIDDEN_SIZE,
    MAX_LENGTH,
    NUM_LAYERS,
    one_thread,  # noqa: F401
    random_lengths,
    save_model,
    task_settings,
    tiny_classifier,
    token_store,
)

from bertvision_stream.heads.shape import HeadShape, kept_layers
from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.finetune import FinetuneOptions, finetune
from bertvision_stream.models.job import Job
from bertvision_stream.modes.inputs import TaskInputs, read_all_inputs
from bertvision_stream.modes.local import LocalEngine, train_in_process
from bertvision_stream.modes.train import run_task
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN, BlockFormat, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import forecast
from bertvision_stream.stream.placement import Placement
from bertvision_stream.stream.plan import plan_stream
from bertvision_stream.training.checkpoint import Checkpoint, save_checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective

TASK = TASKS["cola"]
SHAPE = HeadShape(NUM_LAYERS, HIDDEN_SIZE, TASK.num_labels, MAX_LENGTH)
PART = "200KiB"  # of some 550 KiB that an epoch delivers
WEIGHTS = BackboneWeights.of(tiny_classifier())


def job_with(cache: str, *overrides: str, epochs: int = 3, done: int = 0) -> Job:
    keys = ("backbone.dtype=fp32", "train.lr=1e-2", f"train.epochs={epochs}", "head.start=bert")
    settings = task_settings("cola", *keys, f"stream.cache={cache}", *overrides)
    num_kept = len(kept_layers(NUM_LAYERS, settings.extract.layers))
    stores = {}
    for seed, (split, count) in enumerate({TRAIN: 200, "validation": 60}.items()):
        labels = np.random.default_rng(seed).integers(0, 2, count)
        stores[split] = token_store(random_lengths(count, seed=seed), labels, seed=seed)
    corpus = Corpus.pack(stores, block_tokens=256, seed=1)
    plan = plan_stream(
        settings,
        corpus,
        BlockFormat.of(replace(SHAPE, num_layers=num_kept), "bf16"),
        num_extractors=1,
        num_nodes=1,
        store_bytes=2**28,
        epochs_done=done,
    )
    placement = Placement(1, 1, 0, 1, 0, 1)
    return make_job(settings, TASK, corpus, WEIGHTS, SHAPE, plan=plan, placement=placement)


def trained_alone(job: Job) -> HeadResult:
    backbone = Backbone(WEIGHTS.build(), device=CPU, dtype=torch.float32)
    training = make_training(job.corpus, TASK, {"head": HeadJob(job.settings)}, SHAPE, device=CPU)
    for _ in train_in_process(BlockExtractor(backbone, job.corpus, "bf16"), training):
        pass
    return training.results()["head"]


def assert_same(found: HeadResult, expected: HeadResult) -> None:
    assert found.history == expected.history
    for name, parameter in expected.state.items():
        assert torch.equal(found.state[name], parameter), name


def test_nothing_is_kept_for_epochs_that_do_not_come() -> None:
    """One epoch reads every block once, whatever the cache may take."""
    assert all(not job_with(cache, epochs=1).plan.budget.pinned for cache in (PART, "auto"))
    assert all(job_with(cache, epochs=2).plan.budget.pinned for cache in (PART, "auto"))
    for done, is_kept in enumerate((True, True, False, False)):  # of a run that is resumed
        assert bool(job_with("auto", done=done).plan.budget.pinned) == is_kept
    one, two = (job_with("auto", epochs=epochs).plan.budget for epochs in (1, 2))
    assert one.total_bytes < two.total_bytes


CACHES = [("0", 0, 0), (PART, 0.1, 0.9), ("auto", 1, 1)]


@pytest.mark.parametrize(("cache", "least", "most"), CACHES)
def test_numbers_do_not_depend_on_the_cache_and_counts_are_the_plan_s(
    cache: str, least: float, most: float
) -> None:
    job = job_with(cache)
    assert least <= job.plan.budget.cached_share <= most
    outcome = LocalEngine().run(job, {"head": HeadJob(job.settings)})
    assert_same(outcome.heads["head"], trained_alone(job))
    expected, stats = forecast(job.plan, epochs=3), outcome.stats
    assert stats.blocks_extracted == expected.blocks_extracted
    assert stats.blocks_from_cache == expected.blocks_from_cache
    assert stats.tokens_extracted == expected.tokens_extracted
    assert stats.cache_bytes == expected.cache_bytes
    assert stats.peak_bytes <= job.plan.budget.total_bytes
    assert stats.tokens_by_epoch[0] == sum(job.plan.block_tokens.values())
    assert len(outcome.epoch_seconds) == 3


class SomeLayers:
    """Cuts layers out of blocks that hold all."""

    def __init__(self, corpus: Corpus, layers: tuple[int, ...]):
        backbone = Backbone(WEIGHTS.build(), device=CPU, dtype=torch.float32)
        self.corpus, self.layers = corpus, list(layers)
        self.extractor = BlockExtractor(backbone, corpus, "bf16")

    def extract(self, key: BlockKey) -> EncodedBlock:
        block = self.extractor.extract(key)
        return replace(block, hidden=block.hidden[:, self.layers].copy())


@pytest.mark.parametrize(("written", "layers"), [("[-1,0]", (0, 2)), ("1", (1,))])
def test_some_layers_give_the_head_that_is_trained_on_these_of_all(
    written: str, layers: tuple[int, ...]
) -> None:
    job, whole = job_with("auto", f"extract.layers={written}"), job_with("auto")
    outcome = LocalEngine().run(job, {"head": HeadJob(job.settings)})
    heads = {"head": HeadJob(job.settings)}
    training = make_training(job.corpus, TASK, heads, job.shape, device=CPU)
    for _ in train_in_process(SomeLayers(job.corpus, layers), training):
        pass
    assert_same(outcome.heads["head"], training.results()["head"])
    assert job.layers == layers
    for key, num_bytes in job.plan.block_bytes.items():
        of_logits = 4 * TASK.num_labels * job.corpus.block(key).num_examples
        of_states = whole.plan.block_bytes[key] - of_logits
        assert (num_bytes - of_logits) * NUM_LAYERS == of_states * len(layers)
    assert outcome.stats.cache_bytes == sum(job.plan.block_bytes.values())
    bert_logits = LocalEngine().run(whole, {"head": HeadJob(whole.settings)}).bert_logits
    assert np.array_equal(outcome.bert_logits["validation"], bert_logits["validation"])


def test_a_run_resumes_from_any_epoch() -> None:
    job = job_with(PART)
    states: list[Checkpoint] = []
    engine, heads = LocalEngine(), {"head": HeadJob(job.settings)}
    whole = engine.run(job, heads, on_epoch=states.append)
    assert len(states) == 3
    for done, state in enumerate(states, start=1):
        rest, state = job_with(PART, done=done), Checkpoint.from_bytes(state.to_bytes())
        resumed = engine.run(rest, heads, checkpoint=state)
        assert_same(resumed.heads["head"], whole.heads["head"])
        assert len(resumed.epoch_seconds) == 3
        assert resumed.epoch_seconds[:done] == whole.epoch_seconds[:done]


def test_fine_tuning_is_that_of_one_worker() -> None:
    job = job_with("0")
    options = FinetuneOptions(epochs=0.5, lr=1e-3, batch_size=16, seed=3, dtype="fp32")
    result = LocalEngine().fine_tune(job, WEIGHTS, options)
    objective = make_objective(job.task)
    model = finetune(WEIGHTS.build(), job.stores[TRAIN], objective, options, device=CPU)
    assert result.weights.fingerprint() == BackboneWeights.of(model).fingerprint()
    assert result.weights.fingerprint() != WEIGHTS.fingerprint()
    assert result.logits["validation"].shape == (60, 2)
    assert np.isfinite(result.logits["validation"]).all()


def test_this_machine_is_one_node() -> None:
    found = LocalEngine().resources()
    assert found.num_nodes == 1
    assert found.num_cpus >= 1
    assert found.store_bytes > 2**20


class LocalRuntime:
    """What `run.py` hands to the modes, without Ray."""

    def start_engine(self, address: str | None) -> LocalEngine:
        return LocalEngine()


@pytest.mark.slow
def test_from_rows_to_results_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "encoder")
    rng = np.random.default_rng(0)
    lines = [f"w{a} w{b},{'even' if a % 2 else 'odd'}" for a, b in rng.integers(0, 50, (150, 2))]
    (tmp_path / "rows.csv").write_text("\n".join(["text,parity", *lines]))
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        [
            "task=custom",
            "backbone=encoder",
            "data.path=rows.csv",
            "data.text_columns=text",
            "data.label_column=parity",
            f"data.max_length={MAX_LENGTH}",
            "finetune.epochs=1",
            "extract.layers=[-1,0]",
            "head.skip=mix",
            "train.epochs=2",
            "run_name=one",
        ]
    )
    (inputs,) = read_all_inputs(settings)
    monkeypatch.setitem(sys.modules, "ray", None)  # whoever imports it now, fails
    folder = run_task(inputs, "a command", LocalRuntime())  # type: ignore[arg-type]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["train"]["loss"]) == 2
    assert metrics["head"]["layers"] == [0, NUM_LAYERS - 1]
    assert len(metrics["head"]["mix_weights"]) == 2
    assert metrics["stream"]["dump_bytes_avoided"] == 150 * 2 * MAX_LENGTH * HIDDEN_SIZE * 4
    assert json.loads((folder / "model" / "config.json").read_text())["layers"] == [0, 2]
    assert "layers 0, 2 of a frozen BERT" in (folder / "model" / "README.md").read_text()
    assert set(metrics["splits"]["validation"]) == {"examples", "bert", "head", "ensemble"}
    assert (folder / "model" / "model.safetensors").is_file()
    again = replace(inputs, settings=inputs.settings.model_copy(update={"run_name": "two"}))
    second = run_task(again, "a command", LocalRuntime())  # type: ignore[arg-type]
    other = json.loads((second / "metrics.json").read_text())
    assert other["train"]["loss"] == metrics["train"]["loss"]
    assert other["finetune"]["reused"]
    resumed = interrupted_and_resumed(inputs, monkeypatch)
    assert resumed["train"]["loss"] == metrics["train"]["loss"]
    seconds = resumed["seconds"]
    assert sum(seconds["stages"].values()) == pytest.approx(seconds["total"])
    assert not resumed["finetune"]["reused"]  # by the run, that is, though its second process did
    assert seconds["stages"]["fine-tuning"] == seconds["finetune"] > 0
    assert seconds["total"] > LOST_SECONDS  # those of the interrupted process are counted


# The interrupted process seems to have begun so long before it really did.
LOST_SECONDS = 1000.0


def interrupted_and_resumed(inputs: TaskInputs, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The metrics of a run whose first process fine-tunes and trains one epoch of two."""

    def settings_of(*, resume: bool) -> TaskInputs:
        finetune = inputs.settings.finetune.model_copy(update={"reuse": False})
        update = {"run_name": "three", "resume": resume, "finetune": finetune}
        return replace(inputs, settings=inputs.settings.model_copy(update=update))

    def save_and_interrupt(path: Path, state: Checkpoint) -> None:
        seconds = state.facts["seconds"]
        seconds = {**seconds, "total": seconds["total"] + LOST_SECONDS}
        save_checkpoint(path, state.with_facts(seconds=seconds))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bertvision_stream.training.checkpoint.save_checkpoint", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_task(settings_of(resume=False), "a command", LocalRuntime())  # type: ignore[arg-type]
    folder = run_task(settings_of(resume=True), "a command", LocalRuntime())  # type: ignore[arg-type]
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics
