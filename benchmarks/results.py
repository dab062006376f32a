"""The sections of `benchmarks/RESULTS.md`, and what all of them are made with.

The file has a header and sections, and each section says when, where and how it was measured.
"""

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from bertvision_stream.report.tables import Table
from bertvision_stream.utils.files import write_text

T = TypeVar("T")

HEADER = """\
# Measured

Written by `python -m benchmarks.run`, each section by itself: `--sections` measures some again and
leaves the others as they are. No figure here is typed by hand.
"""

_HEADING = re.compile(r"^## (.*)\n?", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A part of the results.

    Attributes:
        name: The name that `--sections` knows it by. Several sections may share a name, and are
            then measured together.
        title: The heading of the section; no two sections have the same.
        measure: Does the work and returns lines of Markdown, without headings of the first two
            levels. It is given the number of repeats.
        settings: The `key=value` settings that the section is measured with.
        others: What else the section was told, as a sentence for readers.
        needs_gpu: Whether the section can be measured only on a machine with a GPU.
    """

    name: str
    title: str
    measure: Callable[[int], list[str]]
    settings: tuple[str, ...] = ()
    others: str = ""
    needs_gpu: bool = False


def write_section(path: Path, section: Section, *, command: str, repeats: int) -> None:
    """Measure a section and put it into the file, in its old place or at the end.

    The file is read when the measuring is over, so that two commands may measure at once.

    Raises:
        ValueError: The lines of the section hold a heading that would begin another section.
    """
    circumstances = _circumstances(section, command=command, repeats=repeats)
    lines = [circumstances, "", *section.measure(repeats)]
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, with_section(text, section.title, lines))


def with_section(document: str, title: str, lines: Sequence[str]) -> str:
    """Returns the document with the section in the place of an earlier one of the same title.

    Raises:
        ValueError: The lines hold a heading that would begin another section.
    """
    if wrong := [line for line in lines if line.startswith(("# ", "## "))]:
        raise ValueError(f"the section {title!r} holds another heading: {wrong[0]!r}")
    sections = {**split_sections(document), title: "\n".join(lines).strip("\n")}
    parts = [HEADER, *(f"## {name}\n\n{body}\n" for name, body in sections.items())]
    return "\n".join(parts)


def split_sections(document: str) -> Mapping[str, str]:
    """Returns the text below each heading of the second level, by the heading."""
    _, *parts = _HEADING.split(document)
    bodies = (body.strip("\n") for body in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


def _circumstances(section: Section, *, command: str, repeats: int) -> str:
    """One line on the command, the day, the machine and the versions of packages.

    The load average in it is that of the moment before the measuring begins.
    """
    packages = ("torch", "ray", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    settings = f" Settings: `{' '.join(section.settings)}`." if section.settings else ""
    others = f" {section.others}." if section.others else ""
    return (
        f"`{command}`, {date.today()}: {os.cpu_count()} cores, {platform.machine()}, "
        f"{_cpu_model()}; Python {platform.python_version()}, {versions}.{settings}{others} "
        f"Repeats: {repeats}. Load average of one minute when it began: {os.getloadavg()[0]:.2f}."
    )


def _cpu_model() -> str:
    """The name of the CPU, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "CPU of unknown model"


def turns(repeats: int, cases: Iterable[T], *, once: Sequence[T] = ()) -> Iterator[T]:
    """Yields every case once in each turn, and says so on the standard error.

    Other users may slow a machine down for a while. Cases that take turns are slowed down alike,
    and the values of one turn can be compared.

    Args:
        repeats: The number of turns.
        cases: What is measured in each turn, in this order.
        once: Those of the cases that take part in the first turn only.
    """
    cases = list(cases)
    for turn in range(repeats):
        for case in cases:
            if turn == 0 or case not in once:
                print(f"  turn {turn + 1} of {repeats}: {case}", file=sys.stderr, flush=True)
                yield case


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratio of each value to the base value of the same turn, over the turns that both have."""
    return [value / other for value, other in zip(values, base, strict=False)]


def with_spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and the least and the largest: `1.20 (1.10 to 1.31)`."""
    median = f"{statistics.median(values):.2f}{unit}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.2f} to {max(values):.2f})"


def relative(values: Mapping[str, Sequence[float]], name: str, base: str) -> str:
    """The ratio of the values of `name` to those of `base`, or "1" where they are the same."""
    return "1" if name == base else with_spread(ratios(values[name], values[base]))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first are aligned to the right."""
    return Table(header, list(rows)).markdown().splitlines()
