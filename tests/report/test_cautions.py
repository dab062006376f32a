"""What a report says of scores that mean less than they seem to."""

from __future__ import annotations

import numpy as np
import pytest
from reports import split_result

from bertvision_stream.data.splits import Split
from bertvision_stream.report.cautions import FEW_ROWS, cautions_on_split, rising_loss
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.records import EpochRecord

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=200)


def cautions(labels: np.ndarray, head: np.ndarray, *, bert: np.ndarray | None = None) -> list[str]:
    """Of a regression."""
    split = Split("validation", [("a",)] * len(labels), labels.astype(np.float32))
    result = split_result("validation", len(labels), pearson=(0.5, 0.83, 0.8), spearman=(0, 0, 0))
    scores = PredictorScores(bert=labels if bert is None else bert, head=head, ensemble=labels)
    return list(cautions_on_split(TASKS["stsb"], split, result, scores))


@pytest.mark.parametrize("scale", [1e-4, 1, 1e5])
@pytest.mark.parametrize("shrink", [2e-6, 2e-4, 5e-3, 1, 500])
def test_predictions_of_a_thousandth_of_the_labels_spread(scale: float, shrink: float):
    labels = 7 * scale + NUMBERS * scale
    notes = cautions(labels, 7 * scale + NUMBERS * scale * shrink)
    assert len(notes) == (shrink < 1e-3)
    for note in notes:
        assert note.startswith("WARNING: predictions on validation are practically one number. ")
        assert "those of head " in note
        assert "pearson 0.8300" in note
        assert f"The labels span {np.ptp(labels.astype(np.float32)):.4g}" in note


def test_every_predictor_that_is_one_number_is_named():
    (note,) = cautions(1e6 * NUMBERS, np.ones(200), bert=np.full(200, 618496.0))
    assert "those of BERT 0 (618496 to 618496; pearson 0.5000" in note
    assert ", head 0 (1 to 1; pearson 0.8300" in note
    assert "ensemble" not in note
    assert note.endswith("more rows, more epochs or another learning rate may help")


def test_predictions_that_vary_a_thousand_times_as_much_as_the_labels():
    (note,) = cautions(NUMBERS / 1e5, NUMBERS)
    assert "vary without regard to the labels" in note


def test_equal_labels_have_no_spread_to_compare_with():
    assert cautions(np.ones(200), np.ones(200)) == []
    assert cautions(np.ones(200), NUMBERS) == []


@pytest.mark.parametrize("count", [1, 6, FEW_ROWS - 1, FEW_ROWS])
@pytest.mark.parametrize("task", ["rte", "stsb", "squad_v2"])
def test_a_handful_of_rows(task: str, count: int):
    labels = NUMBERS[:count]
    split = Split("validation", [("a",)] * count, labels)
    metrics = dict.fromkeys(TASKS[task].metrics, (1.0, 1.0, 1.0))
    scores = PredictorScores(labels, labels, labels)
    result = split_result("validation", count, **metrics)
    notes = list(cautions_on_split(TASKS[task], split, result, scores))
    assert len(notes) == (count < FEW_ROWS)
    if count == 6:
        assert notes[0].startswith("validation has 6 rows, and each is 17% of a mean over them")


def history(*losses: float) -> list[EpochRecord]:
    return [
        EpochRecord(epoch=epoch, loss=0.5, validation_loss=loss, scores={})
        for epoch, loss in enumerate(losses, start=1)
    ]


def test_a_loss_that_has_risen_for_epochs_while_nothing_stops_it():
    assert rising_loss(history(0.6, 0.4, 0.41, 0.45, 0.44), None) == (
        "the validation loss was lowest in epoch 2 (0.4000) and has risen to 0.4400 in the 3 "
        "epochs since: the head may be overfitting. train.patience=2 stops such a run, and keeps "
        "the epoch with the lowest loss; by default the last one is kept"
    )
    assert rising_loss(history(0.6, 0.4, 0.41, 0.45), 2) == ""


@pytest.mark.parametrize(
    "losses", [(), (0.5,), (0.4, 0.5), (0.6, 0.5, 0.4), (0.6, 0.4, 0.5), (0.4, 0.4, 0.4)]
)
def test_a_loss_that_falls_or_has_risen_once(losses: tuple[float, ...]):
    assert rising_loss(history(*losses), None) == ""
