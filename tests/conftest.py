"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with `glue/` laid out as on the hub: `BERTVISION_DATA`, or `shared/data` beside us."""
    folder = Path(os.environ.get("BERTVISION_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no GLUE rows in {folder}")
    return folder
