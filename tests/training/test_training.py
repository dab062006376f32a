"""Positions: nothing is trained twice or left out; and heads that come and go between epochs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random

import pytest
import torch
from test_fit import CLASSES, assert_same, make_corpus, settings_of, shape_of
from tiny import CPU, RandomExtractor, one_thread  # noqa: F401

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import Budget
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import COLUMNS_TOGETHER, HeadTraining
from bertvision_stream.training.records import EpochRecord

NUM_EPOCHS = 3
CORPUS = make_corpus()
LAST = CORPUS.num_blocks - 1
# Dropout draws on and on, and the batch size does not divide the number of examples.
DROPOUT = settings_of(f"train.epochs={NUM_EPOCHS}", "train.batch_size=25", "head.dropout=0.3")
PATIENT = settings_of(f"train.epochs={NUM_EPOCHS}", "train.batch_size=16", "train.patience=2")
HEADS = {"dropout": DROPOUT, "patient": PATIENT}


def plan_of(*, same_order: bool) -> StreamPlan:
    """Of the corpus; no bytes, as nothing is streamed."""
    num_bytes = {block.key: 0 for blocks in CORPUS.blocks.values() for block in blocks}
    budget = Budget(0, 0, frozenset(), 0, 0, 0)
    return StreamPlan(
        seed=CORPUS.seed,
        num_epochs=9,
        same_order=same_order,
        num_train=len(CORPUS.blocks[TRAIN]),
        validation=tuple(CORPUS.validation_keys),
        block_bytes=num_bytes,
        block_tokens=num_bytes,
        budget=budget,
    )


class Stream:
    """Delivers to one trainer; each block is made once."""

    def __init__(self, *, same_order: bool = False):
        self.plan = plan_of(same_order=same_order)
        self._extractor = RandomExtractor(CORPUS)
        self._blocks: dict[BlockKey, EncodedBlock] = {}

    def deliver(self, training: HeadTraining, position: Position) -> DeliveryStatus:
        key = self.plan.sequence(position.epoch)[position.index]
        if key not in self._blocks:
            self._blocks[key] = self._extractor.extract(key)
        return training.consume(position, key, self._blocks[key])

    def deliver_all(
        self, training: HeadTraining, positions: Iterable[Position]
    ) -> set[DeliveryStatus]:
        return {self.deliver(training, position) for position in positions}

    def run_epoch(self, training: HeadTraining) -> dict[str, EpochRecord | None]:
        epoch = training.position.epoch
        assert self.deliver_all(training, positions_of(epoch)) == {DeliveryStatus.CONSUMED}
        return training.end_epoch(epoch)


def positions_of(epoch: int, first: int = 0, last: int = LAST) -> list[Position]:
    return [Position(epoch, index) for index in range(first, last + 1)]


def training_of(
    *, stack_heads: bool = False, num_threads: int = 1, **heads: TaskSettings
) -> HeadTraining:
    training = HeadTraining(
        CORPUS,
        CLASSES,
        shape_of(CLASSES),
        device=CPU,
        dtype=torch.float32,
        stack_heads=stack_heads,
        num_threads=num_threads,
    )
    for name, settings in heads.items():
        training.attach(name, HeadJob(settings))
    return training


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, HeadResult]:
    stream, training = Stream(), training_of(**HEADS)
    for _ in range(NUM_EPOCHS):
        stream.run_epoch(training)
    return training.results()


def assert_undisturbed(training: HeadTraining, undisturbed: dict[str, HeadResult]) -> None:
    assert training.position == Position(NUM_EPOCHS, 0)
    for name, result in undisturbed.items():
        assert_same(training.results()[name], result)


def test_deliveries_are_ordered_and_name_themselves():
    assert Position(0, 0) < Position(0, 9) < Position(1, 0) < Position(1, 1)
    assert Position(0, 0).next == Position(0, 1)
    assert str(Position(1, 1)) == "delivery 1 of epoch 2"


def test_a_plan_delivers_from_any_position_on():
    plan = plan_of(same_order=False)
    every = list(plan.deliveries(Position(0, 0), 2))
    assert [position for position, _ in every] == [p for e in range(3) for p in positions_of(e)]
    for position, key in every:
        assert plan.sequence(position.epoch)[position.index] == key
    assert list(plan.deliveries(Position(1, 5), 2)) == every[CORPUS.num_blocks + 5 :]
    assert list(plan.deliveries(Position(3, 0), 2)) == []


def test_a_plan_of_one_order_repeats_the_first_epoch():
    mixed, same = plan_of(same_order=False), plan_of(same_order=True)
    assert [same.sequence(epoch) for epoch in range(4)] == [mixed.sequence(0)] * 4
    assert mixed.sequence(1) != mixed.sequence(0)


def test_what_is_delivered_twice_is_trained_on_once(undisturbed: dict[str, HeadResult]):
    stream, training = Stream(), training_of(**HEADS)
    for epoch in range(NUM_EPOCHS):
        for position in positions_of(epoch):
            assert stream.deliver(training, position) is DeliveryStatus.CONSUMED
            assert stream.deliver(training, position) is DeliveryStatus.DUPLICATE
        training.end_epoch(epoch)
        assert stream.deliver(training, Position(epoch, LAST)) is DeliveryStatus.DUPLICATE
    assert_undisturbed(training, undisturbed)


def test_a_stream_that_begins_anew_is_listened_to_from_where_the_old_one_was(
    undisturbed: dict[str, HeadResult],
):
    stream, training = Stream(), training_of(**HEADS)
    stream.run_epoch(training)
    stream.deliver_all(training, positions_of(1, last=4))
    behind = [*positions_of(0), *positions_of(1, last=4)]
    assert stream.deliver_all(training, behind) == {DeliveryStatus.DUPLICATE}
    assert stream.deliver_all(training, positions_of(1, first=5)) == {DeliveryStatus.CONSUMED}
    training.end_epoch(1)
    stream.run_epoch(training)
    assert_undisturbed(training, undisturbed)


@pytest.mark.parametrize("reached", [1, 7, LAST, LAST + 1])
def test_a_trainer_that_starts_again_is_given_the_epoch_again(
    undisturbed: dict[str, HeadResult], reached: int
):
    stream, lost = Stream(), training_of(**HEADS)
    stream.run_epoch(lost)
    checkpoint = lost.checkpoint()
    stream.deliver_all(lost, positions_of(1, last=reached - 1))
    training = training_of(**HEADS)
    training.restore(checkpoint)
    assert training.position == Position(1, 0)
    early = positions_of(1, first=1, last=reached)  # of the stream that fed the lost one
    assert stream.deliver_all(training, early[:-1]) <= {DeliveryStatus.TOO_EARLY}
    stream.run_epoch(training)
    stream.run_epoch(training)
    assert_undisturbed(training, undisturbed)


@pytest.mark.parametrize("seed", range(2))
def test_only_the_next_delivery_is_taken(undisturbed: dict[str, HeadResult], seed: int):
    random = Random(seed)
    stream, training = Stream(), training_of(**HEADS)
    num_refused = 0
    while training.position.epoch < NUM_EPOCHS:
        at = training.position
        if at.index > LAST:
            training.end_epoch(at.epoch)
            continue
        epoch = min(max(at.epoch + random.choice([0, 0, 0, 0, -1, 1]), 0), NUM_EPOCHS - 1)
        position = Position(epoch, min(max(at.index + random.randint(-2, 2), 0), LAST))
        reception = stream.deliver(training, position)
        if position == at:
            assert (reception, training.position) == (DeliveryStatus.CONSUMED, at.next)
            continue
        num_refused += 1
        assert reception is (
            DeliveryStatus.TOO_EARLY if position > at else DeliveryStatus.DUPLICATE
        )
        assert training.position == at
    assert num_refused > 50
    assert_undisturbed(training, undisturbed)


def test_an_epoch_ends_once_however_often_it_is_told(undisturbed: dict[str, HeadResult]):
    stream, training = Stream(), training_of(**HEADS)
    for epoch in range(NUM_EPOCHS):
        records = stream.run_epoch(training)
        assert training.end_epoch(epoch) == records
        assert training.end_epoch(epoch) == records
        assert {name: fit.epoch for name, fit in training.fits.items()} == dict.fromkeys(
            HEADS, epoch + 1
        )
    assert_undisturbed(training, undisturbed)


@pytest.mark.parametrize(
    ("reached", "epoch"),
    [(Position(1, 0), 1), (Position(1, LAST), 1), (Position(1, 3), 0), (Position(2, 0), 0)],
)
def test_an_epoch_that_is_not_over_cannot_end(
    undisturbed: dict[str, HeadResult], reached: Position, epoch: int
):
    stream, training = Stream(), training_of(**HEADS)
    while training.position.epoch < reached.epoch:
        stream.run_epoch(training)
    stream.deliver_all(training, positions_of(reached.epoch, last=reached.index - 1))
    expected = f"epoch {epoch} cannot end at {reached}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        training.end_epoch(epoch)
    stream.deliver_all(training, positions_of(reached.epoch, first=reached.index))
    training.end_epoch(reached.epoch)
    while training.position.epoch < NUM_EPOCHS:
        stream.run_epoch(training)
    assert_undisturbed(training, undisturbed)


def test_a_head_that_diverges_is_told_of_at_the_end_of_its_epoch():
    """However early in the epoch: a trial of a search waits for it."""
    diverging = settings_of(f"train.epochs={NUM_EPOCHS}", lr=1e30)
    stream, training = Stream(), training_of(diverging=diverging, patient=PATIENT)
    ended = stream.run_epoch(training)
    assert training.results()["diverging"].failure.startswith("the training loss became")
    assert training.active == {"patient"}
    assert ended.keys() == {"diverging", "patient"}
    assert ended["diverging"] is None
    assert stream.run_epoch(training).keys() == {"patient"}


def test_no_head_joins_within_an_epoch():
    stream, training = Stream(), training_of(**HEADS)
    stream.deliver(training, Position(0, 0))
    expected = "no head can be attached within an epoch, at delivery 1 of epoch 1"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        training.attach("late", HeadJob(DROPOUT))
    assert training.fits.keys() == HEADS.keys()


@pytest.fixture(scope="module")
def in_one_order() -> dict[str, HeadResult]:
    """Each head alone, from the first epoch on."""
    results = {}
    for name, settings in HEADS.items():
        stream, training = Stream(same_order=True), training_of(**{name: settings})
        while training.active:
            stream.run_epoch(training)
        results |= training.results()
    return results


@pytest.mark.parametrize("first", [1, 3])
def test_a_head_that_joins_late_has_the_numbers_of_one_from_the_start(
    in_one_order: dict[str, HeadResult], first: int
):
    stream, training = Stream(same_order=True), training_of(early=PATIENT)
    while training.position.epoch < first:
        stream.run_epoch(training)
    for name, settings in HEADS.items():
        training.attach(name, HeadJob(settings))
    while training.active:
        stream.run_epoch(training)
    for name, result in in_one_order.items():
        assert_same(training.results()[name], result)
    assert_same(training.results()["early"], in_one_order["patient"])


def test_without_one_order_a_late_head_would_have_other_numbers(
    undisturbed: dict[str, HeadResult],
):
    stream, training = Stream(same_order=False), training_of()
    stream.run_epoch(training)
    training.attach("dropout", HeadJob(DROPOUT))
    while training.active:
        stream.run_epoch(training)
    late, early = training.results()["dropout"].history, undisturbed["dropout"].history
    assert [r.epoch for r in late] == [r.epoch for r in early]
    assert [r.loss for r in late] != [r.loss for r in early]


@pytest.mark.parametrize("seed", range(2))
def test_neighbours_that_come_and_go_do_not_matter(in_one_order: dict[str, HeadResult], seed: int):
    """A search: heads join, leave, wait and go on; all that reach their end have its numbers."""
    random = Random(seed)
    stream, training = Stream(same_order=True), training_of()
    started = 0
    paused = {}
    ended: dict[str, HeadResult] = {}
    while len(ended) < 6:
        for name, fit in list(training.fits.items()):
            if not fit.active:
                ended[name] = fit.result()
                training.detach(name)
            elif random.random() < 0.3:
                paused[name] = fit.checkpoint()
                training.detach(name)
        for name in [name for name in paused if random.random() < 0.5]:
            training.attach(name, HeadJob(HEADS[name.split("-")[0]]), paused.pop(name))
        for kind in HEADS:
            if random.random() < 0.5:
                training.attach(f"{kind}-{started}", HeadJob(HEADS[kind]))
                started += 1
        stream.run_epoch(training)
    for name, result in ended.items():
        assert_same(result, in_one_order[name.split("-")[0]])


def test_threads_change_no_number():
    wide = f"head.adapter_dim={COLUMNS_TOGETHER // 2}"  # two of three in one product
    rates = {f"rate{i}": settings_of(wide, lr=0.001 * (i + 1)) for i in range(3)}
    others = {
        **HEADS,
        "large": settings_of("head.adapter_dim=32"),
        "small-batches": settings_of("train.batch_size=5"),
        "diverging": settings_of(lr=1e30),
    }
    results = []
    for num_threads in (1, 3):
        stream = Stream()
        training = training_of(stack_heads=True, num_threads=num_threads, **rates, **others)
        for _ in range(NUM_EPOCHS):
            stream.run_epoch(training)
        results.append(training.results())
    one, three = results
    assert one["diverging"].failure
    assert one["diverging"].failure == three["diverging"].failure
    for name in one:
        assert_same(one[name], three[name])


def test_what_fails_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch):
    def fail(fits: object, batch: object) -> None:
        raise MemoryError("no room for the products")

    monkeypatch.setattr("bertvision_stream.training.head_training.train_together", fail)
    training = training_of(num_threads=2, **HEADS)
    with pytest.raises(MemoryError, match="no room for the products"):
        Stream().run_epoch(training)
