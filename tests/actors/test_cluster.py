"""Starting and joining a cluster: who listens, what is said of faults, whose SIGTERM it is."""

from __future__ import annotations

import signal
import socket
import time
from types import SimpleNamespace

import pytest
import ray
from jobs import listening
from ray._private.services import psutil  # Ray carries it

from actors.cluster import JOIN_SECONDS, START_ATTEMPTS, connect, own_store_bytes, preserve_sigterm
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.utils.errors import ConfigError, StreamError


def test_a_handler_of_sigterm_is_kept_and_the_default_is_not():
    """Ray's own handler ends the process at once: a stopped run could not say how to resume it."""

    def ours(signum: int, frame: object) -> None: ...

    def of_ray(signum: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler, kept in ((ours, ours), (signal.SIG_DFL, of_ray)):
            signal.signal(signal.SIGTERM, handler)
            with preserve_sigterm():
                signal.signal(signal.SIGTERM, of_ray)
            assert signal.getsignal(signal.SIGTERM) is kept
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were not connected to the cluster that tests share."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("actors.cluster.watch_cluster", lambda own: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def dead_address() -> str:
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_gone_is_said_within_seconds(
    no_ray: None, dead_address: str, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    address = f"{scheme}{dead_address}"
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"^ray.address={address}: .*leave ray.address out"):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={address} .*or unset it"):
        connect(None)
    assert time.monotonic() - start < 4 * JOIN_SECONDS


def test_a_name_that_no_machine_has(no_ray: None) -> None:
    with pytest.raises(ConfigError, match="there is no Ray cluster to join"):
        connect("no-such-machine.invalid:6379")


SLOW = Exception("The current node timed out during startup. This could happen because ...")


def test_a_slow_start_is_tried_again(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter([SLOW, SLOW, SimpleNamespace(dashboard_url="")])
    lines: list[str] = []

    def start(**options: object) -> object:
        outcome = next(attempts)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("actors.cluster.start_cluster", start)
    with listening(lines.append):
        connect(None)
    assert lines == [
        f"Ray did not start in time, attempt {number} of {START_ATTEMPTS}: this machine is busy"
        for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (SLOW, StreamError, f"Ray did not start in {START_ATTEMPTS} attempts: .* is too busy"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), ConfigError, "Set RAY_TMPDIR"),
        (PermissionError(13, "Permission denied"), ConfigError, "Set RAY_TMPDIR"),
        (OSError(28, "No space left on device"), ConfigError, "Set RAY_TMPDIR"),
        (TimeoutError("timed out"), StreamError, "is too busy"),
        (ConnectionError("lost"), StreamError, "could not be started on this machine: lost"),
        (OSError(98, "Address already in use"), StreamError, "could not be started.*in use. The"),
        (RuntimeError("no port\n is free."), StreamError, "machine: no port is free. The logs of"),
    ],
    ids=[
        "too slow",
        "long path",
        "read-only",
        "full",
        "slow too",
        "lost",
        "a port",
        "anything else",
    ],
)
def test_a_start_that_fails(
    no_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
    message: str,
) -> None:
    def start(**options: object) -> None:
        raise raised

    monkeypatch.setattr("actors.cluster.start_cluster", start)
    with pytest.raises(expected, match=message):
        connect(None)


@pytest.mark.parametrize(
    ("free_mib", "store_mib", "said"),
    [
        (4096, None, []),
        (1000, 950, ["takes 950 MiB and not the 2.0 GiB"]),
        (64, None, ["in a file"]),
    ],
    ids=["enough", "less", "next to none, as Docker gives"],
)
def test_little_shared_memory(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, store_mib: int | None, said: list[str]
) -> None:
    shared = SimpleNamespace(f_bavail=free_mib * 256, f_frsize=4096)
    monkeypatch.setattr("actors.cluster.os.statvfs", lambda path: shared)
    found = {"object_store_memory": 2 * 2**30}
    monkeypatch.setattr("actors.cluster.resources_of_this_machine", lambda: found)
    lines: list[str] = []
    with listening(lines.append):
        store = own_store_bytes(warn=True)
    assert store == (store_mib and store_mib * 2**20)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line
        assert "--shm-size=2g" in line


@pytest.mark.ray
def test_a_cluster_of_our_own_listens_on_this_machine_alone(cluster: ClusterResources) -> None:
    servers = psutil.Process().children(recursive=True)
    sockets = [
        (process.name(), connection.laddr.ip)
        for process in servers
        if process.is_running()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {ip.removeprefix("::ffff:") for _, ip in sockets} == {"127.0.0.1"}, sockets
