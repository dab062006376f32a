"""Rows of questions: read as they are, or refused by their ids."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from span_rows import Row, generated_rows, row, write_squad
from tiny import task_settings

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.data.squad import Answer, questions_from_rows
from bertvision_stream.utils.errors import DataError

GOOD = row("good", "who?", "in france rollo won", "rollo")


def load(folder: Path, *overrides: str) -> TaskData:
    return load_task_data(
        task_settings("squad_v2", "backbone=minilm", f"data.path={folder}", *overrides)
    )


def refused(*rows: Row) -> list[str]:
    """The lines of the error, without the first and the last."""
    with pytest.raises(DataError) as caught:
        questions_from_rows(list(rows), "here")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"here: {len(lines) - 2} row{'s' * (len(lines) > 3)} cannot be used:"
    assert lines[-1] == "Mend or remove them: none is left out by itself."
    return [line.strip() for line in lines[1:-1]]


def changed(name: str, **values: object) -> Row:
    return copy.deepcopy(GOOD) | {"id": name} | values


def answers(texts: object, starts: object) -> dict[str, object]:
    return {"text": texts, "answer_start": starts}


def test_rows_are_taken_as_they_are():
    rows = [
        row(
            "a", " who? ", "in  France\nrollo won, rollo did", "rollo", "rollo won", starts=(11, 11)
        ),
        row("b", "", "Œuvre — 日本", "日本"),
        row("c", "who?", "nobody"),
    ]
    questions = questions_from_rows(rows, "here")
    assert questions.ids == ["a", "b", "c"]
    assert questions.texts == [(r["question"], r["context"]) for r in rows]
    assert questions.labels.tolist() == [True, True, False]
    assert questions.answers == [
        (Answer("rollo", 11), Answer("rollo won", 11)),
        (Answer("日本", 8),),
        (),
    ]
    taken = questions.take(questions.labels.nonzero()[0][::-1])
    assert taken.ids == ["b", "a"]
    assert taken.answers == [questions.answers[1], questions.answers[0]]
    assert taken.labels.all()


def test_a_context_of_many_questions_is_kept_once():
    rows = json.loads(json.dumps([GOOD | {"id": str(i)} for i in range(3)]))
    assert len({id(row["context"]) for row in rows}) == 3
    assert len({id(context) for _, context in questions_from_rows(rows, "here").texts}) == 1


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (changed("x", question=None), "x: it has no question"),
        (changed("x", question=7), "x: it has no question"),
        (changed("x", context=None), "x: it has no context"),
        (changed("x", context=" \n"), "x: its context is empty"),
        (changed("", question="who?"), "row 2: it has no id"),
        (GOOD | {"id": None}, "row 2: it has no id"),
        (changed("good"), "good: another row has the same id"),
        (
            changed("x", answers=None),
            "x: it has no answers, which are written {'text': [...], 'answer_start': [...]}",
        ),
        (changed("x", answers={"text": ["rollo"]}), "x: its answers lack answer_start"),
        (changed("x", answers={"answer_start": [3]}), "x: its answers lack text"),
        (
            changed("x", answers=answers(["rollo"], [])),
            "x: it has 1 answer texts and 0 of answer_start",
        ),
        (
            changed("x", answers=answers([""], [10])),
            "x: an answer is empty; a question without answer has empty lists",
        ),
        (
            changed("x", answers=answers(["rollo"], [-9])),
            "x: answer_start of its answer 'rollo' is -9, not a place in the text",
        ),
        (
            changed("x", answers=answers(["rollo"], [None])),
            "x: answer_start of its answer 'rollo' is None, not a place in the text",
        ),
        (
            changed("x", answers=answers(["rollo", "rollo"], [10, 11])),
            "x: its answer 'rollo' is not at character 11 of its context, which has 'ollo ' there",
        ),
        (
            changed("x", answers=answers(["rollo"], [99])),
            "x: its answer 'rollo' is not at character 99 of its context, which is shorter",
        ),
        (
            changed("x", answers=answers(["Rollo"], [10])),
            "x: its answer 'Rollo' is not at character 10 of its context, which has 'rollo' there",
        ),
    ],
)
def test_a_bad_row_is_refused_by_its_id(bad: Row, fault: str):
    assert refused(GOOD, bad) == [fault]


def test_all_bad_rows_are_counted_and_the_first_named():
    rows = [changed(f"x{i}", context=None) for i in range(25)]
    with pytest.raises(DataError) as caught:
        questions_from_rows([GOOD, *rows], "here")
    lines = str(caught.value).splitlines()
    assert lines[0] == "here: 25 rows cannot be used:"
    assert lines[1:11] == [f"  x{i}: it has no context" for i in range(10)]
    assert lines[11] == "  and 15 more"


def test_ids_may_be_integers():
    rows = [GOOD | {"id": 0}, GOOD | {"id": 17}]
    assert questions_from_rows(rows, "here").ids == ["0", "17"]
    assert refused(*rows, GOOD | {"id": "17"}) == ["17: another row has the same id"]
    assert refused(*rows, GOOD | {"id": True}) == ["row 3: it has no id"]


def test_a_folder_laid_out_as_on_the_hub(tmp_path: Path):
    train, validation = generated_rows(40, seed=0), generated_rows(9, seed=1, prefix="v")
    data = load(write_squad(tmp_path, train, validation), "data.train_fraction=0.25")
    assert data.task.name == "squad_v2"
    assert data.train.questions is not None
    assert len(data.train) == len(data.train.questions.ids) == 10
    given = {r["id"]: r for r in train}
    for name, texts, gold in zip(
        data.train.questions.ids, data.train.texts, data.train.questions.answers, strict=True
    ):
        assert texts == (given[name]["question"], given[name]["context"])
        assert [a.text for a in gold] == given[name]["answers"]["text"]
        assert [a.start for a in gold] == given[name]["answers"]["answer_start"]
    (split,) = data.validation
    assert split.questions is not None
    assert split.questions.ids == [r["id"] for r in validation]
    assert split.labels.tolist() == [i % 2 == 0 for i in range(9)]
    assert data.notes == (
        "Training on 10 of 40 rows, drawn with seed 42 (data.train_fraction=0.25).",
    )


def test_jsonl_files_and_empty_questions(tmp_path: Path):
    rows = [GOOD, row("none", "who?", "nobody"), row("empty", " ", "in france")]
    for split in ("train", "validation"):
        text = "".join(json.dumps(r) + "\n" for r in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    data = load(tmp_path)
    assert data.train.labels.tolist() == [True, False, False]
    assert data.notes == (
        f"{tmp_path / 'train.jsonl'}: 1 question is empty: empty.",
        f"{tmp_path / 'validation.jsonl'}: 1 question is empty: empty.",
    )
    del rows[1]["context"]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"1 row cannot be used:\n  none: it has no context\n"):
        load(tmp_path)


def test_files_that_hold_no_questions(tmp_path: Path):
    folder = write_squad(tmp_path, generated_rows(4, seed=0), generated_rows(4, seed=1))
    train = folder / "squad_v2" / "train-00000-of-00001.parquet"
    pd.read_parquet(train).drop(columns="answers").to_parquet(train)
    with pytest.raises(DataError, match="there is no column 'answers'; the columns are: id, quest"):
        load(folder)
    train.unlink()
    with pytest.raises(DataError, match="has no train split of squad_v2: looked for train, or"):
        load(folder)
    (folder / "squad_v2" / "train.csv").write_text("id,question,context,answers\n")
    expected = f"{train.with_name('train.csv')}: a csv file cannot hold lists of answers"
    with pytest.raises(DataError, match=re.escape(expected)):
        load(folder)


def test_without_the_hub_it_says_what_would_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertvision_stream.data.glue.hub_reachable", lambda: False)
    settings = task_settings("squad_v2", "backbone=minilm")
    expected = r"rajpurkar/squad_v2 \(squad_v2\) could not be loaded: .*squad_v2/train-\*\.parquet"
    with pytest.raises(DataError, match=expected):
        load_task_data(settings)


def test_the_shared_rows_can_all_be_used(shared_data: Path):
    data = load(shared_data / "squad_v2")
    assert (len(data.train), int(data.train.labels.sum())) == (4756, 2321)
    assert (len(data.validation[0]), int(data.validation[0].labels.sum())) == (1322, 589)
    assert data.notes == ()
