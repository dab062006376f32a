import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from bertvision_stream.data import glue as glue_data
from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS
from bertvision_stream.utils.errors import DataError
from bertvision_stream.utils.hub import hub_reachable


def load(task: str, path: Path | None) -> TaskData:
    arguments = [f"task={task}"] + ([f"data.path={path}"] if path else [])
    return load_task_data(load_settings(arguments).for_task(task))


def error_of(task: str, path: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        load(task, path)
    return str(caught.value)


def cola(
    sentences: list[Any] | None = None, labels: list[Any] | None = None, **more: list[Any]
) -> pa.Table:
    return pa.table({"sentence": sentences or ["x", "y"], "label": labels or [0, 1], **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a good CoLA in the layout of the hub."""
    (tmp_path / "cola").mkdir()
    for split in ("train", "validation"):
        parquet.write_table(cola(), tmp_path / "cola" / f"{split}-00000-of-00001.parquet")
    return tmp_path


def rewrite_train(folder: Path, table: pa.Table) -> Path:
    path = folder / "cola" / "train-00000-of-00001.parquet"
    parquet.write_table(table, path)
    return path


def test_all_tasks_of_the_shared_data(shared_data: Path):
    for name in GLUE_TASKS:
        data, task = load(name, shared_data / "glue"), TASKS[name]
        assert data.task == task
        assert tuple(split.name for split in data.validation) == task.validation_splits
        for split in (data.train, *data.validation):
            assert {len(texts) for texts in split.texts} == {len(task.text_columns)}
            if task.kind == "classification":
                assert set(split.labels.tolist()) == set(range(task.num_labels))
            else:
                assert split.labels.min() >= 0
                assert split.labels.max() <= 5
        assert data.notes == ()


def test_labels_of_known_sentences(shared_data: Path):
    train = load("rte", shared_data / "glue").train
    assert train.texts[0] == (
        "No Weapons of Mass Destruction Found in Iraq Yet.",
        "Weapons of Mass Destruction Found in Iraq.",
    )
    assert TASKS["rte"].label_names[train.labels[0]] == "not_entailment"


@pytest.mark.parametrize("nullable", [True, False])
def test_class_names_in_another_order_still_map_by_name(tmp_path: Path, nullable: bool):
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["contradiction", "entailment", "neutral"]),
        }
    )
    schema = features.arrow_schema
    if not nullable:  # as some writers declare it; `datasets` would forget the names
        schema = schema.set(2, schema.field("label").with_nullable(False))
    texts = ["x", "y", "z"]
    table = pa.table({"premise": texts, "hypothesis": texts, "label": [0, 1, 2]}, schema=schema)
    for split in ("train", *TASKS["mnli"].validation_splits):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    data = load("mnli", tmp_path)
    assert [data.task.label_names[i] for i in data.train.labels] == [
        "contradiction",
        "entailment",
        "neutral",
    ]
    assert [split.labels.tolist() for split in data.validation] == [[2, 0, 1]] * 2


def test_the_tasks_own_folder_and_several_shards(folder: Path):
    task_folder = folder / "cola"
    (task_folder / "train-00000-of-00001.parquet").unlink()
    parquet.write_table(cola(["a"], [1]), task_folder / "train-00000-of-00002.parquet")
    parquet.write_table(cola(["b"], [0]), task_folder / "train-00001-of-00002.parquet")
    train = load("cola", task_folder).train
    assert (train.texts, train.labels.tolist()) == ([("a",), ("b",)], [1, 0])


def test_texts_are_left_as_they_are(tmp_path: Path):
    texts = ["", " two  spaces ", 'a "quoted", one', "two\nlines", "NA", "null", "12", "2020-01-01"]
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = tmp_path / suffix[1:]
        path.mkdir()
        table = cola(texts, [0, 1] * 4)
        for split in ("train", "validation"):
            if suffix == ".csv":
                csv.write_csv(table, path / f"{split}.csv")
            elif suffix == ".jsonl":
                lines = [json.dumps(row) for row in table.to_pylist()]
                (path / f"{split}.jsonl").write_text("\n".join(lines))
            else:
                parquet.write_table(table, path / f"{split}.parquet")
        data = load("cola", path)
        assert data.train.texts == [(text,) for text in texts]
        assert data.train.labels.tolist() == [0, 1] * 4


def test_path_that_does_not_exist(tmp_path: Path):
    assert error_of("rte", tmp_path / "no").startswith(
        f"data.path={tmp_path / 'no'} does not exist; task=rte needs a folder that holds "
        "rte/train-*.parquet"
    )


def test_split_that_is_lacking(folder: Path):
    (folder / "cola" / "validation-00000-of-00001.parquet").unlink()
    assert error_of("cola", folder) == (
        f"data.path={folder} has no validation split of cola: looked for validation, or "
        f"shards such as validation-00000-of-00002, with the suffix .parquet or .csv or "
        f".jsonl in {folder / 'cola'}; {folder / 'cola'} holds "
        "train-00000-of-00001.parquet"
    )


def test_folder_of_another_task(folder: Path):
    assert error_of("rte", folder).endswith(
        f"in {folder / 'rte'} and in {folder}; {folder} holds cola"
    )


def test_shard_that_is_lacking(folder: Path):
    shard = folder / "cola" / "train-00000-of-00001.parquet"
    shard.rename(folder / "cola" / "train-00000-of-00003.parquet")
    assert error_of("cola", folder).endswith(
        "train-00000-of-00003.parquet is one of 3 files, but 1 of them is there"
    )


def test_split_in_two_formats(folder: Path):
    csv.write_csv(cola(), folder / "cola" / "train.csv")
    assert (
        "more than one data set for the train split: train-00000-of-00001.parquet, train.csv"
        in (error_of("cola", folder))
    )


def test_column_that_is_lacking(folder: Path):
    path = rewrite_train(folder, pa.table({"text": ["x"], "label": [0], "idx": [0]}))
    assert error_of("cola", folder) == (
        f"{path}: there is no column 'sentence'; the columns are: text, label, idx"
    )


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            cola(["x", None, "y", None], [0, 1, 0, 1]),
            "text column 'sentence' is null in 2 rows (2, 4; the first row is 1)",
        ),
        (
            cola([None] * 14, [0, 1] * 7),
            "is null in 14 rows (1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more; the first row is 1)",
        ),
        (cola([1, 2]), "column 'sentence' holds int64, not text"),
        (cola().slice(0, 0), "there are no rows"),
    ],
)
def test_texts_that_cannot_be_used(folder: Path, table: pa.Table, expected: str):
    path = rewrite_train(folder, table)
    message = error_of("cola", folder)
    assert message.startswith(f"{path}: ")
    assert message.endswith(expected)


def test_unlabelled_test_split_in_place_of_train(folder: Path):
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["unacceptable", "acceptable"]),
        }
    )
    path = rewrite_train(folder, cola(labels=[-1, -1]).cast(features.arrow_schema))
    assert error_of("cola", folder) == (
        f"{path}: label column 'label' holds -1 in 2 rows (1, 2; the first row is 1), which is no "
        "label: allowed are unacceptable, acceptable"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.parquet", "not parquet", "cannot be read as parquet: Parquet magic bytes"),
        ("train.csv", "sentence,label\nx,0\ny\n", "cannot be read as csv: line 3 has 1 value, and"),
        (
            "train.jsonl",
            '{"sentence": "x", "label": 0}\n{"sent',
            "cannot be read as jsonl: line 2:",
        ),
        ("train.jsonl", "[1]\n", "line 1 is not an object such as {'sentence': ...}"),
        ("train.jsonl", '{"sentence": "x", "label": 0}\n{"sentence": 1, "label": 1}\n', "one type"),
        ("train.jsonl", "\n", "there are no rows"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, expected: str):
    (tmp_path / name).write_text(content)
    csv.write_csv(cola(), tmp_path / "validation.csv")
    message = error_of("cola", tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert expected in message


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(glue_data, "hub_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    message = error_of("mnli", None)
    assert re.fullmatch(
        r"nyu-mll/glue \(mnli\) could not be loaded: the Hugging Face hub cannot be reached from "
        r"here, and no copy of it is cached\. To do without the hub, set data\.path= to a local "
        r"folder laid out like it, one that holds mnli/train-\*\.parquet, "
        r"mnli/validation_matched-\*\.parquet, mnli/validation_mismatched-\*\.parquet",
        message,
    )
    assert before == datasets.config.HF_HUB_OFFLINE


def test_hub_that_answers_with_an_error(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("no such thing\nand a long story")

    monkeypatch.setattr(glue_data, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "could not be loaded: FileNotFoundError: no such thing. To do without" in (
        error_of("rte", None)
    )


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["acceptable", "unacceptable"]),
        }
    )
    calls = []

    def load_dataset(repo: str, config: str, *, split: list[str]) -> list[datasets.Dataset]:
        calls.append(SimpleNamespace(repo=repo, config=config, split=split))
        rows = {"sentence": ["good", "bad"], "label": [0, 1]}
        return [datasets.Dataset.from_dict(rows, features=features) for _ in split]

    monkeypatch.setattr(glue_data, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("cola", None)
    assert calls == [
        SimpleNamespace(repo="nyu-mll/glue", config="cola", split=["train", "validation"])
    ]
    assert data.train.texts == [("good",), ("bad",)]
    assert [data.task.label_names[i] for i in data.train.labels] == ["acceptable", "unacceptable"]


@pytest.mark.network
def test_the_hub_itself():
    if not hub_reachable():
        pytest.skip("the hub cannot be reached")
    assert len(load("rte", None).train) == 2490
