"""A head on disk: `model.safetensors` and a `config.json` that says how to build it again."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from bertvision_stream.heads import Head, HeadShape
from bertvision_stream.results import write_bytes, write_json, writing
from bertvision_stream.settings import HeadSettings
from bertvision_stream.tasks import Task

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_head(
    folder: Path,
    state: dict[str, torch.Tensor],
    settings: HeadSettings,
    shape: HeadShape,
    task: Task,
    *,
    backbone: str,
) -> None:
    """Write a head.

    Args:
        folder: Made if it is not there.
        state: The head's parameters.
        settings: `head.*`.
        shape: What the head reads and writes.
        task: Kind and label names.
        backbone: Where the encoder is whose hidden states the head reads: a folder or a hub id.

    Raises:
        OutputError: The folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, save({name: t.contiguous() for name, t in state.items()}))
    config = {
        "head": settings.model_dump(),
        "shape": asdict(shape),
        "task": task.name,
        "kind": task.kind,
        "label_names": list(task.label_names),
        "backbone": backbone,
    }
    write_json(folder / CONFIG, config)


def load_head(folder: Path) -> Head:
    """The head that `save_head` wrote, in evaluation mode."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    head = Head(HeadSettings.model_validate(config["head"]), HeadShape(**config["shape"]), seed=0)
    head.load_state_dict(load_file(folder / WEIGHTS))
    return head.eval()
