"""The settings of a trial: a searcher's sample, and else what all trials share."""

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings
from tune.space import trial_settings


def settings(*argv: str) -> TaskSettings:
    return load_settings(["task=cola", "mode=search", *argv]).for_task("cola")


def test_a_trial_has_its_sample_and_else_the_common_settings():
    base = settings("train.epochs=3", "head.dropout=0.1", "seed=7")
    sample = {"train.lr": 3e-3, "head.adapter_dim": 32, "seed": 5}
    trial = trial_settings(base, sample)
    assert (trial.train.lr, trial.head.adapter_dim, trial.seed) == (3e-3, 32, 5)
    assert (trial.train.epochs, trial.head.dropout) == (3, 0.1)
    assert type(trial) is TaskSettings
    assert trial_settings(
        trial, {"train.lr": base.train.lr, "head.adapter_dim": 16, "seed": 7}
    ) == (base)
    assert (base.train.lr, base.seed) == (2e-3, 7)


def test_numpys_numbers_become_pythons():
    sample = {
        "train.lr": np.float64(1e-3),
        "head.adapter_dim": np.int64(8),
        "head.share_layers": np.bool_(False),
        "head.pool": np.str_("cls"),
    }
    trial = trial_settings(settings(), sample)
    assert trial.head.adapter_dim == 8
    assert trial.head.share_layers is False
    assert type(trial.train.lr) is float
    assert type(trial.head.pool) is str
    json.dumps(trial.model_dump())


@pytest.mark.parametrize("kind", ["scalar_mix", "mean_layers", "cls"])
def test_options_of_another_kind_are_left_at_their_defaults(kind):
    sample = {
        "head.kind": kind,
        "head.adapter_dim": 64,
        "head.share_layers": False,
        "head.skip": "none",
        "head.pool": "attention",
        "head.dropout": 0.2,
    }
    head = trial_settings(settings("search.space.head.kind=[cls,scalar_mix]"), sample).head
    assert (head.kind, head.dropout) == (kind, 0.2)
    assert (head.adapter_dim, head.share_layers, head.skip, head.pool) == (16, True, "last", "mean")
    of_base = settings("head.adapter_dim=64", "search.space.head.kind=[adapter_pooler,cls]")
    assert trial_settings(of_base, {"head.kind": kind}).head.adapter_dim == 16
    assert trial_settings(of_base, {"head.kind": "adapter_pooler"}).head.adapter_dim == 64


def test_a_trial_of_the_backbone():
    base = settings("search.target=backbone")
    trial = trial_settings(base, {"finetune.lr": 3e-5, "finetune.epochs": 2.0, "seed": 3})
    assert (trial.finetune.lr, trial.finetune.epochs, trial.seed) == (3e-5, 2.0, 3)


@pytest.mark.parametrize(
    "sample", [{"train.lr": 0.0}, {"head.dropout": 1.0}, {"head.size": 8}, {"head.kind": "mlp"}]
)
def test_a_sample_that_does_not_fit_its_setting(sample):
    with pytest.raises(ValidationError, match=re.escape(next(iter(sample)).partition(".")[2])):
        trial_settings(settings(), sample)
