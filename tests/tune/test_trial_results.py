"""What a trial reports after an epoch."""

import math

from bertvision_stream.training.records import EpochRecord
from tune.trial_results import epoch_result, failure_result


def record(epoch: int, accuracy: float) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=1 / epoch,
        validation_loss=2 / epoch,
        scores={
            "validation_matched": {"accuracy": accuracy},
            "validation_mismatched": {"accuracy": accuracy + 0.5},
        },
    )


def test_an_epoch_is_reported_with_the_score_of_the_weights_that_are_kept():
    last = record(2, 0.25)
    expected = {
        "score": 0.5,
        "epoch": 2,
        "loss": 0.5,
        "validation_loss": 1.0,
        "validation_matched_accuracy": 0.25,
        "validation_mismatched_accuracy": 0.75,
    }
    assert epoch_result(last, kept=last) == expected
    assert epoch_result(last, kept=record(1, 0.5)) == expected | {"score": 0.75}


def test_a_failure_has_no_score():
    result = failure_result("the training loss became nan")
    assert math.isnan(result.pop("score"))
    assert result == {"failure": "the training loss became nan"}
