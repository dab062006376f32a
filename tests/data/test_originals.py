"""Files as GLUE and SQuAD first published them: the error converts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.new_rows import read_new_rows
from bertvision_stream.data.splits import TaskData
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.utils.errors import DataError


def load(task: str, path: Path) -> TaskData:
    return load_task_data(load_settings([f"task={task}", f"data.path={path}"]).for_task(task))


def convert(error: DataError) -> None:
    """Runs the lines of Python that an error ends with."""
    lines = str(error).partition("can be read:\n\n")[2]
    exec("\n".join(line.removeprefix("  ") for line in lines.splitlines()), {})


@pytest.mark.parametrize(
    ("task", "folder", "header", "rows", "texts", "labels"),
    [
        (
            "cola",
            "CoLA",
            "",
            ['gj04\t0\t*\tHe "said', "gj04\t1\t\tNA"],
            [('He "said',), ("NA",)],
            [0, 1],
        ),
        (
            "sst2",
            "SST-2",
            "sentence\tlabel",
            ["bad \t0", "a, b\t1"],
            [("bad ",), ("a, b",)],
            [0, 1],
        ),
        (
            "mrpc",
            "MRPC",
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            ["1\t7\t8\ta\tb"],
            [("a", "b")],
            [1],
        ),
        (
            "qqp",
            "QQP",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            ["0\t1\t2\ta?\tb?\t1"],
            [("a?", "b?")],
            [1],
        ),
        (
            "stsb",
            "STS-B",
            "index\tgenre\tsentence1\tsentence2\tscore",
            ["0\tx\ta\tb\t2.5"],
            [("a", "b")],
            [2.5],
        ),
        (
            "rte",
            "rte",
            "index\tsentence1\tsentence2\tlabel",
            ["0\ta\tb\tnot_entailment"],
            [("a", "b")],
            [1],
        ),
        (
            "qnli",
            ".",
            "index\tquestion\tsentence\tlabel",
            ["0\ta?\tb\tentailment"],
            [("a?", "b")],
            [0],
        ),
        (
            "mnli",
            "MNLI",
            "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
            ["0\t1\ta\tb\tneutral\tcontradiction"],
            [("a", "b")],
            [2],
        ),
    ],
)
def test_the_error_converts_glues_tsv(
    tmp_path: Path, task: str, folder: str, header: str, rows: list, texts: list, labels: list
):
    where = tmp_path / folder
    where.mkdir(exist_ok=True)
    matched = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for name in ("train", *matched):
        (where / f"{name}.tsv").write_text("\n".join(filter(None, [header, *rows])) + "\n")
    with pytest.raises(DataError) as caught:
        load(task, tmp_path)
    convert(caught.value)
    data = load(task, where)
    assert data.train.texts == data.validation[-1].texts == texts
    assert data.train.labels.tolist() == labels


def test_the_error_converts_a_test_split(tmp_path: Path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tfirst\n1\tsecond\n")
    for path in (tmp_path, tmp_path / "test.tsv"):
        with pytest.raises(DataError) as caught:
            read_new_rows(TASKS["cola"], str(path))
    convert(caught.value)
    (rows,) = read_new_rows(TASKS["cola"], str(tmp_path))
    assert (rows.split.texts, rows.labelled) == ([("first",), ("second",)], False)


def test_the_error_converts_squads_nested_json(tmp_path: Path):
    questions = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "q2", "question": "Why?", "is_impossible": True, "answers": []},
    ]
    content = {"data": [{"title": "x", "paragraphs": [{"context": "Ann did.", "qas": questions}]}]}
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load("squad_v2", tmp_path)
    convert(caught.value)
    data = load("squad_v2", tmp_path)
    assert data.train.texts == [("Who?", "Ann did."), ("Why?", "Ann did.")]
    assert data.validation[0].labels.tolist() == [True, False]
    (rows,) = read_new_rows(TASKS["squad_v2"], str(tmp_path))
    assert len(rows.split) == 2


def test_other_files_are_not_converted(tmp_path: Path):
    (tmp_path / "notes.tsv").touch()
    with pytest.raises(DataError) as caught:
        load("rte", tmp_path)
    assert "import" not in str(caught.value)
