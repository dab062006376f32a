"""`mode=predict` with small finished runs of SQuAD: answers, files, rows without gold answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exports import Exported, export_tiny
from span_rows import Row, row, write_squad
from squad_rules import official_score
from test_prediction import FP32, error_of, predict, read
from tiny import MAX_LENGTH, one_thread  # noqa: F401
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bertvision_stream.report.__main__ import main

OUTPUT = Path("outputs/squad_v2/p")
SUFFIXES = {"head": "", "bert": "_bert", "ensemble": "_ensemble"}
STRIDE = MAX_LENGTH // 3


def make_rows(count: int = 24) -> list[Row]:
    """Contexts of one window and of several; a third of the questions have no answer."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        words = [f"w{n}" for n in rng.integers(0, 50, rng.integers(5, 80))]
        first = int(rng.integers(len(words) - 2))
        answers = [] if i % 3 == 0 else [" ".join(words[first : first + 2])]
        rows.append(row(f"q{i}", "w1 w2 w3", " ".join(words), *answers))
    return rows


def write_jsonl(path: str, rows: list[Row], *left_out: str) -> None:
    kept = [{key: value for key, value in each.items() if key not in left_out} for each in rows]
    Path(path).write_text("".join(json.dumps(each) + "\n" for each in kept))


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """A run of SQuAD in the current folder."""
    monkeypatch.chdir(tmp_path)
    return export_tiny(Path("outputs"), *FP32, task="squad_v2")


def answers_one_window_at_a_time(exported: Exported, rows: list[Row]) -> dict[str, Any]:
    """By contestant and id: the best span's text and its null odds, from all pairs of tokens."""
    model = AutoModelForQuestionAnswering.from_pretrained(exported.folder)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    found: dict[str, dict[str, tuple[str, float]]] = {name: {} for name in SUFFIXES}
    several = 0
    for each in rows:
        encoded = tokenizer(
            each["question"],
            each["context"],
            truncation="only_second",
            max_length=MAX_LENGTH,
            stride=STRIDE,
            return_overflowing_tokens=True,
        )
        several += len(encoded["input_ids"]) > 1
        best = dict.fromkeys(SUFFIXES, (-np.inf, "", np.inf))
        for w, ids in enumerate(encoded["input_ids"]):
            types = torch.tensor([encoded["token_type_ids"][w]])
            with torch.no_grad():
                output = model(input_ids=torch.tensor([ids]), token_type_ids=types)
            sides = {
                "head": (output.start_logits[0], output.end_logits[0]),
                "bert": (output.backbone_start_logits[0], output.backbone_end_logits[0]),
            }
            chances = zip(*(s.softmax(0) for s in (*sides["head"], *sides["bert"])), strict=True)
            parts = np.array([[float(p) for p in token] for token in chances])
            sides["ensemble"] = tuple(
                torch.tensor(np.log((parts[:, i] + parts[:, i + 2]) / 2)) for i in (0, 1)
            )
            spots = [t for t, of in enumerate(encoded.sequence_ids(w)) if of == 1]
            for name, (start, end) in sides.items():
                score, text, null = best[name]
                null = min(null, float(start[0] + end[0]))
                for i in spots:
                    for j in spots:
                        if i <= j < i + 30 and float(start[i] + end[j]) > score:
                            score = float(start[i] + end[j])
                            chars = slice(
                                encoded.token_to_chars(w, i).start, encoded.token_to_chars(w, j).end
                            )
                            text = each["context"][chars]
                best[name] = (score, text, null)
        for name, (score, text, null) in best.items():
            found[name][each["id"]] = (text, null - score)
    assert 0 < several < len(rows)
    return found


def test_answers_are_those_of_the_model_one_window_at_a_time(
    finished: Exported, capsys: pytest.CaptureFixture[str]
):
    rows = make_rows()
    write_jsonl("train.jsonl", rows)  # whatever its name
    predict("run=outputs/squad_v2/one", "data.path=train.jsonl", "run_name=p")
    said = capsys.readouterr().out
    assert "train: 24 questions in " in said
    assert "Questions with and without an answer" in said
    metrics = json.loads((OUTPUT / "metrics.json").read_text())["splits"]["train"]
    assert metrics["examples"] == 24
    lines = read(OUTPUT / "predictions_train.jsonl")
    assert [line["gold"] for line in lines] == [each["answers"]["text"] for each in rows]
    for name, answers in answers_one_window_at_a_time(finished, rows).items():
        predictions = json.loads((OUTPUT / f"predictions{SUFFIXES[name]}.json").read_text())
        odds = json.loads((OUTPUT / f"null_odds{SUFFIXES[name]}.json").read_text())
        scores = []
        for line, (key, (text, null_odds)) in zip(lines, answers.items(), strict=True):
            assert odds[key] == pytest.approx(null_odds, abs=1e-4)
            assert line[name]["best_span"] == text
            assert predictions[key] == line[name]["prediction"] == (text if odds[key] <= 0 else "")
            scores.append(official_score(predictions[key], line["gold"]))
        exact, f1 = np.mean(scores, axis=0)
        assert (metrics[name]["exact"], metrics[name]["f1"]) == pytest.approx((exact, f1))
    assert main(["errors", str(OUTPUT)]) == 0
    assert "Exact match and F1 by kind" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", " null.jsonl"])
def test_rows_without_answers_have_predictions_and_no_metrics(
    finished: Exported, suffix: str, capsys: pytest.CaptureFixture[str]
):
    rows = make_rows(6)
    frame = pd.DataFrame(rows).drop(columns="answers")
    match suffix:
        case ".jsonl":
            write_jsonl("new.jsonl", rows, "answers")
        case ".parquet":
            frame.to_parquet("new.parquet")
        case ".csv":
            frame.to_csv("new.csv", index=False)
        case _:
            write_jsonl("new null.jsonl", [each | {"answers": None} for each in rows])
    predict("run=outputs/squad_v2/one", f"data.path=new{suffix}", "run_name=p")
    (path,) = OUTPUT.glob("predictions_*.jsonl")
    names = {each.name for each in OUTPUT.iterdir()}
    official = {f"{n}{s}.json" for n in ("predictions", "null_odds") for s in SUFFIXES.values()}
    assert names == {"config.json", "run.log", path.name, *official}
    for line in read(path):
        assert "gold" not in line
        assert line["head"].keys() == {"prediction", "confidence", "null_odds", "best_span"}
    capsys.readouterr()
    assert main(["errors", str(OUTPUT)]) == 0
    assert "There are no labels: nothing else can be said." in capsys.readouterr().out


def test_a_folder_as_the_hub_has_it(finished: Exported, tmp_path: Path):
    folder = write_squad(tmp_path / "hub", make_rows(3), make_rows(5))
    predict("run=outputs/squad_v2/one", f"data.path={folder}", "run_name=p")
    assert len(read(OUTPUT / "predictions_validation.jsonl")) == 5
    pd.DataFrame(make_rows(4)).drop(columns="answers").to_parquet(folder / "squad_v2/test.parquet")
    predict("run=outputs/squad_v2/one", f"data.path={folder}", "run_name=q")
    written = Path("outputs/squad_v2/q").glob("predictions_*.jsonl")
    assert [path.name for path in written] == ["predictions_test.jsonl"]
    assert len(json.loads(Path("outputs/squad_v2/q/predictions.json").read_text())) == 4


def test_rows_that_cannot_be_used(finished: Exported):
    rows = make_rows(4)
    write_jsonl("no_id.jsonl", rows, "id")
    assert "no column 'id'" in error_of("run=outputs/squad_v2/one", "data.path=no_id.jsonl")
    write_jsonl("some.jsonl", [*rows[:3], rows[3] | {"answers": {"text": []}}])
    message = error_of("run=outputs/squad_v2/one", "data.path=some.jsonl")
    assert "1 row cannot be used:\n  q3: its answers lack answer_start" in message
    pd.DataFrame(rows).to_csv("lists.csv", index=False)
    message = error_of("run=outputs/squad_v2/one", "data.path=lists.csv")
    assert "a csv file cannot hold lists of answers" in message
    Path("empty").mkdir()
    message = error_of("run=outputs/squad_v2/one", "data.path=empty")
    assert (
        "has no test split: looked for test.* or all shards of it and for validation.*" in message
    )
    write_jsonl("nothing.jsonl", [])
    assert "there are no rows" in error_of("run=outputs/squad_v2/one", "data.path=nothing.jsonl")
