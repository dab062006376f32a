"""Files and folders that a reader sees as a whole or not at all.

Everything is written beside its place, under a hidden name, and renamed when it is complete. What
keeps it from being written becomes an `OutputError`; a damaged file of JSON a `ConfigError`.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from bertvision_stream.utils.errors import ConfigError, OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what can go wrong while `path` is written into an error for people.

    Raises:
        OutputError: The disk is full or the folder read-only; the message says so, and that
            nothing that was written earlier was touched.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise OutputError(
            f"{path} cannot be written: {cause}. What was written before is whole. Make room or "
            f"give another output_dir; with resume=true the same command then goes on from the "
            f"last finished epoch."
        ) from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to be filled, which takes the place of `folder` at the end.

    Where two processes do so at the same time, the folder that is put in place first stays.

    Raises:
        OutputError: It cannot be written.
    """
    beside, replaced = _beside(folder), _beside(folder)
    try:
        with writing(folder):
            beside.mkdir(parents=True)
            yield beside
            with suppress(FileNotFoundError):
                folder.rename(replaced)
            try:
                beside.rename(folder)
            except OSError as error:
                # Another process has put its folder there since the line above.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file.

    Raises:
        OutputError: It cannot be written.
    """
    beside = _beside(path)
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                # Without this a machine that loses power may keep the name and lose the content.
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Writes JSON, as `write_bytes` does.

    Raises:
        ValueError: A number is not finite, which JSON cannot express.
        TypeError: Something cannot be written as JSON, a NumPy number for example.
        OutputError: The file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, way_out: str = "") -> dict[str, Any]:
    """Reads a file of JSON with an object in it.

    Args:
        path: The file.
        way_out: A sentence that says what to do where the file is damaged.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. {way_out}".rstrip()) from error
    return content


def _beside(path: Path) -> Path:
    """A name of its own each time: process ids are shared by containers and come again."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
