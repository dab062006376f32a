"""Whatever dies, each example is trained on exactly once, and the numbers are the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import REPOSITORY
from ray.util.state import list_actors
from streams import (  # noqa: F401
    assert_bounded,
    assert_same_numbers,
    becomes_true,
    corpus,
    nothing_is_left,
    plan_of,
    settings_of,
    stream,
    weights,
)
from tiny import one_thread  # noqa: F401

from actors.records import DeliveryReply
from actors.trainer import HeadTrainer
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bertvision_stream.utils.errors import StreamError

pytestmark = pytest.mark.ray


# Classes and functions that run in actors are defined inside functions: Ray then pickles them by
# value, and the workers need not import the tests.


def _make_living() -> Callable[[str], list[int]]:
    def living(class_name: str) -> list[int]:
        """The ids of the processes of a class's actors on this cluster."""
        filters = [("class_name", "=", class_name), ("state", "=", "ALIVE")]
        return [a.pid for a in list_actors(ray.get_runtime_context().gcs_address, filters=filters)]

    return living


living = _make_living()


def recording_trainer(
    folder: Path, *, kills: Mapping[tuple[int, int], str] | None = None, seconds: float = 0.0
) -> type[HeadTrainer]:
    """A trainer that records the examples it is given, and kills actors at given deliveries.

    Args:
        folder: The folder for the files `consumed` and `kills`, which get a line for each.
        kills: The class of the actors to kill, or "self", by (epoch, delivery); each is killed
            only once, also where the delivery comes again.
        seconds: The time that each delivery takes longer, so that a run lasts long enough to be
            disturbed from outside.
    """
    victims, pids_of = kills or {}, living
    consumed_status = DeliveryStatus.CONSUMED

    class RecordingTrainer(HeadTrainer):
        def consume(
            self, position: Position, key: BlockKey, encoded: EncodedBlock
        ) -> DeliveryReply:
            time.sleep(seconds)
            name = victims.get((position.epoch, position.index))
            done = folder / "kills"
            line = f"{position.epoch} {position.index} {name}"
            if name and not (done.exists() and line in done.read_text().splitlines()):
                with done.open("a") as file:
                    file.write(f"{line}\n")
                for pid in [os.getpid()] if name == "self" else pids_of(name):
                    os.kill(pid, signal.SIGKILL)
            reply = super().consume(position, key, encoded)
            if reply.status == consumed_status:
                with (folder / "consumed").open("a") as file:
                    rows = self._training.corpus.block(key).example_ids.tolist()
                    file.write(json.dumps([position.epoch, key.split, rows]) + "\n")
            return reply

    return RecordingTrainer


def assert_exactly_once(folder: Path, corpus: Corpus, plan: StreamPlan) -> None:
    """Every example of every split was consumed once in every epoch, by the ids on record."""
    seen: dict[tuple[int, str], list[int]] = {}
    for line in (folder / "consumed").read_text().splitlines():
        epoch, split, rows = json.loads(line)
        seen.setdefault((epoch, split), []).extend(rows)
    wanted = {(epoch, split) for epoch in range(plan.num_epochs) for split in corpus.stores}
    assert seen.keys() == wanted
    for (_, split), rows in seen.items():
        np.testing.assert_array_equal(np.sort(rows), np.arange(corpus.stores[split].num_examples))


@contextlib.contextmanager
def meanwhile(disturb: Callable[[], None], over: threading.Event) -> Iterator[None]:
    """Disturb what happens in the `with` block, from a thread, until that sees `over`."""
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_extractors_that_die_all_at_once(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = {(0, 3): "FeatureExtractor", (1, 5): "FeatureExtractor"}
    trainer = recording_trainer(tmp_path, kills=kills)
    monkeypatch.setattr("actors.trainer.HeadTrainer", trainer)
    heads = {"head": settings_of("stream.cache=1MiB", "extract.codec=int8")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=2)
    assert 0 < len(plan.budget.pinned) < len(plan.block_bytes)
    outcome = stream(plan, heads, corpus, weights, num_extractors=2)
    assert outcome.stats.blocks_failed >= 3
    assert outcome.stats.extractors_lost >= 2
    assert outcome.deaths == ()
    assert_exactly_once(tmp_path, corpus, plan)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_bounded(outcome, plan)
    num_blocks, num_pinned = len(plan.block_bytes), len(plan.budget.pinned)
    # Blocks outlive their extractors, cached ones too.
    assert outcome.stats.blocks_from_cache == (plan.num_epochs - 1) * num_pinned
    assert (
        outcome.stats.blocks_extracted == plan.num_epochs * (num_blocks - num_pinned) + num_pinned
    )


def test_extractors_that_die_at_random_and_a_stream_that_dies(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = recording_trainer(tmp_path, kills={(1, 7): "FeatureStream"}, seconds=0.05)
    monkeypatch.setattr("actors.trainer.HeadTrainer", trainer)
    heads = {
        "head": settings_of("stream.cache=2MiB", "head.dropout=0.1"),
        "other": settings_of("train.batch_size=5", "head.kind=scalar_mix", "head.start=bert"),
    }
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=2)
    over = threading.Event()
    killed: list[int] = []
    rng = random.Random(0)

    def kill_extractors() -> None:
        consumed, at_last_kill = tmp_path / "consumed", 0
        while not over.wait(rng.uniform(0.5, 1.5)):
            # Kill only after some progress: on a busy machine no extractor would otherwise live to
            # make a block, and the attempts are bounded.
            size = consumed.stat().st_size if consumed.exists() else 0
            if size > at_last_kill and (pids := living("FeatureExtractor")):
                at_last_kill = size
                killed.append(rng.choice(pids))
                os.kill(killed[-1], signal.SIGKILL)

    with meanwhile(kill_extractors, over):
        outcome = stream(plan, heads, corpus, weights, num_extractors=2)
    assert len(killed) >= 2
    assert len(outcome.deaths) == 1
    assert "-feature-stream died: its process ended unexpectedly" in outcome.deaths[0]
    assert_exactly_once(tmp_path, corpus, plan)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_bounded(outcome, plan)


def test_a_trainer_that_dies(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = recording_trainer(tmp_path, kills={(0, 2): "self", (2, 9): "self"})
    monkeypatch.setattr("actors.trainer.HeadTrainer", trainer)
    heads = {"head": settings_of("head.dropout=0.1")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert len(outcome.deaths) == 2
    assert all(death.startswith("a head trainer was lost") for death in outcome.deaths)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_bounded(outcome, plan)


def test_deaths_during_the_start_and_during_repairs(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream dies before its extractors are ready, its successor too; then it and a trainer."""
    trainer = recording_trainer(tmp_path, kills={(1, 3): "FeatureStream", (1, 5): "self"})
    monkeypatch.setattr("actors.trainer.HeadTrainer", trainer)
    heads = {"head": settings_of("stream.cache=1MiB", "head.dropout=0.1")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    over = threading.Event()
    killed: set[int] = set()

    def kill_streams_as_they_start() -> None:
        while len(killed) < 2 and not over.wait(0.05):
            for pid in set(living("FeatureStream")) - killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

    with meanwhile(kill_streams_as_they_start, over):
        outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert len(killed) == 2
    assert len(outcome.deaths) >= 4
    assert_same_numbers(outcome, heads, corpus, weights)
    assert_bounded(outcome, plan)


def test_a_trainer_that_dies_again_and_again(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class MortalTrainer(HeadTrainer):
        def consume(
            self, position: Position, key: BlockKey, encoded: EncodedBlock
        ) -> DeliveryReply:
            if position.epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().consume(position, key, encoded)

    monkeypatch.setattr("actors.trainer.HeadTrainer", MortalTrainer)
    heads = {"head": settings_of()}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    kept: list[Checkpoint] = []
    with pytest.raises(StreamError) as caught:
        stream(plan, heads, corpus, weights, num_extractors=1, on_epoch=kept.append)
    message = str(caught.value)
    assert message.startswith(
        "epoch 2 was given up after 4 deaths of its actors; the causes, in order: a head trainer "
        "was lost"
    )
    assert message.endswith("The epochs before are kept: resume=true goes on from them.")
    assert [checkpoint.facts["epoch"] for checkpoint in kept] == [1]


def test_a_driver_that_is_interrupted_and_resumes(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources, tmp_path: Path
) -> None:
    heads = {"head": settings_of("train.patience=2", "head.start=bert", "stream.cache=1MiB")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    path = tmp_path / "last.safetensors"
    checkpoint: Checkpoint | None = None
    for epoch in (1, 2):

        def keep(state: Checkpoint, epoch: int = epoch) -> None:
            save_checkpoint(path, state)
            if state.facts["epoch"] == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stream(
                plan, heads, corpus, weights, num_extractors=1, on_epoch=keep, checkpoint=checkpoint
            )
        checkpoint = load_checkpoint(path)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1, checkpoint=checkpoint)
    assert_same_numbers(outcome, heads, corpus, weights)
    assert len(outcome.epoch_seconds) == plan.num_epochs
    # What a cache held is made again after each interruption; the totals count all of it.
    num_blocks, num_pinned = len(plan.block_bytes), len(plan.budget.pinned)
    assert outcome.stats.blocks_extracted >= plan.num_epochs * num_blocks
    assert num_pinned > 0


def test_an_extractor_that_joins(
    corpus: Corpus,
    weights: BackboneWeights,
    cluster: ClusterResources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_by = tmp_path / "made_by"

    class JoinedTrainer(recording_trainer(tmp_path, seconds=0.05)):  # type: ignore[misc]
        def consume(
            self, position: Position, key: BlockKey, encoded: EncodedBlock
        ) -> DeliveryReply:
            if (position.epoch, position.index) == (0, 2):
                names = ray.util.list_named_actors()
                (name,) = [name for name in names if name.endswith("-feature-stream")]
                info = ray.get(ray.get_actor(name).add_extractor.remote())
                made_by.write_text(f"{info} {len(ray.util.list_named_actors())}")
            return super().consume(position, key, encoded)

    monkeypatch.setattr("actors.trainer.HeadTrainer", JoinedTrainer)
    heads = {"head": settings_of("stream.cache=0")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert made_by.read_text().startswith("cpu in ")
    assert made_by.read_text().endswith(" 4")  # a stream, a trainer and two extractors
    assert_exactly_once(tmp_path, corpus, plan)
    assert_same_numbers(outcome, heads, corpus, weights)


def test_a_peak_in_the_use_of_the_object_store_by_others_is_waited_out(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    heads = {"head": settings_of("extract.codec=fp32")}
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=1)
    others = []  # stands for the objects of another job
    for num_bytes in (2**24, 2**20, 2**17):
        with contextlib.suppress(ray.exceptions.OutOfDiskError):
            while True:
                others.append(ray.put(np.zeros(num_bytes, dtype=np.uint8)))
    del others[-8:]  # for weights and corpus
    ended = threading.Event()

    def leave_after_a_failure() -> None:
        while not ended.wait(0.1):
            for name in ray.util.list_named_actors():
                with contextlib.suppress(ValueError, ray.exceptions.RayError):
                    stream_actor = ray.get_actor(name) if "-feature-stream" in name else None
                    if stream_actor and ray.get(stream_actor.stats.remote()).blocks_failed:
                        others.clear()
                        return

    with meanwhile(leave_after_a_failure, ended):
        outcome = stream(plan, heads, corpus, weights, num_extractors=1)
    assert not others
    assert outcome.stats.blocks_failed > 0
    assert_same_numbers(outcome, heads, corpus, weights)


def test_a_node_that_dies() -> None:
    """It runs three nodes on this machine, in a process of its own; see `three_nodes.py`."""
    script = REPOSITORY / "tests" / "three_nodes.py"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same numbers" in done.stdout.splitlines()  # Ray may print after it
