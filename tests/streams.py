"""What tests of the feature stream share: small blocks, a stream of them, and the oracle.

What `modes.local.train_in_process` makes of the same plan is the oracle.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from jobs import listening, make_job
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.util.state import list_actors
from tiny import (
    CPU,
    MAX_LENGTH,
    NUM_LAYERS,
    random_lengths,
    task_settings,
    tiny_classifier,
    token_store,
)

from actors.engine import RayEngine
from bertvision_stream.heads.shape import HeadShape, kept_layers
from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import BlockExtractor, validation_logits
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN, BlockFormat
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import forecast
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.stream.plan import StreamPlan, plan_stream
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.devices import pick_dtype

TASK = TASKS["cola"]
# Wide enough for blocks above 100 KiB: Ray sends smaller ones past its object store.
HIDDEN_SIZE = 128
INLINE_BYTES = 100 * 2**10
SHAPE = HeadShape(NUM_LAYERS, HIDDEN_SIZE, TASK.num_labels, MAX_LENGTH)


def layers_of(settings: TaskSettings) -> tuple[int, ...]:
    return kept_layers(NUM_LAYERS, settings.extract.layers)


def shape_of(settings: TaskSettings) -> HeadShape:
    return replace(SHAPE, num_layers=len(layers_of(settings)))


def make_weights() -> BackboneWeights:
    return BackboneWeights.of(tiny_classifier(hidden_size=HIDDEN_SIZE))


def make_corpus() -> Corpus:
    stores = {}
    for seed, (split, count) in enumerate({TRAIN: 300, "validation": 90}.items()):
        labels = np.random.default_rng(seed).integers(0, 2, count)
        stores[split] = token_store(random_lengths(count, seed=seed), labels, seed=seed)
    return Corpus.pack(stores, block_tokens=512, seed=1)


@pytest.fixture(scope="module")
def weights() -> BackboneWeights:
    return make_weights()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


def settings_of(*overrides: str, epochs: int = 3, lr: float = 1e-2) -> TaskSettings:
    exact = "train.stack_heads=false"  # one by one, heads have the numbers of each alone
    return task_settings(TASK.name, f"train.epochs={epochs}", f"train.lr={lr}", exact, *overrides)


def plan_of(
    settings: TaskSettings, corpus: Corpus, cluster: ClusterResources, *, num_extractors: int
) -> StreamPlan:
    block_format = BlockFormat.of(shape_of(settings), settings.extract.codec)
    plan = plan_stream(
        settings,
        corpus,
        block_format,
        num_extractors=num_extractors,
        num_nodes=cluster.num_nodes,
        store_bytes=cluster.free_store_bytes(0),
        same_order=settings.mode == "search",
    )
    assert min(plan.block_bytes.values()) > INLINE_BYTES
    return plan


def placement_of(num_extractors: int, *, cpus: float = 0.5) -> Placement:
    return Placement(
        num_extractors=num_extractors,
        extractor_cpus=cpus,
        extractor_gpus=0,
        extractor_threads=1,
        trainer_gpus=0,
        trainer_threads=1,
    )


def stream(
    plan: StreamPlan,
    heads: Mapping[str, TaskSettings],
    corpus: Corpus,
    weights: BackboneWeights,
    *,
    num_extractors: int,
    cpus: float = 0.5,
    **options: Any,
) -> StreamOutcome:
    job = make_job(
        next(iter(heads.values())),
        TASK,
        corpus,
        weights,
        SHAPE,
        plan=plan,
        placement=placement_of(num_extractors, cpus=cpus),
    )
    hear = options.pop("say", lambda line: None)
    with listening(hear):
        return RayEngine().run(job, {n: HeadJob(s) for n, s in heads.items()}, **options)


def extractor_of(
    settings: TaskSettings, corpus: Corpus, weights: BackboneWeights
) -> BlockExtractor:
    dtype = pick_dtype(settings.backbone.dtype, CPU)
    backbone = Backbone(weights.build(), device=CPU, dtype=dtype, layers=layers_of(settings))
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
        shape = shape_of(settings)
        training = make_training(corpus, TASK, {name: HeadJob(settings)}, shape, device=CPU)
        for _ in train_in_process(extractor, training):
            pass
        assert_same_head(outcome.heads[name], training.results()[name])
    bert_logits = validation_logits(extractor.backbone, corpus, make_objective(TASK))
    assert outcome.bert_logits.keys() == bert_logits.keys()
    for split, logits in bert_logits.items():
        np.testing.assert_array_equal(outcome.bert_logits[split], logits)


def assert_same_head(actual: HeadResult, expected: HeadResult) -> None:
    assert actual.history == expected.history
    assert actual.chosen_epoch == expected.chosen_epoch
    assert actual.failure == expected.failure
    assert actual.adapter_shares == expected.adapter_shares
    assert actual.logits.keys() == expected.logits.keys()
    for split, logits in expected.logits.items():
        np.testing.assert_array_equal(actual.logits[split], logits)
    assert actual.state.keys() == expected.state.keys()
    for name, parameter in expected.state.items():
        assert torch.equal(actual.state[name], parameter), name


def assert_bounded(outcome: StreamOutcome, plan: StreamPlan) -> None:
    assert 0 < outcome.stats.peak_bytes <= plan.budget.total_bytes
    assert (outcome.store.spilled_bytes, outcome.store.fallback_bytes) == (0, 0)


def assert_made_as_planned(outcome: StreamOutcome, plan: StreamPlan) -> None:
    """Pinned blocks are made once, the others in every epoch; in the end only pinned ones exist."""
    num_blocks, num_pinned = len(plan.block_bytes), len(plan.budget.pinned)
    from_cache = (plan.num_epochs - 1) * num_pinned
    assert outcome.stats.blocks_from_cache == from_cache
    assert outcome.stats.blocks_extracted == plan.num_epochs * num_blocks - from_cache
    assert outcome.stats.held_bytes == outcome.stats.cache_bytes == plan.budget.pinned_bytes
    expected = forecast(plan, epochs=plan.num_epochs)
    assert expected.blocks_from_cache == outcome.stats.blocks_from_cache
    assert expected.blocks_extracted == outcome.stats.blocks_extracted
    assert expected.tokens_extracted == outcome.stats.tokens_extracted
    assert expected.cache_bytes == outcome.stats.cache_bytes


# Less than a block, and more than what Ray and Tune keep of a stream or a search.
SMALL = 100_000


def held_bytes() -> int:
    """Bytes in the object store that somebody holds.

    Others are evicted when room is needed: what was put there for a caller who was killed just then
    stays so long (once in some thirty interruptions).
    """
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.object_store_bytes_primary_copy


def living_actors() -> list[str | None]:
    """Names of the actors of this cluster; there may be other clusters on the machine."""
    address = ray.get_runtime_context().gcs_address
    return [actor.name for actor in list_actors(address, filters=[("state", "!=", "DEAD")])]


def becomes_true(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: ClusterResources) -> Iterator[None]:
    before = held_bytes()
    yield
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert not list(session.rglob("ray_spilled_objects*/*"))
    gc.collect()  # a caught exception may hold refs of the frames that it passed through
    assert becomes_true(lambda: not living_actors()), living_actors()
    assert becomes_true(lambda: held_bytes() < before + SMALL), (before, held_bytes())
