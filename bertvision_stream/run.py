"""The command line: `python -m bertvision_stream.run key=value ...`.

Puts the parts together: data, partial fine-tuning, streaming, results. What a user can get wrong is
checked in the order of what it costs to check, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from bertvision_stream import __version__
from bertvision_stream.settings.command_line import format_help, load_settings
from bertvision_stream.utils.errors import (
    INTERRUPTED,
    RUN_ERROR,
    USER_ERROR,
    BertvisionError,
    UserError,
)


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
    interrupt_on_sigterm()
    try:
        settings = load_settings(argv)
        if settings.mode == "predict":
            from bertvision_stream.modes.predict import run_predictions

            run_predictions(settings)
            return 0
        from bertvision_stream.modes.inputs import read_all_inputs
        from bertvision_stream.modes.suite import _after_search, run_suite
        from bertvision_stream.modes.train import run_task

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
        stop_ray()
    return 0


def _how_to_go_on(argv: Sequence[str]) -> str:
    """What finished before an interruption is kept; predictions are made anew."""
    if "mode=predict" in argv:
        return ""
    kept = [argument for argument in argv if not argument.startswith("resume=")]
    command = shlex.join(["python", "-m", "bertvision_stream.run", *kept, "resume=true"])
    return f" What is finished is kept; to go on:\n  {command}"


def stop_ray() -> None:
    """Leave the cluster, or end the one that this run started."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def interrupt_on_sigterm() -> None:
    """A polite kill ends a run as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
