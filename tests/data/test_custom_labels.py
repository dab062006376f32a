"""Labels of the user's own data: signs that there is none, names alike, values that do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_custom_data import error_of, load, suffix, write  # noqa: F401

from bertvision_stream.utils.errors import DataError


@pytest.mark.parametrize("marker", [-1, -100, "-", "NA", "nan", " Unlabeled"])
def test_a_sign_that_there_is_no_label_is_no_class_unless_one_says_so(
    tmp_path: Path, suffix: str, marker: int | str
):
    classes = [0, 1] if isinstance(marker, int) else ["a", "b"]
    write(tmp_path / f"train{suffix}", [*classes, marker, *classes])
    path = write(tmp_path / f"dev{suffix}", [marker, classes[1]])
    message = error_of(tmp_path)
    assert " in 1 row (3" in message
    assert "which commonly means that a row has no label: data.no_label=leave" in message
    data = load(tmp_path, "data.no_label=leave_out")
    assert data.task.label_names == tuple(map(str, classes))
    assert data.train.texts == [("t0",), ("t1",), ("t3",), ("t4",)]
    assert data.validation[0].texts == [("t1",)]
    assert f"Rows of {path} that have no label and are left out (data.no" in data.notes[-1]
    assert data.notes[-1].endswith(": 1.")
    kept = load(tmp_path, "data.no_label=class")
    assert str(marker) in kept.task.label_names
    assert len(kept.train) == 5


def test_rows_without_a_label_are_left_out_whatever_the_kind(tmp_path: Path):
    write(tmp_path / "train.parquet", [0.5, None, float("nan"), -1.0])
    write(tmp_path / "dev.parquet", [1.5, -100.0])
    data = load(tmp_path, "data.no_label=leave_out")
    assert data.train.labels.tolist() == [0.5, -1.0]
    assert data.validation[0].labels.tolist() == [1.5, -100.0]
    assert "data.no_label=leave_out" in error_of(tmp_path)
    write(tmp_path / "train.parquet", [-1, -1])
    with pytest.raises(DataError, match="there are no rows with a label in column 'y'"):
        load(tmp_path, "data.no_label=leave_out")


def test_names_of_a_files_own_metadata_have_none_for_minus_one(tmp_path: Path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": list("abc"), "y": [0, 1, -1]}, features=features)
    for name in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    assert error_of(tmp_path).endswith("data.no_label=leave_out leaves such rows out")
    data = load(tmp_path, "data.no_label=leave_out")
    assert (data.task.label_names, data.train.labels.tolist()) == (("no", "yes"), [0, 1])


@pytest.mark.parametrize("labels", [[-1, 1], [-2, -1, 0, 1, 2]])
def test_numbers_of_one_scale_are_classes(tmp_path: Path, labels: list[int]):
    path = write(tmp_path / "train.csv", labels * 4)
    assert load(path).task.label_names == tuple(map(str, labels))


@pytest.mark.parametrize(
    "labels", [[" neg", "neg", "pos"], ["Neg", "neg", "pos"], ["caf\u00e9", "cafe\u0301", "bar"]]
)
def test_names_that_look_alike_are_noted(tmp_path: Path, labels: list[str]):
    write(tmp_path / "train.jsonl", labels * 2)
    write(tmp_path / "dev.jsonl", labels)
    (note,) = load(tmp_path).notes
    assert repr(labels[0]) in note
    assert repr(labels[1]) in note
    assert "differ only in white space, case or the form of a character" in note
    write(tmp_path / "train.jsonl", labels[1:] * 2)
    assert "classes that no training row has" in error_of(tmp_path)


@pytest.mark.parametrize("labels", [["a", "b", "c"], [f"c{i}" for i in range(1200)]])
def test_a_class_may_have_one_example_where_validation_has_the_same(
    tmp_path: Path, labels: list[str]
):
    write(tmp_path / "train.csv", labels)
    write(tmp_path / "dev.csv", labels)
    data = load(tmp_path)
    assert data.task.num_labels == len(labels)
    assert f"has {len(labels):,} classes in {len(labels):,} training rows" in data.notes[0]
    write(tmp_path / "dev.csv", ["other"])
    assert "has: other, in 1 row (1 in line 2; " in error_of(tmp_path)
    assert "this might be the wrong column" in error_of(tmp_path)


def test_more_than_a_thousand_classes_without_a_validation_split(tmp_path: Path):
    data = load(write(tmp_path / "train.csv", [f"c{i}" for i in range(1001)] * 2))
    assert data.task.num_labels == 1001
    assert data.notes[0].startswith("Label column 'y' has 1,001 classes in 2,002 training rows.")


@pytest.mark.parametrize("huge", [2**63, 2**64 - 1, 10**30])
def test_whole_numbers_that_do_not_fit(tmp_path: Path, huge: int):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "y": y}) + "\n" for y in (huge, 1)))
    assert re.search("does not fit 64 bits.*write classes as text", error_of(path))


@pytest.mark.parametrize("huge", [2**63, 2**64 - 1])
def test_unsigned_numbers_that_do_not_fit(tmp_path: Path, huge: int):
    path = tmp_path / "train.parquet"
    labels = [huge, 1, 2**63 - 1, 1]
    table = pa.table({"text": list("abcd"), "y": pa.array(labels, pa.uint64())})
    parquet.write_table(table, path)
    assert f"holds {huge} in 1 row (1; the first row is 1), which does not fit" in error_of(path)
    parquet.write_table(table.slice(1), path)
    assert load(path).task.label_names == ("1", "9223372036854775807")


@pytest.mark.parametrize("value", [1e39, -1e300, 1e-60])
def test_numbers_that_do_not_fit_float32(tmp_path: Path, value: float):
    path = write(tmp_path / "train.parquet", [0.5, value, 1.5])
    write(tmp_path / "validation.parquet", [0.5])
    assert "does not fit float32, in 1 row (2" in error_of(tmp_path)
    assert str(path) in error_of(tmp_path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([10, 9, 9], [1, 0, 0]), (["b", "a", "a"], [1, 0, 0]), ([0.5, 1.5, 1.5], [0.5, 1.5, 1.5])],
)
def test_categories_of_a_parquet_file_are_their_values(
    tmp_path: Path, labels: list[Any], expected: list[float]
):
    columns = (pa.array(["x", "y", "x"]), pa.array(labels))
    table = pa.table([column.dictionary_encode() for column in columns], names=["text", "y"])
    for name in ("train", "dev"):
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    data = load(tmp_path)
    assert data.train.texts == [("x",), ("y",), ("x",)]
    assert data.train.labels.tolist() == expected


@pytest.mark.parametrize("column", ["text", "y"])
@pytest.mark.parametrize("encoded", [False, True])
def test_values_of_a_parquet_file_that_are_not_in_utf8(tmp_path: Path, column: str, encoded: bool):
    raw = pa.array([b"a", b"\xe9", b"c"], pa.binary()).view(pa.string())
    columns = {"text": ["x", "y", "z"], "y": ["a", "b", "b"]} | {column: raw}
    if encoded:
        columns[column] = raw.dictionary_encode()
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = f"column '{column}' is not in UTF-8 in 1 row (2; the first row is 1)"
    assert error_of(tmp_path / "a.parquet").endswith(expected)
