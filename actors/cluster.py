"""The Ray cluster: start or join one, what it has, and who gets what of it."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.util import placement_group_table

from bertvision_stream.errors import ConfigError
from bertvision_stream.settings import TaskSettings
from bertvision_stream.units import format_seconds

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

# Of a cluster that we start: a full object store is an error and never a file; a freed block is
# gone in 0.05 s and not in 0.8 s; and the GCS remembers the last thousand calls for the dashboard.
# By default it is a hundred thousand, at 3 KiB each: it grew with every block, up to 300 MiB.
OWN_CLUSTER = {
    "automatic_object_spilling_enabled": False,
    "local_fs_capacity_threshold": 0.0,
    "free_objects_period_milliseconds": 50,
    # Trials of a search take no CPU; Ray warns of more than four processes for each of these.
    "worker_maximum_startup_concurrency": 16,
    "task_events_max_num_task_in_gcs": 1000,
}

# Shares of a GPU where extractors and trainers are left to `auto`: each extractor leaves room
# beside it.
EXTRACTOR_GPU_SHARE = 0.8
TRAINERS_GPU_SHARE = 0.2


@dataclass(frozen=True)
class ClusterResources:
    """What the cluster has in all: CPU cores, GPUs, nodes, bytes of object stores.

    `store_used_bytes` of them were taken by others when we came. `memory_bytes` is what there is
    for processes, as Ray counts it.
    """

    num_cpus: int
    num_gpus: int
    num_nodes: int
    store_bytes: int
    store_used_bytes: int = 0
    memory_bytes: int = 0

    def store_room(self, resident_bytes: int) -> int:
        """Bytes for blocks where each node's object store also holds `resident_bytes` of ours."""
        return max(self.store_bytes - self.store_used_bytes - self.num_nodes * resident_bytes, 0)


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
    with signals_kept():
        context = _join(address) if address else _start()
    if context.dashboard_url:
        asks = " (it asks for what `ray get-auth-token` prints)" if is_token_auth_enabled() else ""
        _log.info("Ray's dashboard: http://%s%s", context.dashboard_url, asks)


def _join(address: str) -> Any:
    try:
        return ray.init(address=address, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address={address}: there is no Ray cluster to join ({error}). Start one with "
            f"`ray start --head`, or leave ray.address out to use this machine alone."
        ) from error


def _start() -> Any:
    """Start a cluster on this machine; all its servers listen on 127.0.0.1 alone.

    Ray does so by itself on a Mac and on Windows. On Linux only its dashboard does.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        return ray.init(address="local", _system_config=OWN_CLUSTER, logging_level=logging.ERROR)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def signals_kept() -> Iterator[None]:
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
        store_used_bytes=store_stats().used_bytes,
        memory_bytes=int(total.get("memory", 0)),
    )


@dataclass(frozen=True)
class StoreStats:
    """Bytes that the object stores have written to disk since they started, and hold now."""

    spilled_bytes: int
    fallback_bytes: int
    used_bytes: int


def store_stats() -> StoreStats:
    """Counters of all nodes' object stores."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return StoreStats(
        stats.spilled_bytes_total,
        stats.object_store_bytes_fallback,
        stats.object_store_bytes_used,
    )


@dataclass(frozen=True)
class Placement:
    """Who gets what: how many actors; the CPUs and GPUs, as Ray counts them, and threads of each.

    A trainer reserves no CPU: on a CPU it shares the extractors' cores, for a fraction of their
    time, and has all of them where blocks come from the cache.
    """

    num_extractors: int
    extractor_cpus: float
    extractor_gpus: float
    extractor_threads: int
    trainer_gpus: float
    trainer_threads: int


def place(cluster: ClusterResources, settings: TaskSettings) -> Placement:
    """Assign CPUs, GPUs and threads to extractors and trainers.

    Without a GPU an extractor gets one thread and there are as many as cores: two of one thread
    beat one of two by a quarter, and a thread more than there are cores makes all of them slower.
    With GPUs there is one extractor for each GPU, and trainers take the share that extractors
    leave.

    Raises:
        ConfigError: More GPUs are asked for than there are.
    """
    extract, train = settings.extract, settings.train
    if cluster.num_gpus == 0:
        for key, value in (
            ("extract.num_gpus", extract.num_gpus),
            ("train.num_gpus", train.num_gpus),
        ):
            if value not in ("auto", 0):
                raise ConfigError(f"{key}={value}, but the cluster has no GPU. Leave it out.")
        count = cluster.num_cpus if extract.num_extractors == "auto" else extract.num_extractors
        cpus = min(1.0, math.floor(100 * cluster.num_cpus / count) / 100)
        threads = max(1, cluster.num_cpus // cluster.num_nodes // train.num_trainers)
        return Placement(count, cpus, 0, 1, 0, threads)
    trainer_gpus = (
        TRAINERS_GPU_SHARE / train.num_trainers if train.num_gpus == "auto" else train.num_gpus
    )
    extractor_gpus = EXTRACTOR_GPU_SHARE if extract.num_gpus == "auto" else extract.num_gpus
    trainers = [trainer_gpus] * train.num_trainers
    upper = cluster.num_cpus
    if extractor_gpus > 0:
        upper = int(cluster.num_gpus / extractor_gpus + 1e-9)
    fitting = (
        n
        for n in range(upper, 0, -1)
        if _have_room([extractor_gpus] * n + trainers, cluster.num_gpus)
    )
    most = next(fitting, 0)
    count = most if extract.num_extractors == "auto" else extract.num_extractors
    if count > most or count == 0:
        raise ConfigError(
            f"extract.num_extractors={extract.num_extractors} with {extractor_gpus} GPUs each, and "
            f"{train.num_trainers} trainers with {trainer_gpus} GPUs each, do not fit on the "
            f"cluster's {cluster.num_gpus} GPUs: {most} extractors would."
        )
    cpus = min(1.0, math.floor(100 * cluster.num_cpus / count) / 100)
    threads = 1 if extractor_gpus == 0 else max(1, cluster.num_cpus // count // 2)
    return Placement(count, cpus, extractor_gpus, threads, trainer_gpus, threads)


def _have_room(demands: Sequence[float], num_gpus: int) -> bool:
    """Whether Ray can serve all: whole GPUs must be free; a fraction goes where it fits best."""
    free = [1.0] * num_gpus
    for demand in demands:
        if demand >= 1:
            unused = [i for i, room in enumerate(free) if room == 1]
            if len(unused) < demand:
                return False
            for i in unused[: int(demand)]:
                free[i] = 0
        elif demand > 0:
            fitting = [room for room in free if room > demand - 1e-9]
            if not fitting:
                return False
            free[free.index(min(fitting))] -= demand
    return True


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


def get_patiently(refs: Sequence[ray.ObjectRef], what: str) -> list[Any]:
    """`ray.get` that says so where actors wait for their resources.

    Args:
        refs: Answers of actors that are being started.
        what: Who they are and what they want, as it reads before "is not ready".
    """
    start = time.monotonic()
    while ray.wait(list(refs), num_returns=len(refs), timeout=NOTICE_SECONDS)[1]:
        _say_waiting(what, time.monotonic() - start)
    return list(ray.get(list(refs)))


def result_patiently(future: Future[T], what: str) -> T:
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
