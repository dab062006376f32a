"""Messages and predictions name rows of the user's files, whatever was done to the rows since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bertvision_stream.data.custom import custom_task
from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.new_rows import read_new_rows
from bertvision_stream.data.places import Places, with_places
from bertvision_stream.data.splits import TaskData
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import DataError


def load(path: Path, *arguments: str) -> TaskData:
    keys = ["task=custom", f"data.path={path}", "data.text_columns=[text]", "data.label_column=y"]
    return load_task_data(load_settings([*keys, *arguments]).for_task("custom"))


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


def csv_of(path: Path, labels: Sequence[str]) -> Path:
    """Writes rows of the texts `<file> t0`, `<file> t1`, ...; the first is three lines long."""
    rows = [f"{path.name} t{i},{label}\n" for i, label in enumerate(labels)]
    path.write_text("text,y\n" + '"of\nthree\n' + rows[0].replace(",", '",') + "".join(rows[1:]))
    return path


def jsonl_of(path: Path, labels: Sequence[Any], *, gap: str = "") -> Path:
    rows = [json.dumps({"text": f"t{i}", "y": label}) for i, label in enumerate(labels)]
    path.write_text("\n".join([rows[0] + gap, *rows[1:]]))
    return path


def test_held_out_and_drawn_rows_are_found_again_in_their_files(tmp_path: Path):
    for i in range(2):
        csv_of(tmp_path / f"train-0000{i}-of-00002.csv", ["a", "b"] * 20)
    data = load(tmp_path, "data.train_fraction=0.5")
    assert {len(split) for split in (data.train, *data.validation)} == {36, 8}
    for split in (data.train, *data.validation):
        assert split.places is not None
        for i, (text,) in enumerate(split.texts):
            place = split.places.one(i)
            lines = (tmp_path / str(place["file"])).read_text().splitlines()
            line = int(place["line"])
            there = "\n".join(lines[line - 1 : line + text.count("\n")])
            assert there.replace('"', "").rpartition(",")[0] == text
            assert place["row"] == int(text.rpartition("t")[2]) + 1
    one = load(tmp_path / "train-00001-of-00002.csv", "data.train_fraction=1").validation[0]
    assert one.places is not None
    assert set(one.places.one(0)) == {"row", "line"}


def test_empty_lines_between_rows_are_noted_once(tmp_path: Path):
    numbers = range(20)
    contents = {
        "a.csv": "text,y\n" + "\n".join(f"t{i},{i % 2}" for i in numbers),
        "a.jsonl": "\n".join(f'{{"text": "t{i}", "y": {i % 2}}}' for i in numbers),
    }
    for name, content in contents.items():
        lines = content.split("\n")
        (tmp_path / name).write_text(
            "\n".join([*lines[:4], "", *lines[4:6], "", *lines[6:], "", ""])
        )
        expected = (
            f"{tmp_path / name}: 2 empty lines between rows (5, 8) are no rows; predictions name "
            "the line of each row."
        )
        assert [note for note in load(tmp_path / name).notes if "empty" in note] == [expected]
        (rows,) = read_new_rows(custom_task(("0", "1"), ("text",), "y"), str(tmp_path / name))
        assert rows.notes == (expected,)
        (tmp_path / name).write_text("\n".join([*lines, "", ""]))
        assert not [note for note in load(tmp_path / name).notes if "empty" in note]


def test_rows_of_lines_and_of_parquet_have_no_line(tmp_path: Path):
    task = custom_task(("0", "1"), ("text",), "y")
    table = pa.table({"text": ["a", "b"], "y": [0, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    jsonl_of(tmp_path / "b.jsonl", [0, 1])
    jsonl_of(tmp_path / "c.jsonl", [0, 1], gap="\n\n")
    csv_of(tmp_path / "d.csv", ["0", "1"])
    found = {}
    for path in tmp_path.iterdir():
        (rows,) = read_new_rows(task, str(path))
        assert rows.split.places is not None
        found[path.name] = rows.split.places.one(1)
    assert found == {
        "a.parquet": {"row": 2},
        "b.jsonl": {"row": 2},
        "c.jsonl": {"row": 2, "line": 4},
        "d.csv": {"row": 2, "line": 5},
    }


def test_places_stay_with_the_rows_of_a_table(tmp_path: Path):
    table = with_places(pa.table({"text": ["a", "b", "c"]}), [2, 5, 6]).take([2, 0])
    places = Places.join([Places.of("hub", 1), Places.of_table(table, str(tmp_path / "x.csv"))])
    shown = "3 rows (1 of hub, 3 in line 6 of x.csv, 1 in line 2 of x.csv; the first row is 1)"
    assert places.describe(np.ones(3, dtype=bool)) == shown
    many = Places.of("hub", 1200).describe(np.ones(1200, dtype=bool))
    assert many == ("1,200 rows (1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1,190 more; the first row is 1)")


@pytest.mark.parametrize("bad", [0, 5, 17, 38])
def test_numbers_that_are_none_are_named_before_rows_are_held_out(tmp_path: Path, bad: int):
    labels = [str(i + 0.5) for i in range(40)]
    labels[bad] = labels[39] = "inf"
    path = csv_of(tmp_path / "a.csv", labels)
    line = bad + 4 if bad else 2
    assert f"in 2 rows ({bad + 1} in line {line}, 40 in line 43; " in error_of(path)


def test_labels_of_a_later_shard_are_named_with_their_file(tmp_path: Path):
    for i, labels in enumerate((["a", "b"], ["a", "c"])):
        csv_of(tmp_path / f"validation-0000{i}-of-00002.csv", labels)
    csv_of(tmp_path / "train.csv", ["a", "b"] * 4)
    found = "c, in 1 row (2 in line 5 of validation-00001-of-00002.csv; the first row is 1)"
    assert found in error_of(tmp_path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2**63], "holds 9223372036854775808 in row 3, a whole number which does not fit"),
        ([0, 1, -(10**30)], "in row 3, a whole number which does not fit 64 bits with a sign"),
        ([0, 1, "x"], "column 'y' holds 'x' in row 3, which does not go with the rows before"),
        (["x", "y", 1], "column 'y' holds 1 in row 3, which does not go with the rows before"),
        ([0, 1, True], "column 'y' holds True in row 3, which does not go with"),
        ([0.5, 1.5, True], "column 'y' holds True in row 3, which does not go with"),
        ([[1], [2], ["a"]], "column 'y' holds ['a'] in row 3, which does not go with"),
        (["a", "b", "\ud83d"], "holds '\\ud83d' in row 3, half a surrogate pair, which is no char"),
    ],
)
@pytest.mark.parametrize("gap", ["", "\n\n"])
def test_values_that_cannot_be_converted(tmp_path: Path, labels: list, expected: str, gap: str):
    path = jsonl_of(tmp_path / "a.jsonl", [*labels, *labels[:2] * 4], gap=gap)
    expected = expected.replace("row 3", "row 3 in line 5") if gap else expected
    assert expected in error_of(path)


def test_half_a_surrogate_pair_in_a_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00", "y": 0}\n{"text": "half \\ud83d", "y": 1}\n')
    message = error_of(path)
    assert "column 'text' holds 'half \\ud83d' in row 2, half a surrogate pair" in message
    message.encode()  # so that it can be printed
