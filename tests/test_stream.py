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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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

from actors.cluster import ClusterResources, Placement, cluster_resources, connect
from actors.records import Ack
from actors.service import StreamOutcome, plan_stream, run_stream
from actors.trainer import HeadTrainer
from bertvision_stream.backbone import Backbone, BackboneWeights
from bertvision_stream.blocks import TRAIN, BlockKey
from bertvision_stream.codecs import BlockFormat, EncodedBlock
from bertvision_stream.corpus import Corpus
from bertvision_stream.devices import pick_dtype
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


def settings_of(*overrides: str, epochs: int = 3, lr: float = 1e-2) -> TaskSettings:
    return task_settings(TASK.name, f"train.epochs={epochs}", f"train.lr={lr}", *overrides)


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
            extractor_cpus=0.5,
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
    assert (outcome.store.spilled_bytes, outcome.store.fallback_bytes) == (0, 0)


def assert_made_as_planned(outcome: StreamOutcome, plan: StreamPlan) -> None:
    """Pinned blocks are made once, the others in every epoch; in the end only pinned ones exist."""
    num_blocks, num_pinned = len(plan.block_bytes), len(plan.budget.pinned)
    from_cache = (plan.num_epochs - 1) * num_pinned
    assert outcome.stats.blocks_from_cache == from_cache
    assert outcome.stats.blocks_extracted == plan.num_epochs * num_blocks - from_cache
    assert outcome.stats.held_bytes == outcome.stats.cache_bytes == plan.budget.pinned_bytes


def used_bytes() -> int:
    """Bytes in the object store."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.object_store_bytes_used


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
    yield
    gc.collect()  # a caught exception may hold refs of the frames that it passed through
    assert becomes_true(lambda: not living_actors()), living_actors()
    assert becomes_true(lambda: used_bytes() == 0), used_bytes()


def test_a_second_task_stays_on_the_cluster(cluster: ClusterResources) -> None:
    connect(None)
    assert cluster_resources() == cluster


def test_everything_cached(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    heads = {"head": settings_of("extract.codec=bf16", "backbone.dtype=bf16")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=2)
    assert plan.budget.pinned == set(plan.block_bytes)
    outcome = stream(plan, heads, corpus, weights, num_extractors=2)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_made_as_planned(outcome, plan)
    assert_bounded(outcome, plan)


def test_an_epoch_within_the_look_ahead(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    """The next epochs ask for pinned blocks that are still being made: they are made once."""
    few = Corpus.pack(corpus.stores, block_tokens=4000, seed=corpus.seed)
    heads = {"head": settings_of("extract.codec=bf16", "backbone.dtype=bf16")}
    plan = plan_of(heads["head"], few, cluster, num_extractors=2)
    assert plan.num_epochs > 1
    assert len(plan.block_bytes) < plan.max_blocks
    outcome = stream(plan, heads, few, weights, num_extractors=2)
    assert_same_numbers(outcome, heads, few, weights)
    assert_made_as_planned(outcome, plan)
    assert_bounded(outcome, plan)


# Trainers that look at what happens are classes made in functions: Ray then pickles them as a
# whole, and workers need not import the tests.


def measuring_trainer(most_bytes: int) -> type[HeadTrainer]:
    """Fails where blocks take more of the object store than `most_bytes`, and go on doing so."""
    read_store, find_store = get_memory_info_reply, get_state_from_address

    def used_bytes() -> int:
        address = ray.get_runtime_context().gcs_address
        return read_store(find_store(address)).store_stats.object_store_bytes_used

    class MeasuringTrainer(HeadTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.before = used_bytes()  # the corpus and the weights

        def consume(self, epoch: int, key: BlockKey, encoded: EncodedBlock) -> Ack:
            deadline = time.monotonic() + 5
            # A block that is given back is gone a little later. The stream meanwhile makes no more
            # than it may, for this block is not acknowledged.
            while (taken := used_bytes() - self.before) > most_bytes:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"blocks take {taken} bytes")
                time.sleep(0.01)
            return super().consume(epoch, key, encoded)

    return MeasuringTrainer


def test_the_smallest_budget(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("extract.codec=fp32", "backbone.dtype=fp32", "train.precision=fp32")
    with pytest.raises(ConfigError, match="too small for two blocks") as refused:
        plan_of(settings_of(*options, "stream.budget=1MB"), corpus, cluster, num_extractors=1)
    smallest = re.search(r"The smallest that would do is (\d+) ", str(refused.value))
    assert smallest is not None
    heads = {"head": settings_of(*options, f"stream.budget={smallest[1]}")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    assert plan.budget.total_bytes == int(smallest[1]) == 2 * max(plan.block_bytes.values())
    assert not plan.budget.pinned
    some_for_ray = 10_000  # what it adds to each object
    trainer = measuring_trainer(plan.budget.total_bytes + some_for_ray)
    monkeypatch.setattr("actors.service.HeadTrainer", trainer)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_made_as_planned(outcome, plan)
    assert_bounded(outcome, plan)


def killing_trainer(deliveries: Path, kills: Path) -> type[HeadTrainer]:
    """Writes down what it gets, and kills all extractors early in the first and second epoch."""

    class KillingTrainer(HeadTrainer):
        num_delivered = 0

        def consume(self, epoch: int, key: BlockKey, encoded: EncodedBlock) -> Ack:
            with deliveries.open("a") as file:
                file.write(f"{epoch} {key.split} {key.index} {encoded.nbytes}\n")
            self.num_delivered += 1
            if self.num_delivered in (3, 21):
                extractors = [("class_name", "=", "FeatureExtractor"), ("state", "=", "ALIVE")]
                address = ray.get_runtime_context().gcs_address
                for actor in list_actors(address, filters=extractors):
                    os.kill(actor.pid, signal.SIGKILL)
                    with kills.open("a") as file:
                        file.write(f"{epoch}\n")
            return super().consume(epoch, key, encoded)

    return KillingTrainer


def test_extractors_that_die(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deliveries, kills = tmp_path / "deliveries", tmp_path / "kills"
    monkeypatch.setattr("actors.service.HeadTrainer", killing_trainer(deliveries, kills))
    heads = {"head": settings_of("stream.cache=1MiB", "extract.codec=int8")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=2)
    assert 0 < len(plan.budget.pinned) < len(plan.block_bytes)
    outcome = stream(plan, heads, corpus, weights, num_extractors=2)
    killed_in = kills.read_text().split()
    assert killed_in.count("0") == 2
    assert "1" in killed_in
    assert outcome.stats.blocks_failed >= 3
    delivered = [line.split() for line in deliveries.read_text().splitlines()]
    for epoch in range(plan.num_epochs):
        keys = [BlockKey(split, int(index)) for e, split, index, _ in delivered if int(e) == epoch]
        assert keys == plan.sequence(epoch)
        for split, store in corpus.stores.items():
            blocks = [corpus.block(key) for key in keys if key.split == split]
            rows = np.concatenate([block.example_ids for block in blocks])
            np.testing.assert_array_equal(np.sort(rows), np.arange(store.num_examples))
    for _, split, index, num_bytes in delivered:
        assert int(num_bytes) == plan.block_bytes[BlockKey(split, int(index))]
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_made_as_planned(outcome, plan)
    assert_bounded(outcome, plan)


def test_heads_that_stop_early(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    heads = {
        "diverges": settings_of(epochs=50, lr=1e30),
        "impatient": settings_of("train.patience=1", epochs=50),
    }
    plan = plan_of(heads["diverges"], corpus, cluster, num_extractors=1)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert re.fullmatch(
        r"the training loss became (nan|inf) in epoch 1, at block train\[\d+\]; try a lower "
        r"train\.lr \(it was 1e\+30\)",
        outcome.heads["diverges"].failure,
    )
    impatient = outcome.heads["impatient"]
    assert impatient.failure == ""
    assert len(impatient.history) == impatient.chosen_epoch + 1 < 50
    assert_same_numbers(outcome, heads, corpus, weights)  # neither disturbs the other
    assert outcome.stats.blocks_from_cache < 50 * len(plan.block_bytes) / 2
    assert_bounded(outcome, plan)


def test_a_block_that_cannot_be_made(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    key = BlockKey(TRAIN, 7)
    train = corpus.stores[TRAIN]
    input_ids = train.input_ids.copy()
    input_ids[train.offsets[corpus.block(key).example_ids[0]]] = VOCAB_SIZE
    stores = {**corpus.stores, TRAIN: replace(train, input_ids=input_ids)}
    settings = settings_of()
    plan = plan_of(settings, corpus, cluster, num_extractors=1)
    with pytest.raises(StreamError) as caught:
        stream(plan, {"head": settings}, replace(corpus, stores=stores), weights, num_extractors=1)
    cause = "IndexError: index out of range in self"
    assert str(caught.value) == (
        "block train[7] could not be made in 3 attempts; the causes, in order: "
        f"{cause} | {cause} | {cause}"
    )


def test_an_extractor_that_cannot_start(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    arrays = {name: a for name, a in weights.arrays.items() if name != "classifier.bias"}
    settings = settings_of()
    plan = plan_of(settings, corpus, cluster, num_extractors=1)
    lacking = BackboneWeights(weights.config, arrays)
    with pytest.raises(StreamError) as caught:
        stream(plan, {"head": settings}, corpus, lacking, num_extractors=1)
    assert str(caught.value).startswith(
        "an extractor could not be started in 3 attempts; the causes, in order: "
    )
    assert str(caught.value).count("classifier.bias") == 3
