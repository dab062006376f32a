from pathlib import Path

import pytest

from benchmarks.results import (
    HEADER,
    Section,
    ratios,
    split_sections,
    with_section,
    with_spread,
    write_section,
)


def section(title: str, *lines: str, **others: object) -> Section:
    return Section("some", title, lambda repeats: list(lines), **others)  # type: ignore[arg-type]


def write(path: Path, *sections: Section) -> str:
    for each in sections:
        write_section(path, each, command="python -m benchmarks.run", repeats=2)
    return path.read_text(encoding="utf-8")


def test_sections_come_one_after_another_below_the_header(tmp_path: Path) -> None:
    text = write(tmp_path / "R.md", section("One", "a", "", "### part", "b"), section("Two", "c"))
    assert text.startswith(HEADER)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## One", "## Two"]
    assert text.endswith("\n\nc\n")


def test_a_section_is_replaced_in_its_place_and_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "R.md"
    before = split_sections(write(path, section("One", "a"), section("Two", "c", "### x", "d")))
    after = split_sections(write(path, section("One", "new")))
    assert list(after) == ["One", "Two"]
    assert after["One"].endswith("\n\nnew")
    assert after["Two"] == before["Two"]


def test_writing_the_same_again_changes_nothing() -> None:
    once = with_section(with_section("", "One", ["a"]), "Two", ["", "b", ""])
    assert with_section(once, "Two", ["b"]) == once


def test_a_title_may_hold_what_regular_expressions_read() -> None:
    text = with_section(with_section("", r"a (b) \1", ["x"]), r"a (b) \1", [r"\2"])
    assert split_sections(text) == {r"a (b) \1": r"\2"}


@pytest.mark.parametrize("heading", ["## Two", "# All"])
def test_a_section_with_the_heading_of_another_is_refused(heading: str) -> None:
    with pytest.raises(ValueError, match=r"'One' holds another heading: '#+ "):
        with_section("", "One", ["a", heading])


def test_a_section_says_how_it_was_measured(tmp_path: Path) -> None:
    one = section("One", "a", settings=("task=rte", "seed=1"), others="Epochs: 1, 5")
    how = split_sections(write(tmp_path / "R.md", one))["One"].splitlines()[0]
    assert how.startswith("`python -m benchmarks.run`, 2")
    assert "Settings: `task=rte seed=1`. Epochs: 1, 5. Repeats: 2." in how
    for part in ("cores", "Python 3.", "torch ", "ray ", "transformers ", "Load average"):
        assert part in how


def test_a_section_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def fail(repeats: int) -> list[str]:
        raise RuntimeError("no")

    before = write(tmp_path / "R.md", section("One", "a"))
    with pytest.raises(RuntimeError, match="no"):
        write(tmp_path / "R.md", Section("some", "One", fail))
    assert (tmp_path / "R.md").read_text(encoding="utf-8") == before


def test_ratios_are_taken_within_a_turn() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert with_spread([2.0, 3.0, 1.0], " s") == "2.00 s (1.00 to 3.00)"
    assert with_spread([1.5]) == "1.50"
