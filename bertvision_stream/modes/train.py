"""One task in any mode, and in particular `mode=train`, `mode=search` and `mode=finetune`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertvision_stream.modes.inputs import TaskInputs, inputs_after_search
from bertvision_stream.modes.run_folder import (
    LOG,
    RunFolder,
    open_run_folder,
    temporary_folder_warning,
)
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log, logging_to

if TYPE_CHECKING:
    from bertvision_stream.models.job import Job
    from bertvision_stream.modes.engine import Engine, Runtime, SearchResult
    from bertvision_stream.training.checkpoint import Checkpoint


def run_task(inputs: TaskInputs, command: str, runtime: Runtime) -> Path:
    """Run one task in the mode of its settings, from its rows to its results.

    Args:
        inputs: The settings and the rows of the task.
        command: The command line, which the results record.
        runtime: Starts the engine, and searches.

    Returns:
        The folder of the results.
    """
    start = time.perf_counter()
    settings = inputs.settings
    with open_run_folder(settings) as folder, logging_to(folder.path / LOG):
        if folder.finished:
            log.info("%s: this run is finished; its results are in %s", settings.task, folder.path)
            return folder.path
        log.info("%s: results in %s", settings.task, folder.path)
        if note := temporary_folder_warning(folder.path):
            log.warning("note: %s", note)
        for note in inputs.data.notes:
            log.info("note: %s", note)
        # Each mode is imported only when it runs: torch takes seconds to load, and errors in the
        # settings are to be reported before.
        if settings.mode == "plan":
            from bertvision_stream.modes.plan import plan_task

            plan_task(inputs, folder, runtime)
            return folder.path
        log.info("starting torch, transformers and Ray ...")
        engine = runtime.start_engine(settings.ray.address)
        if settings.mode == "study":
            from bertvision_stream.modes.study import study_task

            study_task(inputs, folder, command, engine)
        elif settings.mode == "finetune":
            finetune_task(inputs, folder, engine)
        else:
            train_task(inputs, folder, command, runtime, engine, start)
        return folder.path


def finetune_task(inputs: TaskInputs, folder: RunFolder, engine: Engine) -> None:
    """`mode=finetune`: fine-tune the backbone, and log the scores of its own classifier.

    Args:
        inputs: The settings and the rows of the task.
        folder: The folder of the run.
        engine: The engine that fine-tunes.
    """
    from bertvision_stream.modes.preparation import prepare_job

    checkpoint = _checkpoint_of(inputs, folder)
    job = prepare_job(inputs, engine, checkpoint=checkpoint)
    for split, scores in job.backbone.scores.items():
        log.info("BERT on %s: %s", split, job.task.listed(scores))


def train_task(
    inputs: TaskInputs,
    folder: RunFolder,
    command: str,
    runtime: Runtime,
    engine: Engine,
    start: float,
) -> None:
    """`mode=train`, and `mode=search` with the training that follows it.

    Args:
        inputs: The settings and the rows of the task.
        folder: The folder of the run.
        command: The command line, which the results record.
        runtime: Runs the search.
        engine: The engine that fine-tunes and runs the stream.
        start: When the run began, by `time.perf_counter`.
    """
    from bertvision_stream.modes.preparation import check_unchanged, prepare_job
    from bertvision_stream.report.text import render_table
    from bertvision_stream.report.write import Earlier, disk_note, write_results
    from bertvision_stream.training.checkpoint import save_checkpoint
    from bertvision_stream.training.head_job import HeadJob

    checkpoint = _checkpoint_of(inputs, folder)
    found: SearchResult | None = None
    search_finetune_seconds = 0.0
    if inputs.after_search is not None:
        searched = prepare_job(inputs, engine)
        found = runtime.search(searched, inputs.after_search, folder.path, resume=folder.resumed)
        search_finetune_seconds = searched.backbone.seconds
        inputs = inputs_after_search(inputs.after_search, found.settings)
        del searched  # this frees its weights before others are loaded
        log.info("training the best on %s examples", f"{len(inputs.data.train.labels):,}")
    job = prepare_job(inputs, engine, checkpoint=checkpoint, reuse=found is not None)
    earlier = Earlier.of(checkpoint)
    job = _with_finetune_seconds(job, search_finetune_seconds + earlier.finetune)
    facts = job.facts
    if checkpoint is not None:
        check_unchanged(checkpoint.facts["run"], facts)
    log.info("%s", job.memory)

    def keep(state: Checkpoint) -> None:
        total = earlier.total + time.perf_counter() - start
        seconds = {"total": total, "finetune": job.backbone.seconds}
        save_checkpoint(folder.checkpoint, state.with_facts(run=facts, seconds=seconds))

    head = job.settings
    if found is not None:
        head = head.model_copy(update={"seed": found.head_seed})
    outcome = engine.run(
        job,
        {"head": HeadJob(head)},
        checkpoint=checkpoint,
        on_epoch=keep,
    )
    if note := disk_note(outcome):
        log.warning("\n%s\n", note)
    report = write_results(
        folder.path,
        job,
        outcome,
        command=command,
        start=start,
        search=found.summary if found else None,
        earlier=earlier,
    )
    log.info("\n%s", render_table(report))
    log.info("results in %s", folder.path)


def _checkpoint_of(inputs: TaskInputs, folder: RunFolder) -> Checkpoint | None:
    """The state to resume from, or None; if the user asked to resume, log which of the two."""
    from bertvision_stream.training.checkpoint import load_checkpoint

    if folder.checkpoint.exists():
        checkpoint = load_checkpoint(folder.checkpoint)
        if not {"epoch", "run"} <= checkpoint.facts.keys():
            raise ConfigError(
                f"the checkpoint {folder.checkpoint} does not say where its run was. Delete it to "
                f"train the head anew."
            )
        log.info("resume: going on after epoch %d", checkpoint.facts["epoch"])
        return checkpoint
    if inputs.settings.resume:
        begun = "no epoch of it was finished" if folder.resumed else "there is no such run"
        log.info("resume: %s", begun)
    return None


def _with_finetune_seconds(job: Job, seconds: float) -> Job:
    """The job with seconds of fine-tuning added: before its search, before an interruption."""
    backbone = replace(job.backbone, seconds=job.backbone.seconds + seconds)
    return replace(job, backbone=backbone)
