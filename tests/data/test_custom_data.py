import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.modes.inputs import inputs_after_search, read_inputs
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import DataError
from tune.space import trial_settings


def load(path: Path, *arguments: str, text_columns: str = "text") -> TaskData:
    overrides = [
        "task=custom",
        f"data.path={path}",
        f"data.text_columns=[{text_columns}]",
        "data.label_column=y",
        *arguments,
    ]
    return load_task_data(load_settings(overrides).for_task("custom"))


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


def write(path: Path, labels: list[Any]) -> Path:
    """Writes rows whose texts are `t0`, `t1`, ..."""
    table = pa.table({"text": [f"t{i}" for i in range(len(labels))], "y": labels})
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        parquet.write_table(table, path)
    return path


@pytest.fixture(params=[".csv", ".jsonl", ".parquet"])
def suffix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["spam", "ham", "ham"], ("ham", "spam")),
        ([True, False, False], ("False", "True")),
        ([10, 9, 9], ("9", "10")),
        ([1, -1, -1], ("-1", "1")),
    ],
)
def test_classes(tmp_path: Path, suffix: str, labels: list[Any], names: tuple[str, ...]):
    write(tmp_path / f"train{suffix}", labels)
    write(tmp_path / f"dev{suffix}", labels[:2])
    data = load(tmp_path)
    assert (data.task.name, data.task.kind, data.task.label_names) == (
        "custom",
        "classification",
        names,
    )
    assert data.task.metrics == ("accuracy", "f1", "matthews")
    assert data.train.labels.tolist() == [1, 0, 0]
    assert data.validation[0].labels.tolist() == [1, 0]
    assert data.validation[0].name == "validation"
    assert data.notes == ()


def test_many_classes_have_no_f1(tmp_path: Path):
    write(tmp_path / "train.csv", ["a", "b", "c"] * 2)
    write(tmp_path / "validation.csv", ["c"])
    data = load(tmp_path)
    assert data.task.metrics == ("accuracy", "matthews")
    assert data.validation[0].labels.tolist() == [2]


def test_floats_are_a_regression_target(tmp_path: Path, suffix: str):
    write(tmp_path / f"train{suffix}", [0.5, 2.0, 3.25])
    write(tmp_path / f"validation{suffix}", [1, 2])
    data = load(tmp_path)
    assert (data.task.kind, data.task.num_labels) == ("regression", 1)
    assert data.task.metrics == ("pearson", "spearman")
    assert data.train.labels.tolist() == [0.5, 2.0, 3.25]
    assert data.validation[0].labels.tolist() == [1.0, 2.0]
    assert data.validation[0].labels.dtype == np.float32
    assert data.notes == ()


def test_whole_floats_are_a_regression_target_and_a_note_says_so(tmp_path: Path):
    write(tmp_path / "train.parquet", [0.0, 1.0, 1.0])
    write(tmp_path / "validation.parquet", [0.0])
    data = load(tmp_path)
    assert data.task.kind == "regression"
    assert data.notes == (
        "Label column 'y' holds floats, though all are whole numbers: this is taken as regression. "
        "For classes, write them as integers or text.",
    )


def test_pairs_of_texts(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("y,b,a\nyes,1b,1a\nno,2b,2a\nyes,3b,3a\n")
    data = load(path, text_columns="a,b")
    texts = [*data.train.texts, *data.validation[0].texts]
    assert sorted(texts) == [("1a", "1b"), ("2a", "2b"), ("3a", "3b")]


def test_a_tenth_is_held_out_by_the_seed(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"anything{suffix}", ["a", "b"] * 25)
    data, again, other = load(path), load(path), load(path, "seed=1")
    held_out = data.validation[0].texts
    assert (len(data.train), len(held_out)) == (45, 5)
    assert sorted(data.train.texts + held_out) == sorted((f"t{i}",) for i in range(50))
    for split in (data.train, *data.validation):
        assert [int(text[1:]) % 2 for (text,) in split.texts] == split.labels.tolist()
    assert held_out == again.validation[0].texts != other.validation[0].texts
    assert data.notes == (
        "There is no validation split (validation, dev, valid, val): 5 of the 50 training rows, "
        "drawn with seed 42, are held out as one.",
    )


def test_the_best_of_a_search_is_trained_on_the_rows_of_its_trials(tmp_path: Path):
    """Its seed is that of a fine-tuning, and draws no rows."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("{}")
    path = write(tmp_path / "rows.csv", ["a", "b"] * 25)
    keys = ["task=custom", f"data.path={path}", "data.text_columns=[text]", "data.label_column=y"]
    keys += [f"backbone={tmp_path / 'model'}", "mode=search", "search.target=backbone"]
    settings = load_settings(keys)
    trials = read_inputs(settings.for_task("custom"))
    after = settings.after_search("custom")
    best = trial_settings(after, {"seed": 7, "finetune.lr": 1e-5})
    final = inputs_after_search(after, best)
    assert final.settings == best
    assert final.data.validation[0].texts == trials.data.validation[0].texts
    assert final.data.train.texts == trials.data.train.texts


def test_a_single_file_of_a_folder_is_the_training_split(tmp_path: Path):
    write(tmp_path / "reviews.csv", ["a", "b"] * 5)
    (tmp_path / "README.md").write_text("Reviews.")
    data = load(tmp_path)
    assert (len(data.train), len(data.validation[0])) == (9, 1)


def test_train_fraction_is_of_what_is_left_after_holding_out(tmp_path: Path):
    path = write(tmp_path / "train.csv", ["a", "b"] * 50)
    data = load(path, "data.train_fraction=0.5")
    assert (len(data.train), len(data.validation[0])) == (45, 10)
    assert not set(data.train.texts) & set(data.validation[0].texts)
    assert "Training on 45 of 90 rows" in data.notes[-1]


@pytest.mark.parametrize("seed", range(20))
def test_holding_out_leaves_every_class_in_training(tmp_path: Path, seed: int):
    path = write(tmp_path / "train.csv", ["rare", "other"] + ["common"] * 10)
    data = load(path, f"seed={seed}")
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    assert len(data.validation[0]) == 1


def test_too_few_rows_to_hold_one_out(tmp_path: Path):
    path = write(tmp_path / "train.csv", ["a", "b"])
    assert error_of(path) == f"{path}: 2 rows are too few to hold out a validation split"


def test_one_class(tmp_path: Path):
    path = write(tmp_path / "train.csv", ["a", "a"])
    assert error_of(path) == (
        f"{path}: label column 'y' has one class only, 'a': there is nothing to learn"
    )


def test_class_that_only_validation_has(tmp_path: Path):
    write(tmp_path / "train.csv", ["a", "b"])
    path = write(tmp_path / "val.csv", ["a", "c"])
    assert error_of(tmp_path) == (
        f"{path}: label column 'y' has classes that no training row has: c, in 1 row (2 in line 3; "
        "the first row is 1); the training rows have a, b"
    )


def test_wrong_label_column(tmp_path: Path):
    path = write(tmp_path / "train.csv", [f"n{i}" for i in range(300)])
    assert error_of(path) == (
        f"{path}: label column 'y' has 300 different values in 300 rows (n0, n1, n10, ...): "
        "this might be the wrong column; a number to predict must be written as a float, in csv "
        "without quotation marks; classes of so few rows need a validation split of their own"
    )


def test_floats_in_one_split_and_text_in_the_other(tmp_path: Path):
    write(tmp_path / "train.csv", [0.5, 1.5])
    write(tmp_path / "validation.csv", ["low", "high"])
    assert "holds floats in one split and no numbers in the other" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", " ", "b"], "label column 'y' is empty in 1 row (2; the first row is 1)"),
        ([["a"], ["b"]], "label column 'y' holds list<"),
        ([0.5, float("inf")], "label column 'y' is not a finite number in 1 row (2;"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: list[Any], expected: str):
    write(tmp_path / "train.parquet", labels)
    write(tmp_path / "validation.parquet", labels)
    assert re.search(re.escape(expected), error_of(tmp_path))


def test_shards_of_different_label_types(tmp_path: Path):
    first = write(tmp_path / "train-00000-of-00002.csv", ["a", "b"])
    second = write(tmp_path / "train-00001-of-00002.csv", [1, 2])
    assert error_of(tmp_path) == (
        f"label column 'y' is not of one type: text in {first}, numbers in {second}"
    )


def test_column_that_is_lacking(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text("review,y\nfine,1\n")
    assert error_of(path) == f"{path}: there is no column 'text'; the columns are: review, y"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "or a single such file; it holds nothing"),
        (["a.csv", "b.csv"], "or a single such file; it holds a.csv, b.csv"),
        (["test.csv"], "has no training split"),
        (["dev.csv"], "has no training split"),
        (["train.csv", "dev.csv", "val.csv"], "more than one data set for the validation split"),
    ],
)
def test_folders_that_do_not_say_what_is_what(tmp_path: Path, names: list[str], expected: str):
    for name in names:
        write(tmp_path / name, ["a", "b"])
    assert expected in error_of(tmp_path)


def test_paths_that_are_no_data(tmp_path: Path):
    assert error_of(tmp_path / "no.csv").startswith(f"data.path={tmp_path / 'no.csv'} does not ex")
    (tmp_path / "rows.xlsx").touch()
    assert error_of(tmp_path / "rows.xlsx") == (
        f"data.path={tmp_path / 'rows.xlsx'} is none of .parquet, .csv, .jsonl"
    )


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["train-backup.csv", "train-1.csv"], "train-1.csv, train-backup.csv are not read."),
        (["train_old.jsonl"], "train_old.jsonl is not read."),
        (["my-train (1).csv", "Train.tsv"], "Train.tsv, my-train (1).csv are not read."),
        (["validation-old.csv", "val.CSV", "dev.json"], "dev.json, val.CSV, validation-old.csv"),
        (["test.csv", "training.csv", "README.md", "train.py", "devices.csv"], ""),
    ],
)
def test_files_beside_a_split_are_not_read_and_named(tmp_path: Path, names: list[str], noted: str):
    write(tmp_path / "train.csv", ["a", "b"] * 5)
    for name in names:
        (tmp_path / name).write_text("text,y\nanother,c\n")
    data = load(tmp_path)
    assert len(data.train) + len(data.validation[0]) == 10
    notes = [note for note in data.notes if "not read" in note]
    assert [note.startswith(f"{tmp_path}: {noted}") for note in notes] == [True] * bool(noted)


def test_names_that_only_look_like_shards_are_no_split(tmp_path: Path):
    for name in ("train-0.csv", "train-1.csv"):
        write(tmp_path / name, ["a", "b"])
    assert error_of(tmp_path).endswith("it holds train-0.csv, train-1.csv")


@pytest.mark.parametrize("hashes", [("", ""), ("-b42a775f407cee45", "-0c2e1e3a9d1f5b77")])
@pytest.mark.parametrize("first", [0, 1])
def test_all_shards_are_the_split(tmp_path: Path, hashes: tuple[str, str], first: int):
    for i, part in enumerate(hashes):
        write(tmp_path / f"train-{i + first:05}-of-00002{part}.parquet", ["a", "b"] * 5)
    assert len(load(tmp_path).train) == 18


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00000-of-00003-b42a775f407cee45"], "is one of 3 files, but 1 of them is there"),
        (["00000-of-00003", "00002-of-00003"], "is one of 3 files, but 2 of them are there"),
        (["00001-of-00002", "00002-of-00003"], "more than one data set for the train split"),
        (["00002-of-00002", "00003-of-00002"], "is one of 2 files, but 2 of them are there"),
        (
            ["00000-of-00002-b42a775f407cee45", "00000-of-00002-0c2e1e3a9d1f5b77"],
            "a shard is there more than once among train-00000-of-00002-0c2e1e3a9d1f5b77.csv, ",
        ),
        (["00000-of-00001", "00000-of-00001-0c2e1e3a9d1f5b77"], "a shard is there more than once"),
        (["00000-of-999999999999999"], "is one of 999999999999999 files, but 1 of them is there"),
    ],
)
def test_shards_that_are_not_whole(tmp_path: Path, names: list[str], expected: str):
    for name in names:
        write(tmp_path / f"train-{name}.csv", ["a", "b"])
    assert expected in error_of(tmp_path)
