"""The plots of `mode=study`: scores against the amount of data, and of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bertvision_stream.report.study import HEAD, HEAD_ON_ALL, Study, compared, score_name
from bertvision_stream.settings.tasks import Task


def write_study_plots(study: Study, task: Task, folder: Path) -> list[Path]:
    """Writes `study_fractions*.png` and `study_finetuning.png`, each if it compares anything.

    Args:
        study: The finished study.
        task: What was learned.
        folder: The folder of the plots, which is made.

    Returns:
        The files.
    """
    # matplotlib is slow to import, and reading or printing a study needs none of it.
    from bertvision_stream.report.figures import escape_mathtext, save_figures
    from bertvision_stream.report.plots import draw_scores_against

    subject = f"{study.task}, {study.head} head on {study.backbone}"
    score = f"{escape_mathtext(score_name(task))} (validation)"
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
    """Scores by predictor and by the x axis of a plot.

    Args:
        study: The study.
        x: The place on the axis for an amount of fine-tuning and a fraction.
        epochs: The only amount of fine-tuning to be shown; None for all.
        fraction: The only fraction to be shown; None for all.
    """
    series: dict[str, dict[float, list[float]]] = {}
    for name in compared(study):
        points = {
            x(e, f): scores
            for (e, f), scores in study.scores(name).items()
            if epochs in (None, e) and fraction in (None, f)
        }
        # Where both heads are the same at every point, one of the two lines is enough.
        same = name == HEAD_ON_ALL and points == series.get(HEAD)
        if points and not same:
            series[name] = points
    return series
