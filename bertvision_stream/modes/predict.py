"""`mode=predict`: checks what it is given before torch loads; then scores, files and a table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
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
from bertvision_stream.report.records import SplitResult, f1_json, splits_json
from bertvision_stream.report.text import render_predictions
from bertvision_stream.settings.settings import Settings
from bertvision_stream.settings.tasks import GLUE_TASKS
from bertvision_stream.utils.errors import ConfigError, DataError, Mistakes
from bertvision_stream.utils.files import write_bytes, write_json, write_text
from bertvision_stream.utils.log import log, logging_to
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
        ConfigError: A run cannot be used, is not of a task that was given, or is of the same task
            as another run.
        DataError: Rows cannot be found, read or used.
    """
    assert settings.run is not None  # settings refuse mode=predict without it
    mistakes = Mistakes()
    runs = []
    for name in settings.run:
        with mistakes.noting():
            runs.append(open_finished_run(name))
    path = settings.data.path
    if path is not None and not Path(path).exists():
        with mistakes.noting():
            raise DataError(f"data.path={path} does not exist")
    mistakes.tell()
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


def predict(prediction: Prediction, folder: Path, *, source: str) -> dict[str, str]:
    """Score rows, and write what comes out.

    Args:
        prediction: The run and the rows.
        folder: The folder of the results; it exists.
        source: The predictor whose predictions go into files for GLUE: `head`, `bert` or
            `ensemble`.

    Returns:
        Files for GLUE's leaderboard by name, written to the folder as well.

    Raises:
        BackboneError: The model cannot be loaded.
        OutputError: The folder cannot be written.
    """
    log.info("starting torch and transformers ...")
    for name, value in (TORCH_ENVIRONMENT | SHARED_CORES).items():
        os.environ.setdefault(name, value)
    # These import torch, which reads the environment then.
    from bertvision_stream.modes.scoring import Scorer
    from bertvision_stream.report.cautions import cautions_on_split
    from bertvision_stream.report.predictions import write_predictions

    start = time.perf_counter()
    run, task = prediction.run, prediction.run.task
    scorer = Scorer(run)
    files: dict[str, str] = {}
    splits: list[SplitResult] = []
    for rows in prediction.rows:
        split, name = rows.split, rows.split.name
        scored = scorer.score(split)
        store, scores = scored.store, scored.predictor_scores
        path = write_predictions(folder, task, split, store, scores, labelled=rows.labelled)
        log.info("%s: %s: %s", name, store.describe(run.settings.data.max_length), path)
        for note in rows.notes:
            log.info("note: %s", note)
        if rows.labelled:
            splits.append(SplitResult.of(split, scores, scorer.objective, store))
            for note in cautions_on_split(task, split, splits[-1], scores):
                log.info("note: %s", note)
        if file := file_name(task, name):
            files[file] = render_file(task, scores.by_name()[source], rows.index)
            write_text(folder / file, files[file])
            if len(split) != expected_rows(task, name):
                log.info(
                    f"note: {file} has {len(split):,} rows and GLUE's test split "
                    f"{expected_rows(task, name):,}: the leaderboard will not take it"
                )
    if run.settings.finetune.epochs == 0:
        log.info("note: BERT's own classifier was not fine-tuned by the run; it may be untrained")
    if splits:
        _report(folder, run, splits, time.perf_counter() - start)
    return files


def _report(folder: Path, run: FinishedRun, splits: Sequence[SplitResult], seconds: float) -> None:
    """Print the scores of rows with labels, and write them to `metrics.json`."""
    table = render_predictions(run.task, splits, run.settings.evaluate.ensemble)
    log.info("\n%s\nin %s", table, format_seconds(seconds))
    content = {
        "task": run.task.name,
        "run": str(run.folder),
        "backbone": run.settings.backbone.name,
        "seed": run.settings.seed,
        **f1_json(run.task),
        "head": {"kind": run.head_kind},
        "splits": splits_json(splits),
        "seconds": {"total": seconds},
    }
    write_json(folder / "metrics.json", content)


def write_submission(folder: Path, files: Mapping[str, str]) -> None:
    """Write the zip for GLUE's leaderboard, and say which files it lacks.

    Args:
        folder: The folder that the zip goes to.
        files: The content of each file by its name.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(folder / ZIP, zip_of(files))
    log.info("for GLUE's leaderboard: %s with %s", folder / ZIP, ", ".join(files))
    if missing := missing_files(files):
        log.info(
            f"note: GLUE takes a submission of all its files only, and this one lacks "
            f"{', '.join(missing)}; name a run for each of {', '.join(GLUE_TASKS)}: run=[...]"
        )


def run_predictions(settings: Settings) -> None:
    """Score new rows with finished runs; everything is checked before the first one is loaded."""
    predictions = read_predictions(settings)
    folders = [open_prediction_folder(settings, each.run.task.name) for each in predictions]
    last = folders[-1]
    if len(folders) > 1 and makes_submission(predictions):
        last = open_prediction_folder(settings, "glue")
    files: dict[str, str] = {}
    for prediction, folder in zip(predictions, folders, strict=True):
        with logging_to(folder / LOG):
            log.info("%s: results in %s", prediction.run.task.name, folder)
            files |= predict(prediction, folder, source=settings.predict.source)
    if files:
        with logging_to(last / LOG):
            write_submission(last, files)
