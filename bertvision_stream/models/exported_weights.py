"""The weights of an exported model: its own, and those of the backbone that it may refer to.

Both are found, loaded and checked to be the right ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from bertvision_stream.models.backbone import load_classifier
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.models.sources import locate_linked_backbone
from bertvision_stream.utils.errors import BackboneError
from bertvision_stream.utils.hashing import hash_contents

WEIGHTS_FILE = "model.safetensors"
"""The name by which transformers and the hub know a model's weights."""


def load_weights(
    config: AdapterPoolerConfig, model: str, download: Mapping[str, Any], *, per_token: bool
) -> dict[str, torch.Tensor]:
    """The weights in the model's own folder, with those of a backbone that is elsewhere.

    Args:
        config: The configuration of the model.
        model: The folder or hub id of the model.
        download: Arguments of `from_pretrained` that say where files come from.
        per_token: Whether the backbone's own layer gives every token logits.

    Raises:
        BackboneError: Weights are damaged, or the backbone is gone or is another one.
    """
    own = _own_weights(config, model, download)
    if config.backbone_source is None:
        return own
    subfolder = download.get("subfolder") or ""
    backbone = load_linked_backbone(config, model, subfolder=subfolder, per_token=per_token)
    return own | {f"backbone.{name}": weight for name, weight in backbone.items()}


def _own_weights(
    config: AdapterPoolerConfig, model: str, download: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The weights in the model's own folder, checked to be those that were exported."""
    path: str | Path = Path(model, download.get("subfolder") or "", WEIGHTS_FILE)
    if not Path(model).is_dir():
        path = hf_hub_download(model, WEIGHTS_FILE, **download)
    weights = load_file(path)
    expected = config.weights_fingerprint
    if expected is not None and (found := fingerprint(weights)) != expected:
        raise BackboneError(
            f"{path} is damaged: its weights are not those that were exported (fingerprint "
            f"{found}, not {expected}). Restore that file, or train the head again."
        )
    return weights


def load_linked_backbone(
    config: AdapterPoolerConfig, model: str, *, subfolder: str = "", per_token: bool = False
) -> dict[str, torch.Tensor]:
    """The state dict of the backbone, in fp32 on the CPU.

    Args:
        config: The configuration of the model, which says where the backbone is.
        model: The folder or hub id of the model that refers to it.
        subfolder: The folder in it that holds `config.json`.
        per_token: Whether the backbone's own layer gives every token logits.

    Raises:
        BackboneError: It is not there, or its weights are not those that the head was trained on.
    """
    assert config.backbone_source is not None
    revision = config.backbone_revision
    source = locate_linked_backbone(str(Path(model, subfolder)), config.backbone_source, revision)
    backbone, _ = load_classifier(
        source,
        num_labels=config.num_outputs,
        per_token=per_token,
        revision=revision,
        seed=config.seed,
    )
    weights = backbone.state_dict()
    expected = config.backbone_fingerprint
    prefix = backbone.base_model_prefix
    # The encoder's alone: of a classifier that was never trained, and of models of older versions.
    found = [fingerprint(weights, encoder=encoder) for encoder in (None, prefix)]
    if expected is not None and expected not in found:
        raise BackboneError(
            f"{model} refers to the backbone {source}, but the weights there (encoder, pooler and "
            f"classifier) are not those that its head was trained on (fingerprint {found[0]}, not "
            f"{expected})"
        )
    return weights


def fingerprint(weights: Mapping[str, Any], *, encoder: str | None = None) -> str:
    """A hash of a classifier's weights.

    Args:
        weights: The state dict, of arrays or of tensors on the CPU.
        encoder: What the names of the encoder's weights begin with, to hash only those that hidden
            states depend on; None hashes all, pooler and classifier included.
    """
    hashed = (
        (name, weight)
        for name, weight in sorted(weights.items())
        if encoder is None or (name.startswith(f"{encoder}.") and ".pooler." not in name)
    )
    return hash_contents(chain.from_iterable(hashed))
