"""A look at Ray's own processes while a run goes on.

Without the control service of its cluster (the GCS) or the raylet of its machine no run goes on.
Ray itself says so late and in its own words, and then ends this process: 60 s after the control
service died, 15 s after the raylet did. So a thread looks whether both still accept connections,
and ends the run before, with how to go on.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from typing import NamedTuple

import ray

from actors.ray_private import kill_own_cluster
from bertvision_stream.utils.errors import RUN_ERROR
from bertvision_stream.utils.log import log

# The time between two looks at the same process, and that in which it must accept a connection.
PERIOD_SECONDS = 2.0

# The looks in a row that find nobody before the run ends.
LOOKS = 3

# A cluster that is joined may start its control service again; Ray waits for it for 60 s. So many
# looks take half a minute where connections are refused, and 52 s where nobody answers.
LOOKS_AT_JOINED = 13

_nodes: list[str] = []
"""The nodes of this process in the clusters that it was connected to, in their order."""


class _Server(NamedTuple):
    """A process of Ray's that listens.

    Attributes:
        what: What it is, as the message names it.
        address: Its host and port.
        looks: The looks in a row that must find nobody.
        is_elsewhere: Whether it runs on another machine.
    """

    what: str
    address: tuple[str, int]
    looks: int
    is_elsewhere: bool = False


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
            host != raylet["NodeManagerAddress"],
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
            missed[server] = missed[server] + 1 if _is_gone(server) else 0
            if not _is_connected_to(node):
                return
            if missed[server] >= server.looks:
                _end_run(f"{server.what} died; no run goes on without it", own=own)
                return


def _is_gone(server: _Server) -> bool:
    """Whether nobody listens at the address of a server, as far as one attempt can tell.

    A process of this machine that died refuses connections; one that is merely busy may let them
    wait. Another machine that is gone does not answer at all. Other errors, such as that this
    process has no file descriptor left, say nothing.
    """
    try:
        socket.create_connection(server.address, timeout=PERIOD_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return server.is_elsewhere
    except OSError as error:
        return error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
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
