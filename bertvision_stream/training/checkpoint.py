"""Checkpoints: the whole state of training between two epochs, as tensors and plain facts.

On disk a checkpoint is one safetensors file: nothing in it can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_bytes, writing
from bertvision_stream.utils.hashing import hash_contents

_FACTS, _HASH, _FORMAT = "facts", "hash", "format"  # keys of the file's metadata
# Raise it when a head or its optimiser takes another state: no older one can go on then.
_VERSION = "2"


class DamagedError(Exception):
    """A checkpoint in which bits have changed, or one of another version."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, on the CPU, and facts that JSON can hold."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Mapping[str, Checkpoint], facts: Mapping[str, Any]) -> Checkpoint:
        """Several checkpoints as one; `part` takes one out again.

        Args:
            parts: The checkpoints by name; a name holds no slash.
            facts: Facts about the whole.
        """
        tensors = {f"{n}/{key}": t for n, part in parts.items() for key, t in part.tensors.items()}
        return cls(tensors, {**facts, "parts": {name: part.facts for name, part in parts.items()}})

    def part(self, name: str) -> Checkpoint:
        """The checkpoint that was joined under `name`."""
        return Checkpoint(self.subtree(name), self.facts["parts"][name])

    def subtree(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `name` and a slash, without that."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def with_facts(self, **facts: Any) -> Checkpoint:
        """The same tensors, and more facts."""
        return Checkpoint(self.tensors, {**self.facts, **facts})

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        facts = json.dumps(self.facts)
        return save(tensors, {_FACTS: facts, _HASH: _hash(tensors, facts), _FORMAT: _VERSION})

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """What `to_bytes` made.

        Raises:
            SafetensorError: This is no safetensors file, or half of one.
            DamagedError: Something in it is not what `to_bytes` wrote, or another version did.
            ValueError: It is one, of another program.
        """
        tensors = load(content)
        # Eight bytes say how long the header is, in which safetensors keeps text of ours.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        text = metadata.get(_FACTS, "")
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("the facts are no object")
        if metadata.get(_FORMAT) != _VERSION:
            raise DamagedError("another version of bertvision_stream wrote it")
        if metadata[_HASH] != _hash(tensors, text):
            raise DamagedError("what it holds is not what was written")
        return cls(tensors, facts)


def _hash(tensors: Mapping[str, torch.Tensor], facts: str) -> str:
    """A hash of all that a checkpoint holds."""
    parts: list[Any] = [facts]
    for name, tensor in sorted(tensors.items()):
        # NumPy has no bf16, but bytes.
        parts += [name, repr((tensor.dtype, tensor.shape)), tensor.flatten().view(torch.uint8)]
    return hash_contents(parts)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside `path` and rename it: the one before it stays whole until then.

    Raises:
        OutputError: It cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, checkpoint.to_bytes())


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `save_checkpoint` wrote.

    Raises:
        ConfigError: The file is damaged, or none of ours.
    """
    try:
        return Checkpoint.from_bytes(path.read_bytes())
    except OSError as error:
        cause = str(error.strerror)
    except (SafetensorError, DamagedError) as error:
        cause = str(error)
    except ValueError:
        cause = "it was not written by bertvision_stream"
    raise ConfigError(
        f"the checkpoint {path} cannot be read: {cause}. Delete it to train the head anew."
    )
