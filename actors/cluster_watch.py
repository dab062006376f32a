"""A look at Ray's own processes while a run goes on.

Without the control service of its cluster (the GCS) or the raylet of its machine no run goes on.
Ray itself says so late and in its own words, and then ends this process: 60 s after the control
service died, 15 s after the raylet did. So a thread looks whether both still accept connections,
and ends the run before, with how to go on.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from typing import NamedTuple

import ray

from actors.ray_private import kill_own_cluster
from bertvision_stream.utils.errors import RUN_ERROR
from bertvision_stream.utils.log import log

# The time between two looks at the same process, and that in which it must accept a connection.
PERIOD_SECONDS = 2.0

# The looks in a row that find nobody before the run ends. A process of a machine that is merely
# busy still accepts: connections are accepted by the kernel, on behalf of whoever listens.
LOOKS = 3

# A cluster that is joined may start its control service again; Ray waits for it for 60 s.
LOOKS_AT_JOINED = 20


_nodes: list[str] = []
"""The nodes of this process in the clusters that it was connected to, in their order."""


class _Server(NamedTuple):
    """A process of Ray's that listens.

    Attributes:
        what: What it is, as the message names it.
        address: Its host and port.
        looks: The looks in a row that must find nobody.
    """

    what: str
    address: tuple[str, int]
    looks: int


def watch_cluster(*, own: bool) -> None:
    """Watch the cluster that this process is connected to, until it disconnects.

    If a part of Ray dies without which no run can go on, the log says so and how to resume, and
    this process ends with exit code 1.

    Args:
        own: Whether this process has started the cluster.
    """
    context = ray.get_runtime_context()
    here = context.get_node_id()
    host, _, port = context.gcs_address.rpartition(":")
    raylet = next(node for node in ray.nodes() if node["NodeID"] == here)
    servers = [
        _Server(
            f"Ray's control service (the GCS at {context.gcs_address})",
            (host, int(port)),
            LOOKS if own else LOOKS_AT_JOINED,
        ),
        _Server(
            "Ray's process for this machine (its raylet)",
            (raylet["NodeManagerAddress"], raylet["NodeManagerPort"]),
            LOOKS,
        ),
    ]
    # A process may join one cluster after another: each thread watches its own.
    _nodes.append(here)
    threading.Thread(
        target=_watch, args=(here, servers, own), daemon=True, name="watch of the cluster"
    ).start()


def _watch(node: str, servers: list[_Server], own: bool) -> None:
    """Look at servers again and again; end the run once one of them is gone."""
    pause = threading.Event()
    missed = dict.fromkeys(servers, 0)
    while not pause.wait(PERIOD_SECONDS):
        for server in servers:
            missed[server] = 0 if _accepts(server.address) else missed[server] + 1
            if not _is_connected_to(node):
                return
            if missed[server] >= server.looks:
                _end_run(f"{server.what} died; no run goes on without it", own=own)
                return


def _accepts(address: tuple[str, int]) -> bool:
    with suppress(OSError), socket.create_connection(address, timeout=PERIOD_SECONDS):
        return True
    return False


def _is_connected_to(node: str) -> bool:
    """Whether this process is still connected to the cluster with that node.

    Ray's other calls are not made here: they would start a cluster where one was just left.
    """
    return ray.is_initialized() and _nodes[-1] == node


def _end_run(message: str, *, own: bool) -> None:
    """Say what died and how to go on, and end this process.

    An interrupt of the main thread would not do: it waits for Ray, which no longer answers, and so
    would all that ends actors in order.
    """
    log.error(
        "The run failed: %s. What is finished is kept: the same command with resume=true goes on "
        "from it.",
        message,
    )
    if own:
        kill_own_cluster()
    sys.stdout.flush()
    os._exit(RUN_ERROR)
