"""What a run does when a part of Ray dies without which it cannot go on."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest
from ray._private.services import psutil  # Ray carries it

from actors import cluster_watch
from actors.cluster_watch import _is_gone, _Server, _watch


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages with which a watch ends the run; looks follow one another at once."""
    messages: list[str] = []
    monkeypatch.setattr(cluster_watch, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(cluster_watch, "_end_run", lambda message, own: messages.append(message))
    return messages


def test_a_server_that_is_gone_ends_the_run_after_some_looks(
    ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([False, True, True, False, True, True, True])
    monkeypatch.setattr(cluster_watch, "_is_connected_to", lambda node: True)
    monkeypatch.setattr(cluster_watch, "_is_gone", lambda server: next(found))
    _watch("a node", [_Server("the GCS", ("127.0.0.1", 1), looks=3)], own=True)
    assert ended == ["the GCS died; no run goes on without it"]
    assert not list(found)


def test_a_watch_ends_with_the_connection(
    ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has left its cluster must not be ended by the cluster's own end."""
    connected = iter([True, True, False])
    monkeypatch.setattr(cluster_watch, "_is_connected_to", lambda node: next(connected))
    monkeypatch.setattr(cluster_watch, "_is_gone", lambda server: True)
    _watch("a node", [_Server("the GCS", ("127.0.0.1", 1), looks=3)], own=True)
    assert not ended


def test_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = _Server("the GCS", listener.getsockname(), looks=3)
        assert not _is_gone(here)
    assert _is_gone(here)

    raised: OSError = OSError(errno.EMFILE, "Too many open files")

    def connect(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not _is_gone(here), "this process has no file descriptor left"
    raised = TimeoutError()
    assert not _is_gone(here), "this machine is busy"
    assert _is_gone(here._replace(is_elsewhere=True)), "another machine does not answer"


DRIVER = """
import logging, signal, sys
import ray
from actors.cluster import connect
from bertvision_stream.utils.log import log
log.addHandler(logging.StreamHandler(sys.stdout))

@ray.remote
class Sleeper:
    def sleep(self):
        signal.pause()

connect(None)
sleeper = Sleeper.remote()
ray.get(sleeper.__ray_ready__.remote())
print("ready", flush=True)
ray.get(sleeper.sleep.remote())
"""


@pytest.mark.ray
def test_a_driver_says_what_of_ray_died() -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert driver.stdout is not None
    lines = iter(driver.stdout.readline, "")
    assert any(line == "ready\n" for line in lines)
    (process,) = [
        child for child in psutil.Process(driver.pid).children() if child.name() == "gcs_server"
    ]
    process.send_signal(signal.SIGKILL)
    said = "".join(lines)
    assert driver.wait() == 1
    assert "resume=true goes on from it" in said
    assert "Ray's control service (the GCS at 127.0.0.1:" in said
