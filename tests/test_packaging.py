"""A wheel built from the sources holds every package and runs without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY as ROOT

PACKAGES = (
    "bertvision_stream",
    "bertvision_stream/data",
    "bertvision_stream/heads",
    "bertvision_stream/models",
    "bertvision_stream/modes",
    "bertvision_stream/report",
    "bertvision_stream/settings",
    "bertvision_stream/stream",
    "bertvision_stream/training",
    "bertvision_stream/training/objectives",
    "bertvision_stream/utils",
    "actors",
    "tune",
)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what is, or may be, committed: stale build folders and caches stay behind."""
    sources = tmp_path_factory.mktemp("sources")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():  # not deleted
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    built = tmp_path_factory.mktemp("built")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", built)
    run(sys.executable, *build, cwd=sources)
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_no_test(wheel: Path):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.name}" for package in PACKAGES for path in (ROOT / package).glob("*.py")
    }
    assert {f"{package}/__init__.py" for package in PACKAGES} <= expected
    shipped = {
        "bertvision_stream/data/demo.parquet",
        "bertvision_stream/report/templates/report.html.j2",
    }
    assert packed == expected | shipped


@pytest.mark.slow
def test_the_wheel_says_its_licence_and_its_needs(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())


@pytest.mark.slow
def test_an_installed_wheel_imports_and_runs_away_from_the_checkout(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(sys.executable, "-m", "pip", "install", *quiet, "--target", site, wheel, cwd=tmp_path)
    modules = [package.replace("/", ".") for package in PACKAGES]
    code = f"""
import importlib, sys
sys.path.insert(0, {str(site)!r})
for name in {modules!r}:
    assert importlib.import_module(name).__file__.startswith({str(site)!r}), name
from bertvision_stream.data.demo import load_demo
from bertvision_stream.settings.command_line import load_settings
rows = load_demo()
print(len(rows.train), len(rows.validation["validation"]), load_settings(["task=demo"]).tasks)
"""
    # -I: neither the working folder nor PYTHONPATH, from where the checkout might be imported.
    assert run(sys.executable, "-I", "-c", code, cwd=tmp_path) == "4000 1000 ('demo',)\n"
