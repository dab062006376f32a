"""A whole job from a csv file to the results."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Done, run_here
from conftest import RESOURCES
from searches import assert_searched
from tiny import HIDDEN_SIZE, MAX_LENGTH, NUM_LAYERS, save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertvision_stream.stream.placement import ClusterResources

pytestmark = pytest.mark.ray

NUM_ROWS, NUM_HELD_OUT = 200, 20
COMMAND = (
    "task=custom",
    "backbone=encoder",
    "data.path=rows.csv",
    "data.text_columns=text",
    "data.label_column=about",
    f"data.max_length={MAX_LENGTH}",
    "train.epochs=2",
    "backbone.dtype=fp32",
    "extract.codec=fp32",
    "train.precision=fp32",
)
# Of metrics.json, as other programs read it.
KEYS = {
    "": "task backbone seed head splits train stream seconds",
    "head": "kind parameters",
    "splits.validation": "examples bert head ensemble",
    "splits.validation.head": "accuracy f1 matthews",
    "train": "examples tokens epochs loss",
    "stream": "blocks blocks_extracted blocks_from_cache tokens_extracted bytes_per_epoch "
    "budget_bytes peak_bytes cache_bytes spilled_bytes dump_bytes_avoided",
    "seconds": "total finetune stream",
}


def run(folder: Path, *arguments: str) -> Done:
    """The command in `folder`, on the cluster of all tests."""
    return run_here(folder, *COMMAND, *arguments)


@dataclass(frozen=True)
class Job:
    """A job that has run: where, what it said, and its results."""

    folder: Path
    said: str
    name: str = "one"

    @property
    def results(self) -> Path:
        return self.folder / "outputs" / "custom" / self.name

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.results / "metrics.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds an untrained encoder, and rows that are about cats where `w7` is among the words."""
    folder = tmp_path_factory.mktemp("job")
    save_model(folder / "encoder")
    rng = np.random.default_rng(0)
    lines = ["text,about"]
    for _ in range(NUM_ROWS):
        words = [f"w{i}" for i in rng.integers(0, 50, rng.integers(3, 20))]
        if rng.random() < 0.5:
            words[0] = "w7"
        lines.append(f"{' '.join(words)},{'cats' if 'w7' in words else 'dogs'}")
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def job(folder: Path, cluster: ClusterResources) -> Job:
    done = run(folder, "finetune.epochs=0.5", "run_name=one")
    assert done.returncode == 0, done.stderr
    return Job(folder, done.stdout)


def test_the_files_of_a_run(job: Job) -> None:
    files = (
        "checkpoints config.json metrics.json model plots predictions_validation.jsonl report.html "
        "results.md run.log"
    )
    assert sorted(path.name for path in job.results.iterdir()) == files.split()
    plots = {path.name for path in (job.results / "plots").iterdir()}
    assert plots == {
        "calibration_validation.png", "confusion_validation.png", "curves.png", "layers.png"
    }  # fmt: skip
    assert (job.results / "report.html").read_text().count("data:image/png") == len(plots)
    assert json.loads((job.results / "config.json").read_text())["finetune"]["epochs"] == 0.5
    log = (job.results / "run.log").read_text()
    assert all(line in log for line in job.said.strip().splitlines())
    assert "20 of the 200 training rows, drawn with seed 42, are held out as one." in job.said


def test_metrics_for_other_programs(job: Job) -> None:
    metrics = job.metrics
    for where, keys in KEYS.items():
        group = metrics
        for name in filter(None, where.split(".")):
            group = group[name]
        assert set(keys.split()) <= group.keys(), where
    assert metrics["splits"]["validation"]["examples"] == NUM_HELD_OUT
    assert metrics["train"]["examples"] == NUM_ROWS - NUM_HELD_OUT
    assert metrics["train"]["epochs"] == len(metrics["train"]["loss"]) == 2
    stream = metrics["stream"]
    assert stream["spilled_bytes"] == stream["fallback_bytes"] == 0
    assert 0 < stream["peak_bytes"] <= stream["budget_bytes"]
    assert stream["dump_bytes_avoided"] == NUM_ROWS * NUM_LAYERS * MAX_LENGTH * HIDDEN_SIZE * 4
    assert metrics["seconds"]["finetune"] > 0
    shares = metrics["head"]["adapter_shares"]
    assert len(shares) == NUM_LAYERS
    assert sum(shares) == pytest.approx(1)
    seconds = metrics["seconds"]
    assert sum(seconds["stages"].values()) == pytest.approx(seconds["total"])
    assert seconds["stages"]["fine-tuning"] == seconds["finetune"]


def test_the_exported_model_makes_the_predictions(job: Job) -> None:
    """One text at a time, in transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(job.results / "model")
    tokenizer = AutoTokenizer.from_pretrained(job.results / "model")
    lines = (job.results / "predictions_validation.jsonl").read_text().splitlines()
    assert len(lines) == NUM_HELD_OUT
    for row in map(json.loads, lines):
        with torch.inference_mode():
            output = model(**tokenizer(row["texts"]["text"], return_tensors="pt"))
        of_head, of_bert = output.logits.softmax(-1)[0], output.backbone_logits.softmax(-1)[0]
        scores = {"bert": of_bert, "head": of_head, "ensemble": (of_bert + of_head) / 2}
        for name, probabilities in scores.items():
            best = int(probabilities.argmax())
            assert row[name]["prediction"] == model.config.id2label[best]
            assert row[name]["confidence"] == pytest.approx(float(probabilities[best]), abs=1e-5)


def test_predicting_the_rows_held_out_gives_the_runs_numbers(job: Job) -> None:
    """Without Ray, in blocks of its own: up to rounding."""
    expected = pd.read_json(job.results / "predictions_validation.jsonl", lines=True)
    rows = pd.DataFrame({"text": [texts["text"] for texts in expected["texts"]]})
    rows.assign(about=expected["gold"]).to_csv(job.folder / "held_out.csv", index=False)
    command = ["mode=predict", "run=outputs/custom/one", "data.path=held_out.csv", "run_name=new"]
    done = subprocess.run(
        [sys.executable, "-m", "bertvision_stream.run", *command],
        cwd=job.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    folder = job.results.parent / "new"
    found = pd.read_json(folder / "predictions_held_out.jsonl", lines=True)
    for name in ("bert", "head", "ensemble"):
        for now, then in zip(found[name], expected[name], strict=True):
            assert now["prediction"] == then["prediction"]
            assert now["confidence"] == pytest.approx(then["confidence"], abs=1e-5)
    splits = json.loads((folder / "metrics.json").read_text())["splits"]
    assert splits["held_out"] == job.metrics["splits"]["validation"]


def test_fine_tuning_alone_is_found_again(job: Job) -> None:
    done = run(job.folder, "mode=finetune", "finetune.epochs=0.5", "run_name=two")
    assert done.returncode == 0, done.stderr
    assert "fine-tuning: found again in outputs/backbones/custom-" in done.stdout
    # Measured by the worker that fine-tuned; the other numbers come from extractors.
    for metric, value in job.metrics["splits"]["validation"]["bert"].items():
        title = "f1 (dogs)" if metric == "f1" else metric
        assert f"{title} {value:.4f}" in done.stdout


def test_a_budget_below_two_blocks_is_refused_before_the_fine_tuning(
    folder: Path, cluster: ClusterResources
) -> None:
    done = run(folder, "stream.budget=2KiB", "finetune.epochs=1", "run_name=three")
    assert done.returncode == 2
    assert re.search(
        r"^stream\.budget=2048 \(2\.0 KiB\) is too small for two blocks, the least that lets "
        r"extraction and training overlap\. The smallest that would do is \d+ \([\d.]+ KiB\); or "
        r"lower extract\.block_tokens, or take extract\.codec=int8\.$",
        done.stderr,
        re.MULTILINE,
    )
    assert "Traceback" not in done.stderr
    assert "fine-tuning" not in done.stdout


def test_an_interrupted_run_goes_on_with_the_same_numbers(job: Job) -> None:
    """Interrupted in a process and a cluster of its own, gone on with in another."""
    arguments = ["finetune.epochs=0.5", "extract.num_extractors=1", "run_name=four"]
    command = ["-m", "bertvision_stream.run", *COMMAND, *arguments]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=job.folder,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | RESOURCES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("epoch 1/2"):
                running.send_signal(signal.SIGTERM)
        assert running.wait() == 130
        assert running.stderr is not None
        said = running.stderr.read()
    assert said.endswith(
        "Interrupted. What is finished is kept; to go on:\n  "
        + shlex.join(["python", *command, "resume=true"])
        + "\n"
    )
    changed = run(job.folder, *arguments, "resume=true", "train.lr=0.1")
    assert changed.returncode == 2
    assert "\n  train.lr: 0.002 then, 0.1 now\n" in changed.stderr
    done = run(job.folder, *arguments, "resume=true")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^resume: going on after epoch \d$", done.stdout, re.MULTILINE)
    resumed = Job(job.folder, done.stdout, "four")
    for key in ("splits", "train", "head"):
        assert resumed.metrics[key] == job.metrics[key]
    for name in ("predictions_validation.jsonl", "model/model.safetensors"):
        assert (resumed.results / name).read_bytes() == (job.results / name).read_bytes()
    again = run(job.folder, *arguments, "resume=true")
    assert again.returncode == 0, again.stderr
    assert "this run is finished; its results are in outputs/custom/four" in again.stdout


def test_a_search_over_backbones_and_the_training_of_the_best(job: Job) -> None:
    done = run(
        job.folder,
        "mode=search",
        "search.target=backbone",
        "search.num_trials=2",
        "search.searcher=random",
        "search.space.finetune.lr=[2e-5,4e-5]",
        "search.space.seed=null",
        "finetune.epochs=0.5",
        "extract.num_extractors=1",
        "run_name=search",
    )
    assert done.returncode == 0, done.stderr
    found = Job(job.folder, done.stdout, "search")
    assert_searched(found.results, "backbone")
    # One trial fine-tunes, and the other one finds what `job` did.
    trials = pd.read_csv(found.results / "trials.csv").set_index("finetune.lr")
    assert set(trials.index) == {2e-5, 4e-5}
    bert = job.metrics["splits"]["validation"]["bert"]
    assert trials["score"][2e-5] == pytest.approx(fmean(bert.values()))
    # None before the trials, and none after them: the best of theirs is taken.
    assert "fine-tuning for" not in done.stdout
    assert done.stdout.count("fine-tuning: found again") == 1
