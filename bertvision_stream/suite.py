"""Several runs as one: what each task or seed came to, and means and spreads over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bertvision_stream.evaluate import main_score
from bertvision_stream.published import PUBLISHED, SOURCE, published
from bertvision_stream.spread import Spread
from bertvision_stream.tasks import TASKS

CONTESTANTS = ("bert", "head", "ensemble")


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
    spreads: Mapping[str, Spread]


def metric_rows(entries: Sequence[Entry]) -> list[Row]:
    """Every metric of every task that finished with at least one seed, in order."""
    rows = []
    for task in dict.fromkeys(entry.task for entry in entries):
        done = [entry.metrics["splits"] for entry in _finished(entries, task) if entry.metrics]
        for split, first in (done[0] if done else {}).items():
            for metric in _metrics(task, first):
                spreads = {
                    name: Spread.of([splits[split][name][metric] for splits in done])
                    for name in CONTESTANTS
                }
                rows.append(Row(task, split, metric, first["examples"], spreads))
    return rows


def glue_means(entries: Sequence[Entry]) -> Mapping[str, Spread]:
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
        name: Spread.of(
            [fmean(_score(task, s, name) for task, s in runs.items()) for runs in complete]
        )
        for name in CONTESTANTS
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
