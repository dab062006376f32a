"""The Ray cluster: start or join one, what it has, and who gets what of it."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from bertvision_stream.errors import ConfigError
from bertvision_stream.settings import TaskSettings

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
    # A block that failed is reported by the stream; Ray would print its traceback as well.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}

# For every actor that computes with torch. oneDNN and its wrapper keep a kernel for each shape of a
# matrix product, 1,024 of them by default, and packed batches hardly ever repeat a shape: each
# extractor grew by 10 MiB a second, up to gigabytes. 32 are as fast and take 100 MiB.
TORCH_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}

# Shares of a GPU where extractors and trainers are left to `auto`: each extractor leaves room
# beside it.
EXTRACTOR_GPU_SHARE = 0.8
TRAINERS_GPU_SHARE = 0.2


@dataclass(frozen=True)
class ClusterResources:
    """What the cluster has in all: CPU cores, GPUs, nodes, bytes of object stores."""

    num_cpus: int
    num_gpus: int
    num_nodes: int
    store_bytes: int


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or the job's, or start one on this machine.

    Args:
        address: `ray.address`. None joins the cluster of the job that we are (`RAY_ADDRESS`),
            or else
            starts a local cluster.

    Raises:
        ConfigError: There is no cluster at the address.
    """
    if ray.is_initialized():  # by an earlier task of this run
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(
                f"ray.address={address}: there is no Ray cluster to join ({error}). Start one with "
                f"`ray start --head`, or leave ray.address out to use this machine alone."
            ) from error
        return
    # On a cluster of our own a full object store is an error and never a file, and a freed block is
    # gone in 0.05 s and not in 0.8 s.
    ray.init(
        address="local",
        _system_config={
            "automatic_object_spilling_enabled": False,
            "local_fs_capacity_threshold": 0.0,
            "free_objects_period_milliseconds": 50,
        },
        logging_level=logging.ERROR,
    )


def cluster_resources() -> ClusterResources:
    """The resources of all nodes together."""
    total = ray.cluster_resources()
    return ClusterResources(
        num_cpus=int(total.get("CPU", 1)),
        num_gpus=int(total.get("GPU", 0)),
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        store_bytes=int(total["object_store_memory"]),
    )


@dataclass(frozen=True)
class StoreStats:
    """Bytes that the object stores have written to disk since they started."""

    spilled_bytes: int
    fallback_bytes: int


def store_stats() -> StoreStats:
    """Counters of all nodes' object stores."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return StoreStats(stats.spilled_bytes_total, stats.object_store_bytes_fallback)


@dataclass(frozen=True)
class Placement:
    """Who gets what: how many actors; the CPUs and GPUs, as Ray counts them, and threads of each.

    A trainer reserves no CPU: on a CPU it shares the extractors' cores, for a fraction of their
    time.
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
        return Placement(count, cpus, 0, 1, 0, 1)
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
    return Placement(count, cpus, extractor_gpus, threads, trainer_gpus, max(1, threads))


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
