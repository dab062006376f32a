"""A run's results for people: a table for the console, `results.md`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from bertvision_stream.report import squad as spans_report
from bertvision_stream.report.records import RunReport, SplitResult
from bertvision_stream.report.tables import (
    Grid,
    _bold,
    _grid,
    _Header,
    _Mark,
    _marked,
    _Rows,
    _star,
    markdown_grid,
    text_grid,
)
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.plan_check import describe_check
from bertvision_stream.training.metrics import EnsembleMethod
from bertvision_stream.utils.units import format_bytes, format_count, format_seconds

_WIDTH = 96  # columns that the facts under a table are wrapped to


def render_table(report: RunReport) -> str:
    """The results as text of at most 100 columns for a console: a title, the table, the facts."""
    header, rows = _score_table(report, _star)
    lines = [_title(report), _data_line(report), "", text_grid(header, rows)]
    lines += ["* best of its column", ""]
    for text in kind_table(report.task, report.splits, report.ensemble):
        lines += [text, ""]
    for subject, fact in _facts(report):
        lines.append(textwrap.fill(f"{subject:<8}{fact}", _WIDTH, subsequent_indent=" " * 8))
    return "\n".join(lines) + "\n"


def render_markdown(report: RunReport) -> str:
    """The content of `results.md`: the table, the facts, each epoch, the settings, the command."""
    header, rows = _score_table(report, _bold)
    facts = "\n".join(f"- **{subject}**: {fact}" for subject, fact in _facts(report))
    settings = [[f"`{key}`", f"`{value}`"] for key, value in report.settings.items()]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sections = [
        f"# {_title(report)}",
        _data_line(report),
        markdown_grid(header, rows),
        *_kind_sections(report),
        facts,
        "## Epochs of the head",
        markdown_grid(*_epoch_table(report, _bold)),
        "## Run it again",
        f"```bash\n{report.command}\n```",
        f"Made with {versions}.",
        "## Settings",
        markdown_grid([("", "key"), ("", "value")], settings, align_right=False),
    ]
    return "\n\n".join(sections) + "\n"


@dataclass(frozen=True)
class ReportParts:
    """What every way of showing a run shows."""

    title: str
    data: str
    scores: Grid
    facts: Sequence[tuple[str, str]]
    epochs: Grid
    more: Sequence[tuple[str, Grid, str]]
    """What tasks of a kind have beside: title, table, a note below it."""


def report_parts(report: RunReport, mark: _Mark) -> ReportParts:
    """A run's results as parts.

    Args:
        report: The run.
        mark: How the best score and the chosen epoch are shown.
    """
    scores, epochs = _grid(*_score_table(report, mark)), _grid(*_epoch_table(report, mark))
    more = []
    if report.task.per_token:
        table = spans_report.threshold_table(report.splits, report.ensemble)
        more.append((spans_report.TITLE, _grid(*table), spans_report.NOTE))
    return ReportParts(_title(report), _data_line(report), scores, _facts(report), epochs, more)


def kind_table(task: Task, splits: Sequence[SplitResult], ensemble: EnsembleMethod) -> list[str]:
    """What tasks of a kind have beside the scores, for a console: blocks of lines, or none."""
    if not task.per_token:
        return []
    grid = text_grid(*spans_report.threshold_table(splits, ensemble))
    return [spans_report.TITLE, f"{grid}\n{textwrap.fill(spans_report.NOTE, _WIDTH)}"]


def _kind_sections(report: RunReport) -> list[str]:
    """The same as Markdown."""
    if not report.task.per_token:
        return []
    grid = markdown_grid(*spans_report.threshold_table(report.splits, report.ensemble))
    return [f"## {spans_report.TITLE}", grid, spans_report.NOTE]


def _title(report: RunReport) -> str:
    return f"{report.task.name}: {report.head.kind} head on {report.backbone}, seed {report.seed}"


def _data_line(report: RunReport) -> str:
    validation = " + ".join(
        f"{split.examples:,} {name}".strip()
        for name, split in zip(_short_names(report), report.splits, strict=True)
    )
    train = report.train
    return (
        f"{train.examples:,} training examples ({train.tokens:,} tokens), "
        f"{validation} validation examples"
    )


def _short_names(report: RunReport) -> list[str]:
    """Names that tell the splits apart: none if there is one, mnli's without `validation_`."""
    if len(report.splits) == 1:
        return [""]
    return [split.name.removeprefix("validation_") for split in report.splits]


def _score_table(report: RunReport, mark: _Mark) -> tuple[_Header, _Rows]:
    """BERT, head and ensemble as rows; each metric of each split and the costs as columns."""
    header = [("", "")]
    columns = []
    for name, split in zip(_short_names(report), report.splits, strict=True):
        for metric in report.task.metrics:
            header.append((name, metric))
            values = [split.bert[metric], split.head[metric], split.ensemble[metric]]
            columns.append(_marked(values, mark))
    header += [("parameters", "trained"), ("share of", "backbone"), ("", "time")]

    finetune, head = report.finetune, report.head
    finetune_time = "reused" if finetune.reused else format_seconds(report.seconds.finetune)
    columns += [
        [format_count(finetune.parameters), format_count(head.parameters), "-"],
        [
            _share(count, head.backbone_parameters)
            for count in (finetune.parameters, head.parameters)
        ]
        + ["-"],
        [finetune_time, format_seconds(report.seconds.stream), "-"],
    ]
    epochs = "1 epoch" if finetune.epochs == 1 else f"{finetune.epochs:g} epochs"
    names = [
        f"BERT, fine-tuned {epochs}" if finetune.epochs else "BERT, not fine-tuned",
        f"{head.kind} head",
        f"ensemble of both ({report.ensemble})",
    ]
    return header, [list(row) for row in zip(names, *columns, strict=True)]


def _epoch_table(report: RunReport, mark: _Mark) -> tuple[_Header, _Rows]:
    """One row for each epoch of the head, the chosen one marked."""
    header = [("", "epoch"), ("", "training loss"), ("", "validation loss")]
    for name in _short_names(report):
        header += [(name, metric) for metric in report.task.metrics]
    rows = []
    for record in report.train.history:
        chosen = record.epoch == report.train.best_epoch
        row = [mark(f"{record.epoch} (chosen)") if chosen else str(record.epoch)]
        row += [f"{record.loss:.4f}", f"{record.validation_loss:.4f}"]
        for split in report.splits:
            scores = record.scores[split.name]
            row += [f"{scores[metric]:.4f}" for metric in report.task.metrics]
        rows.append(row)
    return header, rows


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """What stands under the table: subject and sentence."""
    train, stream = report.train, report.stream
    ran = len(train.history)
    stopped = f" ({train.planned_epochs} were planned)" if ran < train.planned_epochs else ""
    rate = stream.tokens_extracted / max(report.seconds.stream, 1e-9)
    on_disk = stream.spilled_bytes + stream.fallback_bytes
    disk = f"{format_bytes(on_disk)} of hidden states written"
    if on_disk:
        disk += " by Ray, whose object store was full: lower stream.budget"
    return [
        ("head", f"epoch {train.best_epoch} of {ran}{stopped}, chosen by {train.chosen_by}"),
        (
            "stream",
            f"{stream.tokens_extracted:,} tokens extracted in {stream.blocks_extracted:,} blocks "
            f"({rate:,.0f} tokens/s, training included), "
            f"{stream.blocks_from_cache:,} blocks from the cache",
        ),
        (
            "memory",
            f"{format_bytes(stream.peak_bytes)} of hidden states at most, "
            f"of a budget of {format_bytes(stream.budget_bytes)}",
        ),
        ("disk", f"{disk}; BERTVision's dump would take {format_bytes(stream.dump_bytes_avoided)}"),
        *([("plan", describe_check(report.plan))] if report.plan else []),
        ("time", f"{format_seconds(report.seconds.total)} in all"),
        *(("note", note) for note in report.notes),
    ]


def _share(count: int, of: int) -> str:
    percent = 100 * count / of
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


if __name__ == "__main__":
    from bertvision_stream.report.__main__ import main

    sys.exit(main(sys.argv[1:]))
