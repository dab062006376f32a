"""Nothing that a user's file holds is obeyed by a terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bertvision_stream.report.tables import Best, Table
from bertvision_stream.run import main
from bertvision_stream.utils.log import log, logging_to
from bertvision_stream.utils.terminal import printable, printable_line

OBEYED = "\x1b[2J\x1b]0;title\x07", "\r", "\x08", "\x9b31m", "\x7f", "\u202e", "\x00"


@pytest.mark.parametrize("text", OBEYED)
def test_control_characters_are_shown_as_escapes(text: str):
    kept = "é日本 🙂 it's \\\n\tpos"
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    assert printable(f"neg{text}{kept}") == f"neg{escaped}{kept}"
    assert escaped.isprintable()


def test_a_cell_stays_in_its_line():
    assert printable_line("a\nb\tc\u2028\x1b") == "a\\nb\\tc\\u2028\\x1b"
    table = Table(["class", "rows"], [["a\n\x1b[1mb", Best("1")]])
    for text in (table.text(), table.markdown()):
        assert "a\\n\\x1b[1mb" in text
        assert "\x1b" not in text
    assert "**1**" in table.markdown()
    assert "* 1" in table.text()


def test_lines_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = log.handlers, log.propagate, log.level
    try:
        with logging_to(tmp_path / "run.log"):
            log.log(logging.INFO, "class %s", "\x1b[31mred")
    finally:
        log.handlers, log.propagate, log.level = before
    assert capsys.readouterr().out == "class \\x1b[31mred\n"
    assert "class \\x1b[31mred\n" in (tmp_path / "run.log").read_text()


def test_errors_about_a_users_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("sentence,label\na,\x1b[31mred\nb,1\n")
    assert main(["task=cola", "backbone=minilm", f"data.path={tmp_path}"]) == 2
    shown = capsys.readouterr().err
    assert "x1b[31mred" in shown
    assert "\x1b" not in shown
