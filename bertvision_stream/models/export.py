"""A trained head as a transformers model on disk: `model/` in the folder of a run."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from bertvision_stream.models.backbone import problem_type
from bertvision_stream.models.exported_weights import WEIGHTS_FILE, fingerprint
from bertvision_stream.models.finetuned_store import save_tokenizer
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.models.head_model import model_class
from bertvision_stream.models.job import PreparedBackbone
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.files import replacing_folder, write_bytes, write_text

CARD = "README.md"


def export_model(
    folder: Path,
    *,
    head: Mapping[str, torch.Tensor],
    target_scale: tuple[float, float],
    settings: TaskSettings,
    task: Task,
    backbone: PreparedBackbone,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write what transformers' auto class of the task's kind loads with `from_pretrained(folder)`.

    Args:
        folder: The folder of the model, which is replaced if it exists.
        head: The head's parameters by name.
        target_scale: Mean and standard deviation of the numbers that a regression has learned.
        settings: The settings of the run.
        task: What the head has learned.
        backbone: The classifier on whose hidden states the head was trained.
        tokenizer: The backbone's tokenizer.
        card: The text of the model card, which becomes `README.md`.

    Raises:
        OutputError: The folder cannot be written.
    """
    config = _config(settings, task, backbone)
    config.target_mean, config.target_std = target_scale
    config.backbone_source = backbone_source(folder, settings, backbone)
    weights = {f"head.{name}": tensor.numpy() for name, tensor in head.items()}
    if config.backbone_source is None:
        weights |= {f"backbone.{name}": array for name, array in backbone.weights.arrays.items()}
    elif backbone.folder is None:
        config.backbone_revision = settings.backbone.revision
    config.weights_fingerprint = fingerprint(weights)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = settings.data.max_length
    with replacing_folder(folder) as beside:
        config.save_pretrained(beside)
        write_bytes(beside / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
        save_tokenizer(beside, tokenizer)
        write_text(beside / CARD, card)


def backbone_source(folder: Path, settings: TaskSettings, backbone: PreparedBackbone) -> str | None:
    """The folder or the hub id of the backbone that an exported model refers to.

    Args:
        folder: The folder of the model.
        settings: The settings of the run.
        backbone: The backbone of the run.

    Returns:
        A relative path where the backbone is a result of this run or of an earlier one: it lies in
        the same output folder, which may be moved as a whole. None where the model holds the
        backbone itself (`export.backbone=inside`).
    """
    if settings.export.backbone == "inside":
        return None
    if backbone.folder is not None:
        return os.path.relpath(backbone.folder.resolve(), folder.resolve())
    given = Path(settings.backbone.name)
    return str(given.resolve()) if given.is_dir() else settings.backbone.name


def _config(settings: TaskSettings, task: Task, backbone: PreparedBackbone) -> AdapterPoolerConfig:
    cls = model_class(per_token=task.per_token)
    config = AdapterPoolerConfig(
        head=settings.head.model_dump(),
        max_tokens=settings.data.max_length,
        backbone_config=backbone.weights.config,
        task=task.name,
        seed=settings.seed,
        id2label=dict(enumerate(task.output_names)),
        label2id={name: i for i, name in enumerate(task.output_names)},
        problem_type=problem_type(task.num_labels, task.per_token),
        dtype="float32",
    )
    if settings.extract.layers != "all":  # as the run's settings have them, some from the end
        config.layers = list(settings.extract.layers)
        config.layers = list(config.layers_read)
    # It would name a folder of the machine that the run was on.
    config.backbone_config.name_or_path = ""
    # On the meta device the model has shapes and no memory: only its parameters' prefix is needed.
    with torch.device("meta"):
        prefix = cls(config).backbone.base_model_prefix
    # Without training the seed makes the classifier, and other versions of torch another one.
    config.backbone_fingerprint = fingerprint(
        backbone.weights.arrays, encoder=None if backbone.classifier_trained else prefix
    )
    config.architectures = [cls.__name__]
    return config
