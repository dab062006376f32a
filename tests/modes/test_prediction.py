"""`mode=predict` with small finished runs: numbers, files, GLUE's submission, and bad input."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exports import Exported, export_tiny
from tiny import one_thread  # noqa: F401
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertvision_stream.modes.predict import run_predictions
from bertvision_stream.modes.submission import missing_files, render_file
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS
from bertvision_stream.training.metrics import compute_metrics
from bertvision_stream.utils.errors import UserError
from bertvision_stream.utils.files import write_json

FP32 = ("backbone.dtype=fp32", "train.precision=fp32", "extract.codec=fp32")
CUSTOM = ("data.path=rows.csv", "data.text_columns=text", "data.label_column=about")
TEST_SPLITS = {name: ["test"] for name in GLUE_TASKS} | {
    "mnli": ["test_matched", "test_mismatched", "ax"]
}
# GLUE's own names, and the labels of its sample submission.
SUBMISSION = {
    "CoLA.tsv": {"0", "1"},
    "SST-2.tsv": {"0", "1"},
    "MRPC.tsv": {"0", "1"},
    "STS-B.tsv": None,
    "QQP.tsv": {"0", "1"},
    "MNLI-m.tsv": {"entailment", "neutral", "contradiction"},
    "MNLI-mm.tsv": {"entailment", "neutral", "contradiction"},
    "QNLI.tsv": {"entailment", "not_entailment"},
    "RTE.tsv": {"entailment", "not_entailment"},
    "WNLI.tsv": {"0", "1"},
    "AX.tsv": {"entailment", "neutral", "contradiction"},
}


def predict(*arguments: str | Path) -> None:
    run_predictions(load_settings(["mode=predict", *map(str, arguments)]))


def error_of(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        predict(*arguments)
    return str(caught.value)


def texts(count: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in rng.integers(0, 50, rng.integers(1, 30))) for _ in range(count)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """A run of a custom task, in the current folder, beside rows about cats and dogs."""
    monkeypatch.chdir(tmp_path)
    about = np.random.default_rng(1).choice(["cats", "dogs"], 60)
    pd.DataFrame({"text": texts(60), "about": about}).to_csv("rows.csv", index=False)
    return export_tiny(Path("outputs"), *CUSTOM, *FP32, task="custom")


@pytest.mark.parametrize("layers", ["all", "[0,-1]"])
def test_scores_are_those_of_the_model_one_row_at_a_time(finished: Exported, layers: str):
    if layers != "all":
        shutil.rmtree("outputs")
        given = (*CUSTOM, *FP32, f"extract.layers={layers}")
        finished = export_tiny(Path("outputs"), *given, task="custom")
    predict("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    rows = read(Path("outputs/custom/p/predictions_rows.jsonl"))
    frame = pd.read_csv("rows.csv")
    assert [row["texts"]["text"] for row in rows] == frame["text"].tolist()
    assert [row["gold"] for row in rows] == frame["about"].tolist()
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    scores: dict[str, list[torch.Tensor]] = {"bert": [], "head": [], "ensemble": []}
    for row in rows:
        tokens = tokenizer(row["texts"]["text"], return_tensors="pt")
        with torch.no_grad():
            output = model(**tokens)
        bert, head = output.backbone_logits.softmax(-1)[0], output.logits.softmax(-1)[0]
        assert row["tokens"] == tokens["input_ids"].shape[1]
        for name, expected in {"bert": bert, "head": head, "ensemble": (bert + head) / 2}.items():
            scores[name].append(expected)
            assert row[name]["prediction"] == ("cats", "dogs")[int(expected.argmax())]
            assert row[name]["confidence"] == pytest.approx(float(expected.max()), abs=1e-5)
    metrics = json.loads(Path("outputs/custom/p/metrics.json").read_text())["splits"]["rows"]
    labels = (frame["about"] == "dogs").to_numpy(dtype=np.int64)
    assert metrics["examples"] == 60
    for name, found in scores.items():
        expected_metrics = compute_metrics(
            torch.stack(found).numpy().astype(float), labels, ("accuracy", "f1", "matthews")
        )
        assert metrics[name] == pytest.approx(expected_metrics, abs=1e-9)


def test_int8_is_what_the_head_is_given_where_the_run_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"text": texts(20)}).to_csv("rows.csv", index=False)
    found = {}
    for codec in ("fp32", "int8"):
        settings = (*CUSTOM, *FP32[:2], f"extract.codec={codec}")
        export_tiny(Path(codec), *settings, task="custom")
        predict(f"run={codec}/custom/one", "data.path=rows.csv", f"run_name={codec}")
        rows = read(Path(f"outputs/custom/{codec}/predictions_rows.jsonl"))
        found[codec] = {k: [row[k]["confidence"] for row in rows] for k in ("bert", "head")}
    assert found["int8"]["bert"] == found["fp32"]["bert"]
    assert found["int8"]["head"] != found["fp32"]["head"]
    assert found["int8"]["head"] == pytest.approx(found["fp32"]["head"], abs=0.02)


def test_what_must_be_set_before_torch_is_loaded(
    finished: Exported, monkeypatch: pytest.MonkeyPatch
):
    """Kept kernels for every shape of a product would take gigabytes."""
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "64")  # of the user: it stays
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # to be restored
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    predict("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "32"
    assert os.environ["LRU_CACHE_CAPACITY"] == "64"


def test_a_run_that_searched_first(finished: Exported):
    """Its settings are those of the search; the head is the best one found."""
    argv = ["task=custom", *CUSTOM, *FP32, "mode=search", "search.space.head.dropout=0..0.3"]
    settings = load_settings([*argv, "data.max_length=40"]).for_task("custom")
    write_json(finished.run / "config.json", settings.model_dump())
    predict("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    metrics = json.loads(Path("outputs/custom/p/metrics.json").read_text())
    assert metrics["head"] == {"kind": "adapter_pooler"}
    assert metrics["splits"]["rows"]["examples"] == 60


def test_rows_without_labels_have_predictions_and_no_metrics(finished: Exported):
    pd.DataFrame({"text": texts(5)}).to_json("new.jsonl", orient="records", lines=True)
    predict("run=outputs/custom/one", "data.path=new.jsonl", "run_name=p", "task=custom")
    folder = Path("outputs/custom/p")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "predictions_new.jsonl", "run.log"]
    assert all("gold" not in row for row in read(folder / "predictions_new.jsonl"))


def test_all_of_glue_in_one_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    for name in GLUE_TASKS:
        export_tiny(Path("outputs"), *FP32, task=name)
        for i, split in enumerate(TEST_SPLITS[name]):
            folder, stem = ("ax", "test") if split == "ax" else (name, split)
            columns = {c: texts(12, seed=7 * i + j) for j, c in enumerate(TASKS[name].text_columns)}
            order = np.random.default_rng(0).permutation(12)
            Path("glue", folder).mkdir(parents=True, exist_ok=True)
            pd.DataFrame(columns | {"label": -1, "idx": order}).to_parquet(
                Path("glue", folder, f"{stem}-00000-of-00001.parquet")
            )
    runs = ",".join(f"outputs/{name}/one" for name in GLUE_TASKS)
    predict(f"run=[{runs}]", "data.path=glue", "run_name=p")
    archive = zipfile.ZipFile("outputs/glue/p/submission.zip")
    assert sorted(archive.namelist()) == sorted(SUBMISSION)
    for name, labels in SUBMISSION.items():
        content = archive.read(name).decode()
        assert content.startswith("index\tprediction\n")
        frame = pd.read_csv(io.StringIO(content), sep="\t", dtype=str)
        assert frame["index"].tolist() == [str(i) for i in range(12)]
        assert labels is None or set(frame["prediction"]) <= labels
    said = capsys.readouterr().out
    assert "note: CoLA.tsv has 12 rows and GLUE's test split 1,063" in said
    assert "lacks" not in said
    # In the order of GLUE's numbers, not of the rows.
    rows = read(Path("outputs/rte/p/predictions_test.jsonl"))
    frame = pd.read_csv("outputs/rte/p/RTE.tsv", sep="\t")
    order = np.random.default_rng(0).permutation(12)
    assert [frame["prediction"][number] for number in order] == [
        row["head"]["prediction"] for row in rows
    ]


def test_whose_predictions_are_handed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    export_tiny(Path("outputs"), *FP32, task="stsb")
    columns = {name: texts(30, seed=i) for i, name in enumerate(TASKS["stsb"].text_columns)}
    pd.DataFrame(columns).to_csv("test.csv", index=False)
    for source in ("head", "bert", "ensemble"):
        more = [] if source == "head" else [f"predict.source={source}"]
        predict("run=outputs/stsb/one", "data.path=test.csv", f"run_name={source}", *more)
        folder = Path("outputs/stsb", source)
        rows = read(folder / "predictions_test.jsonl")
        handed_in = pd.read_csv(folder / "STS-B.tsv", sep="\t", dtype=str)["prediction"]
        assert handed_in.tolist() == [
            f"{min(max(row[source]['prediction'], 0), 5):.3f}" for row in rows
        ]
    said = capsys.readouterr().out
    assert "and this one lacks AX.tsv, CoLA.tsv, MNLI-m.tsv, MNLI-mm.tsv, MRPC.tsv" in said


def test_labels_in_a_submission():
    first = np.array([[0.9, 0.1], [0.2, 0.8]])
    order = np.array([1, 0])
    assert render_file(TASKS["wnli"], first, order) == "index\tprediction\n0\t1\n1\t0\n"
    assert render_file(TASKS["qnli"], first, order) == (
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    )
    numbers = np.array([-0.2, 5.7, 2.34567])
    assert render_file(TASKS["stsb"], numbers, np.arange(3)) == (
        "index\tprediction\n0\t0.000\n1\t5.000\n2\t2.346\n"
    )
    assert missing_files(SUBMISSION) == []
    assert missing_files(["CoLA.tsv"])[0] == "AX.tsv"


def test_runs_that_cannot_be_used(finished: Exported):
    rows = "data.path=rows.csv"
    assert error_of("run=nothing", rows) == "run=nothing: there is no such folder"
    assert error_of("run=outputs", rows) == (
        "run=outputs: this is not the folder of a run, which holds config.json; runs are in "
        "OUTPUT_DIR/TASK/RUN_NAME"
    )
    assert error_of("run=outputs/custom/one", rows, "task=cola") == (
        "task=cola: the run in outputs/custom/one has learned custom; leave task out"
    )
    twice = "run=[outputs/custom/one,outputs/custom/one]"
    assert error_of(twice, rows) == "run: more than one of the runs has learned custom"
    predict("run=outputs/custom/one", rows, "run_name=p")
    assert error_of("run=outputs/custom/p", rows) == (
        "run=outputs/custom/p: it was made by mode=predict, which leaves no head"
    )
    assert error_of("run=outputs/custom/one", rows, "run_name=p") == (
        "run_name=p: outputs/custom/p is not empty; take another name, or none"
    )
    shutil.rmtree(finished.folder)
    assert "there is no exported model in" in error_of("run=outputs/custom/one", rows)
    (finished.run / "metrics.json").unlink()
    assert error_of("run=outputs/custom/one", rows) == (
        "run=outputs/custom/one: it is not finished; go on with its command and resume=true"
    )
    (finished.run / "config.json").write_text("[]")
    assert "config.json cannot be read: it holds no object" in error_of(
        "run=outputs/custom/one", rows
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"head": None},
        {"head": [1]},
        {"head": {"kind": "cls", "adapter_dim": "x"}},
        {"head": {"kind": "another"}},
        {"max_tokens": "many"},
        {"id2label": {"0": "cats", "2": "dogs"}},
        {"id2label": ["cats", "dogs"]},
        {"problem_type": 3},
        {"backbone_config": 3},
        {"backbone_source": 3},
        {"backbone_source": None},
        {"backbone_config": {"model_type": "bert", "hidden_size": "wide"}},
        {"backbone_config": {"hidden_size": 3}},
        {"head": {"kind": "adapter_pooler", "adapter_dim": 5}},
    ],
    ids=str,
)
def test_a_model_whose_configuration_is_damaged(finished: Exported, changed: dict[str, Any]):
    path = finished.folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changed))
    said = error_of("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    assert "outputs/custom/one" in said
    del content["head"]
    path.write_text(json.dumps(content))
    said = error_of("run=outputs/custom/one", "data.path=rows.csv")
    assert said.startswith(
        f"run=outputs/custom/one: {Path('outputs/custom/one/model/config.json')}"
    )
    assert "is damaged, or of another version: head: Field required. " in said


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff" * 40, (2**40).to_bytes(8, "little") + b"{}" * 9]
)
def test_a_model_whose_weights_are_damaged(finished: Exported, content: bytes):
    (finished.folder / "model.safetensors").write_bytes(content)
    said = error_of("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    assert said.startswith("the model outputs/custom/one/model cannot be loaded: ")


def test_a_bit_of_the_head_that_has_flipped(finished: Exported):
    path = finished.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = error_of("run=outputs/custom/one", "data.path=rows.csv", "run_name=p")
    assert said.startswith(f"{path.resolve().relative_to(Path.cwd())} is damaged: its weights are")
    config = finished.folder / "config.json"
    earlier = json.loads(config.read_text())
    del earlier["weights_fingerprint"]
    config.write_text(json.dumps(earlier))
    predict("run=outputs/custom/one", "data.path=rows.csv", "run_name=q")


def test_a_run_whose_settings_are_damaged(finished: Exported):
    path = Path("outputs/custom/one/config.json")
    content = json.loads(path.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(content | {"seed": "x"}),
        json.dumps(content | {"data": 3}),
        json.dumps(content | {"data": content["data"] | {"text_columns": None}}),
    ):
        path.write_text(damaged)
        said = error_of("run=outputs/custom/one", "data.path=rows.csv")
        assert said.startswith("run=outputs/custom/one: "), damaged
        assert "config.json" in said


def test_settings_that_are_the_runs_are_refused():
    with pytest.raises(UserError) as caught:
        load_settings(["mode=predict", "run=a", "data.path=b.csv", "head.pool=cls", "seed=3"])
    assert "2 problems with the settings:" in str(caught.value)
    assert "head.pool=cls\n      mode=predict takes this from the run" in str(caught.value)
    with pytest.raises(UserError, match=r"run\s+not given, but mode=predict needs it"):
        load_settings(["mode=predict", "data.path=b.csv"])
    with pytest.raises(UserError, match="only mode=predict has a use for this, and mode is train"):
        load_settings(["task=demo", "run=outputs/demo/a"])
