"""What is used of Ray beyond its public interface is there, and a run goes on without it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path

import pytest
import ray
from ray.train.torch import TorchTrainer

from actors import ray_private
from bertvision_stream.stream.placement import ClusterResources

USED = {
    "ray._private.ray_constants": "ENABLE_RAY_CLUSTER",
    "ray._private.authentication.authentication_utils": "is_token_auth_enabled",
    "ray._private.internal_api": "get_memory_info_reply",
    "ray._private.state": "actors",
    "ray._private.resource_and_label_spec": "ResourceAndLabelSpec",
    "ray.train.v2._internal.callbacks.placement_group_callback": "PlacementGroupCleanerCallback",
}


@pytest.mark.parametrize("module", USED)
def test_this_version_of_ray_has_it(module: str) -> None:
    assert hasattr(importlib.import_module(module), USED[module])


def test_ray_train_asks_for_its_callbacks_where_we_filter_them() -> None:
    assert hasattr(TorchTrainer, "_create_default_callbacks")


def test_ray_init_takes_a_system_config() -> None:
    assert "_system_config" in inspect.getsource(ray.init)


def test_a_ray_that_refuses_a_system_config_starts_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, object]] = []

    def init(**options: object) -> str:
        calls.append(options)
        if "_system_config" in options:
            raise RuntimeError("Unknown keyword argument(s): _system_config")
        return "started"

    monkeypatch.setattr(ray, "init", init)
    assert ray_private.start_cluster(logging_level="ERROR") == "started"
    assert calls[1] == {"address": "local", "logging_level": "ERROR"}

    def broken(**options: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(RuntimeError, match="the disk is full"):
        ray_private.start_cluster()


@pytest.fixture
def public_ray_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray without the modules that we use of its private ones."""
    for module in USED:
        monkeypatch.setitem(sys.modules, module, None)
        parent, _, name = module.rpartition(".")
        if name == "ray_constants":  # `from package import module` finds the attribute
            monkeypatch.delattr(importlib.import_module(parent), name)


def test_without_it_a_run_goes_on(public_ray_only: None, caplog: pytest.LogCaptureFixture) -> None:
    with ray_private.servers_on_loopback():
        pass
    assert not ray_private.dashboard_wants_token()
    assert not ray_private.is_placed(object())  # type: ignore[arg-type]
    found = ray_private.resources_of_this_machine()
    assert found["CPU"] >= 1
    assert found["object_store_memory"] > 2**20
    callbacks = [object()]
    assert ray_private.without_group_cleaner(callbacks) == callbacks
    counted = ray_private.store_counters()
    assert (counted.spilled_bytes, counted.fallback_bytes) == (0, 0)


def test_agents_that_a_killed_driver_leaves_behind_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(pid))
    for pid, parent, command in (
        (1, 0, "init"),
        (20, 1, "/site-packages/ray/core/src/ray/raylet/raylet\0--raylet_socket_name=x"),
        (21, 20, "ray::DashboardAgent"),
        (31, 1, "ray::DashboardAgent"),
        (32, 1, "ray::RuntimeEnvAgent"),
        (33, 0, "ray::RuntimeEnvAgent"),  # whose parent is out of sight
        (34, 99, "ray::RuntimeEnvAgent"),  # whose parent has just ended
        (35, 1, "python\0ray::DashboardAgent"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_text(command)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) name) S {parent} 1 1")
    (tmp_path / "40").mkdir()  # which has ended meanwhile
    ray_private.end_orphaned_agents(tmp_path)
    assert sorted(ended) == [31, 32]
    monkeypatch.setattr(os, "getuid", lambda: -1)  # nobody else's are touched
    ray_private.end_orphaned_agents(tmp_path)
    assert sorted(ended) == [31, 32]


@pytest.mark.ray
def test_the_counters_of_a_cluster(cluster: ClusterResources) -> None:
    ref = ray.put(bytes(2**20))
    counted = ray_private.store_counters()
    assert counted.used_bytes >= 2**20
    assert (counted.spilled_bytes, counted.fallback_bytes) == (0, 0)
    del ref
