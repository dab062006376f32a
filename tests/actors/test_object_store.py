"""What happens where the object store is full, by others or by us; without starting Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from simulated import NUM_EXTRACTORS, Extractor, World

from actors import object_store
from actors.extractors import ExtractorGroup
from actors.finetune import check_room
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.stream.stats import StoreStats
from bertvision_stream.utils.errors import ConfigError, StreamError

GIB = 2**30


@pytest.fixture(autouse=True)
def _store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of 4 GiB with 3 GiB in it, and pauses that take no time."""
    monkeypatch.setattr(object_store, "store_counters", lambda: StoreStats(0, 0, 3 * GIB))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"object_store_memory": 4 * GIB})
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", 1e-6)
    monkeypatch.setattr(object_store, "LONGEST_PAUSE_SECONDS", 1e-6)


def test_a_full_store_is_waited_for_for_minutes_in_growing_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    pauses = list(object_store.pauses())
    assert pauses[:5] == [1, 2, 4, 8, 15]
    assert 300 <= sum(pauses) < 900
    assert max(pauses) == 15


class FullStore(World):
    """Blocks that find the store full so many times."""

    resident_bytes = GIB // 2

    def __init__(self, num_full: int):
        super().__init__(1, num_nodes=1, num_trainers=1, share=0.0)
        self.num_full = num_full

    def start(self, index: int) -> Extractor:
        extractor = super().start(index)
        info, make = extractor.info, extractor.extract

        def extract(key: Any) -> Any:
            block, receipt = make.remote(key)
            if self.num_full:
                self.num_full -= 1
                full = RayTaskError("extract", "full", OutOfDiskError("full"))
                extractor.calls.pop()
                receipt.set_exception(full.as_instanceof_cause())
            else:
                extractor.answer()
            return block, receipt

        def answered() -> Any:
            answer = info.remote()
            extractor.answer()
            return answer

        extractor.info, extractor.extract = type(info)(answered), type(make)(extract)
        return extractor

    async def make_all(self) -> int:
        """The number of blocks that were made."""
        self.stats.held_bytes = GIB // 2
        group = ExtractorGroup(self.plan, self, NUM_EXTRACTORS, self.stats)  # type: ignore[arg-type]
        self.notices = group.notices
        await group.start()
        made = 0
        for key in self.plan.block_bytes:
            if key.split == TRAIN:
                group.free((await group.make(0, key)).lease)
                made += 1
        assert len(self.extractors) == NUM_EXTRACTORS  # none was taken for dead
        return made


def test_a_peak_in_the_use_of_others_is_waited_out():
    world = FullStore(num_full=40)
    assert asyncio.run(world.make_all()) == world.plan.num_train
    assert world.stats.blocks_failed == 40
    (said,) = world.notices
    assert (
        "Ray's object store is full (of its 4.0 GiB this run holds 1.0 GiB, and others 2.0 GiB); "
        "it is tried again for up to 10 minutes" in said
    )


def test_a_store_that_stays_full_ends_the_run_with_what_it_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_store, "FULL_SECONDS", 1e-5)
    with pytest.raises(StreamError) as caught:
        asyncio.run(FullStore(num_full=10_000).make_all())
    said = str(caught.value)
    assert "stayed full" in said
    assert "this run holds 1.0 GiB, and others 2.0 GiB" in said
    assert "resume=true" in said
    assert "larger object store" in said


@pytest.mark.parametrize("error", [OutOfDiskError, ObjectStoreFullError])
def test_weights_and_tokens_wait_as_well(monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    tried: list[object] = []

    def put(value: object) -> str:
        tried.append(value)
        if len(tried) <= 20:
            raise error("full")
        return "ref"

    monkeypatch.setattr("ray.put", put)
    assert object_store.put("the backbone", 7, GIB) == "ref"
    assert tried == [7] * 21
    tried.clear()
    object_store.wait_for_room(7)
    assert len(tried) == 22  # twice
    tried.clear()
    monkeypatch.setattr(object_store, "FULL_SECONDS", 1e-5)
    with pytest.raises(StreamError, match=r"^the backbone does not fit: .* others 2\.0 GiB"):
        object_store.put("the backbone", 7, GIB)


@pytest.mark.parametrize(
    ("total", "others", "fits"),
    [(330, 0, True), (300, 0, False), (500, 150, True), (500, 190, False)],
)
def test_fine_tuned_weights_without_room_are_found_before_the_fine_tuning(
    total: int, others: int, fits: bool
):
    weights: Any = SimpleNamespace(arrays={"w": np.zeros(100, dtype=np.uint8)})
    for num_nodes in (1, 3):  # the weights must fit into one of them
        cluster = ClusterResources(
            2, 0, num_nodes, num_nodes * total, store_used_bytes=num_nodes * others
        )
        job: Any = SimpleNamespace(cluster=cluster, stores={TRAIN: SimpleNamespace(nbytes=20)})
        if fits:
            check_room(job, weights)
            continue
        with pytest.raises(ConfigError) as caught:
            check_room(job, weights)
        assert "fine-tuning needs 320 B of Ray's object store" in str(caught.value)
        assert f"others hold {others} B" in str(caught.value)
