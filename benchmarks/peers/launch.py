"""Start a peer in a process of its own, and watch it."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.observe import Observed, observe
from benchmarks.peers.outcome import read_outcome

T = TypeVar("T")


def run_peer(
    name: str,
    keys: Sequence[str],
    kind: type[T],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Observed, T]:
    """Run a peer to its end.

    Args:
        name: One of those that `benchmarks.peers` has.
        keys: Settings.
        kind: The class of its outcome.
        folder: For what it leaves, or finds; None gives it one of its own, removed afterwards.
        environment: Variables that it is started with, beside our own.

    Raises:
        RuntimeError: It failed.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as own:
            return run_peer(name, keys, kind, folder=Path(own), environment=environment)
    options = ["--folder", str(folder), "--threads", str(os.cpu_count()), name, *keys]
    observed = observe([sys.executable, "-m", "benchmarks.peers", *options], environment or {})
    return observed, read_outcome(kind, observed.output)
