"""The backbone that an exported model refers to: found, loaded, and checked to be the right one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bertvision_stream.models.backbone import load_classifier
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.models.sources import locate_linked_backbone
from bertvision_stream.utils.errors import BackboneError
from bertvision_stream.utils.hashing import hash_contents


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
