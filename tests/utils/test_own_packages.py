"""A folder with the user's own `actors.py` and `tune`: our packages are found all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import actors
import tune

OURS = [actors.__file__, tune.__file__]

DRIVER = """
import json
from bertvision_stream.utils.own_packages import claim_own_packages, worker_environment
claim_own_packages()
import actors, tune
print(json.dumps([actors.__file__, tune.__file__, worker_environment()]))
"""
WORKER = """
import json
import ray
from bertvision_stream.utils.own_packages import claim_own_packages
claim_own_packages()
from actors.cluster import connect

@ray.remote
def found():
    import actors.records, tune
    return [actors.__file__, tune.__file__]

connect(None)
print(json.dumps(ray.get(found.remote())))
"""


def output(code: str, folder: Path) -> list[object]:
    """What `code` prints last, where Python looks into `folder` first."""
    paths = [str(Path(actors.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed: list[object] = json.loads(done.stdout.splitlines()[-1])
    return printed


def write_own(folder: Path) -> None:
    (folder / "actors.py").write_text("raise AssertionError('the file of the user is imported')\n")
    (folder / "tune").mkdir()
    (folder / "tune" / "__init__.py").write_text("raise AssertionError('and this one too')\n")


def test_our_packages_are_imported_whatever_the_folder_holds(tmp_path: Path):
    assert output(DRIVER, tmp_path) == [*OURS, None]
    write_own(tmp_path)
    *found, environment = output(DRIVER, tmp_path)
    assert found == OURS
    assert environment is not None


@pytest.mark.ray
def test_workers_import_them_as_well(tmp_path: Path):
    write_own(tmp_path)
    assert output(WORKER, tmp_path) == OURS
