"""A study for people: a table for the console, `study.md`, and plots."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from bertvision_stream.report import markdown_grid, text_grid
from bertvision_stream.study import BERT, HEAD, HEAD_ON_ALL, Study
from bertvision_stream.tasks import Task

_WIDTH = 96

NEARLY_ALL = 0.95
"""Of the score with the largest fraction: what counts as enough data."""


def score_name(task: Task) -> str:
    """What the one score of a task is, in words."""
    metrics = [metric.replace("_", " ") for metric in task.metrics]
    name = metrics[0] if len(metrics) == 1 else f"mean of {' and '.join(metrics)}"
    return f"{name}, mean of {len(task.validation_splits)} splits" if _several(task) else name


def _several(task: Task) -> bool:
    return len(task.validation_splits) > 1


def render_study(study: Study, task: Task) -> str:
    """Text for a console."""
    lines = [f"{_title(study)}; {score_name(task)} on validation", ""]
    lines.append(text_grid(*_table(study)))
    lines += [textwrap.fill(note, _WIDTH, break_on_hyphens=False) for note in _notes(study)]
    return "\n".join(lines) + "\n"


def render_study_markdown(study: Study, task: Task, command: str, plots: list[Path]) -> str:
    """The content of `study.md`."""
    sections = [
        f"# {_title(study)}",
        f"Scores are {score_name(task)} on validation.",
        markdown_grid(*_table(study)),
        "\n".join(f"- {note}" for note in _notes(study)),
        *(f"![{plot.stem.replace('_', ' ')}](plots/{plot.name})" for plot in plots),
        "## Run it again",
        f"```bash\n{command}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _title(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    plural = "s" if len(study.seeds) > 1 else ""
    return f"{study.task}: {study.head} head on {study.backbone}, seed{plural} {seeds}"


def _predictors(study: Study) -> list[str]:
    """Without the second head where it never is another one."""
    shared = any(point.predictor == HEAD_ON_ALL for point in study.points)
    return [BERT, HEAD, *([HEAD_ON_ALL] if shared else [])]


def _table(study: Study) -> tuple[list[tuple[str, str]], list[list[str]]]:
    header = [("epochs of", "fine-tuning"), ("share of", "rows"), ("", "rows")]
    titles = {BERT: ("", "BERT"), HEAD: ("", "head"), HEAD_ON_ALL: ("head on", "BERT of all rows")}
    predictors = _predictors(study)
    header += [titles[name] for name in predictors]
    spreads = {name: study.spreads(name) for name in predictors}
    rows = []
    for epochs in study.finetune_epochs:
        for fraction in study.fractions:
            cells = [spreads[name].get((epochs, fraction)) for name in predictors]
            shown = ["-" if cell is None else str(cell) for cell in cells]
            examples = f"{study.examples(fraction):,}"
            rows.append([f"{epochs:g}", f"{fraction:g}", examples, *shown])
    return header, rows


def _notes(study: Study) -> list[str]:
    largest = study.fractions[-1]
    notes = [
        "BERT: fine-tuned on these rows, with its own classifier; head: trained on the same rows, "
        "on the hidden states of that BERT"
    ]
    if HEAD_ON_ALL in _predictors(study):
        notes.append(
            f"{HEAD_ON_ALL}: trained on these rows, on a BERT that was fine-tuned on "
            f"{'all' if largest == 1 else f'{largest:g} of the'} rows, and so has seen more labels "
            f"than its head"
        )
    if 0 in study.finetune_epochs:
        notes.append("0 epochs: BERT as it came, with a score only if it came with a classifier")
    if len(study.seeds) > 1:
        notes.append(
            "±: sample standard deviation over the seeds; each draws its own rows, and seeds "
            "fine-tuning and head"
        )
    notes += _enough(study)
    heads = sum(stream.heads for stream in study.streams)
    tokens = sum(stream.tokens_extracted for stream in study.streams)
    notes.append(
        f"{heads} heads learned from {len(study.streams)} streams, one for each BERT: {tokens:,} "
        f"tokens extracted, as many as for one head on each"
    )
    notes += [f"failed: {failure}" for failure in study.failures]
    return notes


def _enough(study: Study) -> list[str]:
    """With how much data each predictor has most of its score."""
    if len(study.fractions) < 2:
        return []
    largest, notes = study.fractions[-1], []
    for epochs in study.finetune_epochs:
        enough = []
        for name in _predictors(study):
            if name == HEAD_ON_ALL and epochs == 0:  # the same head
                continue
            means = {f: s.mean for (e, f), s in study.spreads(name).items() if e == epochs}
            if means.get(largest, 0) > 0:
                least = min(f for f, mean in means.items() if mean >= NEARLY_ALL * means[largest])
                enough.append(f"{name} {least:g}")
        if enough:
            notes.append(
                f"{epochs:g} epochs of fine-tuning: the smallest share of the rows that reaches "
                f"{NEARLY_ALL:.0%} of the score with {largest:g} is for {', '.join(enough)}"
            )
    return notes


def write_study_plots(study: Study, task: Task, folder: Path) -> list[Path]:
    """Writes `study_fractions*.png` and `study_finetuning.png`, those that compare anything."""
    from bertvision_stream.figures import save_figures  # they bring matplotlib: only now
    from bertvision_stream.plots import draw_scores_against

    subject = f"{study.task}, {study.head} head on {study.backbone}"
    score = f"{score_name(task)} (validation)"
    figures = {}
    if len(study.fractions) > 1:
        several = len(study.finetune_epochs) > 1
        for epochs in study.finetune_epochs:
            series = _series(study, lambda epochs_of, fraction: fraction, epochs=epochs)
            figures["study_fractions" + (f"_{epochs:g}" if several else "")] = draw_scores_against(
                f"{subject}\nhow much data is enough, with {epochs:g} epochs of fine-tuning",
                series,
                x_label=f"share of the training rows (1: {_all_rows(study):,} rows)",
                score_label=score,
            )
    if len(study.finetune_epochs) > 1:
        largest = study.fractions[-1]
        series = _series(study, lambda epochs_of, fraction: epochs_of, fraction=largest)
        figures["study_finetuning"] = draw_scores_against(
            f"{subject}\nhow much fine-tuning is enough, with {study.examples(largest):,} rows",
            series,
            x_label="fine-tuning of BERT (epochs)",
            score_label=score,
            log_x=False,
        )
    return save_figures(figures, folder) if figures else []


def _all_rows(study: Study) -> int:
    largest = study.fractions[-1]
    return round(study.examples(largest) / largest)


def _series(
    study: Study,
    x: Callable[[float, float], float],
    *,
    epochs: float | None = None,
    fraction: float | None = None,
) -> dict[str, dict[float, list[float]]]:
    """Scores by predictor and by x, of one amount of fine-tuning or of one fraction."""
    series: dict[str, dict[float, list[float]]] = {}
    for name in _predictors(study):
        points = {
            x(e, f): scores
            for (e, f), scores in study.scores(name).items()
            if epochs in (None, e) and fraction in (None, f)
        }
        same = name == HEAD_ON_ALL and points == series.get(HEAD)  # heads of two names
        if points and not same:
            series[name] = points
    return series
