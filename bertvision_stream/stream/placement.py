"""Which actor gets which CPUs, GPUs and threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.errors import ConfigError

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

    def free_store_bytes(self, resident_bytes: int) -> int:
        """Bytes for blocks where each node's object store also holds `resident_bytes` of ours."""
        return max(self.store_bytes - self.store_used_bytes - self.num_nodes * resident_bytes, 0)


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


def plan_placement(cluster: ClusterResources, settings: TaskSettings) -> Placement:
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
        if fits_on_gpus([extractor_gpus] * n + trainers, cluster.num_gpus)
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


def fits_on_gpus(demands: Sequence[float], num_gpus: int) -> bool:
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
