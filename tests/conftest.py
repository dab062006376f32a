"""Fixtures for all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bertvision_stream.stream.placement import ClusterResources

REPOSITORY = Path(__file__).resolve().parent.parent
# What clusters of tests have, alike on every machine; Ray reads it when one is started.
RESOURCES = {
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 0, "object_store_memory": 256 * 2**20}),
}
# Ray's workers give way to everything else by default, here to the tests without Ray. Clusters of
# processes that tests start inherit this.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with `glue/` as on the hub: `BERTVISION_DATA`, or `shared/data` beside us."""
    folder = Path(os.environ.get("BERTVISION_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no GLUE rows in {folder}")
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterResources]:
    """A Ray cluster set up as a run sets it up; one for all tests."""
    import ray

    from actors.cluster import cluster_resources, connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in RESOURCES.items():
            patch.setenv(name, value)
        connect(None)
    yield cluster_resources()
    ray.shutdown()
