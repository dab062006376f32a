"""All that this project uses of Ray beyond its public interface.

Each function says what it is for, and what happens where a version of Ray does not have it: no run
depends on any of them. When an upgrade of Ray takes one away, `tests/actors/test_ray_private.py`
fails and names it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from bertvision_stream.stream.stats import StoreStats
from bertvision_stream.utils.log import log

OWN_CLUSTER = {
    "automatic_object_spilling_enabled": False,
    "local_fs_capacity_threshold": 0.0,
    "free_objects_period_milliseconds": 50,
    # Ray warns when there are more than four times as many worker processes as this, by default the
    # number of cores. The trials of a search are processes too, but take no CPU.
    "worker_maximum_startup_concurrency": 16,
    # Ray's control service remembers this many calls for the dashboard. By default they are a
    # hundred thousand at 3 KiB each, so that it would grow with every block, up to 300 MiB.
    "task_events_max_num_task_in_gcs": 1000,
}
"""The `_system_config` of a cluster that we start.

With it a full object store is an error and never writes files, and a freed block is gone in 0.05 s
and not in 0.8 s. Without it a full store spills to disk, and the run says so: `store_counters`
counts it.
"""


def start_cluster(**options: Any) -> Any:
    """Start a cluster on this machine by `ray.init`, with `OWN_CLUSTER` and on 127.0.0.1 alone.

    A version of Ray that refuses `_system_config` starts without it, with a warning.

    Args:
        options: Further arguments of `ray.init`.

    Returns:
        The context that `ray.init` returns.
    """
    with servers_on_loopback():
        try:
            return ray.init(address="local", _system_config=OWN_CLUSTER, **options)
        except (TypeError, RuntimeError) as error:
            if "_system_config" not in str(error):
                raise
            log.warning("this version of Ray may write hidden states to disk: %s", error)
            return ray.init(address="local", **options)


_NO_PROXY = "no_grpc_proxy"  # gRPC reads it by this name in lower case


@contextlib.contextmanager
def servers_on_loopback() -> Iterator[None]:
    """Within this context `ray.init` starts servers that listen on 127.0.0.1 alone.

    Ray does so by itself on macOS and on Windows; on Linux only its dashboard does. Without this
    the servers listen on all addresses of the machine.
    """
    try:
        from ray._private import ray_constants
    except ImportError:
        yield
        return
    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def kill_own_cluster() -> None:
    """Kill the processes of the cluster that this process has started, without asking them.

    Ray's own shutdown waits for processes that may be dead. Without this, those that live end by
    themselves some time after this process.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        worker._global_node.kill_all_processes(  # type: ignore[attr-defined]
            check_alive=False, allow_graceful=False
        )


_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # the names that these processes have


def end_orphaned_agents(processes: Path = Path("/proc")) -> None:
    """End the agents that are left of clusters whose driver was killed, some 200 MiB of each.

    An agent is a child of its raylet. Where a driver gets SIGKILL its raylet dies with it, and the
    agents live on under another parent. Without this, they stay until somebody ends them.

    Args:
        processes: Where Linux shows processes; elsewhere this does nothing.
    """
    for folder in processes.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # one that is just ending
            if not (folder / "cmdline").read_bytes().startswith(_AGENTS):
                continue
            # The name of a process stands in parentheses, and may hold anything.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            owner = folder.stat().st_uid
            if parent == 0 or owner != os.getuid():  # 0: it is out of sight, outside a container
                continue
            if b"raylet" not in (processes / str(parent) / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)  # they ignore SIGTERM


def is_placed(actor: ActorHandle) -> bool:
    """Whether an actor has been given its resources, and so is ready or still loading.

    Without this, every actor that is not ready counts as one that waits for resources.
    """
    try:
        from ray._private.state import actors

        found: dict[str, Any] = actors(actor._actor_id.hex())
    except (ImportError, AttributeError):
        return False
    return found.get("Pid", 0) > 0  # its process is only known once there is one


def dashboard_wants_token() -> bool:
    """Whether the dashboard asks for a token; without this, no message mentions the token."""
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return False
    return bool(is_token_auth_enabled())


def store_counters() -> StoreStats:
    """The counters of the object stores of all nodes together.

    Without this the run warns that it cannot know whether hidden states went to disk.
    """
    try:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    except ImportError:
        log.warning("this version of Ray does not tell what its object stores wrote to disk")
        return StoreStats(0, 0, 0)
    address = ray.get_runtime_context().gcs_address
    # This one call opens a channel that takes proxies from the environment, as Ray's own do not.
    nodes = {node["NodeManagerAddress"] for node in ray.nodes()} | {address.rpartition(":")[0]}
    direct = nodes.union(os.environ.get(_NO_PROXY, "").split(","))
    os.environ[_NO_PROXY] = ",".join(sorted(filter(None, direct)))
    state = get_state_from_address(address)
    stats = get_memory_info_reply(state).store_stats
    return StoreStats(
        stats.spilled_bytes_total,
        stats.object_store_bytes_fallback,
        stats.object_store_bytes_used,
    )


def resources_of_this_machine() -> dict[str, float]:
    """The resources that Ray would find on this machine, without starting Ray; for `mode=plan`.

    Without this, they are the cores that the process may use, no GPU, and 30 % of the memory as the
    object store.
    """
    try:
        from ray._private.resource_and_label_spec import ResourceAndLabelSpec
    except ImportError:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0))
        return {"CPU": cores, "memory": 0.7 * memory, "object_store_memory": 0.3 * memory}
    found: dict[str, float] = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
    return found


def quiet_torch_trainer() -> Any:
    """The class `TorchTrainer` of Ray Train, without the callback of `without_group_cleaner`.

    It overrides a private method; without that method it is `TorchTrainer` as it is.
    """
    from ray.train.torch import TorchTrainer

    class QuietTorchTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return without_group_cleaner(callbacks)

    return QuietTorchTrainer


def without_group_cleaner(callbacks: list[Any]) -> list[Any]:
    """The callbacks of Ray Train without the one that starts a cleaner of placement groups.

    That cleaner is a detached actor for jobs that crash. Ray removes our placement groups with
    their job in any case, and where a machine runs several clusters the cleaner cannot find its
    own. Without this, a run there prints the failures of the cleaner.

    Args:
        callbacks: The default callbacks of a trainer.
    """
    try:
        from ray.train.v2._internal.callbacks.placement_group_callback import (
            PlacementGroupCleanerCallback,
        )
    except ImportError:
        return callbacks
    return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


@contextlib.contextmanager
def no_coordinator_left() -> Iterator[None]:
    """End the actor for clusters that grow, which Ray Train starts and leaves behind.

    An actor that was there before stays, as another run may use it. Without this, a run leaves an
    idle process behind in the cluster that it has joined.
    """
    before = _coordinator()
    try:
        yield
    finally:
        if before is None and (ours := _coordinator()):
            ray.kill(ours)


def _coordinator() -> Any:
    """Ray's actor for clusters that grow; None where there is none."""
    with contextlib.suppress(ValueError):  # there is none
        return ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    return None
