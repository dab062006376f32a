"""Run a command and watch it and all that it starts: wall time, CPU time, memory."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from benchmarks.processes import cpu_time, memory, process_tree

# A process's last moments are not seen, nor a peak between two looks.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Observed:
    """What a command took.

    Attributes:
        output: Its standard output.
        began: Unix time.
        wall_seconds: Until it ended.
        cpu_seconds: Of all its processes together.
        cpu_at: What that was at some times: Unix time and CPU seconds, ascending.
        peak_bytes: Most proportional set size of all its processes together, heap and shared
            memory; what the system caches of files does not count.
    """

    output: str
    began: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    cpu_at: tuple[tuple[float, float], ...] = ()

    def cpu_seconds_until(self, time: float) -> float:
        """CPU time of all processes together at a Unix time, between two looks at them."""
        times, seconds = zip((self.began, 0.0), *self.cpu_at, strict=True)
        return float(np.interp(time, times, seconds))


class _Watch(threading.Thread):
    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.cpu: dict[int, float] = {}
        self.cpu_at: list[tuple[float, float]] = []
        self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            total = 0
            for pid in process_tree(self._pid):
                with suppress(OSError):  # it has just ended
                    self.cpu[pid] = cpu_time(pid)
                    sizes = memory(pid)
                    total += sizes.private + sizes.shared
            self.peak_bytes = max(self.peak_bytes, total)
            self.cpu_at.append((time.time(), sum(self.cpu.values())))

    def end(self) -> None:
        self._over.set()
        self.join()


def observe(command: Sequence[str], environment: Mapping[str, str]) -> Observed:
    """Run a command to its end, with variables beside those of our own environment.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    began, start = time.time(), time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watch = _Watch(process.pid)
    watch.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    watch.end()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}"
        )
    return Observed(
        output, began, seconds, sum(watch.cpu.values()), watch.peak_bytes, tuple(watch.cpu_at)
    )
