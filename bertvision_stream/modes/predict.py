"""`mode=predict`: what is needed, checked before torch is loaded; then scores, files, a table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertvision_stream.data.new_rows import NewRows, read_new_rows
from bertvision_stream.modes.finished_run import FinishedRun, open_finished_run
from bertvision_stream.modes.run_folder import LOG, open_prediction_folder
from bertvision_stream.modes.submission import (
    ZIP,
    expected_rows,
    file_name,
    missing_files,
    render_file,
    zip_of,
)
from bertvision_stream.report.records import SplitResult, splits_json
from bertvision_stream.report.tables import text_grid
from bertvision_stream.report.text import kind_table
from bertvision_stream.settings.settings import Settings
from bertvision_stream.settings.tasks import GLUE_TASKS
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_bytes, write_json, write_text
from bertvision_stream.utils.log import log, logging_to, show_progress
from bertvision_stream.utils.torch_environment import SHARED_CORES, TORCH_ENVIRONMENT
from bertvision_stream.utils.units import format_seconds


@dataclass(frozen=True)
class Prediction:
    """A finished run, and the rows that it is to score."""

    run: FinishedRun
    rows: list[NewRows]


def read_predictions(settings: Settings) -> list[Prediction]:
    """Find the runs and read the rows, without torch.

    Raises:
        ConfigError: A run cannot be used, or is not one of the task that is given; two are of one
            task.
        DataError: Rows cannot be found, read or used.
    """
    assert settings.run is not None  # settings refuse mode=predict without it
    runs = [open_finished_run(name) for name in settings.run]
    names = [run.task.name for run in runs]
    for run in runs:
        if settings.tasks and run.task.name not in settings.tasks:
            raise ConfigError(
                f"task={','.join(settings.tasks)}: the run in {run.folder} has learned "
                f"{run.task.name}; leave task out"
            )
        if names.count(run.task.name) > 1:
            raise ConfigError(f"run: more than one of the runs has learned {run.task.name}")
    return [Prediction(run, read_new_rows(run.task, settings.data.path)) for run in runs]


def makes_submission(predictions: Iterable[Prediction]) -> bool:
    """Whether there are rows of a split that GLUE wants predictions of."""
    return any(
        file_name(each.run.task, rows.split.name) for each in predictions for rows in each.rows
    )


def predict(
    prediction: Prediction,
    folder: Path,
    *,
    source: str,
    show_progress: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Score rows, and write what comes out.

    Args:
        prediction: The run and the rows.
        folder: For the results; it is there.
        source: Whose predictions go into files for GLUE: `head`, `bert` or `ensemble`.
        show_progress: Whether to draw bars.
        say: Prints a line.

    Returns:
        Files for GLUE's leaderboard by name, written to the folder as well.

    Raises:
        BackboneError: The model cannot be loaded.
        OutputError: The folder cannot be written.
    """
    say("starting torch and transformers ...")
    for name, value in (TORCH_ENVIRONMENT | SHARED_CORES).items():
        os.environ.setdefault(name, value)
    from bertvision_stream.modes.scoring import Scorer

    start = time.perf_counter()
    run, task = prediction.run, prediction.run.task
    scorer = Scorer(run)
    objective = scorer.objective
    files: dict[str, str] = {}
    splits: list[SplitResult] = []
    for rows in prediction.rows:
        name, num_rows = rows.split.name, len(rows.split)
        scored = scorer.score(rows.split, show_progress=show_progress)
        store, scores = scored.store, scored.predictor_scores.by_name()
        objective.write_predictions(
            folder, rows.split, store, scored.predictor_scores, labelled=rows.labelled
        )
        path = folder / f"predictions_{name}.jsonl"
        say(f"{name}: {store.describe(run.settings.data.max_length)}: {path}")
        if rows.labelled:
            metrics = {key: objective.all_metrics(each, store) for key, each in scores.items()}
            splits.append(SplitResult(name=name, examples=num_rows, **metrics))
        if file := file_name(task, name):
            files[file] = render_file(task, scores[source], rows.index)
            write_text(folder / file, files[file])
            if num_rows != expected_rows(task, name):
                say(
                    f"note: {file} has {num_rows:,} rows and GLUE's test split "
                    f"{expected_rows(task, name):,}: the leaderboard will not take it"
                )
    if run.settings.finetune.epochs == 0:
        say("note: BERT's own classifier was not fine-tuned by the run; it may be untrained")
    if splits:
        _report(folder, run, splits, time.perf_counter() - start, say)
    return files


def _report(
    folder: Path,
    run: FinishedRun,
    splits: Sequence[SplitResult],
    seconds: float,
    say: Callable[[str], None],
) -> None:
    header = [("", "split"), ("", "examples"), ("", "metric")]
    header += [("", "BERT"), ("", "head"), ("", "ensemble")]
    rows = [
        [
            split.name,
            f"{split.examples:,}",
            metric,
            *(f"{scores[metric]:.4f}" for scores in (split.bert, split.head, split.ensemble)),
        ]
        for split in splits
        for metric in run.task.metrics
    ]
    more = kind_table(run.task, splits, run.settings.evaluate.ensemble)
    say("\n" + "\n\n".join([text_grid(header, rows), *more]) + f"\nin {format_seconds(seconds)}")
    content = {
        "task": run.task.name,
        "run": str(run.folder),
        "backbone": run.settings.backbone.name,
        "seed": run.settings.seed,
        "head": {"kind": run.head_kind},
        "splits": splits_json(splits),
        "seconds": {"total": seconds},
    }
    write_json(folder / "metrics.json", content)


def write_submission(folder: Path, files: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Write the zip for GLUE's leaderboard, and say what it lacks.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(folder / ZIP, zip_of(files))
    say(f"for GLUE's leaderboard: {folder / ZIP} with {', '.join(files)}")
    if missing := missing_files(files):
        say(
            f"note: GLUE takes a submission of all its files only, and this one lacks "
            f"{', '.join(missing)}; name a run for each of {', '.join(GLUE_TASKS)}: run=[...]"
        )


def run_predictions(settings: Settings) -> None:
    """Score new rows with finished runs; all is checked before the first scores."""
    predictions = read_predictions(settings)
    folders = [open_prediction_folder(settings, each.run.task.name) for each in predictions]
    last = folders[-1]
    if len(folders) > 1 and makes_submission(predictions):
        last = open_prediction_folder(settings, "glue")
    files: dict[str, str] = {}
    for prediction, folder in zip(predictions, folders, strict=True):
        with logging_to(folder / LOG):
            log.info("%s: results in %s", prediction.run.task.name, folder)
            files |= predict(
                prediction,
                folder,
                source=settings.predict.source,
                show_progress=show_progress(),
                say=log.info,
            )
    if files:
        with logging_to(last / LOG):
            write_submission(last, files, log.info)
