"""Rows to be scored: where they are looked for, labels that may be lacking, GLUE's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from bertvision_stream.data import glue as glue_data
from bertvision_stream.data.custom import custom_task
from bertvision_stream.data.new_rows import NewRows, read_new_rows
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.utils.errors import DataError

COLA, MNLI, STSB = TASKS["cola"], TASKS["mnli"], TASKS["stsb"]
STARS = custom_task(("1", "2", "10"), ("title", "body"), "stars")
PRICE = custom_task((), ("title",), "price")


def write(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    match path.suffix:
        case ".parquet":
            parquet.write_table(table, path)
        case ".csv":
            csv.write_csv(table, path)
        case ".jsonl":
            path.write_text("".join(f"{row}\n" for row in map(_json, table.to_pylist())))
    return path


def _json(row: dict[str, Any]) -> str:
    import json

    return json.dumps(row)


def only(task: Task, path: Path) -> NewRows:
    (rows,) = read_new_rows(task, str(path))
    return rows


def error_of(task: Task, path: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        read_new_rows(task, path and str(path))
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("label", [None, [-1, -1], [None, None]], ids=["none", "-1", "null"])
def test_labels_may_be_lacking(tmp_path: Path, suffix: str, label: list[Any] | None):
    more = {} if label is None else {"label": pa.array(label, pa.int64())}
    rows = only(
        COLA, write(tmp_path / f"my rows{suffix}", sentence=["7", "y"], other=[1, 2], **more)
    )
    assert rows.split.name == "my_rows"
    assert rows.split.texts == [("7",), ("y",)]
    assert not rows.labelled
    assert len(rows.split.labels) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_labels_that_are_there_become_ids_by_name(tmp_path: Path, suffix: str):
    path = write(
        tmp_path / f"a{suffix}",
        premise=["a", "b"],
        hypothesis=["c", "d"],
        label=["contradiction", "entailment"],
    )
    rows = only(MNLI, path)
    assert rows.labelled
    assert rows.split.labels.tolist() == [2, 0]
    assert rows.split.texts == [("a", "c"), ("b", "d")]


def test_labels_of_ones_own_task(tmp_path: Path):
    path = write(tmp_path / "a.csv", title=["a", "b", "c"], body=["d", "e", "f"], stars=[10, 1, 2])
    assert only(STARS, path).split.labels.tolist() == [2, 0, 1]
    prices = only(PRICE, write(tmp_path / "b.csv", title=["a", "b"], price=[1.5, -1.0]))
    assert prices.labelled
    assert prices.split.labels.tolist() == [1.5, -1.0]


def test_a_label_that_the_run_did_not_have(tmp_path: Path):
    path = write(tmp_path / "a.csv", title=["a", "b"], body=["d", "e"], stars=[1, 7])
    expected = "holds labels that custom does not have: 7 in 1 row (2 in line 3; "
    assert expected in error_of(STARS, path)
    some = write(tmp_path / "some.csv", title=["a", "b"], body=["d", "e"], stars=[7, None])
    assert not only(STARS, some).labelled


@pytest.mark.parametrize("missing", [None, -1, "", "?"])
def test_rows_of_which_only_some_have_labels_are_all_scored(tmp_path: Path, missing: Any):
    task = custom_task(("neg", "pos"), ("title",), "y")
    labels = ["pos", missing, "neg"] if missing != -1 else [1, -1, 0]
    rows = only(task, write(tmp_path / "a.jsonl", title=["a", "b", "c"], y=labels))
    assert (len(rows.split), rows.labelled) == (3, False)
    assert rows.notes == (
        "2 of 3 rows have labels: there are predictions for all rows, and no scores, which need "
        "labels in every row.",
    )


def test_among_numbers_to_predict_minus_one_is_one(tmp_path: Path):
    assert only(PRICE, write(tmp_path / "a.jsonl", title=["a", "b"], price=[-1, 2])).labelled
    rows = only(PRICE, write(tmp_path / "b.csv", title=["a", "b", "c"], price=[None, 2.5, -1]))
    assert not rows.labelled
    assert rows.notes[0].startswith("2 of 3 rows have labels")


def test_questions_of_which_only_some_have_answers(tmp_path: Path):
    gold = {"text": ["b"], "answer_start": [2]}
    more = {"question": ["?", "?"], "context": ["a b", "a b"], "answers": [gold, None]}
    rows = only(TASKS["squad_v2"], write(tmp_path / "a.jsonl", id=["x", "y"], **more))
    assert not rows.labelled
    assert rows.notes[0].startswith("1 of 2 rows have gold answers")


def test_test_splits_of_a_folder_laid_out_like_the_hubs(tmp_path: Path):
    pair = {"premise": ["a"], "hypothesis": ["b"], "label": [-1]}
    for name in ("mnli/train", "mnli/test_matched", "mnli/test_mismatched", "ax/test"):
        write(tmp_path / f"{name}-00000-of-00001.parquet", **pair)
    write(tmp_path / "cola" / "test.csv", sentence=["x"])
    names = [rows.split.name for rows in read_new_rows(MNLI, str(tmp_path))]
    assert names == ["test_matched", "test_mismatched", "ax"]
    assert only(COLA, tmp_path).split.name == "test"
    assert only(COLA, tmp_path / "cola").split.name == "test"
    shard = tmp_path / "mnli" / "test_matched-00000-of-00001.parquet"
    assert only(MNLI, shard).split.name == "test_matched"


def test_shards_are_one_split(tmp_path: Path):
    for i in range(2):
        path = tmp_path / f"test-0000{i}-of-00002.parquet"
        write(path, sentence=[f"a{i}", f"b{i}"], label=[0, 1], idx=[2 * i, 2 * i + 1])
    rows = only(COLA, tmp_path)
    assert [text for (text,) in rows.split.texts] == ["a0", "b0", "a1", "b1"]
    assert rows.split.labels.tolist() == [0, 1, 0, 1]
    assert rows.index.tolist() == [0, 1, 2, 3]
    write(tmp_path / "test-00001-of-00002.parquet", sentence=["c"])
    rows = only(COLA, tmp_path)
    assert (len(rows.split), rows.labelled) == (3, False)
    assert rows.notes[0].startswith("2 of 3 rows have labels")


@pytest.mark.parametrize(
    ("idx", "index"),
    [([2, 0, 1], [2, 0, 1]), ([7, 8, 9], [0, 1, 2]), (["a", "b", "c"], [0, 1, 2])],
    ids=["shuffled", "a selection", "no numbers"],
)
def test_glues_numbers_count_where_they_number_all_rows(
    tmp_path: Path, idx: list[Any], index: list[int]
):
    rows = only(COLA, write(tmp_path / "test.parquet", sentence=["a", "b", "c"], idx=idx))
    assert rows.index.tolist() == index


def test_a_shard_that_is_named_is_called_by_its_split(tmp_path: Path):
    shard = write(tmp_path / "test-00001-of-00002-b42a775f407cee45.csv", sentence=["x"])
    assert only(COLA, shard).split.name == "test"


def test_files_beside_a_split_are_not_scored_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in ("test.csv", "test-old.csv"):
        write(tmp_path / name, sentence=["x", name])
    with caplog.at_level("INFO", logger="bertvision_stream"):
        rows = only(COLA, tmp_path)
    assert rows.split.texts == [("x",), ("test.csv",)]
    assert f"{tmp_path}: test-old.csv is not read." in caplog.text


def test_what_cannot_be_found_is_said(tmp_path: Path):
    write(tmp_path / "cola" / "train.csv", sentence=["x"])
    assert error_of(COLA, tmp_path) == (
        f"data.path={tmp_path} has no test split: looked for test.* or all shards of it (for mnli "
        f"also test_matched and test_mismatched) with the suffix .parquet or .csv or .jsonl in "
        f"{tmp_path / 'cola'}, which holds train.csv. To score other rows, name a file."
    )
    assert (
        error_of(COLA, tmp_path / "nothing") == f"data.path={tmp_path / 'nothing'} does not exist"
    )
    text = tmp_path / "a.txt"
    text.touch()
    assert error_of(COLA, text) == f"data.path={text} is none of .parquet, .csv, .jsonl"
    assert error_of(STARS, None) == (
        "mode=predict needs data.path for task=custom: a .parquet, .csv, .jsonl file, or a folder "
        "with test.* files"
    )
    lacking = write(tmp_path / "b.csv", title=["a"])
    assert error_of(STARS, lacking) == (
        f"{lacking}: there is no column 'body'; the columns are: title"
    )
    empty = write(tmp_path / "c.parquet", sentence=pa.array([], pa.string()))
    assert error_of(COLA, empty) == f"{empty}: there are no rows"


def test_test_splits_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(repo: str, config: str, *, split: list[str]) -> list[datasets.Dataset]:
        asked.append((repo, config, *split))
        names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        text = datasets.Value("string")
        features = datasets.Features({"premise": text, "hypothesis": text, "label": names})
        columns = {"premise": ["a"], "hypothesis": ["b"], "label": [-1]}
        return [datasets.Dataset.from_dict(columns, features=features)]

    monkeypatch.setattr(glue_data, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_new_rows(MNLI, None)
    assert asked == [
        ("nyu-mll/glue", "mnli", "test_matched"),
        ("nyu-mll/glue", "mnli", "test_mismatched"),
        ("nyu-mll/glue", "ax", "test"),
    ]
    assert [rows.split.name for rows in found] == ["test_matched", "test_mismatched", "ax"]
    assert not any(rows.labelled for rows in found)
    assert np.array_equal(found[0].index, [0])


@pytest.mark.parametrize("labels", [[1, 0], ["1", "0"], ["pos", "neg"]])
def test_ids_that_a_message_offers_are_taken_and_noted(tmp_path: Path, labels: list[Any]):
    task = custom_task(("neg", "pos"), ("title",), "y")
    assert "allowed: neg (or 0), pos (or 1)" in error_of(
        task, write(tmp_path / "bad.jsonl", title=["a"], y=["bad"])
    )
    rows = only(task, write(tmp_path / "a.jsonl", title=["a", "b"], y=labels))
    assert rows.split.labels.tolist() == [1, 0]
    ids = "Labels of custom are numbers without names: taken by their order, 0 is neg, 1 is pos."
    assert rows.notes == (() if labels[0] == "pos" else (ids,))


def test_a_number_that_is_a_name_is_no_id(tmp_path: Path):
    rows = only(STARS, write(tmp_path / "a.jsonl", title=["a"], body=["b"], stars=["10"]))
    assert (rows.split.labels.tolist(), rows.notes) == ([2], ())
    bad = write(tmp_path / "b.jsonl", title=["a"], body=["b"], stars=[0])
    assert error_of(STARS, bad).endswith("0 in 1 row (1; the first row is 1); allowed: 1, 2, 10")


@pytest.mark.parametrize("label", [-100, "-", "nan"])
def test_a_sign_that_there_is_no_label_everywhere(tmp_path: Path, label: int | str):
    task = custom_task(("neg", "pos"), ("title",), "y")
    path = write(tmp_path / "a.jsonl", title=["a", "b"], y=[label, label])
    assert not only(task, path).labelled
    signs = custom_task(("-1", "1"), ("title",), "y")
    path = write(tmp_path / "b.jsonl", title=["a", "b"], y=[-1, -1])
    assert only(signs, path).split.labels.tolist() == [0, 0]
    assert only(signs, path).labelled
