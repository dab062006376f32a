"""Heads that begin as BERT, and regressions that learn numbers of any size."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_fit import (
    CLASSES,
    SCORES,
    VALIDATION,
    ScaledValidation,
    assert_same,
    make_corpus,
    settings_of,
    shape_of,
    train,
)
from tiny import CPU, RandomExtractor, one_thread  # noqa: F401

from bertvision_stream.modes.local import train_in_process
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.fit import LOWEST_LOSS
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective


class OtherUnits(RandomExtractor):
    """The same hidden states, with labels and BERT's own numbers in other units."""

    def __init__(self, corpus: Corpus, *, mean: float, std: float):
        stores = {
            split: dataclasses.replace(
                store, labels=(mean + std * store.labels.astype(np.float64)).astype(np.float32)
            )
            for split, store in corpus.stores.items()
        }
        super().__init__(dataclasses.replace(corpus, stores=stores))
        self._plain, self._mean, self._std = RandomExtractor(corpus), mean, std

    def hidden(self, split: str, row: int) -> torch.Tensor:
        return self._plain.hidden(split, row)

    def bert_logits(self, split: str, row: int) -> torch.Tensor:
        return self._mean + self._std * self._plain.bert_logits(split, row)


@pytest.mark.parametrize("start", ["new", "bert"])
@pytest.mark.parametrize(("mean", "std"), [(250_000.0, 40_000.0), (-0.001, 1e-4)])
def test_a_regression_learns_the_same_in_any_units(start: str, mean: float, std: float):
    corpus = make_corpus(SCORES)
    settings = settings_of("train.epochs=4", "train.batch_size=16", f"head.start={start}")
    plain, scaled = (
        train({"head": settings}, SCORES, extractor)["head"]
        for extractor in (RandomExtractor(corpus), OtherUnits(corpus, mean=mean, std=std))
    )
    losses = [record.loss for record in plain.history]
    assert losses[-1] < 0.5 * losses[0]
    assert [record.loss / std**2 for record in scaled.history] == pytest.approx(losses, rel=0.02)
    for split, logits in plain.logits.items():
        in_units = (scaled.logits[split].astype(np.float64) - mean) / std
        np.testing.assert_allclose(in_units, logits, atol=0.05)


def test_labels_that_are_all_the_same_have_no_spread():
    labels = np.full(1000, 0.1, dtype=np.float32)  # whose mean is rounded
    mean, std = make_objective(SCORES).target_scale(labels)
    assert (mean, std) == (pytest.approx(0.1), 1.0)
    assert make_objective(CLASSES).target_scale(np.zeros(3, dtype=np.int64)) == (0.0, 1.0)


# Heads that begin as BERT


@pytest.mark.parametrize("task", [CLASSES, SCORES], ids=["classification", "regression"])
def test_before_the_first_step_the_head_is_bert_to_the_bit(task: Task):
    """Nothing is learned where the rate is as good as zero: all logits stay BERT's."""
    extractor = RandomExtractor(make_corpus(task))
    settings = settings_of("train.epochs=1", "head.start=bert", "head.skip=mix", lr=1e-60)
    result = train({"head": settings}, task, extractor)["head"]
    for split, count in VALIDATION.items():
        expected = torch.cat([extractor.bert_logits(split, row) for row in range(count)])
        np.testing.assert_array_equal(result.logits[split], expected.numpy())


class KnowingBert(ScaledValidation):
    """BERT knows every label, and hidden states say the opposite on validation rows."""

    def __init__(self, corpus: Corpus):
        super().__init__(corpus, factor=-1.0)

    def bert_logits(self, split: str, row: int) -> torch.Tensor:
        label = int(self.corpus.stores[split].labels[row])
        return torch.nn.functional.one_hot(torch.tensor([label]), 2).float() * 3


def test_with_patience_the_state_before_the_first_step_takes_part():
    extractor = KnowingBert(make_corpus())
    settings = settings_of("train.epochs=9", "train.patience=2", "head.start=bert")
    training = make_training(
        extractor.corpus, CLASSES, {"head": HeadJob(settings)}, shape_of(CLASSES), device=CPU
    )
    beginning = {n: t.clone() for n, t in training.fits["head"].head.state_dict().items()}
    epochs = train_in_process(extractor, training)
    next(epochs)
    resumed = make_training(
        extractor.corpus, CLASSES, {"head": HeadJob(settings)}, shape_of(CLASSES), device=CPU
    )
    resumed.restore(training.checkpoint())
    for each in (epochs, train_in_process(extractor, resumed)):
        for _ in each:
            pass
    result = training.results()["head"]
    assert_same(result, resumed.results()["head"])
    assert (len(result.history), result.chosen_epoch, result.chosen_by) == (2, 0, LOWEST_LOSS)
    assert result.start is not None
    assert result.start == resumed.results()["head"].start or math.isnan(result.start.loss)
    assert result.start.validation_loss < min(r.validation_loss for r in result.history)
    assert result.start.scores == {split: {"matthews": 1.0} for split in VALIDATION}
    assert result.state.keys() == beginning.keys()
    assert all(torch.equal(result.state[name], tensor) for name, tensor in beginning.items())
    for split, logits in result.logits.items():
        np.testing.assert_array_equal(logits, training.bert_logits[split])
    # Without patience the last epoch counts, and a head that begins anew has no such state.
    for options in (("head.start=bert",), ("train.patience=2", "head.start=new")):
        other = settings_of("train.epochs=2", *options)
        assert train({"head": other}, extractor=extractor)["head"].start is None
