"""The feature stream with its actors on a Ray cluster: same numbers, exactly once, bounded, loud.

What `training.train_in_process` makes of the same plan is the oracle. After each test no actor and
no byte may be left in the cluster.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.util.state import list_actors
from tiny import (  # noqa: F401
    CPU,
    MAX_LENGTH,
    NUM_LAYERS,
    VOCAB_SIZE,
    one_thread,
    random_lengths,
    task_settings,
    tiny_classifier,
    token_store,
)

from actors.cluster import ClusterResources, Placement
from actors.service import StreamOutcome, plan_stream, run_stream
from actors.trainer import HeadTrainer
from bertvision_stream.backbone import Backbone, BackboneWeights, pick_dtype
from bertvision_stream.blocks import TRAIN, BlockKey
from bertvision_stream.codecs import BlockFormat, EncodedBlock
from bertvision_stream.corpus import Corpus
from bertvision_stream.errors import ConfigError, StreamError
from bertvision_stream.extract import BlockExtractor, validation_logits
from bertvision_stream.fit import HeadResult
from bertvision_stream.heads import HeadShape
from bertvision_stream.plan import StreamPlan
from bertvision_stream.settings import TaskSettings
from bertvision_stream.tasks import TASKS
from bertvision_stream.training import make_training, train_in_process

pytestmark = pytest.mark.ray

TASK = TASKS["cola"]
# Wide enough for blocks above 100 KiB: Ray sends smaller ones past its object store.
HIDDEN_SIZE = 128
INLINE_BYTES = 100 * 2**10
SHAPE = HeadShape(NUM_LAYERS, HIDDEN_SIZE, TASK.num_labels, MAX_LENGTH)


@pytest.fixture(scope="module")
def weights() -> BackboneWeights:
    return BackboneWeights.of(tiny_classifier(hidden_size=HIDDEN_SIZE))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    stores = {}
    for seed, (split, count) in enumerate({TRAIN: 300, "validation": 90}.items()):
        labels = np.random.default_rng(seed).integers(0, 2, count)
        stores[split] = token_store(random_lengths(count, seed=seed), labels, seed=seed)
    return Corpus.pack(stores, block_tokens=512, seed=1)


def settings_of(*overrides: str) -> TaskSettings:
    return task_settings(TASK.name, "train.epochs=3", "train.lr=1e-2", *overrides)


def plan_of(
    settings: TaskSettings, corpus: Corpus, cluster: ClusterResources, *, num_extractors: int
) -> StreamPlan:
    block_format = BlockFormat(NUM_LAYERS, HIDDEN_SIZE, TASK.num_labels, settings.extract.codec)
    plan = plan_stream(
        settings, corpus, block_format, num_extractors=num_extractors, cluster=cluster
    )
    assert min(plan.block_bytes.values()) > INLINE_BYTES
    return plan


def stream(
    plan: StreamPlan,
    heads: Mapping[str, TaskSettings],
    corpus: Corpus,
    weights: BackboneWeights,
    *,
    num_extractors: int,
) -> StreamOutcome:
    return run_stream(
        plan,
        Placement(
            num_extractors=num_extractors,
            extractor_cpus=1,
            extractor_gpus=0,
            extractor_threads=1,
            trainer_gpus=0,
            trainer_threads=1,
        ),
        settings=next(iter(heads.values())),
        task=TASK,
        corpus=corpus,
        weights=weights,
        heads=heads,
        shape=SHAPE,
        show_progress=False,
        say=lambda message: None,
    )


def extractor_of(
    settings: TaskSettings, corpus: Corpus, weights: BackboneWeights
) -> BlockExtractor:
    dtype = pick_dtype(settings.backbone.dtype, CPU)
    backbone = Backbone(weights.build(), device=CPU, dtype=dtype)
    return BlockExtractor(backbone, corpus, settings.extract.codec)


def assert_same_numbers(
    outcome: StreamOutcome,
    heads: Mapping[str, TaskSettings],
    corpus: Corpus,
    weights: BackboneWeights,
) -> None:
    """Bit for bit those of each head alone, in one process."""
    assert outcome.heads.keys() == heads.keys()
    for name, settings in heads.items():
        extractor = extractor_of(settings, corpus, weights)
        training = make_training(corpus, TASK, {name: settings}, SHAPE, device=CPU)
        for _ in train_in_process(extractor, training):
            pass
        assert_same_head(outcome.heads[name], training.results()[name])
    bert_logits = validation_logits(extractor.backbone, corpus)
    assert outcome.bert_logits.keys() == bert_logits.keys()
    for split, logits in bert_logits.items():
        np.testing.assert_array_equal(outcome.bert_logits[split], logits)


def assert_same_head(actual: HeadResult, expected: HeadResult) -> None:
    assert actual.history == expected.history
    assert actual.chosen_epoch == expected.chosen_epoch
    assert actual.failure == expected.failure
    assert actual.logits.keys() == expected.logits.keys()
    for split, logits in expected.logits.items():
        np.testing.assert_array_equal(actual.logits[split], logits)
    assert actual.state.keys() == expected.state.keys()
    for name, parameter in expected.state.items():
        assert torch.equal(actual.state[name], parameter), name


def assert_bounded(outcome: StreamOutcome, plan: StreamPlan) -> None:
    assert 0 < outcome.stats.peak_bytes <= plan.budget.total_bytes
    assert outcome.stats.cache_bytes == outcome.stats.held_bytes == plan.budget.pinned_bytes
    assert (outcome.store.spilled_bytes, outcome.store.fallback_bytes) == (0, 0)
