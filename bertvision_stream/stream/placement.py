"""The placement: how many actors there are, and which CPUs, GPUs and threads each of them gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.errors import ConfigError

# The shares of a GPU that an extractor and all trainers together get with `auto`: a GPU that
# extracts has room for the trainers too.
EXTRACTOR_GPU_SHARE = 0.8
TRAINERS_GPU_SHARE = 0.2


@dataclass(frozen=True)
class ClusterResources:
    """The resources of all nodes of a cluster together.

    Attributes:
        num_cpus: The number of CPU cores.
        num_gpus: The number of GPUs.
        num_nodes: The number of nodes.
        store_bytes: The capacity of the object stores.
        store_used_bytes: The bytes of the object stores that others had taken before this run.
        memory_bytes: The memory for processes, as Ray counts it.
    """

    num_cpus: int
    num_gpus: int
    num_nodes: int
    store_bytes: int
    store_used_bytes: int = 0
    memory_bytes: int = 0

    def free_store_bytes(self, resident_bytes: int) -> int:
        """The room for blocks in the object stores of all nodes together.

        Args:
            resident_bytes: The bytes of weights and tokens, of which every node gets a copy.
        """
        return max(self.store_bytes - self.store_used_bytes - self.num_nodes * resident_bytes, 0)


@dataclass(frozen=True)
class Placement:
    """The number of extractors, and what each extractor and each trainer gets.

    A trainer reserves no CPU. Without a GPU it shares the cores of the extractors, of which it
    needs a small part of the time, and it has all of them while blocks come from the cache.

    Attributes:
        num_extractors: The number of extractors.
        extractor_cpus: The CPUs that an extractor reserves, as Ray counts them.
        extractor_gpus: The GPUs that an extractor reserves, a fraction allowed.
        extractor_threads: The CPU threads of an extractor.
        trainer_gpus: The GPUs that a trainer reserves, a fraction allowed.
        trainer_threads: The CPU threads of a trainer.
    """

    num_extractors: int
    extractor_cpus: float
    extractor_gpus: float
    extractor_threads: int
    trainer_gpus: float
    trainer_threads: int


def plan_placement(cluster: ClusterResources, settings: TaskSettings) -> Placement:
    """Assign CPUs, GPUs and threads to extractors and trainers.

    Without a GPU there is an extractor with one thread for each core: two extractors with one
    thread are faster by a quarter than one with two threads, and more threads than cores make all
    of them slower. With GPUs there is an extractor for each GPU, and the trainers get the share
    that the extractors leave.

    Args:
        cluster: The resources of the cluster.
        settings: `extract.num_extractors`, `extract.num_gpus`, `train.num_trainers` and
            `train.num_gpus`.

    Raises:
        ConfigError: The settings ask for more GPUs than there are.
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
        # Rounded down to hundredths, so that the reservations of all extractors together fit.
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
    # The most extractors that fit on the GPUs beside all trainers.
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
    """Whether Ray can place all demands.

    A demand of whole GPUs needs GPUs that nobody uses. A fraction of a GPU lies on one GPU, and Ray
    takes the one that it fits best.

    Args:
        demands: The GPUs that each actor reserves, in the order in which the actors start.
        num_gpus: The number of GPUs of the cluster.
    """
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
