"""Several runs as one: what each task or seed came to, and means and spreads over them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bertvision_stream.report.published import PUBLISHED, SIZES, SOURCE, published, size_of
from bertvision_stream.report.tables import MeanStd, markdown_grid, text_grid
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.metrics import main_score

PREDICTORS = ("bert", "head", "ensemble")


@dataclass(frozen=True)
class Entry:
    """One run of a suite.

    Attributes:
        task: Its task.
        seed: Its seed.
        folder: Where its results are; empty where it has none.
        metrics: Its `metrics.json`; None where it has none.
        failure: Why it failed; empty where it did not.
    """

    task: str
    seed: int
    folder: str = ""
    metrics: Mapping[str, Any] | None = None
    failure: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of one validation split of a task: a spread by contestant."""

    task: str
    split: str
    metric: str
    examples: int
    spreads: Mapping[str, MeanStd]


def metric_rows(entries: Sequence[Entry]) -> list[Row]:
    """Every metric of every task that finished with at least one seed, in order."""
    rows = []
    for task in dict.fromkeys(entry.task for entry in entries):
        done = [entry.metrics["splits"] for entry in _finished(entries, task) if entry.metrics]
        for split, first in (done[0] if done else {}).items():
            for metric in _metrics(task, first):
                spreads = {
                    name: MeanStd.of([splits[split][name][metric] for splits in done])
                    for name in PREDICTORS
                }
                rows.append(Row(task, split, metric, first["examples"], spreads))
    return rows


def glue_means(entries: Sequence[Entry]) -> Mapping[str, MeanStd]:
    """The mean over tasks by contestant, as GLUE takes it: of each task's mean of its metrics.

    Of the tasks that finished with some seed, over the seeds with which all of these finished;
    empty where there is no such seed.
    """
    by_seed: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        if entry.metrics is not None:
            by_seed.setdefault(entry.seed, {})[entry.task] = entry.metrics["splits"]
    tasks = {task for runs in by_seed.values() for task in runs}
    complete = [runs for runs in by_seed.values() if runs.keys() == tasks]
    return {
        name: MeanStd.of(
            [fmean(_score(task, s, name) for task, s in runs.items()) for runs in complete]
        )
        for name in PREDICTORS
        if complete
    }


def published_means(rows: Sequence[Row]) -> dict[str, Any]:
    """Like with like: the mean over tasks of only those metrics that BERTVision published.

    Returns:
        `tasks`, how many there are, and the means: ours by contestant, `published_bert` and
        `published_head` by size of BERT. Empty where none of the tasks was published.
    """
    ours: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        figure = published(row.task, row.split, row.metric)
        if figure is not None:
            values = {name: spread.mean for name, spread in row.spreads.items()}
            for i, size in enumerate(("base", "large")):
                values |= {f"bert_{size}": figure.bert[i], f"head_{size}": figure.head[i]}
            ours.setdefault(row.task, []).append(values)
    if not ours:
        return {}
    names = next(iter(ours.values()))[0]
    means = {
        name: fmean(fmean(v[name] for v in values) for values in ours.values()) for name in names
    }
    return {"tasks": len(ours)} | means


def suite_json(entries: Sequence[Entry], command: str) -> dict[str, Any]:
    """The content of a suite's `metrics.json`: all runs, their means, and what was published."""
    rows = metric_rows(entries)
    summary: dict[str, Any] = {}
    for row in rows:
        of_split = summary.setdefault(row.task, {}).setdefault(row.split, {})
        of_split[row.metric] = {name: vars(spread) for name, spread in row.spreads.items()}
    return {
        "command": command,
        "runs": [_entry_json(entry) for entry in entries],
        "failed": sum(bool(entry.failure) for entry in entries),
        "summary": summary,
        "mean": {name: vars(spread) for name, spread in glue_means(entries).items()},
        "mean_of_published_metrics": published_means(rows),
        "published": {
            "source": SOURCE,
            "scores": [
                {"task": task, "split": split, **vars(row)}
                for (task, split), figures in PUBLISHED.items()
                for row in figures
                if task in {entry.task for entry in entries}
            ],
        },
    }


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The `metrics.json` of a run's folder; None where the run leaves none."""
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _entry_json(entry: Entry) -> dict[str, Any]:
    content: dict[str, Any] = {"task": entry.task, "seed": entry.seed, "folder": entry.folder}
    if entry.failure:
        content["failed"] = entry.failure
    if entry.metrics is not None:
        content["metrics"] = dict(entry.metrics)
    return content


def _finished(entries: Sequence[Entry], task: str) -> list[Entry]:
    return [entry for entry in entries if entry.task == task and entry.metrics is not None]


def _metrics(task: str, split: Mapping[str, Any]) -> list[str]:
    """The task's metrics, without what else is told of a split."""
    return list(TASKS[task].metrics if task in TASKS else split["head"])


def _score(task: str, splits: Mapping[str, Any], contestant: str) -> float:
    return main_score(
        {
            name: {metric: split[contestant][metric] for metric in _metrics(task, split)}
            for name, split in splits.items()
        }
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
    header = [("", "task"), ("", "metric"), *(("", _NAMES[name]) for name in PREDICTORS)]
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
            spreads = [row.spreads[contestant] for contestant in PREDICTORS]
            name = task + _SHORT.get(row.split, "")
            rows.append([name, row.metric, *_marked(spreads, mark), *theirs])
    if means := glue_means(entries):
        spreads = [means[name] for name in PREDICTORS]
        rows.append(["mean, GLUE", "", *_marked(spreads, mark), *["-"] * 4])
    if like := published_means(found):
        ours = [MeanStd(like[name], None, 1) for name in PREDICTORS]
        theirs = [f"{like[f'{who}_{size}']:.4f}" for size in SIZES for who in ("bert", "head")]
        rows.append(["mean, both", "", *_marked(ours, mark), *theirs])
    return header, rows


def _marked(spreads: Sequence[MeanStd], mark: str) -> list[str]:
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
