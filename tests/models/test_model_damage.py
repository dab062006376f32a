"""Exported models whose files are gone, are others or are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from exports import export_tiny
from safetensors.torch import load_file, save_file
from test_model import load

from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.utils.errors import BackboneError


def change_weight(backbone: Path, name: str) -> None:
    file = backbone / "model.safetensors"
    weights = load_file(file)
    weights[name] += 1
    save_file(weights, file, metadata={"format": "pt"})


def test_a_backbone_that_is_gone_is_named(tmp_path: Path):
    exported = export_tiny(tmp_path)
    shutil.rmtree(exported.backbone_folder)
    with pytest.raises(BackboneError) as caught:
        load(exported.folder)
    assert str(caught.value) == (
        f"{exported.folder} holds a head alone and refers to its backbone in "
        f"{exported.backbone_folder}, which is not there. Put it back there; or export with "
        f"export.backbone=inside, which leaves a folder that needs no other."
    )


def test_another_backbone_in_its_place_is_noticed(tmp_path: Path):
    exported = export_tiny(tmp_path / "one")
    other = export_tiny(tmp_path / "two", seed=1)
    shutil.rmtree(exported.backbone_folder)
    shutil.copytree(other.backbone_folder, exported.backbone_folder)
    with pytest.raises(BackboneError, match="are not those that its head was trained on"):
        load(exported.folder)


@pytest.mark.parametrize("layer", ["bert.pooler.dense.weight", "classifier.bias"])
def test_another_classifier_in_its_place_is_noticed(tmp_path: Path, layer: str):
    exported = export_tiny(tmp_path)
    change_weight(exported.backbone_folder, layer)
    with pytest.raises(BackboneError, match="are not those that its head was trained on"):
        load(exported.folder)


def test_only_the_encoder_counts_where_the_classifier_was_never_trained(tmp_path: Path):
    exported = export_tiny(tmp_path, classifier_trained=False)
    change_weight(exported.backbone_folder, "classifier.bias")
    load(exported.folder)
    change_weight(exported.backbone_folder, "bert.embeddings.word_embeddings.weight")
    with pytest.raises(BackboneError, match="are not those that its head was trained on"):
        load(exported.folder)


def test_lacking_weights_are_noticed(tmp_path: Path):
    exported = export_tiny(tmp_path, "export.backbone=inside")
    file = exported.folder / "model.safetensors"
    weights = load_file(file)
    del weights["head.output.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    config = AdapterPoolerConfig.from_pretrained(exported.folder)
    config.weights_fingerprint = None  # as in models of earlier versions
    config.save_pretrained(exported.folder)
    with pytest.raises(BackboneError, match=r"1 are missing .* first head\.output\.bias"):
        load(exported.folder)
