"""Who gets what of a cluster: whatever is planned must fit, or Ray would wait for ever."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from tiny import task_settings

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.placement import ClusterResources, Placement, plan_placement
from bertvision_stream.utils.errors import ConfigError


def cluster(num_cpus: int, num_gpus: int = 0) -> ClusterResources:
    return ClusterResources(num_cpus, num_gpus, num_nodes=1, store_bytes=2**30)


def several_trainers(settings: TaskSettings, num_trainers: int) -> TaskSettings:
    """Only a search may ask for them, and it comes later."""
    train = settings.train.model_copy(update={"num_trainers": num_trainers})
    return settings.model_copy(update={"train": train})


def fits(placement: Placement, resources: ClusterResources, *, num_trainers: int) -> bool:
    """Whether Ray finds room: a fraction of a GPU lies on one, whole ones are taken as a whole."""
    cpus = placement.num_extractors * placement.extractor_cpus
    if cpus > resources.num_cpus + 1e-6:
        return False
    demands = [placement.extractor_gpus] * placement.num_extractors
    demands += [placement.trainer_gpus] * num_trainers
    whole = sum(int(demand) for demand in demands if demand >= 1)
    parts = sorted((demand for demand in demands if 0 < demand < 1), reverse=True)
    return whole <= resources.num_gpus and can_pack(parts, [1.0] * (resources.num_gpus - whole))


def can_pack(parts: list[float], room: list[float]) -> bool:
    """Whether all parts find a place, every way of placing them tried."""
    if not parts:
        return True
    for left in sorted({round(r, 6) for r in room if r + 1e-6 >= parts[0]}):
        i = next(i for i, r in enumerate(room) if round(r, 6) == left)
        if can_pack(parts[1:], [*room[:i], room[i] - parts[0], *room[i + 1 :]]):
            return True
    return False


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 2), (16, 16)])
def test_without_a_gpu_each_core_has_an_extractor_of_one_thread(cores: int, count: int):
    placement = plan_placement(cluster(cores), task_settings())
    assert placement == Placement(
        num_extractors=count,
        extractor_cpus=1.0,
        extractor_gpus=0,
        extractor_threads=1,
        trainer_gpus=0,
        trainer_threads=count,
    )


def test_trainers_share_the_cores_of_a_node():
    settings = several_trainers(task_settings(), 3)
    assert plan_placement(replace(cluster(16), num_nodes=2), settings).trainer_threads == 2
    assert plan_placement(cluster(2), settings).trainer_threads == 1


@pytest.mark.parametrize(
    ("count", "cpus"), [(1, 1.0), (2, 1.0), (3, 0.66), (4, 0.5), (7, 0.28), (200, 0.01)]
)
def test_more_extractors_than_cores_share_them(count: int, cpus: float):
    placement = plan_placement(cluster(2), task_settings("cola", f"extract.num_extractors={count}"))
    assert (placement.num_extractors, placement.extractor_cpus) == (count, cpus)
    assert fits(placement, cluster(2), num_trainers=1)


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "threads"), [(8, 1, 1, 4), (16, 4, 4, 2), (4, 8, 8, 1)]
)
def test_each_gpu_has_an_extractor_and_trainers_what_is_left_of_one(
    cpus: int, gpus: int, count: int, threads: int
):
    placement = plan_placement(cluster(cpus, gpus), task_settings())
    assert (placement.num_extractors, placement.extractor_gpus) == (count, 0.8)
    assert placement.trainer_gpus == 0.2
    assert placement.extractor_threads == placement.trainer_threads == threads
    assert fits(placement, cluster(cpus, gpus), num_trainers=1)


def test_several_trainers_share_what_is_left():
    settings = several_trainers(task_settings(), 4)
    placement = plan_placement(cluster(8, 2), settings)
    assert (placement.num_extractors, placement.trainer_gpus) == (2, 0.05)
    assert fits(placement, cluster(8, 2), num_trainers=4)


@pytest.mark.parametrize(
    ("overrides", "gpus", "expected"),
    [
        (["extract.num_gpus=0.5", "train.num_gpus=0"], 2, (4, 0.5, 0)),
        (["extract.num_gpus=0.25", "train.num_gpus=0.25"], 1, (3, 0.25, 0.25)),
        (["extract.num_gpus=1", "train.num_gpus=1"], 4, (3, 1, 1)),
        (["extract.num_gpus=2", "train.num_gpus=1"], 4, (1, 2, 1)),
        (["extract.num_gpus=1"], 4, (3, 1, 0.2)),  # the trainer's share takes the fourth
        (["train.num_gpus=1"], 2, (1, 0.8, 1)),
        (["extract.num_extractors=2"], 4, (2, 0.8, 0.2)),
        (["extract.num_gpus=0", "train.num_gpus=1"], 1, (8, 0, 1)),  # extraction on the cores
    ],
)
def test_gpus_as_they_are_asked_for(
    overrides: list[str], gpus: int, expected: tuple[int, float, float]
):
    placement = plan_placement(cluster(8, gpus), task_settings("cola", *overrides))
    found = placement.num_extractors, placement.extractor_gpus, placement.trainer_gpus
    assert found == expected
    assert fits(placement, cluster(8, gpus), num_trainers=1)


@pytest.mark.parametrize("key", ["extract.num_gpus", "train.num_gpus"])
def test_gpus_that_a_cluster_does_not_have(key: str):
    expected = f"{key}=0.5, but the cluster has no GPU. Leave it out."
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        plan_placement(cluster(8), task_settings("cola", f"{key}=0.5"))
    assert plan_placement(cluster(8), task_settings("cola", f"{key}=0")).num_extractors == 8


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["extract.num_extractors=3"],
            "extract.num_extractors=3 with 0.8 GPUs each, and 1 trainers with 0.2 GPUs each, do "
            "not fit on the cluster's 2 GPUs: 2 extractors would.",
        ),
        (
            ["train.num_gpus=2"],
            "extract.num_extractors=auto with 0.8 GPUs each, and 1 trainers with 2.0 GPUs each, do "
            "not fit on the cluster's 2 GPUs: 0 extractors would.",
        ),
    ],
)
def test_more_gpus_than_there_are(overrides: list[str], expected: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        plan_placement(cluster(8, 2), task_settings("cola", *overrides))


SHARES = ("auto", "0", "0.2", "0.3", "0.4", "0.5", "0.8", "1", "2")


@pytest.mark.parametrize("num_trainers", [1, 2, 3])
@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_what_is_planned_fits_on_the_gpus(gpus: int, num_trainers: int):
    impossible = []
    for of_extractor, of_trainer in itertools.product(SHARES, SHARES):
        overrides = [f"extract.num_gpus={of_extractor}", f"train.num_gpus={of_trainer}"]
        settings = several_trainers(task_settings("cola", *overrides), num_trainers)
        try:
            placement = plan_placement(cluster(8, gpus), settings)
        except ConfigError:
            continue
        if not fits(placement, cluster(8, gpus), num_trainers=num_trainers):
            impossible.append(f"{' '.join(overrides)}: {placement}")
    assert impossible == []
