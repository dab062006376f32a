"""The log of a run: its lines go to the console as they are, and with times into its folder."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertvision_stream.utils.terminal import PrintableFormatter
from bertvision_stream.utils.units import format_seconds

log = logging.getLogger("bertvision_stream")
"""The one logger of the three packages."""


# The time after which somebody who waits is told what for, and between two such lines.
TELL_SECONDS = 15.0


def show_progress() -> bool:
    """Whether to draw progress bars; they would garble a file or the log of a job."""
    return sys.stderr.isatty()


class _LogFile(logging.FileHandler):
    """A log file that is given up, with one message, when its disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.addFilter(lambda record: False)
        print(f"{self.baseFilename} is given up: {sys.exception()}", file=sys.stderr)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Logs to the console, and with times into `path`, for as long as it lasts."""
    console, file = logging.StreamHandler(sys.stdout), _LogFile(path, encoding="utf-8")
    console.setFormatter(PrintableFormatter())
    file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [console, file]
    try:
        yield
    except BaseException as error:
        file.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "%r", (error,), None))
        raise
    finally:
        log.handlers = [console]
        with suppress(OSError):  # `handleError` has reported it.
            file.close()


@contextmanager
def telling(awaited: str) -> Iterator[None]:
    """Logs every `TELL_SECONDS` what is waited for, for as long as it lasts.

    Args:
        awaited: What comes to pass meanwhile, worded to stand after "waiting until".
    """
    start, is_over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not is_over.wait(TELL_SECONDS):
            passed = format_seconds(time.monotonic() - start)
            log.info("still waiting until %s, for %s now ...", awaited, passed)

    threading.Thread(target=tell, daemon=True, name="telling").start()
    try:
        yield
    finally:
        is_over.set()
