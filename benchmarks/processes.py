"""CPU time and memory of processes, and a command that is watched while it runs (Linux, /proc)."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")

# A watched command is looked at so often. The last moments of a process are not seen, nor is a
# peak between two looks.
LOOK_SECONDS = 0.5


def process_tree(root: int) -> list[int]:
    """The ids of a process and of all processes below it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # the process has just ended
                children.setdefault(int(_stat(entry)[1]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:  # the list grows while it is walked through
        tree += children.get(pid, [])
    return tree


def memory_bytes(pid: int) -> int:
    """Bytes of the heap, the stacks and the shared memory of a process.

    This is the proportional set size: of a page that n processes share, each is charged 1/n. The
    object store is shared memory. The code of libraries does not count, as a process's share of it
    grows when processes of another run end.

    Raises:
        OSError: The process has ended.
    """
    sizes = {}
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name] = int(size) * 1024
    return sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]


def cpu_seconds() -> float:
    """CPU time so far of this process and of the processes that live below it."""
    seconds = 0.0
    for pid in process_tree(os.getpid()):
        with suppress(OSError):
            seconds += cpu_time(pid)
    return seconds


def cpu_time(pid: int) -> float:
    """CPU seconds so far of one process.

    Raises:
        OSError: The process has ended.
    """
    return _cpu_time(_PROC / str(pid))


def thread_times(pid: int) -> dict[int, float]:
    """CPU seconds so far of each thread of a process, by thread id.

    Raises:
        OSError: The process has ended.
    """
    times = {}
    for thread in (_PROC / str(pid) / "task").iterdir():
        with suppress(OSError):  # the thread has just ended
            times[int(thread.name)] = _cpu_time(thread)
    return times


def _cpu_time(folder: Path) -> float:
    return sum(int(field) for field in _stat(folder)[11:13]) / _TICKS


def _stat(folder: Path) -> list[str]:
    """The fields of `stat` after the name, which may hold spaces: the state, the parent, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Observed:
    """What a command took.

    Attributes:
        output: What it printed.
        began: Unix time at which it was started.
        cpu_seconds: CPU time of all its processes together.
        peak_bytes: The most memory that all its processes together had; see `memory_bytes`. Files
            that the system caches do not count.
        cpu_at: CPU time of all its processes together at some moments: Unix time and CPU seconds,
            ascending.
    """

    output: str
    began: float
    cpu_seconds: float
    peak_bytes: int
    cpu_at: tuple[tuple[float, float], ...] = ()

    def cpu_seconds_until(self, time: float) -> float:
        """CPU time of all processes together at a Unix time, interpolated between two looks."""
        times, seconds = zip((self.began, 0.0), *self.cpu_at, strict=True)
        return float(np.interp(time, times, seconds))


class _Watch(threading.Thread):
    """Looks at a process and all below it, again and again, until it is told to end."""

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
                with suppress(OSError):  # the process has just ended
                    self.cpu[pid] = cpu_time(pid)
                    total += memory_bytes(pid)
            self.peak_bytes = max(self.peak_bytes, total)
            self.cpu_at.append((time.time(), sum(self.cpu.values())))

    def end(self) -> None:
        self._over.set()
        self.join()


def observe(command: Sequence[str], environment: Mapping[str, str]) -> Observed:
    """Run a command to its end, with variables beside those of our own environment.

    Raises:
        RuntimeError: The command failed; the message has the end of what it printed.
    """
    began = time.time()
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
    watch.end()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}"
        )
    return Observed(output, began, sum(watch.cpu.values()), watch.peak_bytes, tuple(watch.cpu_at))
