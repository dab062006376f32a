"""Files and folders that a reader sees as a whole or not at all.

Everything is written beside its place, under a hidden name, and renamed when it is complete. What
keeps it from being written becomes an `OutputError`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bertvision_stream.utils.errors import OutputError


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

    Raises:
        OutputError: It cannot be written.
    """
    beside = _beside(folder)
    try:
        with writing(folder):
            beside.mkdir(parents=True)
            yield beside
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
