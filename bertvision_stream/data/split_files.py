"""Files of splits: which of a folder's files are a split, which are not read, how they are named.

Also how messages list many names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bertvision_stream.utils.errors import DataError

SUFFIXES = (".parquet", ".csv", ".jsonl")
SHARD = re.compile(r"-(\d+)-of-(0*[1-9]\d*)(?:-[0-9a-f]{8,})?")
"""What follows the split's name in the name of a shard: its number, and that of all shards."""
_DATA_SUFFIXES = (*SUFFIXES, ".tsv", ".json", ".txt", ".gz", ".zip", ".arrow", ".xlsx")
NUM_LISTED = 10
"""Names or rows that an error lists before it only counts the rest."""


def find_split_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of a split: `<name>.<suffix>`, or all of its shards, sorted.

    Shards are `<name>-00000-of-00002.<suffix>` and the like, perhaps with a hash behind the
    numbers, as the hub had it.

    Args:
        folder: Where to look; its subfolders are not searched.
        names: The names that the split may go by.

    Returns:
        The files, or an empty list when the split is not there.

    Raises:
        DataError: The split is there under two names, in two formats or cut in two ways; or a shard
            is missing or there twice.
    """
    found: dict[tuple[str, str, int], dict[Path, int]] = {}
    for path in sorted(folder.iterdir()):
        for name in names:
            if path.suffix not in SUFFIXES or not path.is_file():
                continue
            shard = SHARD.fullmatch(path.stem.removeprefix(name))
            if path.stem == name:
                found[name, path.suffix, 0] = {path: 0}
            elif path.stem.startswith(name) and shard:
                shards = found.setdefault((name, path.suffix, int(shard[2])), {})
                shards[path] = int(shard[1])
    if len(found) > 1:
        there = ", ".join(path.name for shards in found.values() for path in shards)
        raise DataError(f"{folder}: more than one data set for the {names[0]} split: {there}")
    for (_, _, num_shards), shards in found.items():
        if num_shards:
            _check_shards(folder, shards, num_shards)
        return list(shards)
    return []


def _check_shards(folder: Path, shards: dict[Path, int], total: int) -> None:
    """Checks that each of `total` shards is there once; they are numbered from 0, or from 1."""
    numbers = sorted(shards.values())
    if len({*numbers}) < len(numbers):
        raise DataError(
            f"{folder}: a shard is there more than once among "
            f"{listing([path.name for path in shards])}; remove those of the older copy"
        )
    if len(numbers) != total or numbers[-1] - numbers[0] != total - 1 or numbers[0] > 1:
        raise DataError(
            f"{folder}: {next(iter(shards)).name} is one of {total} files, but {len(shards)} of "
            f"them {'is' if len(shards) == 1 else 'are'} there"
        )


def files_left_out(folder: Path, names: Sequence[str], used: Sequence[Path]) -> list[str]:
    """A note on the files that look like a part of a split and are none, or nothing.

    Args:
        folder: Where the splits were looked for.
        names: The names of the splits.
        used: The files that were found.
    """
    # "train-backup.csv", "Train (1).csv" and "val.tsv" are meant; "training.csv" names no split.
    named = re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, names))})(?![a-z])", re.IGNORECASE)
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path not in used and path.suffix.lower() in _DATA_SUFFIXES and named.search(path.stem)
    ]
    if not others:
        return []
    are = "is" if len(others) == 1 else "are"
    return [
        f"{folder}: {listing(others)} {are} not read. A split is one file, such as {names[0]}.csv, "
        f"or all of its shards, such as {names[0]}-00000-of-00002.csv."
    ]


def describe_folder(folder: Path) -> str:
    """Says what a folder holds: `a, b, c and 4 more`."""
    return listing([path.name for path in sorted(folder.iterdir())]) or "nothing"


def listing(items: Sequence[str]) -> str:
    """The items, or the first of them and how many more there are."""
    shown = ", ".join(items[:NUM_LISTED])
    return f"{shown} and {len(items) - NUM_LISTED} more" if len(items) > NUM_LISTED else shown


def require_suffix(path: Path, advice: str = "") -> None:
    """Checks that `data.path` names a file of a known format; else an error ends with the advice.

    Raises:
        DataError: It does not.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"data.path={path} is none of {', '.join(SUFFIXES)}{advice}")


def source_of(files: Sequence[Path]) -> str:
    """What messages call the files of a split."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
