"""Keeps the names `actors` and `tune` for our packages, whatever files the user's folder holds.

`python -m bertvision_stream.run` looks for modules in the current folder first, and so do the
worker processes of Ray. A user's own `tune.py`, `actors.py` or folder `tune/` would be imported in
the place of our packages, which stand beside `bertvision_stream`.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_OWN = {
    name: str(Path(__file__).resolve().parents[2] / name / "__init__.py")
    for name in ("actors", "tune")
}


def claim_own_packages() -> None:
    """Imports our packages by their files, so that later imports find them under their names."""
    for name, path in _OWN.items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is None or os.path.realpath(loaded) != path:
            spec = spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])


def worker_environment() -> dict[str, str] | None:
    """The `runtime_env` with which Ray's workers find our packages; None where they do anyway.

    A worker that starts with such an environment starts later than one that Ray keeps ready, so
    only runs from a folder with such files ask for it.
    """
    # Ray puts the current folder first on the path of its workers.
    specs = {name: PathFinder.find_spec(name, [os.getcwd(), *sys.path]) for name in _OWN}
    if all(spec is None or _is_own(name, spec.origin) for name, spec in specs.items()):
        return None
    return {"worker_process_setup_hook": f"{__name__}.{claim_own_packages.__name__}"}


def _is_own(name: str, origin: str | None) -> bool:
    return origin is not None and os.path.realpath(origin) == _OWN[name]
