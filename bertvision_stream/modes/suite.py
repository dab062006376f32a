"""Several tasks, or several seeds, one after another."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from bertvision_stream.modes.engine import Runtime
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.train import run_task
from bertvision_stream.settings.settings import Settings
from bertvision_stream.utils.errors import RUN_ERROR, BertvisionError
from bertvision_stream.utils.terminal import printable


def run_suite(settings: Settings, inputs: list[TaskInputs], command: str, runtime: Runtime) -> int:
    """Run several tasks or seeds one after another; a run that fails does not stop the others.

    Args:
        settings: The settings of all runs.
        inputs: The inputs of each run. The list is emptied run by run, which frees their rows.
        command: The command line, which the results record.
        runtime: Starts the engine, and searches.

    Returns:
        The exit code: 0, or 1 where a run failed.

    Raises:
        ConfigError: A folder that `run_name` gives to a run holds results already, or is in use.
    """
    from bertvision_stream.modes.run_folder import check_run_name, open_suite_folder

    for each in inputs:
        check_run_name(each.settings)
    if settings.mode not in ("train", "search"):
        return _run_each(inputs, command, runtime, None)
    with open_suite_folder(settings) as folder:
        return _run_each(inputs, command, runtime, folder.path)


def _run_each(inputs: list[TaskInputs], command: str, runtime: Runtime, folder: Path | None) -> int:
    """Run them; the summary goes to `folder`."""
    from bertvision_stream.report.suite import (
        Entry,
        read_metrics,
        render_suite,
        render_suite_markdown,
        suite_json,
    )
    from bertvision_stream.utils.files import write_json, write_text

    entries: list[Entry] = []
    while inputs:
        each = inputs.pop(0)
        task, seed = each.settings.task, each.settings.seed
        try:
            results = run_task(each, command, runtime)
            entries.append(Entry(task, seed, str(results), read_metrics(results)))
        except Exception as error:
            if not isinstance(error, BertvisionError):
                traceback.print_exc()
            cause = str(error) or repr(error)
            entries.append(Entry(task, seed, failure=cause))
            print(f"\n{task}, seed {seed}, failed: {printable(cause)}\n", file=sys.stderr)
            runtime.stop()  # this also ends the actors that a failed run may have left behind
        del each
        if folder is not None:  # after each run, so that an interruption loses no results
            write_json(folder / "metrics.json", suite_json(entries, command))
            write_text(folder / "summary.md", render_suite_markdown(entries, command))
    if folder is not None:
        print(printable(f"\n{render_suite(entries)}\nsummary in {folder}"))
    failed = [f"{entry.task}, seed {entry.seed}" for entry in entries if entry.failure]
    if failed:
        print(
            f"\n{len(failed)} of {len(entries)} runs failed: {'; '.join(failed)}", file=sys.stderr
        )
    return RUN_ERROR if failed else 0
