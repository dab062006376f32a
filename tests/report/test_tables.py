"""One table, in each of the ways in which it is rendered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reports import report_on, split_result

from bertvision_stream.report.html import render_html
from bertvision_stream.report.tables import Best, MeanStd, Table, mark_best
from bertvision_stream.utils.units import format_value

TABLE = Table(["", "share of\nrows", "rows"], [["a|b", Best("0.5"), "7"], ["c", "0.25", "1,234"]])


def test_a_table_for_a_console():
    assert TABLE.text() == (
        "     share of\n"
        "         rows   rows\n"
        "────────────────────\n"
        "a|b     * 0.5      7\n"
        "c        0.25  1,234\n"
        "────────────────────"
    )
    assert "    *0.5" in TABLE.text(mark="*")


def test_a_table_in_markdown():
    assert TABLE.markdown().splitlines() == [
        "|  | share of rows | rows |",
        "| --- | ---: | ---: |",
        "| a\\|b | **0.5** | 7 |",
        "| c | 0.25 | 1,234 |",
    ]
    assert TABLE.markdown(left=3).splitlines()[1] == "| --- | --- | --- |"


def test_a_table_in_html():
    report = report_on("rte", split_result("validation", 9, accuracy=(0.5, 0.75, 0.6)))
    html = render_html(replace(report, settings={"<key>": "<value>"}), [])
    assert "<th>parameters trained</th>" in html
    assert "<td>0.5000</td>" in html
    assert "<td><b>0.7500</b></td>" in html
    assert "<td>&lt;key&gt;</td><td>&lt;value&gt;</td>" in html


@pytest.mark.parametrize(
    ("scores", "cells", "best"),
    [
        ([[0.1], [0.2], [0.20004]], ["0.1000", "0.2000", "0.2000"], [1, 2]),
        ([[0.1, 0.3], [0.1]], ["0.2000 ±.1414", "0.1000"], [0]),
        ([[-0.1], [-0.2]], ["-0.1000", "-0.2000"], [0]),
    ],
)
def test_the_best_score_is_marked(scores: list[list[float]], cells: list[str], best: list[int]):
    found = mark_best([MeanStd.of(values) for values in scores])
    assert found == cells
    assert [i for i, cell in enumerate(found) if isinstance(cell, Best)] == best


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.00663142831093687, "0.006631"),
        (1.23456789e-05, "1.235e-05"),
        (0.002, "0.002"),
        (2e-05, "2e-05"),
        (123456.0, "123456.0"),
        (True, "True"),
        (None, "None"),
        (4294967295, "4294967295"),
        ("a/long/path", "a/long/path"),
    ],
)
def test_settings_are_shown_with_the_digits_that_matter(value: object, written: str):
    assert format_value(value) == written
