"""A cluster that we start listens on this machine alone, and our handler of SIGTERM is kept."""

from __future__ import annotations

import signal

import pytest
from ray._private.services import psutil  # Ray carries it

from actors.cluster import preserve_sigterm
from bertvision_stream.stream.placement import ClusterResources


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
