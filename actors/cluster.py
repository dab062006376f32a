"""The Ray cluster: starting or joining one, its resources, and waiting for them."""

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster_watch import watch_cluster
from actors.ray_private import (
    dashboard_wants_token,
    end_orphaned_agents,
    is_placed,
    resources_of_this_machine,
    start_cluster,
    store_counters,
)
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.utils.errors import ConfigError, StreamError
from bertvision_stream.utils.log import log
from bertvision_stream.utils.own_packages import worker_environment
from bertvision_stream.utils.units import format_bytes, format_seconds

T = TypeVar("T")

# Ray gives its own processes 30 seconds to start, which a busy machine exceeds now and then.
START_ATTEMPTS = 4

# The errors of a folder for temporary files that cannot be used. That the path of a socket is too
# long comes without a number, and says AF_UNIX.
UNUSABLE_FOLDER = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

# Where Linux keeps memory that processes share.
SHARED_MEMORY = Path("/dev/shm")

# The smallest object store that is worth its place in memory: MiniLM's or BERT-base's weights and
# some blocks. Where shared memory has less room, the store goes into a file.
SMALLEST_STORE = 384 * 2**20

# The time in which a cluster that is joined must accept a connection.
JOIN_SECONDS = 5.0

# The time after which a line says what actors that start wait for, and between two such lines.
NOTICE_SECONDS = 30.0

# Ray reads these environment variables when it starts; those that the user has set are kept.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    # The pause between two looks of Ray Train's controller at its workers: at the end of a
    # fine-tuning it waits for up to one such pause.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray Train's watcher for cloud machines about to be taken away, which here could only warn.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray Train's patch of `print`, which sends prints through a logger and so breaks the lines that
    # draw progress bars.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray Tune's newer output, which prints lines for each trial; we print a table of our own.
    "RAY_AIR_NEW_OUTPUT": "0",
    # The traceback of each trial that dies, though it goes on; `tune.search` says so in a line.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ray prints errors that nobody has fetched. The stream reports a block that failed, in a line.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine.

    Args:
        address: `ray.address`, the cluster to join. With None it is the cluster in `RAY_ADDRESS`,
            which Ray sets for a job that was submitted to a cluster; without that either, a cluster
            is started.

    Raises:
        ConfigError: There is no cluster at the address.
    """
    if ray.is_initialized():  # by an earlier task of this run
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # Ray colours the prefix of actors' lines wherever they go
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    given = f"ray.address={address}"
    if not address and (address := os.environ.get("RAY_ADDRESS")):
        given = f"RAY_ADDRESS={address} (an environment variable)"
    with preserve_sigterm():
        context = _join(address, given) if address else _start()
    watch_cluster(own=not address)
    if context.dashboard_url:
        asks = " (it asks for what `ray get-auth-token` prints)" if dashboard_wants_token() else ""
        log.info("Ray's dashboard: http://%s%s", context.dashboard_url, asks)


def _join(address: str, given: str) -> Any:
    """Join the cluster at `address`; `given` says to people where the address stands."""
    try:
        _check_listens(address)
        environment = worker_environment()
        return ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        way_out = "unset it" if given.startswith("RAY_ADDRESS") else "leave ray.address out"
        raise ConfigError(
            f"{given}: there is no Ray cluster to join ({error}). Start one with "
            f"`ray start --head`, or {way_out} to use this machine alone."
        ) from error


def _check_listens(address: str) -> None:
    """Raises an `OSError` within seconds where nobody listens; Ray would try for many minutes.

    Args:
        address: `ray.address`; one without a port, such as `auto`, is left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and "://" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=JOIN_SECONDS).close()


def _start() -> Any:
    """Start a cluster on this machine, whose servers all listen on 127.0.0.1 alone.

    Raises:
        ConfigError: The folder for temporary files cannot be used.
        StreamError: Ray did not start in time, in several attempts, or failed in another way.
    """
    end_orphaned_agents()
    environment = worker_environment()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return start_cluster(
                runtime_env=environment,
                logging_level=logging.ERROR,
                object_store_memory=own_store_bytes(warn=attempt == 1),
            )
        except Exception as error:  # Ray raises no other type where its processes are too slow
            ray.shutdown()
            folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            if isinstance(error, OSError) and (
                error.errno in UNUSABLE_FOLDER or "AF_UNIX" in str(error)
            ):
                raise ConfigError(
                    f"Ray cannot be started with its files in {folder}: {error}. Set RAY_TMPDIR to "
                    f"a folder with a short path that can be written and has some hundred MiB "
                    f"free: RAY_TMPDIR=/tmp"
                ) from error
            if "timed out" not in str(error):
                raise StreamError(
                    f"Ray could not be started on this machine: {_in_one_line(error)}. The logs of "
                    f"its processes are in {folder}/ray/session_latest/logs"
                ) from error
            log.warning(
                "Ray did not start in time, attempt %d of %d: this machine is busy",
                attempt,
                START_ATTEMPTS,
            )
    raise StreamError(
        f"Ray did not start in {START_ATTEMPTS} attempts: this machine is too busy. Try again when "
        f"less else runs on it; with resume=true the same command goes on where it ended."
    )


def own_store_bytes(*, warn: bool) -> int | None:
    """The size of the object store of a cluster that we start; None leaves it to Ray.

    Ray wants 30 % of the memory, and where shared memory has less room, as in a container, it puts
    the store into a file on disk without a word. A smaller store in shared memory is taken instead.

    Args:
        warn: Whether to log that shared memory is small.
    """
    try:
        shared = os.statvfs(SHARED_MEMORY)
    except OSError:  # this system has none
        return None
    free = shared.f_bavail * shared.f_frsize
    wanted = int(resources_of_this_machine()["object_store_memory"])
    if wanted <= free:
        return None
    fits = int(0.95 * free)
    enough = fits >= SMALLEST_STORE
    if warn:
        then = (
            f"Ray's object store takes {format_bytes(fits)} and not the {format_bytes(wanted)} "
            f"that it would take"
            if enough
            else "Ray's object store lies in a file, and hidden states may be written to disk"
        )
        log.warning(
            "WARNING: %s has only %s free, so %s. A container gets more shared memory by "
            "`docker run --shm-size=%dg` or, in Kubernetes, a memory volume at %s.",
            SHARED_MEMORY,
            format_bytes(free),
            then,
            -(-wanted // 2**30),
            SHARED_MEMORY,
        )
    return fits if enough else None


def _in_one_line(error: Exception) -> str:
    """What an error says, without line breaks and the full stop."""
    return " ".join(str(error).split()).removesuffix(".") or repr(error)


@contextmanager
def preserve_sigterm() -> Iterator[None]:
    """Restore this process's handler of SIGTERM afterwards.

    `ray.init` replaces it by one that ends the process at once. A run that is stopped by a job
    scheduler could then not say how to resume it, nor end its actors in order.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)


def cluster_resources() -> ClusterResources:
    """The resources of all nodes together."""
    total = ray.cluster_resources()
    return ClusterResources(
        num_cpus=int(total.get("CPU", 1)),
        num_gpus=int(total.get("GPU", 0)),
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        store_bytes=int(total["object_store_memory"]),
        store_used_bytes=store_counters().used_bytes,
        memory_bytes=int(total.get("memory", 0)),
    )


def planned_cluster(settings: TaskSettings) -> ClusterResources:
    """The cluster that `mode=plan` plans for, scaled to `plan.nodes` and `plan.store`.

    It is the cluster to join; where there is none, it is this machine as a cluster of one node, and
    Ray is not started.

    Args:
        settings: `ray.address`, `plan.nodes` and `plan.store`.

    Raises:
        ConfigError: There is no cluster at the address.
    """
    if settings.ray.address or os.environ.get("RAY_ADDRESS"):
        connect(settings.ray.address)
        cluster = cluster_resources()
    else:
        found = resources_of_this_machine()
        cluster = ClusterResources(
            num_cpus=int(found.get("CPU", 1)),
            num_gpus=int(found.get("GPU", 0)),
            num_nodes=1,
            store_bytes=own_store_bytes(warn=True) or int(found["object_store_memory"]),
            memory_bytes=int(found.get("memory", 0)),
        )
    nodes = cluster.num_nodes if settings.plan.nodes == "auto" else settings.plan.nodes
    store = settings.plan.store
    if nodes == cluster.num_nodes and store == "auto":
        return cluster
    scale = nodes / cluster.num_nodes
    return ClusterResources(
        num_cpus=round(cluster.num_cpus * scale),
        num_gpus=round(cluster.num_gpus * scale),
        num_nodes=nodes,
        store_bytes=round(cluster.store_bytes * scale) if store == "auto" else store * nodes,
        memory_bytes=round(cluster.memory_bytes * scale),
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """The scheduling strategy for an actor that must run on the node of the calling process."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Call a function in a thread, where Ray Train and Ray Tune leave the handler of Ctrl-C alone.

    In the main thread they would replace that handler for good, by one that exits with 0 or ignores
    the signal.

    Args:
        function: What to call.
        name: The name of the thread.
    """
    result: Future[T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True, name=name).start()
    return result


def get_with_notice(
    refs: Sequence[ray.ObjectRef], actors: Sequence[ActorHandle], what: str
) -> list[Any]:
    """Call `ray.get`, with a line each time that actors which start take long.

    Args:
        refs: Refs that calls to the actors have returned.
        actors: The actors.
        what: The actors and the resources that they need, worded to stand before "waits".
    """
    start = time.monotonic()
    while ray.wait(list(refs), num_returns=len(refs), timeout=NOTICE_SECONDS)[1]:
        log.warning("%s", describe_wait(what, actors, time.monotonic() - start))
    return list(ray.get(list(refs)))


def result_with_notice(future: Future[T], what: str) -> T:
    """The result of `in_thread`, with a line each time that it waits long for resources.

    Args:
        future: What `in_thread` has returned. Its function starts a placement group, as Ray Train
            does; one that is pending is what waits for resources.
        what: What is started and the resources that it needs, worded to stand before "waits".
    """
    start = time.monotonic()
    while not wait([future], timeout=NOTICE_SECONDS).done:
        groups = placement_group_table().values()
        if any(group["state"] == "PENDING" for group in groups):
            log.warning("%s", describe_wait(what, (), time.monotonic() - start))
    return future.result()


def describe_wait(what: str, actors: Sequence[ActorHandle], seconds: float) -> str:
    """What something that is being started waits for, in one line.

    Args:
        what: What that is and the resources that it needs, worded to stand before "waits".
        actors: The actors that it consists of; none where its resources are known to be lacking.
        seconds: How long it has waited.
    """
    passed = format_seconds(seconds)
    if actors and all(map(is_placed, actors)):
        return f"{what} has its resources and is still loading, for {passed} now"
    free = ray.available_resources()
    return (
        f"{what} waits for resources, for {passed} now; the cluster has {free.get('CPU', 0):g} "
        f"CPU and {free.get('GPU', 0):g} GPU free"
    )
