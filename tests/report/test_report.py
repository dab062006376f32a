"""What a run leaves behind: the JSON that programs read and the tables that people read."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reports import report_on, split_result

from bertvision_stream.data.custom import custom_task
from bertvision_stream.data.places import Places, with_places
from bertvision_stream.data.splits import Split
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.report.html import render_html
from bertvision_stream.report.model_card import render_card
from bertvision_stream.report.plots import draw_curves
from bertvision_stream.report.predictions import write_predictions
from bertvision_stream.report.records import (
    RunReport,
    metrics_json,
)
from bertvision_stream.report.study import score_name
from bertvision_stream.report.suite import Entry, render_suite, render_suite_markdown
from bertvision_stream.report.text import render_markdown, render_predictions, render_table
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.outcome import epoch_lines
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.errors import OutputError
from bertvision_stream.utils.files import write_json, write_text
from bertvision_stream.utils.units import format_bytes, format_count, format_seconds


@pytest.fixture
def rte() -> RunReport:
    return report_on("rte", split_result("validation", 277, accuracy=(0.5704, 0.6101, 0.6209)))


@pytest.fixture
def mnli() -> RunReport:
    return report_on(
        "mnli",
        split_result("validation_matched", 9815, accuracy=(0.7111, 0.7222, 0.722249)),
        split_result("validation_mismatched", 9832, accuracy=(0.7311, 0.7262, 0.73)),
    )


# The structure that other programs rely on, value types included.
METRICS_EXAMPLE = """
{"task": "rte", "backbone": "minilm", "seed": 42,
 "head": {"kind": "adapter_pooler", "parameters": 7154},
 "splits": {"validation": {"examples": 277, "bert": {"accuracy": 0.0}, "head": {"accuracy": 0.0},
            "ensemble": {"accuracy": 0.0}}},
 "train": {"examples": 2490, "tokens": 174743, "epochs": 5, "loss": [0.0]},
 "stream": {"blocks": 43, "blocks_extracted": 43, "blocks_from_cache": 172,
            "tokens_extracted": 174743, "bytes_per_epoch": 0, "budget_bytes": 0, "peak_bytes": 0,
            "cache_bytes": 0, "spilled_bytes": 0, "dump_bytes_avoided": 0},
 "seconds": {"total": 0.0, "finetune": 0.0, "stream": 0.0}}
"""


def assert_has_structure(found: object, example: object, where: str = "metrics.json") -> None:
    assert type(found) is type(example), where
    if isinstance(example, dict):
        for key, value in example.items():
            assert key in found, f"{where}.{key} is missing"
            assert_has_structure(found[key], value, f"{where}.{key}")


def test_metrics_json_has_every_key_that_programs_read(rte, tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, metrics_json(rte))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert_has_structure(found, json.loads(METRICS_EXAMPLE))
    assert found["splits"]["validation"]["ensemble"] == {"accuracy": 0.6209}
    assert found["train"]["epochs"] == 3
    assert found["train"]["loss"] == [0.69, 1 / 3, 0.6], "unrounded"
    assert found["train"]["best_epoch"] == 2
    assert found["train"]["validation"][1] == {
        "epoch": 2,
        "loss": 1 / 3 + 0.01,
        "head": {"validation": {"accuracy": 0.6101}},
    }


def test_a_report_says_where_the_head_stayed_as_it_began(rte, tmp_path):
    start = replace(rte.train.history[0], epoch=0, loss=math.nan, validation_loss=0.25)
    report = replace(rte, train=replace(rte.train, start=start, best_epoch=0))
    assert "epoch 0 of 3, the head as it began, which is BERT itself, chosen by lowest" in (
        " ".join(render_table(report).split())
    )
    row = next(line for line in render_markdown(report).splitlines() if "0 (chosen)" in line)
    assert [cell.strip(" *") for cell in row.split("|")[1:4]] == ["0 (chosen)", "-", "0.2500"]
    found = metrics_json(report)["train"]
    assert found["start"] == {
        "epoch": 0,
        "loss": 0.25,
        "head": {"validation": start.scores["validation"]},
    }
    assert [record["epoch"] for record in found["validation"]] == [1, 2, 3]
    assert "nan" not in json.dumps(metrics_json(report)).lower()
    assert draw_curves(report).axes[0].get_xlim()[0] < 0


def test_the_table_reads_well(rte):
    assert render_table(rte) == (
        "rte: adapter_pooler head on minilm, seed 42\n"
        "2,490 training examples (174,743 tokens), 277 validation examples\n"
        "\n"
        "                                    parameters  share of\n"
        "                          accuracy     trained  backbone    time\n"
        "────────────────────────────────────────────────────────────────\n"
        "BERT, fine-tuned 1 epoch    0.5704      22.7 M     100 %  35.1 s\n"
        "adapter_pooler head         0.6101       7,154   0.031 %  10.0 s\n"
        "ensemble of both (mean)   * 0.6209           -         -       -\n"
        "────────────────────────────────────────────────────────────────\n"
        "* best of its column\n"
        "\n"
        "head    epoch 2 of 3, chosen by lowest validation loss\n"
        "stream  194,000 tokens extracted in 47 blocks (19,400 tokens/s, training included),"
        " 94 blocks\n"
        "        from the cache\n"
        "memory  1.1 GiB of hidden states at most, of a budget of 2.0 GiB\n"
        "disk    0 B of hidden states written; BERTVision's dump would take 6.2 GiB\n"
        "time    1 min 02 s in all\n"
        "note    bf16 was picked for this CPU.\n"
    )


def test_mnli_shows_both_splits_within_100_columns(mnli):
    lines = render_table(mnli).splitlines()
    assert max(map(len, lines)) <= 100
    assert "9,815 matched + 9,832 mismatched validation examples" in lines[1]
    assert lines[3].split()[:2] == ["matched", "mismatched"]
    # Equal as shown means equally good: 0.7222 and 0.722249 are both marked.
    assert [line.count("*") for line in lines[6:9]] == [1, 1, 1]
    assert "* 0.7311" in lines[6]
    assert "* 0.7222" in lines[7]
    assert "* 0.7222" in lines[8]


def test_every_report_says_which_class_f1_is_of():
    scores = dict.fromkeys(("accuracy", "f1", "matthews"), (0.5, 0.61, 0.62))
    report = replace(
        report_on("rte", split_result("validation", 20, **scores)),
        task=custom_task(("attack", "benign|<safe traffic>"), ("text",), "label"),
    )
    fact = "of class 'benign|<safe traffic>', the positive one; the other is 'attack'"
    text, markdown = render_table(report), render_markdown(report)
    assert "f1 (benign|<saf…)" in text
    assert f"f1      {fact}" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "| f1 (benign\\|<saf…) |" in markdown
    assert f"- **f1**: {fact}" in markdown
    assert "f1 (benign|&lt;saf…)" in render_html(report, [])
    assert metrics_json(report)["f1_class"] == "benign|<safe traffic>"
    predictions = render_predictions(report.task, report.splits, "mean")
    assert "f1 (benign|<saf…)" in predictions
    card = render_card(report, backbone_source="the hub")
    assert "f1 (benign\\|<saf…)" in card
    assert score_name(report.task) == "mean of accuracy and f1 (benign|<saf…) and matthews"
    epoch = EpochRecord(epoch=1, loss=1.0, validation_loss=1.0, scores={"validation": {"f1": 0.5}})
    (line,) = epoch_lines([("head", epoch)], report.task, 2)
    assert line.endswith("validation f1 (benign|<saf…) 0.5000")
    entry = Entry("custom", 1, "outputs/custom/1", metrics_json(report))
    assert "f1 (benign|<saf…)" in render_suite([entry])
    assert "f1 (benign\\|<saf…)" in render_suite_markdown([entry], "the command")


def test_the_card_says_what_a_head_that_began_as_bert_adds_to(rte):
    added = "what it computes is added to the logits of BERT's classifier"
    for start in ("bert", "new"):
        report = replace(rte, settings={**rte.settings, "head.start": start})
        assert (added in render_card(report, backbone_source=None)) == (start == "bert")


def test_nothing_names_a_class_where_no_f1_is_of_one(rte, mnli):
    for report in (rte, mnli):
        assert "f1_class" not in metrics_json(report)
        assert "\nf1 " not in render_table(report)
    assert TASKS["squad_v2"].f1_class is None
    assert TASKS["mrpc"].metric_title("f1") == "f1 (equivalent)"


@pytest.mark.parametrize(
    ("changes", "label", "time"),
    [
        ({"epochs": 0.3}, "BERT, fine-tuned 0.3 epochs", "35.1 s"),
        ({"epochs": 0, "parameters": 0}, "BERT, not fine-tuned", "35.1 s"),
        ({"reused": True}, "BERT, fine-tuned 1 epoch", "reused"),
    ],
)
def test_the_table_says_how_bert_was_fine_tuned(rte, changes, label, time):
    report = replace(rte, finetune=replace(rte.finetune, **changes))
    row = next(line for line in render_table(report).splitlines() if line.startswith("BERT"))
    assert row.startswith(label + "  ")
    assert row.endswith("  " + time)


def test_early_stopping_and_spilling_are_said(rte):
    table = render_table(
        replace(
            rte,
            train=replace(rte.train, planned_epochs=10),
            stream=replace(rte.stream, spilled_bytes=3 * 2**20, fallback_bytes=2**20),
        )
    )
    assert "epoch 2 of 3 (10 were planned), chosen by" in table
    assert "4.0 MiB of hidden states written by Ray" in table
    assert "lower stream.budget" in " ".join(table.split())


def test_results_md_is_well_formed_and_can_be_run_again(mnli):
    text = render_markdown(mnli)
    assert text.startswith("# mnli: adapter_pooler head on minilm, seed 42\n")
    assert "| adapter_pooler head | **0.7222** | 0.7262 | 7,154 | 0.031 % | 10.0 s |" in text
    assert "| **2 (chosen)** | 0.3333 | 0.3433 | 0.7222 | 0.7262 |" in text
    assert "```bash\npython -m bertvision_stream.run task=mnli backbone=minilm\n```" in text
    assert "| `data.text_columns` | `a\\|b` |" in text
    assert "Made with torch 2.13.0, ray 2.60.0." in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def write_rows(
    folder: Path,
    task: str,
    split: Split,
    tokens: list[int],
    scores: PredictorScores,
    *,
    labelled: bool = True,
) -> Path:
    """Write the predictions on examples of so many tokens."""
    offsets = np.cumsum([0, *tokens])
    ids = np.zeros(offsets[-1], dtype=np.int32)
    store = TokenStore(ids, ids.astype(np.uint8), offsets, split.labels)
    return write_predictions(folder, TASKS[task], split, store, scores, labelled=labelled)


def test_predictions_name_labels_and_keep_the_text(tmp_path):
    split = Split(
        name="validation",
        texts=[("Ça va\u2028?", 'a "b"\nc'), ("x", "y")],
        labels=np.array([1, 0], dtype=np.int64),
    )
    scores = PredictorScores(
        bert=np.array([[0.75, 0.25], [1 / 3, 2 / 3]]),
        head=np.array([[0.1, 0.9], [0.5, 0.5]]),
        ensemble=np.array([[0.425, 0.575], [0.6, 0.4]]),
    )
    path = write_rows(tmp_path, "rte", split, [9, 5], scores)
    assert path == tmp_path / "predictions_validation.jsonl"
    raw = path.read_text(encoding="utf-8")
    assert "Ça va" in raw
    rows = [json.loads(line) for line in raw.rstrip("\n").split("\n")]
    assert rows[0] == {
        "index": 0,
        "texts": {"sentence1": "Ça va\u2028?", "sentence2": 'a "b"\nc'},
        "tokens": 9,
        "gold": "not_entailment",
        "bert": {"prediction": "entailment", "confidence": 0.75},
        "head": {"prediction": "not_entailment", "confidence": 0.9},
        "ensemble": {"prediction": "not_entailment", "confidence": 0.575},
    }
    assert rows[1]["bert"] == {"prediction": "not_entailment", "confidence": 0.666667}
    assert rows[1]["head"]["prediction"] == "entailment", "the lowest id on a tie"


def test_predictions_say_where_a_row_is_in_its_file(tmp_path):
    split = Split("validation", [("a", "b")] * 3, np.zeros(3, dtype=np.int64))
    scores = PredictorScores(*[np.full((2, 2), 0.5)] * 3)

    def placed(*parts: Places) -> list[dict[str, Any]]:
        chosen = replace(split, places=Places.join(parts)).take(np.array([1, 2]))
        path = write_rows(tmp_path, "rte", chosen, [9, 5], scores)
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        keys = ("index", "row", "line", "file")
        return [{key: row[key] for key in keys if key in row} for row in rows]

    def in_lines(source: str, *lines: int) -> Places:
        return Places.of_table(with_places(pa.table({"x": lines}), lines), source)

    assert placed(Places.of("a.parquet", 3)) == [{"index": 0, "row": 2}, {"index": 1, "row": 3}]
    assert placed(in_lines("a.csv", 2, 3, 9)) == [
        {"index": 0, "row": 2, "line": 3},
        {"index": 1, "row": 3, "line": 9},
    ]
    assert placed(in_lines("x/a.jsonl", 1, 2), in_lines("x/b.jsonl", 3)) == [
        {"index": 0, "row": 2, "file": "a.jsonl"},
        {"index": 1, "row": 1, "line": 3, "file": "b.jsonl"},
    ]


def test_predictions_of_a_regression_are_scores_without_confidence(tmp_path):
    split = Split(name="validation", texts=[("a", "b")], labels=np.array([3.8], dtype=np.float32))
    scores = {"bert": np.array([3.25]), "head": np.array([4.0]), "ensemble": np.array([3.625])}
    path = write_rows(tmp_path, "stsb", split, [5], PredictorScores(**scores))
    row = json.loads(path.read_text(encoding="utf-8"))
    assert row["gold"] == 3.8
    assert [row[source] for source in scores] == [
        {"prediction": 3.25},
        {"prediction": 4.0},
        {"prediction": 3.625},
    ]


def test_predictions_without_labels_have_no_gold(tmp_path):
    split = Split(name="test", texts=[("a", "b")], labels=np.zeros(1))
    scores = {name: np.array([[0.25, 0.75]]) for name in ("bert", "head", "ensemble")}
    path = write_rows(tmp_path, "rte", split, [5], PredictorScores(**scores), labelled=False)
    assert list(json.loads(path.read_text(encoding="utf-8"))) == (
        ["index", "texts", "tokens", "bert", "head", "ensemble"]
    )


def test_predictions_need_a_score_for_each_example(tmp_path):
    split = Split(name="validation", texts=[("a", "b")], labels=np.array([1.0], dtype=np.float32))
    scores = {"bert": np.zeros(1), "head": np.zeros(2), "ensemble": np.zeros(1)}
    with pytest.raises(ValueError, match="longer"):
        write_rows(tmp_path, "stsb", split, [5], PredictorScores(**scores))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"old": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "old": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": math.nan})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OutputError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device. What was written before is whole. "
        "Make room or give another output_dir; with resume=true the same command then goes on from "
        "the last finished epoch."
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "é"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (100 * 1024, "100 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (5000 * 2**40, "5,000 TiB"),
    ],
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7154, "7,154"),
        (999_999, "999,999"),
        (1_000_000, "1.0 M"),
        (22_713_216, "22.7 M"),
        (999_990_000, "1.00 B"),
    ],
)
def test_format_count(count, text):
    assert format_count(count) == text
