"""The processes of a run: what they are called, their CPU time and their memory (Linux, /proc)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")

# Ray renames its workers: `ray::HeadTrainer.consume`, `ray::cola-1f2e3d-extractor-0:Feature...`.
_ROLES = {
    "FeatureExtractor": "extractor",
    "HeadTrainer": "trainer",
    "FeatureStream": "feature stream",
    "ray::": "Ray's idle worker",
    "raylet": "raylet",
    "gcs_server": "GCS",
    "/ray/": "Ray's dashboard, agents, monitors",
}


@dataclass(frozen=True)
class Memory:
    """Proportional set size in bytes: a page that n processes share counts 1/n for each of them.

    Attributes:
        private: Heap and stacks. Libraries are left out: a process's share of them is larger when
            others that have loaded them, of another run perhaps, end.
        shared: Shared memory, which is where the object store is.
    """

    private: int
    shared: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.private + other.private, self.shared + other.shared)


def process_tree(root: int | None = None) -> dict[int, str]:
    """A process (this one if none is named) and all below it: what each is, by process id."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                children.setdefault(int(_stat(entry)[1]), []).append(int(entry.name))
    root = root or os.getpid()
    tree = {root: "driver"}
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            with suppress(OSError):
                tree[pid] = _role(pid)
                waiting.append(pid)
    return tree


def memory(pid: int) -> Memory:
    """Of one process.

    Raises:
        OSError: It has ended.
    """
    sizes = {}
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name] = int(size) * 1024
    return Memory(sizes["Pss_Anon:"], sizes["Pss_Shmem:"])


def memory_by_role() -> dict[str, Memory]:
    """Of all processes below this one, those of a kind together."""
    total: dict[str, Memory] = {}
    for pid, role in process_tree().items():
        with suppress(OSError):
            total[role] = total.get(role, Memory(0, 0)) + memory(pid)
    return total


def cpu_seconds(role: str = "") -> float:
    """CPU time so far of this process and those that live below it, or of those of a role."""
    seconds = 0.0
    for pid, its_role in process_tree().items():
        if role in ("", its_role):
            with suppress(OSError):
                seconds += cpu_time(pid)
    return seconds


def cpu_time(pid: int) -> float:
    """CPU seconds so far of one process.

    Raises:
        OSError: It has ended.
    """
    return _cpu_time(_PROC / str(pid))


def thread_times(pid: int) -> dict[int, float]:
    """CPU seconds so far of each thread of a process, by thread id.

    Raises:
        OSError: The process has ended.
    """
    times = {}
    for thread in (_PROC / str(pid) / "task").iterdir():
        with suppress(OSError):  # it has just ended
            times[int(thread.name)] = _cpu_time(thread)
    return times


def _cpu_time(folder: Path) -> float:
    return sum(int(field) for field in _stat(folder)[11:13]) / _TICKS


def _stat(folder: Path) -> list[str]:
    """The fields of `stat` after the name (which may hold spaces): state, parent, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _role(pid: int) -> str:
    command = (_PROC / str(pid) / "cmdline").read_text().replace("\0", " ")
    return next((role for part, role in _ROLES.items() if part in command), "other")
