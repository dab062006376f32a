"""What a run says while it waits, and that it falls silent afterwards."""

import logging
import threading
from collections.abc import Iterator

import pytest

from bertvision_stream.utils import log as module
from bertvision_stream.utils.log import log, telling


@pytest.fixture
def told() -> threading.Event:
    """Is set once something was said."""
    return threading.Event()


@pytest.fixture
def said(told: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            told.set()

    monkeypatch.setattr(module, "TELL_SECONDS", 0.001)
    monkeypatch.setattr(log, "handlers", [Handler()])
    monkeypatch.setattr(log, "propagate", False)
    before = log.level
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(before)


def test_a_long_wait_says_what_is_waited_for(said: list[str], told: threading.Event):
    with telling("Ray has started"):
        assert told.wait(10)
    assert said[0].startswith("still waiting until Ray has started, for 0.0 s")


def test_nothing_is_said_of_what_is_over(said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TELL_SECONDS", 60.0)
    with telling("Ray has started"):
        pass
    assert said == []
