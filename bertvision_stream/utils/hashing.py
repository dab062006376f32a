"""Hashes of contents, by which a later run finds what an earlier one has made."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def hash_contents(parts: Iterable[str | bytes | Any]) -> str:
    """Hashes parts one after the other, as if they were one sequence of bytes.

    Args:
        parts: Strings, taken as UTF-8; bytes; or arrays and tensors on the CPU, of which only the
            values count: the caller adds names, shapes and dtypes where these may differ.

    Returns:
        The first 16 hexadecimal digits of the SHA-256 digest.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]
