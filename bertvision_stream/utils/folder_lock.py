"""A lock on a folder, which the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log

FILE = ".lock"

# What `flock` raises where another process has the lock; the second one on some network file
# systems.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """Keeps a folder to this process until `release`, or until the process ends.

    The lock is an `flock` on a file in the folder, whose text says who holds it. Only the lock
    decides: the text of a process that has died is in nobody's way. Linux passes such locks on to
    the server of a network file system, so that they hold between hosts as well.

    Args:
        folder: The folder, which exists.

    Raises:
        ConfigError: Another run holds the lock; the message names its host and its process.
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._file: int | None = None
        while self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._take(self._file)
            if not self._is_in_place(self._file):  # its holder has just removed it
                os.close(self._file)
                self._file = None
        since = datetime.now().isoformat(" ", "seconds")
        text = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)
        os.fsync(self._file)  # other hosts see it from now on

    def _take(self, file: int) -> None:
        folder = self._path.parent
        holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                os.close(file)
                self._file = None
                raise ConfigError(
                    f"{folder} is in use by another run that has not ended "
                    f"({holder or 'which does not say who it is'}). Take another run_name, or "
                    f"none; or go on with resume=true once that run has ended."
                ) from error
            log.warning(
                f"note: {folder} lies on a file system without locks ({error.strerror}): make sure "
                f"that no other run uses it" + (f"; the last one was {holder}" if holder else "")
            )

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                self._path.unlink()  # while it is still ours
            os.close(self._file)
            self._file = None

    __del__ = release
