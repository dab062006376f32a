"""The command line: `python -m bertvision_stream.run key=value ...`.

What a user can get wrong is checked in the order of what it costs to check, and nothing heavy is
imported before it is needed. This file alone imports from `actors` and `tune`: it hands the modes
what they compute with.
"""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bertvision_stream import __version__
from bertvision_stream.settings.command_line import format_help, load_settings
from bertvision_stream.utils.errors import (
    INTERRUPTED,
    RUN_ERROR,
    USER_ERROR,
    BertvisionError,
    UserError,
)
from bertvision_stream.utils.own_packages import claim_own_packages
from bertvision_stream.utils.terminal import printable

if TYPE_CHECKING:
    from bertvision_stream.models.job import Job
    from bertvision_stream.modes.engine import Engine, SearchResult
    from bertvision_stream.settings.settings import TaskSettings
    from bertvision_stream.stream.placement import ClusterResources


class RayRuntime:
    """Ray's engine and Ray Tune's search: see `modes.engine.Runtime`."""

    def start_engine(self, address: str | None) -> Engine:
        """Connect to Ray, which waits for other processes, while torch and the rest are imported.

        Nothing else may import meanwhile: transformers puts a lazy module in its own place, and
        another thread would see the module from before.
        """
        from actors.cluster import connect

        with ThreadPoolExecutor(1, "imports") as thread:
            imported = thread.submit(importlib.import_module, "actors.engine")
            connect(address)
        engine: Engine = imported.result().RayEngine()
        return engine

    def planned_cluster(self, settings: TaskSettings) -> ClusterResources:
        """The cluster to join, or this machine as one."""
        from actors.cluster import planned_cluster

        return planned_cluster(settings)

    def search(self, job: Job, after: TaskSettings, folder: Path, *, resume: bool) -> SearchResult:
        """Search with Ray Tune."""
        from tune.run import run_search

        return run_search(job, after, folder, resume=resume)

    def stop(self) -> None:
        """Leave the cluster, or end the one that this run started."""
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (a user's mistake) or 130 (interrupted).
    """
    make_output_safe()
    if {"--help", "-h", "--version"} & set(argv):
        text = f"bertvision_stream {__version__}" if "--version" in argv else format_help()
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `--help | head` has read enough; nothing more is to be flushed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    interrupt_on_sigterm()
    claim_own_packages()
    runtime = RayRuntime()
    try:
        settings = load_settings(argv)
        if settings.mode == "predict":
            from bertvision_stream.modes.predict import run_predictions

            run_predictions(settings)
            return 0
        from bertvision_stream.modes.inputs import read_all_inputs
        from bertvision_stream.modes.suite import run_suite
        from bertvision_stream.modes.train import run_task

        command = shlex.join(["python", "-m", "bertvision_stream.run", *argv])
        # All are checked before the first one runs.
        inputs = read_all_inputs(settings)
        if len(inputs) > 1:
            return run_suite(settings, inputs, command, runtime)
        run_task(inputs[0], command, runtime)
    except UserError as error:
        print(f"\n{printable(error)}", file=sys.stderr)
        return USER_ERROR
    except BertvisionError as error:
        print(f"\nThe run failed: {printable(error)}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        print(f"\nInterrupted.{_how_to_resume(argv)}", file=sys.stderr)
        return INTERRUPTED
    finally:
        runtime.stop()
    return 0


def make_output_safe() -> None:
    """Let a run print wherever it runs.

    A process without standard output (of cron, or with `>&-`) is given one that goes nowhere, and
    characters that the console lacks are replaced. What a notebook puts in its place stays.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _how_to_resume(argv: Sequence[str]) -> str:
    """What finished before an interruption is kept; predictions are made anew."""
    if "mode=predict" in argv:
        return ""
    kept = [argument for argument in argv if not argument.startswith("resume=")]
    command = shlex.join(["python", "-m", "bertvision_stream.run", *kept, "resume=true"])
    return f" What is finished is kept; to go on:\n  {command}"


def interrupt_on_sigterm() -> None:
    """From now on a polite kill ends the run as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
