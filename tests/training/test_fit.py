"""Fitting heads: against a plain torch loop bit for bit, alone and side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (  # noqa: F401
    CPU,
    HIDDEN_SIZE,
    MAX_LENGTH,
    NUM_LAYERS,
    RandomExtractor,
    one_thread,
    random_lengths,
    task_settings,
    token_store,
)

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.stream.blocks import TRAIN, epoch_order, row_order
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.fit import (
    LAST_EPOCH,
    LOWEST_LOSS,
    HeadFit,
    HeadResult,
)
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import (
    HeadTraining,
    make_training,
)
from bertvision_stream.training.optimizer import learning_rate

NUM_TRAIN = 90
VALIDATION = {"matched": 31, "mismatched": 17}
CLASSES = dataclasses.replace(TASKS["cola"], validation_splits=tuple(VALIDATION))
SCORES = dataclasses.replace(TASKS["stsb"], validation_splits=tuple(VALIDATION))


def make_corpus(task: Task = CLASSES) -> Corpus:
    stores = {}
    for seed, (split, count) in enumerate({TRAIN: NUM_TRAIN, **VALIDATION}.items()):
        rng = np.random.default_rng(seed)
        if task.kind == "regression":
            labels = rng.uniform(0, 5, count).astype(np.float32)
        else:
            labels = rng.integers(0, 2, count)
        stores[split] = token_store(random_lengths(count, seed=seed), labels, seed=seed)
    corpus = Corpus.pack(stores, block_tokens=256, seed=1)
    assert len(corpus.blocks[TRAIN]) > 5
    return corpus


class ScaledValidation(RandomExtractor):
    """Validation states are training states times a factor: -1 makes them say the opposite."""

    def __init__(self, corpus: Corpus, *, factor: float):
        super().__init__(corpus)
        self.factor = factor

    def hidden(self, split: str, row: int) -> torch.Tensor:
        hidden = super().hidden(split, row)
        return hidden if split == TRAIN else hidden * self.factor


def settings_of(*overrides: str, lr: float = 1e-2) -> TaskSettings:
    exact = ("train.precision=fp32", "train.stack_heads=false")
    return task_settings("cola", *exact, f"train.lr={lr}", *overrides)


def shape_of(task: Task, train_labels: torch.Tensor | None = None) -> HeadShape:
    shape = HeadShape(NUM_LAYERS, HIDDEN_SIZE, task.num_labels, MAX_LENGTH)
    if task.kind != "regression" or train_labels is None:
        return shape
    mean, std = train_labels.double().mean().item(), train_labels.double().std(correction=0).item()
    return dataclasses.replace(shape, target_mean=mean, target_std=std)


def train(
    heads: Mapping[str, TaskSettings],
    task: Task = CLASSES,
    extractor: RandomExtractor | None = None,
) -> dict[str, HeadResult]:
    extractor = extractor or RandomExtractor(make_corpus(task))
    jobs = {name: HeadJob(settings) for name, settings in heads.items()}
    training = make_training(extractor.corpus, task, jobs, shape_of(task), device=CPU)
    for _ in train_in_process(extractor, training):
        pass
    return training.results()


def assert_same(first: HeadResult, second: HeadResult) -> None:
    """Bit for bit."""
    assert first.history == second.history
    assert first.state.keys() == second.state.keys()
    for name, tensor in first.state.items():
        assert torch.equal(tensor, second.state[name]), name
    for split, logits in first.logits.items():
        np.testing.assert_array_equal(logits, second.logits[split])
    assert first.adapter_shares == second.adapter_shares


def rate_of(settings: TaskSettings, step: int, total: int) -> float:
    train = settings.train
    return learning_rate(train.lr, step, total, warmup_ratio=train.warmup_ratio)


def plain_batches(corpus: Corpus, settings: TaskSettings, epoch: int) -> Iterator[list[int]]:
    """The rows of each batch: all rows of the epoch in order, cut."""
    blocks = corpus.blocks[TRAIN]
    rows: list[int] = []
    for index in epoch_order(len(blocks), seed=corpus.seed, epoch=epoch):
        order = row_order(blocks[index], seed=corpus.seed, epoch=epoch)
        rows += blocks[index].example_ids[order].tolist()
    assert sorted(rows) == list(range(NUM_TRAIN))
    size = settings.train.batch_size
    return (rows[i : i + size] for i in range(0, len(rows), size))


def matrices_and_vectors(head: Head) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """What AdamW's decay is for, and what it is not for: biases and mixing weights."""
    named = dict(head.named_parameters())
    plain = {name for name in named if name.endswith("bias") or named[name].ndim <= 1}
    return [p for n, p in named.items() if n not in plain], [named[n] for n in named if n in plain]


def plain_loop(
    extractor: RandomExtractor, settings: TaskSettings, task: Task
) -> tuple[Head, list[float]]:
    """Train on whole examples, without blocks: the head, and the mean loss of each epoch."""
    labels = torch.from_numpy(extractor.corpus.stores[TRAIN].labels)
    head = Head(settings.head, shape_of(task, labels), seed=settings.seed)
    matrices, vectors = matrices_and_vectors(head)
    groups = [
        {"params": matrices, "weight_decay": settings.train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    epochs = settings.train.epochs
    total = epochs * math.ceil(NUM_TRAIN / settings.train.batch_size)
    step, mean_losses = 0, []
    for epoch in range(epochs):
        loss_sum = 0.0
        for rows in plain_batches(extractor.corpus, settings, epoch):
            hidden = [extractor.hidden(TRAIN, row) for row in rows]
            bert = torch.cat([extractor.bert_logits(TRAIN, row) for row in rows])
            logits = head(torch.cat(hidden), torch.tensor([len(h) for h in hidden]), bert)
            if task.kind == "regression":
                loss = torch.nn.functional.mse_loss(logits[:, 0], labels[rows])
            else:
                loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            head.zero_grad()
            (loss / head.shape.target_std**2).backward()
            for group in optimizer.param_groups:
                group["lr"] = rate_of(settings, step, total)
            optimizer.step()
            step += 1
            loss_sum += loss.item() * len(rows)
        mean_losses.append(loss_sum / NUM_TRAIN)
    return head.eval(), mean_losses


@pytest.mark.parametrize("start", ["new", "bert"])
@pytest.mark.parametrize("batch_size", [7, 16, 90, 200])
@pytest.mark.parametrize("task", [CLASSES, SCORES], ids=["classification", "regression"])
def test_training_equals_a_plain_loop_bit_for_bit(task: Task, batch_size: int, start: str):
    settings = settings_of(
        "train.epochs=3",
        f"train.batch_size={batch_size}",
        "head.dropout=0.1",
        "seed=7",
        f"head.start={start}",
    )
    extractor = RandomExtractor(make_corpus(task))
    result = train({"head": settings}, task, extractor)["head"]
    head, losses = plain_loop(extractor, settings, task)
    assert [record.loss for record in result.history] == losses
    assert result.failure == ""
    assert result.num_parameters == sum(p.numel() for p in head.parameters())
    for name, tensor in head.state_dict().items():
        assert torch.equal(result.state[name], tensor), name


@pytest.mark.parametrize("task", [CLASSES, SCORES], ids=["classification", "regression"])
def test_validation_covers_each_example_once(task: Task, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[int]] = {split: [] for split in VALIDATION}
    keep_logits = HeadFit.keep_logits

    def noting(self: HeadFit, split: str, example_ids: np.ndarray, logits: Any) -> None:
        seen[split] += example_ids.tolist()
        keep_logits(self, split, example_ids, logits)

    monkeypatch.setattr(HeadFit, "keep_logits", noting)
    settings = settings_of("train.epochs=1")
    extractor = RandomExtractor(make_corpus(task))
    result = train({"head": settings}, task, extractor)["head"]
    assert {split: sorted(rows) for split, rows in seen.items()} == {
        split: list(range(count)) for split, count in VALIDATION.items()
    }
    head, _ = plain_loop(extractor, settings, task)
    losses = []
    for split, count in VALIDATION.items():
        with torch.no_grad():
            hidden = [extractor.hidden(split, row) for row in range(count)]
            logits = torch.cat([head(h, torch.tensor([len(h)])) for h in hidden])
        np.testing.assert_allclose(result.logits[split], logits.numpy(), rtol=0, atol=1e-5)
        labels = extractor.corpus.stores[split].labels
        if task.kind == "regression":
            losses += ((logits[:, 0].numpy() - labels) ** 2).tolist()
        else:
            losses += (-logits.log_softmax(dim=1).numpy()[np.arange(count), labels]).tolist()
    assert result.history[0].validation_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.history[0].scores.keys() == VALIDATION.keys()


def test_berts_own_logits_are_kept_from_the_same_pass():
    extractor = RandomExtractor(make_corpus())
    training = make_training(
        extractor.corpus, CLASSES, {"head": HeadJob(settings_of())}, shape_of(CLASSES), device=CPU
    )
    next(train_in_process(extractor, training))
    for split, count in VALIDATION.items():
        expected = torch.cat([extractor.bert_logits(split, row) for row in range(count)])
        np.testing.assert_array_equal(training.bert_logits[split], expected.numpy())


def test_without_patience_the_last_epoch_is_chosen():
    extractor = ScaledValidation(make_corpus(), factor=-1.0)
    result = train({"head": settings_of("train.epochs=4")}, extractor=extractor)["head"]
    losses = [record.validation_loss for record in result.history]
    assert losses == sorted(losses)  # and though it is the worst
    assert (len(losses), result.chosen_epoch, result.chosen_by) == (4, 4, LAST_EPOCH)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_training_and_keeps_the_epoch_of_lowest_loss(patience: int):
    extractor = ScaledValidation(make_corpus(), factor=-1.0)
    settings = settings_of("train.epochs=9", f"train.patience={patience}")
    training = make_training(
        extractor.corpus, CLASSES, {"head": HeadJob(settings)}, shape_of(CLASSES), device=CPU
    )
    epochs = train_in_process(extractor, training)
    next(epochs)
    after_first = training.results()["head"]
    assert training.active
    for _ in epochs:
        pass
    result = training.results()["head"]
    losses = [record.validation_loss for record in result.history]
    assert losses.index(min(losses)) == 0
    assert len(losses) == 1 + patience
    assert (result.chosen_epoch, result.chosen_by) == (1, LOWEST_LOSS)
    head = training.fits["head"].head
    assert not torch.equal(head.output.weight, result.state["output.weight"])
    assert_same(dataclasses.replace(after_first, history=result.history), result)


def test_patience_starts_again_with_every_better_epoch():
    settings = settings_of("train.epochs=5", "train.patience=1", lr=3e-3)
    extractor = ScaledValidation(make_corpus(), factor=0.3)
    result = train({"head": settings}, extractor=extractor)["head"]
    losses = [record.validation_loss for record in result.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > min(record.loss for record in result.history)  # validation's count
    assert (len(losses), result.chosen_epoch) == (5, 5)


def test_heads_side_by_side_equal_each_alone():
    heads = {
        "default": settings_of("train.batch_size=16", "train.epochs=3"),
        "small batches": settings_of("train.batch_size=7", "train.epochs=3", "seed=1"),
        "other seed": settings_of("train.batch_size=16", "train.epochs=3", "seed=2"),
        "dropout": settings_of("train.batch_size=16", "train.epochs=3", "head.dropout=0.3"),
        "short": settings_of("train.batch_size=90", "train.epochs=2", "head.kind=scalar_mix"),
    }
    together = train(heads)
    assert len(together["short"].history) == 2
    for name, settings in heads.items():
        assert_same(together[name], train({name: settings})[name])


def test_a_head_that_stops_early_leaves_the_others_alone_and_costs_nothing():
    options = ("train.epochs=5", "train.batch_size=10")
    heads = {
        "patient": HeadJob(settings_of(*options)),
        "impatient": HeadJob(settings_of(*options, "train.patience=1")),
    }
    extractor = ScaledValidation(make_corpus(), factor=-1.0)
    training = make_training(extractor.corpus, CLASSES, heads, shape_of(CLASSES), device=CPU)
    for _ in train_in_process(extractor, training):
        pass
    assert {name: fit.steps for name, fit in training.fits.items()} == {
        "patient": 5 * NUM_TRAIN // 10,
        "impatient": 2 * NUM_TRAIN // 10,
    }
    for name, head in heads.items():
        alone = train({name: head.settings}, extractor=extractor)[name]
        assert_same(training.results()[name], alone)


def test_a_loss_that_is_not_finite_stops_that_head_alone():
    sound = settings_of("train.epochs=2")
    together = train({"wild": settings_of(lr=1e30), "sound": sound})
    assert_same(together["sound"], train({"sound": sound})["sound"])
    wild = together["wild"]
    assert wild.failure.startswith("the training loss became nan in epoch 1, at block train[")
    assert wild.failure.endswith("]; try a lower train.lr (it was 1e+30)")
    assert (wild.history, wild.chosen_epoch, wild.state) == ((), 0, {})


def test_a_failed_head_keeps_its_best_epoch_and_ends_the_training():
    extractor = RandomExtractor(make_corpus())
    training = make_training(
        extractor.corpus, CLASSES, {"head": HeadJob(settings_of())}, shape_of(CLASSES), device=CPU
    )
    epochs = train_in_process(extractor, training)
    records = next(epochs)
    with torch.no_grad():
        training.fits["head"].head.output.weight.fill_(torch.inf)
    assert next(epochs) == {"head": None}
    assert not training.active
    result = training.results()["head"]
    assert result.history == (records["head"],)
    assert result.chosen_epoch == 1
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())


def test_an_infinite_loss_in_the_last_batch_of_an_epoch_is_no_result():
    """The only batch is cut after all blocks; its loss overflows, and validation logits do not."""
    options = ("train.epochs=3", "train.batch_size=200", "train.weight_decay=0")
    result = train({"head": settings_of(*options, lr=1e8)}, SCORES)["head"]
    assert [math.isfinite(record.loss) for record in result.history] == [True]
    assert result.failure == (
        "the training loss became inf in epoch 2; try a lower train.lr (it was 100000000.0)"
    )


def test_the_precision_of_products_is_that_of_the_settings():
    corpus = make_corpus()
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        heads = {"head": HeadJob(task_settings("cola", f"train.precision={precision}"))}
        training: HeadTraining = make_training(
            corpus, CLASSES, heads, shape_of(CLASSES), device=CPU
        )
        assert training.dtype == dtype
        assert {p.dtype for p in training.fits["head"].head.parameters()} == {torch.float32}
