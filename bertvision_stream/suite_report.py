"""The one table of a suite, for console and `summary.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bertvision_stream.published import SIZES, SOURCE, published, size_of
from bertvision_stream.report import markdown_grid, text_grid
from bertvision_stream.spread import Spread
from bertvision_stream.suite import (
    CONTESTANTS,
    Entry,
    glue_means,
    metric_rows,
    published_means,
)

_WIDTH = 96

_NAMES = {"bert": "BERT", "head": "head", "ensemble": "ensemble"}
_SHORT = {"validation_matched": "-m", "validation_mismatched": "-mm"}


def render_suite(entries: Sequence[Entry]) -> str:
    """Text for a console: the table, what it means, and what failed."""
    lines = [text_grid(*_table(entries, mark="*")), "* best of BERT, head and ensemble"]
    notes = [*_notes(entries), *(f"failed: {line}" for line in _failures(entries))]
    lines += [textwrap.fill(note, _WIDTH, break_on_hyphens=False) for note in notes]
    return "\n".join(lines) + "\n"


def render_suite_markdown(entries: Sequence[Entry], command: str) -> str:
    """The content of `summary.md`."""
    sections = ["# Summary", markdown_grid(*_table(entries, mark="**"))]
    sections.append("\n".join(f"- {note}" for note in _notes(entries)))
    if failures := _failures(entries):
        sections.append("## Failed\n\n" + "\n".join(f"- {line}" for line in failures))
    runs = [[entry.task, str(entry.seed), entry.folder or "-"] for entry in entries]
    header = [("", "task"), ("", "seed"), ("", "folder")]
    sections += ["## Runs", markdown_grid(header, runs, align_right=False)]
    sections += ["## Run it again", f"```bash\n{command}\n```"]
    return "\n\n".join(sections) + "\n"


def _table(entries: Sequence[Entry], *, mark: str) -> tuple[list[tuple[str, str]], list[list[str]]]:
    header = [("", "task"), ("", "metric"), *(("", _NAMES[name]) for name in CONTESTANTS)]
    header += [(size, who) for size in SIZES for who in ("BERT", "head")]
    rows: list[list[str]] = []
    found = metric_rows(entries)
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [row for row in found if row.task == task]
        if not of_task:
            rows.append([task, "failed", *["-"] * (len(header) - 2)])
        for row in of_task:
            figure = published(row.task, row.split, row.metric)
            theirs = ["-"] * 4
            if figure is not None:
                pairs = zip(figure.bert, figure.head, strict=True)
                theirs = [f"{value:.4f}" for pair in pairs for value in pair]
            spreads = [row.spreads[contestant] for contestant in CONTESTANTS]
            name = task + _SHORT.get(row.split, "")
            rows.append([name, row.metric, *_marked(spreads, mark), *theirs])
    if means := glue_means(entries):
        spreads = [means[name] for name in CONTESTANTS]
        rows.append(["mean, GLUE", "", *_marked(spreads, mark), *["-"] * 4])
    if like := published_means(found):
        ours = [Spread(like[name], None, 1) for name in CONTESTANTS]
        theirs = [f"{like[f'{who}_{size}']:.4f}" for size in SIZES for who in ("bert", "head")]
        rows.append(["mean, both", "", *_marked(ours, mark), *theirs])
    return header, rows


def _marked(spreads: Sequence[Spread], mark: str) -> list[str]:
    """Means with their deviation, the best marked; what reads the same is equally good."""
    shown = [f"{spread.mean:.4f}" for spread in spreads]
    best = max(shown, key=float)
    cells = []
    for score, spread in zip(shown, spreads, strict=True):
        cell = str(spread)
        if score == best:
            cell = f"*{cell}" if mark == "*" else f"{mark}{cell}{mark}"
        cells.append(cell)
    return cells


def _notes(entries: Sequence[Entry]) -> list[str]:
    done = [entry for entry in entries if entry.metrics is not None]
    notes = []
    if len({entry.seed for entry in entries}) > 1:
        notes.append("±: sample standard deviation over the seeds that finished")
        for task in dict.fromkeys(entry.task for entry in entries):
            of_task = [entry for entry in entries if entry.task == task]
            finished = sum(entry in done for entry in of_task)
            if 0 < finished < len(of_task):
                notes.append(f"{task}: {finished} of {len(of_task)} seeds")
    tasks, finished_tasks = ({entry.task for entry in some} for some in (entries, done))
    if len(finished_tasks) < len(tasks):
        notes.append(f"means are of {len(finished_tasks)} of {len(tasks)} tasks: others failed")
    notes.append(
        "mean, GLUE: over tasks, of each one's mean of metrics and splits, as GLUE has it; mean, "
        "both: of those metrics alone that BERTVision published as well"
    )
    notes.append(f"base, large: BERTVision's BERT-base and -large, and its head on them ({SOURCE})")
    for backbone in dict.fromkeys(
        str(entry.metrics["backbone"]) for entry in done if entry.metrics
    ):
        if (size := size_of(backbone)) is None:
            notes.append(
                f"ANOTHER BACKBONE: these runs used {backbone}, BERTVision bert-base-uncased and "
                f"bert-large-uncased: their columns are for orientation, and no comparison"
            )
        else:
            notes.append(f"{backbone} is BERTVision's BERT-{size}")
    return notes


def _failures(entries: Sequence[Entry]) -> list[str]:
    return [
        f"{entry.task}, seed {entry.seed}: {' '.join(entry.failure.split())}"
        for entry in entries
        if entry.failure
    ]
