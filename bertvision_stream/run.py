"""The command line: `python -m bertvision_stream.run key=value ...`.

What a user can get wrong is checked in the order of what it costs to check, and nothing heavy is
imported before it is needed. This file alone imports from `actors` and `tune`: it hands the modes
what they compute with.

All imports that take time stand inside `main`, so that Ctrl-C during them ends a run as it does
later.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from importlib import import_module

from bertvision_stream import __version__
from bertvision_stream.utils.errors import (
    INTERRUPTED,
    RUN_ERROR,
    USER_ERROR,
    BertvisionError,
    UserError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is one of the imports that take time
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bertvision_stream.models.job import Job
    from bertvision_stream.modes.engine import Engine, SearchResult
    from bertvision_stream.settings.settings import TaskSettings
    from bertvision_stream.stream.placement import ClusterResources

# Ray sets this for the command of a job that was submitted to a cluster.
_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class RayRuntime:
    """Ray's engine and Ray Tune's search: see `modes.engine.Runtime`."""

    def start_engine(self, address: str | None) -> Engine:
        """Connect to Ray, which waits for other processes, while torch and the rest are imported.

        Nothing else may import meanwhile: transformers puts a lazy module in its own place, and
        another thread would see the module from before.
        """
        from bertvision_stream.utils.log import telling

        with telling("Ray is loaded"):
            from actors.cluster import connect, in_thread

        # It is a thread that nobody waits for where connecting fails or is interrupted.
        imported = in_thread(lambda: import_module("actors.engine"), "imports")
        with telling("the processes of Ray have started"):
            connect(address)
        with telling("torch and transformers are loaded"):
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
        shutdown = getattr(sys.modules.get("ray"), "shutdown", None)
        if shutdown is not None:  # it is None where the import was interrupted
            shutdown()


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (a user's mistake) or 130 (interrupted).
    """
    runtime = RayRuntime()
    try:
        make_output_safe()
        interrupt_on_sigterm()
        code = _run(argv, runtime)
    except UserError as error:
        _tell(str(error))
        code = USER_ERROR
    except BertvisionError as error:
        _tell(f"The run failed: {error}")
        code = RUN_ERROR
    except KeyboardInterrupt:
        with _undisturbed():
            print(f"\nInterrupted.{_how_to_resume(argv)}", file=sys.stderr)
            runtime.stop()
        code = INTERRUPTED
    finally:
        with _undisturbed():
            runtime.stop()
    return code


def _run(argv: Sequence[str], runtime: RayRuntime) -> int:
    """Do what the command line asks for, and return the exit code; errors are `main`'s."""
    from bertvision_stream.settings.command_line import load_settings
    from bertvision_stream.settings.help import asked_section, format_help
    from bertvision_stream.utils.own_packages import claim_own_packages

    section = asked_section(argv)
    if section is not None or "--version" in argv:
        version = f"bertvision_stream {__version__}"
        try:
            print(version if section is None else format_help(section), flush=True)
        except BrokenPipeError:  # `--help | head` has read enough; nothing more is to be flushed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    claim_own_packages()
    settings = load_settings(argv, columns_of=_columns_of)
    if settings.mode == "predict":
        from bertvision_stream.modes.predict import run_predictions

        run_predictions(settings)
        return 0
    from bertvision_stream.modes.inputs import read_all_inputs
    from bertvision_stream.modes.suite import run_suite
    from bertvision_stream.modes.train import run_task

    # What the results record does the run again: it neither goes on with it nor takes its folder.
    command = _command(argv, "resume", "run_name")
    # All are checked before the first one runs.
    inputs = read_all_inputs(settings)
    if len(inputs) > 1:
        return run_suite(settings, inputs, command, runtime)
    run_task(inputs[0], command, runtime)
    return 0


def _columns_of(path: str) -> Sequence[str]:
    from bertvision_stream.data.custom import columns_of

    return columns_of(path)


def _tell(message: str) -> None:
    """Print the message of an error, which may quote the user's files."""
    from bertvision_stream.utils.terminal import printable

    print(f"\n{printable(message)}", file=sys.stderr)


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


def _command(argv: Sequence[str], *left_out: str) -> str:
    """The command line without some of its keys."""
    kept = [argument for argument in argv if argument.partition("=")[0] not in left_out]
    return shlex.join(["python", "-m", "bertvision_stream.run", *kept])


def _how_to_resume(argv: Sequence[str]) -> str:
    """What finished before an interruption is kept; predictions are made anew."""
    if "mode=predict" in argv:
        return ""
    command = _command([*(word for word in argv if not word.startswith("resume=")), "resume=true"])
    if _OF_A_JOB in os.environ:
        submit = f"ray job submit --working-dir . -- {command}"
        return f" What is finished is kept; to go on, submit the job again:\n  {submit}"
    return f" What is finished is kept; to go on:\n  {command}"


def interrupt_on_sigterm() -> None:
    """From now on a polite kill ends the run as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # only there can it be set
        signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and polite kills within this context, in which a run ends as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_interrupted(codes: list[int]) -> None:
    """End this process with the exit code of an interrupted run, if that is its only one.

    Python itself would end with the signal where Ctrl-C came within an `exec` of text, as in the
    making of a dataclass, though it was caught; and threads that import could hold it up.
    """
    if codes == [INTERRUPTED]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    codes: list[int] = []
    atexit.register(_end_interrupted, codes)  # the first that is registered is the last that is run
    codes.append(main(sys.argv[1:]))
    for interrupt in _INTERRUPTS:  # Python's own end takes a moment too
        signal.signal(interrupt, signal.SIG_IGN)
    sys.exit(codes[0])
