"""What is said while actors wait for resources, and while they load."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

import pytest
import ray
from streams import becomes_true, nothing_is_left  # noqa: F401

from actors.cluster import get_with_notice, in_thread, result_with_notice
from bertvision_stream.stream.placement import ClusterResources

pytestmark = pytest.mark.ray


@ray.remote
class LOADING_FOREVER:  # noqa: N801
    def __init__(self) -> None:
        threading.Event().wait()

    def info(self) -> None: ...


def test_a_stage_that_waits_for_resources_says_so(
    cluster: ClusterResources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("actors.cluster.NOTICE_SECONDS", 0.5)
    monkeypatch.setattr(logging.getLogger("bertvision_stream"), "propagate", True)

    class Trainer:
        def info(self) -> str:
            return "ready"

    actor: Any = ray.remote(Trainer).options(num_gpus=1).remote()
    over = threading.Event()

    def answer() -> list[Any]:
        return get_with_notice([actor.info.remote()], [actor], "a head trainer (1 GPU)")

    waiting = in_thread(answer, "waits")
    group = ray.util.placement_group([{"CPU": 50}])
    fitting = in_thread(lambda: result_with_notice(in_thread(over.wait, "fits"), "fine-tuning"), "")

    def said(what: str) -> bool:
        """How long it has waited depends on how busy the machine is."""
        said_so = re.compile(re.escape(what).replace("_", ".*"))
        return becomes_true(lambda: any(said_so.fullmatch(r.getMessage()) for r in caplog.records))

    for what in ("a head trainer (1 GPU)", "fine-tuning"):
        assert said(f"{what} waits for resources, for _ now; the cluster has 2 CPU and 0 GPU free")
    loading = LOADING_FOREVER.options(num_cpus=0).remote()
    refs = [loading.info.remote()]
    gone = in_thread(lambda: get_with_notice(refs, [loading], "an extractor"), "loads")
    assert said("an extractor has its resources and is still loading, for _ now")
    ray.kill(loading)
    with pytest.raises(ray.exceptions.RayActorError):
        gone.result()
    over.set()
    assert fitting.result()
    ray.util.remove_placement_group(group)
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        waiting.result()
