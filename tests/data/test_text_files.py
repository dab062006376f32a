"""Csv files as people write them: no row vanishes, and class codes keep their spelling."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bertvision_stream.data.custom import custom_task
from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.new_rows import read_new_rows
from bertvision_stream.data.rows import read_table
from bertvision_stream.data.splits import TaskData
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import DataError


def texts_of(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, ["text"]).column("text").to_pylist()


def error_of(path: Path, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        texts_of(path, content)
    return str(caught.value)


def train_on(folder: Path, labels: list[str], *, held_out: list[str] | None = None) -> TaskData:
    """The data of labels that stand in a csv file exactly as given."""
    for name, of_split in (("train", labels), ("validation", held_out)):
        if of_split is not None:
            rows = "".join(f"t{i},{label}\n" for i, label in enumerate(of_split))
            (folder / f"{name}.csv").write_text(f"text,y\n{rows}")
    keys = [f"data.path={folder}", "data.text_columns=[text]", "data.label_column=y"]
    return load_task_data(load_settings(["task=custom", *keys]).for_task("custom"))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('\ufefftext,y\r\n"a\r\nb",1\r\n\r\nc,2\r\n\r\n', ["a\r\nb", "c"]),
        ('text,y\n5" of "rain",1\n"he said ""no""",2', ['5" of "rain"', 'he said "no"']),
        ('text\n""\na\n\n', ["", "a"]),
        ('text,y\n"Dear Sir,\nno, thanks",no\nx,no\n', ["Dear Sir,\nno, thanks", "x"]),
        ("text,y\n\u2028a\x0bb\x85,1\n", ["\u2028a\x0bb\x85"]),
        ("text,y\n" + "x" * 2_000_000 + ",1\n", ["x" * 2_000_000]),
        ("text,y\n", []),
    ],
    ids=["line breaks", "marks", "empty text", "letter", "separators", "long", "no row"],
)
def test_each_record_is_a_row(tmp_path: Path, content: str, texts: list[str]):
    limit = csv.field_size_limit()
    assert texts_of(tmp_path / "a.csv", content) == texts
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,y\na,1\n"b,1\nc,2\n"d,2\n', "line 3: a value begins with a quotation mark that is "),
        ('text,y\na,1\n"b,1\nc,2\nd,2\n', "line 3: a quotation mark is opened and never closed"),
        ('text,y\na,1\n"b" c,1\n', "line 3: text follows a closing quotation mark"),
        ('text,y\n"a,1\nb,2\nsize 5",2\n', "line 2: a value in quotation marks goes on over lines"),
        ('y,text\n2,c\n1,"a\n2,b"\n', "line 3: a value in quotation marks goes on over lines"),
        ("text,y\na,1\nb, c,1\n", "line 3 has 3 values, and the header names 2"),
        ("text\na\n\nb\n", "line 3 is empty, which may be a row or none"),
    ],
)
def test_what_would_lose_rows_is_refused_by_its_line(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "a.csv"
    assert error_of(path, content).startswith(f"{path}: cannot be read as csv: {expected}")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("encoding", "found", "convert"),
    [
        ("utf-16", "it is in UTF-16", "UTF-16"),
        ("utf-16-le", "it is in UTF-16", "UTF-16LE"),
        ("utf-16-be", "it is in UTF-16", "UTF-16BE"),
        ("cp1252", "line 2 is not in UTF-8 (byte 0xe9)", "cp1252"),
    ],
)
def test_other_encodings_say_the_way_out(
    tmp_path: Path, suffix: str, encoding: str, found: str, convert: str
):
    message = error_of(tmp_path / f"a{suffix}", "text,y\ncafé,1\n".encode(encoding))
    assert f": cannot be read as {suffix[1:]}: {found}" in message
    assert message.endswith(f"iconv -f {convert} -t UTF-8 a{suffix} > a-utf8{suffix}")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["007", "010", "100"], "007 would lose its spelling as a number"),
        (["1.1", "1.10", "2.3"], "1.1 and 1.10 would be one number"),
        (["01.5", "02.5", "10"], "01.5 would lose its spelling as a number"),
        (["+1", "-1", "0"], "+1 would lose its spelling as a number"),
        (["0x1F", "0x20", "3"], "0x1F would lose its spelling as a number"),
        (["123456789012345678901", "123456789012345678902", "5"], "1234567890123456789"),
        (["10:30", "11:45", "12:00"], "they are dates or times"),
        (["2024-01-01", "2024-02-01", "2024-03-01"], "they are dates or times"),
        (["2024-01-01T10:00", "2024-01-01T11:00", "2024-01-02"], "they are dates or times"),
        (['"1.5"', '"2.3"', '"1E10"'], "they are in quotation marks"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_class_codes_keep_their_spelling(tmp_path: Path, labels: list[str], reason: str):
    # The validation split alone would read as numbers.
    data = train_on(tmp_path, labels * 3, held_out=labels[-1:])
    names = tuple(sorted(label.strip('"') for label in labels))
    assert data.task.label_names == names
    assert data.validation[0].labels.tolist() == [names.index(labels[-1].strip('"'))]
    (note,) = data.notes
    assert "taken for classes, as they are written" in note
    assert reason in note


def test_the_reason_may_stand_in_another_split(tmp_path: Path):
    data = train_on(tmp_path, ["1.1", "2.10", "2.1"] * 3, held_out=["1.1"])
    assert data.task.label_names == ("1.1", "2.1", "2.10")


@pytest.mark.parametrize(
    ("labels", "has_note"),
    [
        (["1.5", "2.3", "1E10"] * 3, True),
        # Numbers that do not repeat, though two of them are written in two ways.
        (["0.5", "0.50", "1.25", "3.75", "-2.5"], True),
        (["0.5", "1.25"], False),
    ],
)
def test_decimals_are_numbers_and_a_note_offers_classes(
    tmp_path: Path, labels: list[str], has_note: bool
):
    data = train_on(tmp_path, labels, held_out=["1"])
    assert data.task.kind == "regression"
    assert data.train.labels.tolist() == pytest.approx([float(label) for label in labels])
    notes = [note for note in data.notes if "write the labels in quotation marks" in note]
    assert len(notes) == has_note


def test_integers_are_classes_in_the_order_of_numbers_quoted_or_not(tmp_path: Path):
    for labels in (["10", "9", "9"], ['"10"', '"9"', '"9"'], [" 10", "9", "9 "]):
        data = train_on(tmp_path, labels, held_out=labels)
        assert data.task.label_names == ("9", "10")
        assert data.train.labels.tolist() == [1, 0, 0]
        assert data.notes == ()


def test_a_code_that_is_missing_is_no_class(tmp_path: Path):
    with pytest.raises(DataError, match="label column 'y' is empty in 1 row"):
        train_on(tmp_path, ["007", "NA", "010", "007"])


@pytest.mark.parametrize(
    ("names", "labels", "ids"),
    [
        (("1.1", "1.10", "2.3"), ["1.10", "2.3"], [1, 2]),
        (("007", "010", "100"), ["007", "100"], [0, 2]),
        (("10:30", "11:45"), ["11:45"], [1]),
        (("False", "True"), ["true", "false"], [1, 0]),
        (("maybe", "true"), ["true"], [1]),
        (("-1", "1"), ["-1", "1"], [0, 1]),
    ],
)
def test_new_rows_have_the_classes_of_the_run(
    tmp_path: Path, names: tuple[str, ...], labels: list[str], ids: list[int]
):
    path = tmp_path / "new.csv"
    path.write_text("text,y\n" + "".join(f"t,{label}\n" for label in labels))
    (rows,) = read_new_rows(custom_task(names, ["text"], "y"), str(path))
    assert rows.labelled
    assert rows.split.labels.tolist() == ids
