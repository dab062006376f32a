"""`mode=train`, `mode=search` and `mode=finetune`: one task, from its rows to its results."""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.log import log, logging_to, show_progress


def run_task(inputs: TaskInputs, command: str, *, after_search: TaskSettings | None = None) -> Path:
    """Run one task, from its rows to its results; prints as it goes.

    Args:
        inputs: Of one task.
        command: The command line, for the records.
        after_search: For `mode=search`, the settings of the training that follows.

    Returns:
        The folder of its results.
    """
    from bertvision_stream.modes.run_folder import LOG, open_run_folder, temporary_folder_warning

    start = time.perf_counter()
    settings = inputs.settings
    folder = open_run_folder(settings)
    with logging_to(folder.path / LOG):
        if folder.finished:
            log.info("%s: this run is finished; its results are in %s", settings.task, folder.path)
            return folder.path
        log.info("%s: results in %s", settings.task, folder.path)
        if note := temporary_folder_warning(folder.path):
            log.warning("note: %s", note)
        for note in inputs.data.notes:
            log.info("note: %s", note)
        if inputs.planned is not None:
            from bertvision_stream.modes.plan import _plan_task

            _plan_task(settings, inputs.data, inputs.planned, folder)
            return folder.path
        log.info("starting torch, transformers and Ray ...")
        _start_all(settings)
        if settings.mode == "study":
            from bertvision_stream.modes.study import _run_study

            _run_study(inputs, folder, command)
            return folder.path
        from actors.engine import run_stream
        from bertvision_stream.modes.job import _prepare, check_unchanged
        from bertvision_stream.report.text import render_table
        from bertvision_stream.report.write import disk_note, write_results
        from bertvision_stream.training.checkpoint import load_checkpoint, save_checkpoint

        checkpoint = None
        if folder.checkpoint.exists():
            checkpoint = load_checkpoint(folder.checkpoint)
            log.info("resume: going on after epoch %d", checkpoint.facts["epoch"])
        elif settings.resume:
            begun = "no epoch of it was finished" if folder.resumed else "there is no such run"
            log.info("resume: %s", begun)
        head, search, finetune_seconds = settings, None, 0.0
        if after_search is not None:
            from bertvision_stream.modes.inputs import inputs_after_search
            from tune.run import run_search

            job = _prepare(inputs, folder)
            found = run_search(
                job,
                after_search,
                folder.path,
                resume=folder.resumed,
                show_progress=show_progress(),
                say=log.info,
            )
            inputs = inputs_after_search(after_search, found.settings)
            settings, head, search = found.settings, found.head, found.summary
            finetune_seconds = job.backbone.seconds
            del job  # its weights are let go before others are loaded
            log.info("training the best on %s examples", f"{len(inputs.data.train.labels):,}")
        job = _prepare(inputs, folder, checkpoint, reuse=search is not None)
        if settings.mode == "finetune":
            for split, scores in job.backbone.scores.items():
                listed = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
                log.info("BERT on %s: %s", split, listed)
            return folder.path
        facts = job.facts
        if checkpoint is not None:
            check_unchanged(checkpoint.facts["run"], facts)
        log.info("%s", job.memory)
        outcome = run_stream(
            job.plan,
            job.placement,
            settings=settings,
            task=job.data.task,
            corpus=job.corpus,
            weights=job.backbone.weights,
            heads={"head": head},
            shape=job.shape,
            show_progress=show_progress(),
            say=log.info,
            checkpoint=checkpoint,
            keep=lambda state: save_checkpoint(folder.checkpoint, state.with_facts(run=facts)),
        )
        if note := disk_note(outcome.store):
            log.warning("\n%s\n", note)
        report = write_results(
            folder.path,
            settings=settings,
            data=job.data,
            corpus=job.corpus,
            plan=job.plan,
            backbone=replace(job.backbone, seconds=finetune_seconds + job.backbone.seconds),
            tokenizer=job.tokenizer,
            shape=job.shape,
            outcome=outcome,
            command=command,
            start=start,
            search=search,
        )
        log.info("\n%s", render_table(report))
        log.info("results in %s", folder.path)
        return folder.path


def _start_all(settings: TaskSettings) -> None:
    """Connect to Ray, which waits for other processes, while torch and transformers are imported.

    Nothing else may import meanwhile: transformers puts a lazy module in its own place, and another
    thread would see the one from before.
    """
    from actors.cluster import connect

    with ThreadPoolExecutor(1, "imports") as thread:
        imported = thread.submit(importlib.import_module, "bertvision_stream.modes.job")
        connect(settings.ray.address)
    imported.result()
