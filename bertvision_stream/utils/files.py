"""Folders that are there as a whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bertvision_stream.utils.errors import OutputError


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled; takes its place when it is.

    Raises:
        OutputError: It cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with writing(folder):
            beside.mkdir(parents=True)
            yield beside
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees the old file or the whole new one.

    Raises:
        ValueError: If a number is not finite; JSON has no word for it.
        TypeError: If something is not JSON, a NumPy number for example.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path` and rename: a reader sees the old file or the whole new one.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or else a machine that stops may keep the name alone
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong while `path` is written into an error for people.

    Raises:
        OutputError: Says what happened and that nothing written earlier was touched.
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
