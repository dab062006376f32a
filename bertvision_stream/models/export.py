"""A trained head as a transformers model on disk: `model/` in the folder of a run."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.finetuned_store import save_tokenizer
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.models.head_model import model_class
from bertvision_stream.models.linked_backbone import encoder_fingerprint
from bertvision_stream.report.model_card import render_card
from bertvision_stream.report.records import RunReport
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task, TaskKind
from bertvision_stream.utils.files import replacing_folder, write_bytes, write_text

CARD = "README.md"
_PROBLEM_TYPES: Mapping[TaskKind, str | None] = {
    "classification": "single_label_classification",
    "regression": "regression",
    "span": None,
}


def export_model(
    folder: Path,
    *,
    head: Mapping[str, torch.Tensor],
    settings: TaskSettings,
    backbone: BackboneWeights,
    backbone_folder: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    report: RunReport,
) -> None:
    """Write what transformers' auto class of the task's kind loads with `from_pretrained(folder)`.

    Args:
        folder: Replaced if it is there.
        head: The head's parameters.
        settings: Of the run.
        backbone: The classifier on whose hidden states the head was trained.
        backbone_folder: Where it is on disk; None where it is as `backbone.name` has it.
        tokenizer: The backbone's.
        report: Of the run, for the task and for the model card.

    Raises:
        OutputError: The folder cannot be written.
    """
    inside = settings.export.backbone == "inside"
    config = _config(settings, report.task, backbone)
    if not inside:
        config.backbone_source = _source(folder, settings, backbone_folder)
        if backbone_folder is None:
            config.backbone_revision = settings.backbone.revision
    weights = {f"head.{name}": tensor.numpy() for name, tensor in head.items()}
    if inside:
        weights |= {f"backbone.{name}": array for name, array in backbone.arrays.items()}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = settings.data.max_length
    with replacing_folder(folder) as beside:
        config.save_pretrained(beside)
        write_bytes(beside / SAFE_WEIGHTS_NAME, save(weights, metadata={"format": "pt"}))
        save_tokenizer(beside, tokenizer)
        card = render_card(report, backbone_source=config.backbone_source)
        write_text(beside / CARD, card)


def _config(settings: TaskSettings, task: Task, backbone: BackboneWeights) -> AdapterPoolerConfig:
    cls = model_class(per_token=task.per_token)
    labels = ("start", "end") if task.per_token else task.label_names or (task.label_column,)
    config = AdapterPoolerConfig(
        head=settings.head.model_dump(),
        max_tokens=settings.data.max_length,
        backbone_config=backbone.config,
        task=task.name,
        seed=settings.seed,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=_PROBLEM_TYPES[task.kind],
        dtype="float32",
    )
    config.backbone_config.name_or_path = ""  # a folder of the machine that the run was on
    with torch.device("meta"):
        prefix = cls(config).backbone.base_model_prefix
    config.backbone_fingerprint = encoder_fingerprint(backbone.arrays, prefix)
    config.architectures = [cls.__name__]
    return config


def _source(folder: Path, settings: TaskSettings, backbone_folder: Path | None) -> str:
    """Where the backbone is: relative in the same output folder, which may be moved as a whole."""
    if backbone_folder is not None:
        return os.path.relpath(backbone_folder.resolve(), folder.resolve())
    given = Path(settings.backbone.name).expanduser()
    return str(given.resolve()) if given.is_dir() else settings.backbone.name
