"""The feature stream with its actors on a Ray cluster.

The results must equal those of `modes.local.train_in_process` with the same plan, the bytes must
stay within the budget, and errors must be reported. After each test no actor and no byte may be
left in the cluster.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from streams import (  # noqa: F401
    SHAPE,
    TASK,
    assert_bounded,
    assert_made_as_planned,
    assert_same_numbers,
    corpus,
    nothing_is_left,
    plan_of,
    settings_of,
    stream,
    weights,
)
from tiny import VOCAB_SIZE, one_thread  # noqa: F401

from actors.cluster import cluster_resources, connect
from actors.records import DeliveryReply
from actors.trainer import HeadTrainer
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.stream.plan import Position
from bertvision_stream.utils.errors import ConfigError, StreamError

pytestmark = pytest.mark.ray


def test_a_second_task_stays_on_the_cluster(cluster: ClusterResources) -> None:
    connect(None)
    # Searches before this one may have left some bytes of theirs.
    assert replace(cluster_resources(), store_used_bytes=cluster.store_used_bytes) == cluster


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
    """The next epochs ask for pinned blocks that are still being made: each is made only once."""
    few = Corpus.pack(corpus.stores, block_tokens=4000, seed=corpus.seed)
    heads = {"head": settings_of("extract.codec=bf16", "backbone.dtype=bf16", "head.start=bert")}
    plan = plan_of(heads["head"], few, cluster, num_extractors=2)
    assert plan.num_epochs > 1
    assert len(plan.block_bytes) < plan.most_in_flight(num_extractors=2)
    outcome = stream(plan, heads, few, weights, num_extractors=2)
    assert_same_numbers(outcome, heads, few, weights)
    assert_made_as_planned(outcome, plan)
    assert_bounded(outcome, plan)


# Classes of trainers are defined inside functions: Ray then pickles them by value, and the workers
# need not import the tests.


def measuring_trainer(most_bytes: int) -> type[HeadTrainer]:
    """A trainer that fails if blocks take more of the object store than `most_bytes` for long."""
    read_store, find_store = get_memory_info_reply, get_state_from_address

    def used_bytes() -> int:
        address = ray.get_runtime_context().gcs_address
        return read_store(find_store(address)).store_stats.object_store_bytes_used

    class MeasuringTrainer(HeadTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.before = used_bytes()  # the corpus and the weights

        def consume(
            self, position: Position, key: BlockKey, encoded: EncodedBlock
        ) -> DeliveryReply:
            deadline = time.monotonic() + 5
            # A block that is freed is gone a little later. Meanwhile the stream makes no more than
            # it may, as there is no reply to this delivery yet.
            while (taken := used_bytes() - self.before) > most_bytes:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"blocks take {taken} bytes")
                time.sleep(0.01)
            return super().consume(position, key, encoded)

    return MeasuringTrainer


def test_the_smallest_budget(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("extract.codec=fp32", "backbone.dtype=fp32", "train.precision=fp32")
    options += ("extract.layers=[0,-1]",)
    with pytest.raises(ConfigError, match="too small for two blocks") as refused:
        plan_of(settings_of(*options, "stream.budget=1MB"), corpus, cluster, num_extractors=1)
    smallest = re.search(r"The smallest that would do is (\d+) ", str(refused.value))
    assert smallest is not None
    heads = {"head": settings_of(*options, f"stream.budget={smallest[1]}")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    assert plan.budget.total_bytes == int(smallest[1]) == 2 * max(plan.block_bytes.values())
    assert not plan.budget.pinned
    some_for_ray = 10_000  # Ray adds some bytes to each object
    trainer = measuring_trainer(plan.budget.total_bytes + some_for_ray)
    monkeypatch.setattr("actors.trainer.HeadTrainer", trainer)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1)
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
