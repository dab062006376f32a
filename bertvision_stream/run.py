"""The command line: `python -m bertvision_stream.run key=value ...`.

Puts the parts together: data, partial fine-tuning, streaming, results. What a user can get wrong is
checked in the order of what it costs to check, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertvision_stream import __version__
from bertvision_stream.config import format_help, load_settings
from bertvision_stream.errors import BertvisionError, UserError
from bertvision_stream.run_log import log, logging_to, show_progress

if TYPE_CHECKING:
    from actors.job import Job
    from bertvision_stream.checkpoint import Checkpoint
    from bertvision_stream.data import TaskData
    from bertvision_stream.inputs import TaskInputs
    from bertvision_stream.planned_backbone import PlannedBackbone
    from bertvision_stream.run_folder import RunFolder
    from bertvision_stream.settings import Settings, TaskSettings

RUN_ERROR, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (a user's mistake) or 130 (interrupted).
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if {"--help", "-h"} & set(argv):
        print(format_help())
        return 0
    if "--version" in argv:
        print(f"bertvision_stream {__version__}")
        return 0
    _heed_sigterm()
    try:
        settings = load_settings(argv)
        if settings.mode == "predict":
            from bertvision_stream.prediction import run_predictions

            run_predictions(settings)
            return 0
        from bertvision_stream.inputs import read_all_inputs

        command = shlex.join(["python", "-m", "bertvision_stream.run", *argv])
        # All are checked before the first one runs.
        inputs = read_all_inputs(settings)
        if len(inputs) > 1:
            return run_suite(settings, inputs, command)
        run_task(inputs[0], command, after_search=_after_search(settings, inputs[0]))
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return USER_ERROR
    except BertvisionError as error:
        print(f"\nThe run failed: {error}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        print(f"\nInterrupted.{_how_to_go_on(argv)}", file=sys.stderr)
        return INTERRUPTED
    finally:
        _stop_ray()
    return 0


def _how_to_go_on(argv: Sequence[str]) -> str:
    """What finished before an interruption is kept; predictions are made anew."""
    if "mode=predict" in argv:
        return ""
    kept = [argument for argument in argv if not argument.startswith("resume=")]
    command = shlex.join(["python", "-m", "bertvision_stream.run", *kept, "resume=true"])
    return f" What is finished is kept; to go on:\n  {command}"


def _heed_sigterm() -> None:
    """A polite kill ends a run as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _after_search(settings: Settings, inputs: TaskInputs) -> TaskSettings | None:
    name, seed = inputs.settings.task, inputs.settings.seed
    return settings.after_search(name, seed=seed) if settings.mode == "search" else None


def run_suite(settings: Settings, inputs: list[TaskInputs], command: str) -> int:
    """Run several tasks, or seeds, one after another; one that fails does not stop the rest.

    Args:
        settings: Of all.
        inputs: Of each run; they are let go one by one.
        command: The command line, for the records.

    Returns:
        The exit code: 0, or 1 where a run failed.

    Raises:
        ConfigError: A folder of results is taken.
    """
    from bertvision_stream.results import write_json, write_text
    from bertvision_stream.run_folder import check_run_name, open_suite_folder
    from bertvision_stream.suite import Entry, read_metrics, suite_json
    from bertvision_stream.suite_report import render_suite, render_suite_markdown

    for each in inputs:
        check_run_name(each.settings)
    folder = open_suite_folder(settings) if settings.mode in ("train", "search") else None
    entries: list[Entry] = []
    while inputs:
        each = inputs.pop(0)
        task, seed = each.settings.task, each.settings.seed
        try:
            results = run_task(each, command, after_search=_after_search(settings, each))
            entries.append(Entry(task, seed, str(results), read_metrics(results)))
        except Exception as error:
            if not isinstance(error, BertvisionError):
                traceback.print_exc()
            cause = str(error) or repr(error)
            entries.append(Entry(task, seed, failure=cause))
            print(f"\n{task}, seed {seed}, failed: {cause}\n", file=sys.stderr)
            _stop_ray()  # with what the failed run may have left behind
        del each
        if folder is not None:  # after each run: an interruption loses nothing
            write_json(folder / "metrics.json", suite_json(entries, command))
            write_text(folder / "summary.md", render_suite_markdown(entries, command))
    if folder is not None:
        print(f"\n{render_suite(entries)}\nsummary in {folder}")
    failed = [f"{entry.task}, seed {entry.seed}" for entry in entries if entry.failure]
    if failed:
        print(
            f"\n{len(failed)} of {len(entries)} runs failed: {'; '.join(failed)}", file=sys.stderr
        )
    return RUN_ERROR if failed else 0


def _stop_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def run_task(inputs: TaskInputs, command: str, *, after_search: TaskSettings | None = None) -> Path:
    """Run one task, from its rows to its results; prints as it goes.

    Args:
        inputs: Of one task.
        command: The command line, for the records.
        after_search: For `mode=search`, the settings of the training that follows.

    Returns:
        The folder of its results.
    """
    from bertvision_stream.run_folder import LOG, fleeting_note, open_run_folder

    start = time.perf_counter()
    settings = inputs.settings
    folder = open_run_folder(settings)
    with logging_to(folder.path / LOG):
        if folder.finished:
            log.info("%s: this run is finished; its results are in %s", settings.task, folder.path)
            return folder.path
        log.info("%s: results in %s", settings.task, folder.path)
        if note := fleeting_note(folder.path):
            log.warning("note: %s", note)
        for note in inputs.data.notes:
            log.info("note: %s", note)
        if inputs.planned is not None:
            _plan_task(settings, inputs.data, inputs.planned, folder)
            return folder.path
        log.info("starting torch, transformers and Ray ...")
        _start_all(settings)
        if settings.mode == "study":
            _run_study(inputs, folder, command)
            return folder.path
        from actors.reporting import disk_note, write_results
        from actors.service import run_stream
        from bertvision_stream.checkpoint import load_checkpoint, save_checkpoint
        from bertvision_stream.preparation import check_unchanged
        from bertvision_stream.report import render_table

        checkpoint = None
        if folder.checkpoint.exists():
            checkpoint = load_checkpoint(folder.checkpoint)
            log.info("resume: going on after epoch %d", checkpoint.facts["epoch"])
        elif settings.resume:
            begun = "no epoch of it was finished" if folder.resumed else "there is no such run"
            log.info("resume: %s", begun)
        head, search, finetune_seconds = settings, None, 0.0
        if after_search is not None:
            from bertvision_stream.inputs import inputs_after_search
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
        imported = thread.submit(importlib.import_module, "actors.job")
        connect(settings.ray.address)
    imported.result()


def _run_study(inputs: TaskInputs, folder: RunFolder, command: str) -> None:
    """Compare amounts of data and of fine-tuning, and write what came of it."""
    from actors.study import run_study
    from bertvision_stream.inputs import TaskInputs
    from bertvision_stream.results import write_json, write_text
    from bertvision_stream.run_folder import STUDY
    from bertvision_stream.study_report import (
        render_study,
        render_study_markdown,
        write_study_plots,
    )

    def prepare(settings: TaskSettings, data: TaskData) -> Job:
        return _prepare(TaskInputs(settings, data, inputs.source), folder, reuse=folder.resumed)

    task = inputs.data.task
    study = run_study(
        inputs.settings,
        inputs.data,
        folder.checkpoint.with_name(STUDY),
        prepare=prepare,
        resume=folder.resumed,
        show_progress=show_progress(),
        say=log.info,
    )
    plots = write_study_plots(study, task, folder.path / "plots")
    write_text(folder.path / "study.md", render_study_markdown(study, task, command, plots))
    write_json(folder.path / STUDY, study.to_json() | {"command": command})
    log.info("\n%s", render_study(study, task))
    log.info("study in %s", folder.path)


def _plan_task(
    settings: TaskSettings, data: TaskData, backbone: PlannedBackbone, folder: RunFolder
) -> None:
    """Say what a run would take."""
    from actors.planning import make_plan
    from bertvision_stream.results import write_json, write_text
    from bertvision_stream.run_plan import plan_json, render_plan

    plan = make_plan(settings, data, backbone, log.info)
    text = render_plan(plan)
    write_text(folder.path / "plan.txt", text)
    write_json(folder.path / "plan.json", plan_json(plan))
    log.info("\n%s", text)
    log.info("plan in %s", folder.path)


def _prepare(
    inputs: TaskInputs,
    folder: RunFolder,
    checkpoint: Checkpoint | None = None,
    *,
    reuse: bool = False,
) -> Job:
    """All that is needed before heads are trained; of a run that is gone on with, the same."""
    from actors.job import prepare_job

    settings = inputs.settings
    return prepare_job(
        settings,
        inputs.data,
        inputs.source,
        block_tokens=checkpoint.facts["run"]["block_tokens"] if checkpoint else None,
        reuse=settings.finetune.reuse or reuse or checkpoint is not None,
        show_progress=show_progress(),
        say=log.info,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
