"""One hash for all contents; fine-tunings on disk are found again by its values."""

import hashlib

import numpy as np
import pytest
import torch

from bertvision_stream.utils.hashing import hash_contents


def test_parts_are_hashed_as_one_sequence_of_bytes():
    parts = [
        "é",
        b"\0",
        np.arange(6, dtype=np.int32).reshape(2, 3),
        torch.ones(2),
        np.zeros((0, 3)),
    ]
    written = (
        "é".encode() + b"\0" + np.arange(6, dtype=np.int32).tobytes() + np.ones(2, "f4").tobytes()
    )
    assert hash_contents(parts) == hashlib.sha256(written).hexdigest()[:16]
    assert hash_contents([]) == "e3b0c44298fc1c14"


@pytest.mark.parametrize("array", [np.arange(12).reshape(3, 4).T, np.arange(9)[::2]])
def test_only_the_values_of_an_array_count(array: np.ndarray):
    assert not array.flags.c_contiguous
    assert hash_contents([array]) == hash_contents([array.tobytes()])
