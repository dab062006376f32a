"""Where a run errs: tables against loops, what is printed and written, and bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from squad_rules import official_score, official_words

from bertvision_stream.report.__main__ import main
from bertvision_stream.report.errors import (
    Predictions,
    by_length,
    error_tables,
    read_predictions,
)

LABELS = ("cat", "dog")


def row(index: int, gold: str | None, head: str, bert: str, **more: Any) -> dict[str, Any]:
    """A row of a classification; confidences are made of the index, alike in no two rows."""
    sure = 0.5 + (index * 37 % 50) / 100
    return {
        "index": index,
        "texts": {"title": f"about {index}", "body": 'a\u2028b, "c"\nd'},
        "tokens": 3 + index % 11,
        **({} if gold is None else {"gold": gold}),
        "bert": {"prediction": bert, "confidence": 1 - sure / 3},
        "head": {"prediction": head, "confidence": sure},
        "ensemble": {"prediction": head, "confidence": 0.6},
    } | more


def classification(count: int = 60, *, labelled: bool = True) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0).integers(0, 2, (count, 3))
    names = [[LABELS[i] for i in three] for three in draw]
    return [
        row(i, gold if labelled else None, head, bert) for i, (gold, head, bert) in enumerate(names)
    ]


def regression(count: int = 25) -> list[dict[str, Any]]:
    numbers = np.random.default_rng(1).uniform(0, 5, (count, 4)).round(3).tolist()
    return [
        {"index": i, "texts": {"text": "w " * (i + 1)}, "gold": gold}
        | {"bert": {"prediction": b}, "head": {"prediction": h}, "ensemble": {"prediction": e}}
        for i, (gold, b, h, e) in enumerate(numbers)
    ]


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def rows_by_table(predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    return {name: rows_of(table) for name, table in error_tables(predictions).items()}


def write(folder: Path, rows: list[dict[str, Any]], split: str = "validation") -> Path:
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    (folder / f"predictions_{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_disagreements_and_mistakes_of_a_classification(tmp_path: Path):
    rows = classification()
    (predictions,) = read_predictions(write(tmp_path, rows))
    found = rows_by_table(predictions)
    apart = [r for r in rows if r["head"]["prediction"] != r["bert"]["prediction"]]
    wrong = [r for r in rows if r["head"]["prediction"] != r["gold"]]
    assert 5 < len(apart) < 55
    assert {r["index"] for r in found["disagreements"]} == {r["index"] for r in apart}
    assert {r["index"] for r in found["mistakes"]} == {r["index"] for r in wrong}
    sure = [r["head_confidence"] for r in found["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    both = [min(r["head_confidence"], r["bert_confidence"]) for r in found["disagreements"]]
    assert both == sorted(both, reverse=True)
    first = found["mistakes"][0]
    assert first["texts.title"] == f"about {first['index']}"
    assert first["length"] == rows[first["index"]]["tokens"]


def test_a_regression_is_sorted_by_what_it_is_off():
    rows = regression()
    found = rows_by_table(Predictions("validation", rows))

    def off(index: int, other: str) -> float:
        gold = rows[index]["gold"]
        return abs(
            rows[index]["head"]["prediction"]
            - (gold if other == "gold" else rows[index][other]["prediction"])
        )

    for name, other in (("mistakes", "gold"), ("disagreements", "bert")):
        indices = [r["index"] for r in found[name]]
        assert indices == sorted(range(len(rows)), key=lambda i: -off(i, other))


@pytest.mark.parametrize("make", [classification, regression])
def test_scores_by_length_against_a_loop(make: Any):
    rows = make()
    lengths = [r.get("tokens", len(r["texts"].get("text", "").split())) for r in rows]
    table = rows_of(by_length(Predictions("validation", rows)))
    assert 2 <= len(table) <= 5
    assert sum(group["rows"] for group in table) == len(rows)
    ends = [(group["from"], group["to"]) for group in table]
    assert all(a[1] < b[0] for a, b in pairwise(ends))  # no length is parted
    for group in table:
        within = [
            r
            for r, length in zip(rows, lengths, strict=True)
            if group["from"] <= length <= group["to"]
        ]
        assert len(within) == group["rows"]
        for source in ("bert", "head", "ensemble"):
            values = [
                abs(r[source]["prediction"] - r["gold"])
                if make is regression
                else r[source]["prediction"] == r["gold"]
                for r in within
            ]
            assert group[source] == pytest.approx(sum(values) / len(values))
    assert {group["unit"] for group in table} == {"words" if make is regression else "tokens"}


GOLDS = (["York", "the York"], [], ["Kent"])


def spans(count: int = 45) -> list[dict[str, Any]]:
    """Answers that differ in more than the official rules see, and some that do not."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(count):
        gold = GOLDS[i % 3]
        verdicts = {}
        for name in ("bert", "head", "ensemble"):
            text = str(rng.choice(["york", "The York!", "", "kent or york"]))
            exact, f1 = official_score(text, gold)
            verdicts[name] = {"prediction": text, "confidence": rng.random(), "null_odds": 0.0}
            verdicts[name] |= {"exact": exact, "f1": f1, "best_span": "york"}
        texts = {"question": "where?", "context": "in " * (3 + i % 7)}
        rows.append({"index": i, "id": f"q{i}", "texts": texts, "gold": gold, **verdicts})
    return rows


def test_spans_are_compared_and_scored_by_the_official_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = spans()
    assert main(["errors", str(write(tmp_path, rows))]) == 0
    (predictions,) = read_predictions(tmp_path)
    found = rows_by_table(predictions)
    apart = {
        r["index"]
        for r in rows
        if official_words(r["head"]["prediction"]) != official_words(r["bert"]["prediction"])
    }
    assert any(
        r["head"]["prediction"] != r["bert"]["prediction"] for r in rows if r["index"] not in apart
    )
    assert {r["index"] for r in found["disagreements"]} == apart
    wrong = [r for r in rows if not r["head"]["exact"]]
    assert [r["id"] for r in found["mistakes"]] == [
        r["id"] for r in sorted(wrong, key=lambda r: -r["head"]["confidence"])
    ]
    groups = [
        (group, [r for r in rows if group["from"] <= 3 + r["index"] % 7 <= group["to"]])
        for group in found["lengths"]
    ]
    groups += [
        (group, [r for r in rows if bool(r["gold"]) == (group["kind"] == "answerable")])
        for group in found["kinds"]
    ]
    assert len(groups) > 4
    for group, within in groups:
        assert group["rows"] == len(within)
        for source in ("bert", "head", "ensemble"):
            for metric in ("exact", "f1"):
                mean = sum(r[source][metric] for r in within) / len(within)
                assert group[f"{source}_{metric}"] == pytest.approx(mean)
    said = capsys.readouterr().out
    assert "head (no answer)" in said
    assert "gold York | the York" in said
    assert "answerable      30  " in said
    assert (tmp_path / "errors" / "kinds_validation.csv").read_text().startswith("kind,rows,bert_")


def test_rows_of_one_length_are_one_group():
    rows = [row(i, "cat", "cat", "dog", tokens=7) for i in range(40)]
    (group,) = rows_of(by_length(Predictions("validation", rows)))
    assert (group["from"], group["to"], group["rows"]) == (7, 7, 40)
    assert (group["head"], group["bert"]) == (1.0, 0.0)


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row(0, "cat", "cat", "cat"), row(1, "cat", "cat", "dog"), row(2, "dog", "cat", "dog")]
    write(tmp_path, rows)
    assert main(["errors", str(tmp_path)]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
validation: 3 rows

            BERT right  BERT wrong
──────────────────────────────────
head right           1           1
head wrong           1           0
──────────────────────────────────

Head and BERT disagree on 2 of 3 rows (66.7%). Where both are surest:

  2: gold dog, head cat 0.740, BERT dog 0.753
    about 2
    a b, "c" d

  1: gold cat, head cat 0.870, BERT dog 0.710
    about 1
    a b, "c" d

The head is wrong on 1 of 3 rows (33.3%). Where it is surest:

  2: gold dog, head cat 0.740, BERT dog 0.753
    about 2
    a b, "c" d

Share of right predictions by length

tokens  rows    BERT    head  ensemble
──────────────────────────────────────
3 to 5     3  0.6667  0.6667    0.6667
──────────────────────────────────────

{tmp_path}/errors/disagreements_validation.jsonl
{tmp_path}/errors/disagreements_validation.csv
{tmp_path}/errors/mistakes_validation.jsonl
{tmp_path}/errors/mistakes_validation.csv
{tmp_path}/errors/lengths_validation.jsonl
{tmp_path}/errors/lengths_validation.csv

"""
    )


def test_jsonl_and_csv_hold_the_same(tmp_path: Path):
    write(tmp_path, classification())
    write(tmp_path, regression(), split="other")
    assert main(["errors", str(tmp_path)]) == 0
    for split in ("validation", "other"):
        for name in ("disagreements", "mistakes", "lengths"):
            path = tmp_path / "errors" / f"{name}_{split}.jsonl"
            rows = [json.loads(line) for line in path.read_text("utf-8").rstrip("\n").split("\n")]
            with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
                read = list(csv.DictReader(file))
            assert [{key: str(value) for key, value in r.items()} for r in rows] == read
            assert rows


def test_without_labels_only_disagreements(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, classification(labelled=False), split="test")
    assert main(["errors", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "There are no labels: nothing else can be said." in said
    assert "gold" not in said
    names = sorted(path.name for path in (tmp_path / "errors").iterdir())
    assert names == ["disagreements_test.csv", "disagreements_test.jsonl"]


def test_no_mistake_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, [row(i, "cat", "cat", "cat") for i in range(3)])
    assert main(["errors", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Head and BERT disagree on 0 of 3 rows (0.0%).\n" in said
    assert "The head is wrong on 0 of 3 rows (0.0%).\n" in said
    header = (tmp_path / "errors" / "mistakes_validation.csv").read_text()
    assert header.startswith("index,length,gold,bert,bert_confidence,head,")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "there are no rows"),
        ("{}", "line 1 cannot be read: 'bert' is missing"),
        (json.dumps(row(0, "a", "a", "a")) + "\n{", "line 2 cannot be read: Expecting property"),
        (
            json.dumps(row(0, None, "a", "a") | {"gold": ["a"]}),
            "not predictions of a label, a number or a span",
        ),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, why: str
):
    (tmp_path / "predictions_test.jsonl").write_text(content)
    assert main(["errors", str(tmp_path)]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "errors").exists()


def test_folders_that_are_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["errors", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"\n{tmp_path}: there is no predictions_*.jsonl in it, so it is not the folder of a "
        f"finished run (OUTPUT_DIR/TASK/RUN_NAME)\n"
    )
    assert main(["errors", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"\n{tmp_path / 'none'}: there is no such folder\n"
    for wrong in ([], ["errors"], ["errors", "a", "b"], ["mistakes", str(tmp_path)]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.startswith(
            "usage: python -m bertvision_stream.report errors RUN"
        )


def test_the_command_needs_neither_torch_nor_ray(tmp_path: Path):
    write(tmp_path, classification())
    command = ["-X", "importtime", "-m", "bertvision_stream.report", "errors", tmp_path]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation: 60 rows\n")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numpy" in modules
    assert not {"torch", "ray", "transformers"} & modules


def test_a_spreadsheet_computes_nothing_of_a_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\x1b[31ma = 1"]
    rows = [row(i, "-1", "=x", "-1") | {"texts": {"=t": text}} for i, text in enumerate(texts)]
    (tmp_path / "predictions_validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["errors", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    path = tmp_path / "errors" / "mistakes_validation.csv"
    with path.open(newline="", encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=str, index_col="index").sort_index()
    assert table["texts.=t"].tolist() == [f"'{text}" for text in texts[:-1]] + texts[-1:]
    assert {*table["gold"], *table["head"]} == {"'-1", "'=x"}
    assert not table["head_confidence"].str.startswith("'").any()
    kept = [json.loads(line) for line in path.with_suffix(".jsonl").open(encoding="utf-8")]
    assert sorted(line["texts.=t"] for line in kept) == sorted(texts)
