"""The command line in the process of the tests.

On the cluster that tests share it needs neither the imports nor the start of Ray that a process of
its own begins with. What a process does to others, and others to it, is tested with real ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from bertvision_stream import run as command
from bertvision_stream.utils.log import log


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_here(folder: Path, *arguments: str) -> Done:
    """`python -m bertvision_stream.run` in `folder`; what is the process's own stays as it was."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(command, "interrupt_on_sigterm", lambda: None)
        patch.setattr(command.RayRuntime, "stop", lambda runtime: None)
        with _log_kept():
            code = command.main(arguments)
    return Done(code, _text(out), _text(err))


@contextmanager
def _log_kept() -> Iterator[None]:
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
