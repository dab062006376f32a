"""`benchmarks/RESULTS.md`: a header and sections, each with when, where and how it was measured."""

import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from bertvision_stream.utils.files import write_text

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
        name: By which `--sections` calls it; sections that come together share one.
        title: Its heading; no two sections have the same.
        measure: Given how often to repeat, does the work and returns lines of Markdown, without
            headings of the first two levels.
        settings: `key=value` settings that it measures with.
        others: What else it was told, for people.
        needs_gpu: Whether it can be measured on a machine with a GPU alone.
    """

    name: str
    title: str
    measure: Callable[[int], list[str]]
    settings: tuple[str, ...] = ()
    others: str = ""
    needs_gpu: bool = False


def write_section(path: Path, section: Section, *, command: str, repeats: int) -> None:
    """Measure a section and put it into the file, in its old place or at the end.

    The other sections are those that the file has when the measuring is over.

    Raises:
        ValueError: The section has a heading that would be taken for another section's.
    """
    began = _how(section, command=command, repeats=repeats)
    lines = [began, "", *section.measure(repeats)]
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, with_section(text, section.title, lines))


def with_section(document: str, title: str, lines: Sequence[str]) -> str:
    """The document with that section in it, in place of an earlier one of the same title.

    Raises:
        ValueError: See `write_section`.
    """
    if wrong := [line for line in lines if line.startswith(("# ", "## "))]:
        raise ValueError(f"the section {title!r} holds another heading: {wrong[0]!r}")
    sections = {**split_sections(document), title: "\n".join(lines).strip("\n")}
    parts = [HEADER, *(f"## {name}\n\n{body}\n" for name, body in sections.items())]
    return "\n".join(parts)


def split_sections(document: str) -> Mapping[str, str]:
    """What stands below each heading of the second level, by the heading."""
    _, *parts = _HEADING.split(document)
    bodies = (body.strip("\n") for body in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


def _how(section: Section, *, command: str, repeats: int) -> str:
    """One line on command, day, machine and versions; asked for when the measuring begins."""
    packages = ("torch", "ray", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    settings = f" Settings: `{' '.join(section.settings)}`." if section.settings else ""
    others = f" {section.others}." if section.others else ""
    return (
        f"`{command}`, {date.today()}: {os.cpu_count()} cores, {platform.machine()}, "
        f"{cpu_model()}; Python {platform.python_version()}, {versions}.{settings}{others} "
        f"Repeats: {repeats}. Load average of one minute when it began: {os.getloadavg()[0]:.2f}."
    )


def cpu_model() -> str:
    """The name of the CPU, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "CPU of unknown model"


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Each to that of the same turn: a shared machine is not always as fast.

    Of the turns from the first on that both have.
    """
    return [value / other for value, other in zip(values, base, strict=False)]


def with_spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and the least and the largest: `1.20 (1.10 to 1.31)`."""
    median = f"{statistics.median(values):.2f}{unit}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.2f} to {max(values):.2f})"
