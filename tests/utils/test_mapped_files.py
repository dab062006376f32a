"""Which file on disk an address belongs to: what shows where Ray keeps its object store."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from bertvision_stream.utils.mapped_files import disk_file_at

PAGE = mmap.PAGESIZE


def describe(folder: Path, *, mounts: str, path: str) -> Path:
    """A folder that describes a process in which one page is mapped to a file, from 0x1000 on."""
    (folder / "maps").write_text(
        f"00001000-00002000 rw-s 00000000 08:01 42    {path}\n"
        "00002000-00003000 rw-p 00000000 00:00 0 \n"
        "00003000-00004000 rw-p 00000000 00:00 0    [heap]\n"
    )
    (folder / "mounts").write_text(mounts)
    return folder


SHARED = "ext4 / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "path", "expected"),
    [
        (SHARED, "/dev/shm/plasma1 (deleted)", ""),
        (
            SHARED,
            "/tmp/ray/plasma1",
            "/tmp/ray/plasma1",
        ),
        ("o / overlay rw 0 0\n", "/tmp/a file (deleted)", "/tmp/a file"),
        ("o / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n", "/tmp/plasma1", ""),
        ("o / overlay rw 0 0\nt /tmp tmpfs rw 0 0\nd /tmp ext4 rw 0 0\n", "/tmp/p", "/tmp/p"),
        ("o / overlay rw 0 0\nt /tm tmpfs rw 0 0\n", "/tmp/p", "/tmp/p"),
    ],
    ids=["shared memory", "disk", "container", "memory at /tmp", "mounted twice", "similar name"],
)
def test_the_mount_says_whether_a_file_lies_on_disk(
    tmp_path: Path, mounts: str, path: str, expected: str
) -> None:
    process = describe(tmp_path, mounts=mounts, path=path)
    assert disk_file_at(0x1800, process) == expected
    assert disk_file_at(0x2800, process) == disk_file_at(0x3800, process) == ""  # no file at all
    assert disk_file_at(0x9000, process) == ""


def test_other_systems_do_not_tell(tmp_path: Path) -> None:
    assert disk_file_at(0x1800, tmp_path / "nothing") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux describes the memory of a process")
def test_a_file_that_is_mapped_and_gone_is_found(tmp_path: Path) -> None:
    """As Ray does it: the file is removed as soon as it is mapped."""
    path = tmp_path / "store"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as mapped:
        path.unlink()
        byte = ctypes.c_char.from_buffer(mapped)
        found = disk_file_at(ctypes.addressof(byte))
        del byte
    in_memory = [
        line.split()[1]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[2] == "tmpfs" and path.is_relative_to(line.split()[1])
    ]
    assert found == ("" if in_memory else str(path))
