"""What an upgrade of transformers may take away, each said by the failure of a test of its own."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from tiny import tiny_classifier
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import bertvision_stream
from bertvision_stream.models.head_model import AdapterPoolerModel
from bertvision_stream.models.transformers_private import without_initial_weights


def test_weights_are_left_as_they_are_and_later_models_are_initialised(
    monkeypatch: pytest.MonkeyPatch,
):
    initialised = []
    normal = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda t, *a, **o: initialised.append(t) or normal(t, *a, **o)
    )
    config = tiny_classifier().config
    initialised.clear()
    with without_initial_weights():
        AutoModelForSequenceClassification.from_config(config)
    assert not initialised, "transformers.initialization.no_init_weights no longer does its work"
    AutoModelForSequenceClassification.from_config(config)
    assert initialised


@pytest.mark.parametrize("module", bertvision_stream._REGISTERING)
def test_the_auto_classes_stand_where_ours_are_registered_after_them(module: str):
    assert find_spec(module) is not None, f"{module} is no more"


@pytest.mark.parametrize(
    "name", [name for name in vars(AdapterPoolerModel) if name.startswith(("_keep", "_supports"))]
)
def test_attributes_that_a_model_sets_are_those_of_transformers(name: str):
    assert hasattr(PreTrainedModel, name), f"PreTrainedModel has no {name} any more"
