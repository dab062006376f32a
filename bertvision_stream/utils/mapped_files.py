"""Where on disk an address of this process lies, if it does."""

from __future__ import annotations

from pathlib import Path

# The file systems of Linux that hold their files in memory.
IN_MEMORY = {"tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "rootfs"}


def disk_file_at(address: int, process: Path = Path("/proc/self")) -> str:
    """The file on disk that is mapped at an address of this process.

    Args:
        address: The address of a byte in memory.
        process: The folder in which Linux describes the process.

    Returns:
        The path of the file, or "" where the address belongs to no file or to a file that lies in
        memory itself. On other systems than Linux, which do not tell, it is "" too.
    """
    try:
        maps = (process / "maps").read_text()
        mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
    except OSError:
        return ""
    for line in maps.splitlines():
        span, _, _, _, inode, *rest = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end and inode != "0" and rest:
            path = Path(rest[0].removesuffix(" (deleted)"))
            # The file belongs to the innermost mount around it, the latest where several share
            # a place.
            around = [mount for mount in reversed(mounts) if path.is_relative_to(mount[1])]
            kind = max(around, key=lambda mount: len(mount[1]))[2] if around else ""
            return "" if kind in IN_MEMORY else str(path)
    return ""
