"""A run's results for people: a table for the console, `results.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bertvision_stream.report.records import RunReport, SplitResult
from bertvision_stream.report.tables import PREDICTORS, WIDTH, Best, MeanStd, Table, mark_best
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import EnsembleMethod
from bertvision_stream.utils.units import format_bytes, format_count, format_seconds, format_value

_THRESHOLD_NOTE = (
    "No answer is predicted where it scores higher than the best span by more than the threshold. "
    "tuned: the threshold with the highest F1 on these very questions, which flatters a little. "
    "always: an answer is predicted for every question."
)
# The title and the metric of each column of the table of thresholds. Questions without an answer
# have no column for F1: where nothing is or should be answered, exact match and F1 are equal.
_THRESHOLD_COLUMNS = {
    "exact": "all\nexact",
    "f1": "f1",
    "exact_answerable": "answerable\nexact",
    "f1_answerable": "f1",
    "exact_unanswerable": "unanswerable\nexact",
}


@dataclass(frozen=True)
class Section:
    """A table that tasks of some kinds have beside the scores, with a note below it."""

    title: str
    table: Table
    note: str

    def text(self) -> str:
        """The section for a console."""
        return f"{self.title}\n\n{self.table.text()}\n{textwrap.fill(self.note, WIDTH)}"

    def markdown(self) -> str:
        """The section as Markdown."""
        return f"## {self.title}\n\n{self.table.markdown()}\n\n{self.note}"


@dataclass(frozen=True)
class ReportParts:
    """What the console, Markdown and HTML all show of a run.

    Attributes:
        title: The task, the head, the backbone and the seed.
        data: How many examples there are.
        scores: The scores and costs of the three predictors.
        sections: What the kind of the task adds.
        facts: Subjects and sentences about them.
        epochs: The losses and scores after each epoch of the head.
    """

    title: str
    data: str
    scores: Table
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]]
    epochs: Table


def report_parts(report: RunReport) -> ReportParts:
    """The parts of a run's report, whatever they are then rendered as."""
    return ReportParts(
        title=f"{report.task.name}: {report.head.kind} head on {report.backbone}, "
        f"seed {report.seed}",
        data=_data_line(report),
        scores=_score_table(report),
        sections=kind_sections(report.task, report.splits, report.ensemble),
        facts=list(_facts(report)),
        epochs=_epoch_table(report),
    )


def render_table(report: RunReport) -> str:
    """The results as text of at most 100 columns for a console: a title, the table, the facts."""
    parts = report_parts(report)
    lines = [parts.title, parts.data, "", parts.scores.text(), "* best of its column", ""]
    for section in parts.sections:
        lines += [section.text(), ""]
    for subject, fact in parts.facts:
        lines.append(textwrap.fill(f"{subject:<8}{fact}", WIDTH, subsequent_indent=" " * 8))
    return "\n".join(lines) + "\n"


def render_markdown(report: RunReport) -> str:
    """The content of `results.md`: the table, the facts, each epoch, the settings, the command."""
    parts = report_parts(report)
    settings = [[f"`{key}`", f"`{format_value(value)}`"] for key, value in report.settings.items()]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sections = [
        f"# {parts.title}",
        parts.data,
        parts.scores.markdown(),
        *(section.markdown() for section in parts.sections),
        "\n".join(f"- **{subject}**: {fact}" for subject, fact in parts.facts),
        "## Epochs of the head",
        parts.epochs.markdown(),
        "## Run it again",
        f"```bash\n{report.command}\n```",
        f"Made with {versions}.",
        "## Settings",
        Table(["key", "value"], settings).markdown(left=2),
    ]
    return "\n\n".join(sections) + "\n"


def render_predictions(task: Task, splits: Sequence[SplitResult], ensemble: EnsembleMethod) -> str:
    """The scores of `mode=predict` for a console: a table, and what the kind of the task adds."""
    rows = [
        [
            split.name,
            f"{split.examples:,}",
            task.metric_title(metric),
            *(f"{scores[metric]:.4f}" for scores in split.by_predictor().values()),
        ]
        for split in splits
        for metric in task.metrics
    ]
    table = Table(["split", "examples", "metric", *PREDICTORS.values()], rows)
    sections = kind_sections(task, splits, ensemble)
    return "\n\n".join([table.text(), *(section.text() for section in sections)])


def kind_sections(
    task: Task, splits: Sequence[SplitResult], ensemble: EnsembleMethod
) -> list[Section]:
    """What the kind of a task adds to the scores: for SQuAD, both kinds of question."""
    if not task.per_token:
        return []
    rows = [row for split in splits for row in _threshold_rows(split, ensemble)]
    table = Table(["", "threshold", *_THRESHOLD_COLUMNS.values()], rows)
    return [Section("Questions with and without an answer", table, _THRESHOLD_NOTE)]


def _threshold_rows(split: SplitResult, ensemble: EnsembleMethod) -> Iterator[list[str]]:
    """Each predictor at three thresholds: at 0, at the best one, and with an answer to all."""
    for key, scores in split.by_predictor().items():
        name = PREDICTORS[key] + (f" ({ensemble})" if key == "ensemble" else "")
        tuned = f"{scores['threshold_tuned']:.2f} (tuned)"
        for threshold, suffix in (("0", ""), (tuned, "_tuned"), ("always", "_always")):
            yield [name, threshold, *_threshold_cells(scores, suffix)]


def _threshold_cells(scores: Mapping[str, float], suffix: str) -> list[str]:
    keys = [f"{key}{suffix}" for key in _THRESHOLD_COLUMNS]
    # Questions that all are of one kind have no scores of the other.
    return [f"{scores[key]:.4f}" if key in scores else "-" for key in keys]


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


def _metric_titles(report: RunReport) -> list[str]:
    """The titles of columns of scores: the split, where there are several, over the metric."""
    return [
        f"{name}\n{report.task.metric_title(metric)}".strip()
        for name in _short_names(report)
        for metric in report.task.metrics
    ]


def _score_table(report: RunReport) -> Table:
    """BERT, head and ensemble as rows; each metric of each split and the costs as columns."""
    finetune, head = report.finetune, report.head
    epochs = "1 epoch" if finetune.epochs == 1 else f"{finetune.epochs:g} epochs"
    names = [
        f"BERT, fine-tuned {epochs}" if finetune.epochs else "BERT, not fine-tuned",
        f"{head.kind} head",
        f"ensemble of both ({report.ensemble})",
    ]
    scores = [
        mark_best([MeanStd.of([scores[metric]]) for scores in split.by_predictor().values()])
        for split in report.splits
        for metric in report.task.metrics
    ]
    trained = (finetune.parameters, head.parameters)
    finetune_time = "reused" if finetune.reused else format_seconds(report.seconds.finetune)
    costs = [
        [*map(format_count, trained), "-"],
        [*(_share(count, head.backbone_parameters) for count in trained), "-"],
        [finetune_time, format_seconds(report.seconds.stream), "-"],
    ]
    titles = ["", *_metric_titles(report), "parameters\ntrained", "share of\nbackbone", "time"]
    return Table(titles, list(zip(names, *scores, *costs, strict=True)))


def _epoch_table(report: RunReport) -> Table:
    """One row for each epoch of the head, the chosen one marked."""
    rows = []
    for record in report.train.records:
        chosen = record.epoch == report.train.best_epoch
        scores = [
            record.scores[split.name][metric]
            for split in report.splits
            for metric in report.task.metrics
        ]
        numbers = (record.validation_loss, *scores)
        epoch = Best(f"{record.epoch} (chosen)") if chosen else str(record.epoch)
        loss = f"{record.loss:.4f}" if record.epoch else "-"  # nothing was trained in epoch 0
        rows.append([epoch, loss, *(f"{number:.4f}" for number in numbers)])
    return Table(["epoch", "training loss", "validation loss", *_metric_titles(report)], rows)


def _facts(report: RunReport) -> Iterator[tuple[str, str]]:
    """What stands under the table: subjects and sentences."""
    train, stream = report.train, report.stream
    if (name := report.task.f1_class) is not None:
        other = report.task.label_names[0]
        yield "f1", f"of class {name!r}, the positive one; the other is {other!r}"
    ran = len(train.history)
    stopped = f" ({train.planned_epochs} were planned)" if ran < train.planned_epochs else ""
    is_bert = "" if train.best_epoch else ", the head as it began, which is BERT itself"
    which = f"epoch {train.best_epoch} of {ran}{stopped}{is_bert}"
    yield "head", f"{which}, chosen by {train.chosen_by}"
    rate = stream.tokens_extracted / max(report.seconds.stream, 1e-9)
    yield (
        "stream",
        f"{stream.tokens_extracted:,} tokens extracted in {stream.blocks_extracted:,} blocks "
        f"({rate:,.0f} tokens/s, training included), "
        f"{stream.blocks_from_cache:,} blocks from the cache",
    )
    yield (
        "memory",
        f"{format_bytes(stream.peak_bytes)} of hidden states at most, "
        f"of a budget of {format_bytes(stream.budget_bytes)}",
    )
    on_disk = stream.spilled_bytes + stream.fallback_bytes
    full = " by Ray, whose object store was full: lower stream.budget" if on_disk else ""
    written = (
        f"hidden states passed through {stream.store_file}, in which Ray keeps its object store"
        if stream.store_file
        else f"{format_bytes(on_disk)} of hidden states written{full}"
    )
    yield (
        "disk",
        f"{written}; BERTVision's dump would take {format_bytes(stream.dump_bytes_avoided)}",
    )
    yield "time", f"{format_seconds(report.seconds.total)} in all"
    for note in report.notes:
        yield "note", note


def _share(count: int, of: int) -> str:
    percent = 100 * count / of
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
