"""Several runs as one: the scores of each task, their means, and what BERTVision published."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any

from bertvision_stream.report.tables import PREDICTORS, WIDTH, MeanStd, Table, mark_best
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS, metric_title
from bertvision_stream.training.metrics import main_score
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import read_json

SOURCE = "https://github.com/cbenge509/BERTVision"
_SHORT_SPLITS = {"validation_matched": "-m", "validation_mismatched": "-mm"}  # mnli's

SIZES = ("base", "large")
"""The sizes of BERTVision's two BERTs, in the order of columns."""


@dataclass(frozen=True)
class Published:
    """What BERTVision published of one metric on one validation split.

    Attributes:
        metric: The name of the metric.
        bert: The scores of BERT-base and BERT-large, fine-tuned.
        head: The scores of BERTVision's head on each of them.
    """

    metric: str
    bert: tuple[float, float]
    head: tuple[float, float]


def _of(metric: str, base: tuple[float, float], large: tuple[float, float]) -> Published:
    """The scores of BERT and then of its head, for each size."""
    return Published(metric, (base[0], large[0]), (base[1], large[1]))


# The results of the README (index.md) of SOURCE, in which BERT-base and BERT-large, both uncased,
# and heads on their hidden states were tuned task by task.
PUBLISHED: Mapping[tuple[str, str], tuple[Published, ...]] = {
    ("cola", "validation"): (_of("matthews", (0.5650, 0.6000), (0.5960, 0.4320)),),
    ("sst2", "validation"): (_of("accuracy", (0.9200, 0.9270), (0.9330, 0.9290)),),
    ("mrpc", "validation"): (_of("accuracy", (0.8280, 0.8400), (0.7680, 0.8370)),),
    ("stsb", "validation"): (
        _of("pearson", (0.8880, 0.8620), (0.8940, 0.8800)),
        _of("spearman", (0.8860, 0.8590), (0.8910, 0.8790)),
    ),
    ("qqp", "validation"): (_of("accuracy", (0.8890, 0.8860), (0.8690, 0.8970)),),
    ("mnli", "validation_matched"): (_of("accuracy", (0.8240, 0.8220), (0.8530, 0.8490)),),
    ("mnli", "validation_mismatched"): (_of("accuracy", (0.8290, 0.8290), (0.8510, 0.8500)),),
    ("qnli", "validation"): (_of("accuracy", (0.9010, 0.8920), (0.9120, 0.9100)),),
    ("rte", "validation"): (_of("accuracy", (0.6570, 0.7260), (0.6640, 0.5920)),),
    ("squad_v2", "validation"): (
        _of("exact", (0.6941, 0.7010), (0.7758, 0.7696)),
        _of("f1", (0.7257, 0.7342), (0.8058, 0.8027)),
    ),
}
"""BERTVision's scores by task and validation split; wnli is not among them."""


def published(task: str, split: str, metric: str) -> Published | None:
    """What was published of a task's metric on a split, if anything."""
    rows = PUBLISHED.get((task, split), ())
    return next((row for row in rows if row.metric == metric), None)


def size_of(backbone: str) -> str | None:
    """Which of BERTVision's two backbones this is, by its name; None for another one."""
    name = PurePath(backbone).name
    return next((size for size in SIZES if name == f"bert-{size}-uncased"), None)


@dataclass(frozen=True)
class Entry:
    """One run of a suite.

    Attributes:
        task: The task of the run.
        seed: The seed of the run.
        folder: The folder of its results; empty for a run that left none.
        metrics: The content of its `metrics.json`; None for a run that left none.
        failure: Why it failed; empty for a run that did not.
    """

    task: str
    seed: int
    folder: str = ""
    metrics: Mapping[str, Any] | None = None
    failure: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of one validation split of a task: mean and deviation by predictor.

    Attributes:
        task: The name of the task.
        split: The name of the split.
        metric: The name of the metric.
        examples: The number of the split's rows.
        spreads: The mean and the deviation over the seeds, by the keys of `PREDICTORS`.
        difference: Those of the head's score less BERT's with the same seed.
    """

    task: str
    split: str
    metric: str
    examples: int
    spreads: Mapping[str, MeanStd]
    difference: MeanStd


def metric_rows(entries: Sequence[Entry]) -> list[Row]:
    """Every metric of every task that finished with at least one seed, in order."""
    rows = []
    for task in dict.fromkeys(entry.task for entry in entries):
        done = [entry.metrics["splits"] for entry in _finished(entries, task) if entry.metrics]
        for split, first in (done[0] if done else {}).items():
            for metric in _metrics(task, first):
                scores = {
                    name: [splits[split][name][metric] for splits in done] for name in PREDICTORS
                }
                spreads = {name: MeanStd.of(values) for name, values in scores.items()}
                rows.append(
                    Row(task, split, metric, first["examples"], spreads, _difference(scores))
                )
    return rows


def _difference(scores: Mapping[str, Sequence[float]]) -> MeanStd:
    """The head's scores less BERT's, seed by seed."""
    pairs = zip(scores["head"], scores["bert"], strict=True)
    return MeanStd.of([head - bert for head, bert in pairs])


def glue_means(entries: Sequence[Entry]) -> Mapping[str, Sequence[float]]:
    """The mean over tasks with each seed, by predictor.

    It is taken as GLUE takes it: over each task's mean of its metrics. The tasks are those that
    finished with some seed, the seeds those with which all of these tasks finished. There are no
    means where there is no such seed.
    """
    by_seed: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        if entry.metrics is not None:
            by_seed.setdefault(entry.seed, {})[entry.task] = entry.metrics["splits"]
    tasks = {task for runs in by_seed.values() for task in runs}
    complete = [runs for runs in by_seed.values() if runs.keys() == tasks]
    return {
        name: [fmean(_score(task, s, name) for task, s in runs.items()) for runs in complete]
        for name in PREDICTORS
        if complete
    }


def published_means(rows: Sequence[Row]) -> dict[str, Any]:
    """The mean over tasks of only those metrics that BERTVision published, ours and theirs.

    Returns:
        `tasks`, the number of tasks, and the means: ours by predictor, and BERTVision's as
        `bert_base`, `head_base`, `bert_large` and `head_large`. Empty where none of the tasks was
        published.
    """
    ours: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        figure = published(row.task, row.split, row.metric)
        if figure is not None:
            values = {name: spread.mean for name, spread in row.spreads.items()}
            for i, size in enumerate(SIZES):
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
        of_split[row.metric]["head_minus_bert"] = vars(row.difference)
    return {
        "command": command,
        "runs": [_entry_json(entry) for entry in entries],
        "failed": sum(bool(entry.failure) for entry in entries),
        "summary": summary,
        "mean": {name: vars(MeanStd.of(values)) for name, values in glue_means(entries).items()},
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
    """The `metrics.json` in the folder of a run; None where the run left none.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    way_out = "Delete it, and with resume=true its run ends again."
    content = read_json(path, way_out)
    try:
        str(content["backbone"])
        for split in content["splits"].values():
            int(split["examples"])
            for name in PREDICTORS:
                split[name].items()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}). {way_out}") from error
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
    """The task's metrics, without what else `metrics.json` holds of a split."""
    return list(TASKS[task].metrics if task in TASKS else split["head"])


def _score(task: str, splits: Mapping[str, Any], predictor: str) -> float:
    """The one score of a predictor on a task, from the splits of a `metrics.json`."""
    return main_score(
        {
            name: {metric: split[predictor][metric] for metric in _metrics(task, split)}
            for name, split in splits.items()
        }
    )


def render_suite(entries: Sequence[Entry]) -> str:
    """Text for a console: the table, what it means, and what failed."""
    # With the differences the table would be wider than a console.
    table = _table(entries, differences=False).text(mark="*")
    lines = [table, "* best of BERT, head and ensemble"]
    notes = [*_notes(entries), *(f"failed: {line}" for line in _failures(entries))]
    lines += [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes]
    return "\n".join(lines) + "\n"


def render_suite_markdown(entries: Sequence[Entry], command: str) -> str:
    """The content of `summary.md`."""
    sections = ["# Summary", _table(entries, differences=True).markdown()]
    sections.append("\n".join(f"- {note}" for note in _notes(entries)))
    if failures := _failures(entries):
        sections.append("## Failed\n\n" + "\n".join(f"- {line}" for line in failures))
    runs = [[entry.task, str(entry.seed), entry.folder or "-"] for entry in entries]
    sections += ["## Runs", Table(["task", "seed", "folder"], runs).markdown(left=3)]
    sections += ["## Run it again", f"```bash\n{command}\n```"]
    return "\n\n".join(sections) + "\n"


def _table(entries: Sequence[Entry], *, differences: bool) -> Table:
    """Every metric of every task, and the means: ours, then what BERTVision published, if any.

    Args:
        entries: The runs.
        differences: Whether there is a column for what the head gains over BERT.
    """
    theirs = [f"{size}\n{PREDICTORS[key]}" for size in SIZES for key in ("bert", "head")]
    theirs *= _any_published(entries)
    gained = ["head - BERT"] * differences
    titles = ["task", "metric", *PREDICTORS.values(), *gained, *theirs]
    nothing = ["-"] * len(theirs)
    rows: list[list[str]] = []
    found = metric_rows(entries)
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [row for row in found if row.task == task]
        if not of_task:
            rows.append([task, "failed", *["-"] * (len(titles) - 2 - len(theirs)), *nothing])
        f1_of = [e.metrics.get("f1_class") for e in _finished(entries, task) if e.metrics]
        for row in of_task:
            name = task + _SHORT_SPLITS.get(row.split, "")
            figure = published(row.task, row.split, row.metric)
            figures = [] if figure is None else zip(figure.bert, figure.head, strict=True)
            shown = [f"{score:.4f}" for pair in figures for score in pair] or nothing
            cells = [*_cells(row.spreads), *[row.difference.as_difference] * differences]
            rows.append([name, metric_title(row.metric, f1_of[0]), *cells, *shown])
    if (name := _name_of_means(entries)) and (means := glue_means(entries)):
        cells = _cells({name: MeanStd.of(values) for name, values in means.items()})
        cells += [_difference(means).as_difference] * differences
        rows.append([name, "", *cells, *nothing])
    if like := published_means(found):
        ours = {name: MeanStd.of([like[name]]) for name in PREDICTORS}
        shown = [f"{like[f'{key}_{size}']:.4f}" for size in SIZES for key in ("bert", "head")]
        cells = [*_cells(ours), *[f"{like['head'] - like['bert']:+.4f}"] * differences]
        rows.append(["mean, both", "", *cells, *shown])
    return Table(titles, rows)


def _any_published(entries: Sequence[Entry]) -> bool:
    """Whether BERTVision published scores of some task."""
    return not {entry.task for entry in entries}.isdisjoint(task for task, _ in PUBLISHED)


def _name_of_means(entries: Sequence[Entry]) -> str:
    """What the means over the tasks are called; empty where a single task is none of GLUE's."""
    tasks = {entry.task for entry in entries}
    if tasks <= {*GLUE_TASKS}:
        return "mean, GLUE"
    return "mean" if len(tasks) > 1 else ""


def _cells(spreads: Mapping[str, MeanStd]) -> list[str]:
    """The scores of the three predictors, the best marked."""
    return mark_best([spreads[name] for name in PREDICTORS])


def _notes(entries: Sequence[Entry]) -> list[str]:
    """What the rows and columns of the table mean, and how far they can be compared."""
    done = [entry for entry in entries if entry.metrics is not None]
    notes = []
    if len({entry.seed for entry in entries}) > 1:
        notes.append(
            "±: sample standard deviation over the seeds that finished; of head - BERT, the mean "
            "difference with the same seed, its standard error"
        )
        for task in dict.fromkeys(entry.task for entry in entries):
            of_task = [entry for entry in entries if entry.task == task]
            finished = sum(entry in done for entry in of_task)
            if 0 < finished < len(of_task):
                notes.append(f"{task}: {finished} of {len(of_task)} seeds")
    tasks, finished_tasks = ({entry.task for entry in some} for some in (entries, done))
    if len(finished_tasks) < len(tasks):
        notes.append(f"means are of {len(finished_tasks)} of {len(tasks)} tasks: others failed")
    theirs = _any_published(entries)
    if name := _name_of_means(entries):
        both = "; mean, both: of those metrics alone that BERTVision published as well" * theirs
        notes.append(
            f"{name}: over tasks, of each one's mean of metrics and splits, as GLUE has it{both}"
        )
    if not theirs:
        return notes
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
