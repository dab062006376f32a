"""The Ray cluster: start or join one, what it has, and who gets what of it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.ray_private import (
    OWN_CLUSTER,
    dashboard_wants_token,
    resources_of_this_machine,
    servers_on_loopback,
    store_counters,
)
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.own_packages import worker_environment
from bertvision_stream.utils.units import format_seconds

T = TypeVar("T")

_log = logging.getLogger("bertvision_stream")

# What waits for its resources for so long is spoken of, and again each time.
NOTICE_SECONDS = 30.0

# Read by Ray when it starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    # Ray Train's controller looks at its workers this often, and learns this late that they are
    # done.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Its watcher for cloud instances about to be taken away; all that it does here is to warn.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # It sends prints through a logger, and so breaks the lines that draw progress bars.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Its table of trials, which we have one of our own for, in place of a line for each of them.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A block that failed is reported by the stream; Ray would print its traceback as well.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or the job's, or start one on this machine.

    Args:
        address: `ray.address`. None joins the cluster of the job that we are (`RAY_ADDRESS`),
            or else starts a local cluster.

    Raises:
        ConfigError: There is no cluster at the address.
    """
    if ray.is_initialized():  # by an earlier task of this run
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    with preserve_sigterm():
        context = _join(address) if address else _start()
    if context.dashboard_url:
        asks = " (it asks for what `ray get-auth-token` prints)" if dashboard_wants_token() else ""
        _log.info("Ray's dashboard: http://%s%s", context.dashboard_url, asks)


def _join(address: str) -> Any:
    try:
        environment = worker_environment()
        return ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address={address}: there is no Ray cluster to join ({error}). Start one with "
            f"`ray start --head`, or leave ray.address out to use this machine alone."
        ) from error


def _start() -> Any:
    """Start a cluster on this machine; all its servers listen on 127.0.0.1 alone."""
    with servers_on_loopback():
        return ray.init(
            address="local",
            runtime_env=worker_environment(),
            _system_config=OWN_CLUSTER,
            logging_level=logging.ERROR,
        )


@contextmanager
def preserve_sigterm() -> Iterator[None]:
    """Keep a handler of SIGTERM: Ray puts one of its own in its place, which ends the process."""
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
    """The cluster that `mode=plan` plans for.

    It is the cluster to join, or this machine as a cluster of one node, scaled to `plan.nodes` and
    `plan.store`.
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
            store_bytes=int(found["object_store_memory"]),
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
    """The scheduling strategy for an actor that must run on the node of whoever starts it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Call `function` in a thread, where Ray Train and Tune leave the handler of Ctrl-C alone.

    In the main thread they would replace it for good, by one that exits with 0 or swallows it.
    """
    result: Future[T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True, name=name).start()
    return result


def get_with_notice(refs: Sequence[ray.ObjectRef], what: str) -> list[Any]:
    """`ray.get` that says so where actors wait for their resources.

    Args:
        refs: Answers of actors that are being started.
        what: Who they are and what they want, as it reads before "is not ready".
    """
    start = time.monotonic()
    while ray.wait(list(refs), num_returns=len(refs), timeout=NOTICE_SECONDS)[1]:
        _say_waiting(what, time.monotonic() - start)
    return list(ray.get(list(refs)))


def result_with_notice(future: Future[T], what: str) -> T:
    """The result of `in_thread`; says so where its placement group waits for resources."""
    start = time.monotonic()
    while not wait([future], timeout=NOTICE_SECONDS).done:
        groups = placement_group_table().values()
        if any(group["state"] == "PENDING" for group in groups):
            _say_waiting(what, time.monotonic() - start)
    return future.result()


def _say_waiting(what: str, seconds: float) -> None:
    free = ray.available_resources()
    _log.warning(
        "%s is not ready after %s; the cluster has %g CPU and %g GPU free",
        what,
        format_seconds(seconds),
        free.get("CPU", 0),
        free.get("GPU", 0),
    )
