"""What baselines tell of themselves, and what is made of it."""

from dataclasses import replace

import pytest

from benchmarks import time_to_score, trials_against_tune
from benchmarks.baselines.outcome import (
    Curve,
    HeadOutcome,
    TrialsOutcome,
    print_outcome,
    read_outcome,
)
from benchmarks.one_head import DifferentLossesError, Run, check_losses, tables
from benchmarks.processes import Observed
from benchmarks.time_to_score import Track

BEGAN = 1000.0


def outcome(*epoch_seconds: float, dump: float = 0.0, ready: float = 20.0) -> HeadOutcome:
    return HeadOutcome(
        training_began=BEGAN + ready,
        dump_seconds=dump,
        epoch_seconds=epoch_seconds,
        losses=tuple(1 / (i + 3) for i in range(len(epoch_seconds))),
        scores=tuple({"accuracy": 0.5 + i / 10} for i in range(len(epoch_seconds))),
        bytes_written=0,
    )


def run(*epoch_seconds: float, cpu: float = 10.0, **others: float) -> Run:
    told = outcome(*epoch_seconds, **others)
    looks = ((BEGAN + 10, cpu / 2), (told.ended(len(epoch_seconds)), cpu))
    return Run(Observed("", BEGAN, cpu, 2**20, looks), told)


def cells(lines: list[str], first: str) -> list[list[str]]:
    """The rows of all tables that begin with a cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row[1:] for row in rows if row[0] == first]


def test_an_outcome_is_read_from_among_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    told = outcome(3.0, 1.0, dump=2.0)
    print("a warning")
    print_outcome(told)
    print("OUT of something else")
    assert read_outcome(HeadOutcome, capsys.readouterr().out) == told


def test_curves_and_trials_are_read_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    for told in (Curve(("a", "b"), (1.0, 2.0), (0.1, 0.2)), TrialsOutcome(1.0, 2.0, 3, 0.4)):
        print_outcome(told)
        assert read_outcome(type(told), capsys.readouterr().out) == told


@pytest.mark.parametrize("count", [0, 2])
def test_no_outcome_or_several_are_refused(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    print("Traceback of the baseline")
    for _ in range(count):
        print_outcome(outcome(1.0))
    with pytest.raises(ValueError, match=rf"{count} outcomes in what it printed:\nTraceback"):
        read_outcome(HeadOutcome, capsys.readouterr().out)


def test_work_at_a_mark_is_the_dump_and_the_epochs_so_far() -> None:
    told = outcome(4.0, 1.0, 1.0, dump=10.0)
    assert [told.work_seconds(mark) for mark in (1, 2, 3)] == [14.0, 15.0, 16.0]


def test_the_end_of_an_epoch_has_the_dump_before_training_and_counts_it_once() -> None:
    told = run(4.0, 1.0, dump=10.0, ready=30.0)
    assert told.first_step_seconds == 30.0
    assert told.seconds_from_command(2) == pytest.approx(35.0)


def test_cpu_time_is_told_between_two_looks() -> None:
    told = run(4.0, 6.0, cpu=10.0)  # ready after 20 s; half of the CPU time in the first 10
    assert [told.cpu_seconds(epochs) for epochs in (1, 2)] == [pytest.approx(8.5), 10.0]


def test_epochs_that_did_not_run_have_no_time() -> None:
    with pytest.raises(ValueError, match="5 epochs of 2 that ran"):
        outcome(1.0, 1.0).work_seconds(5)


def test_ratios_are_medians_over_turns_with_their_spread() -> None:
    streamed = [run(4.0, 1.0), run(8.0, 2.0), run(4.0, 1.0)]
    recomputed = [run(4.0, 4.0, ready=5.0), run(8.0, 4.0, ready=5.0), run(4.0, 11.0, ready=5.0)]
    lines = tables({"stream-cached": streamed, "recompute": recomputed}, [1, 2])
    seconds, relative, cpu, costs = cells(lines, "recomputed in one process")
    assert seconds == ["4.0 s", "12.0 s", "17.0 s"]
    assert relative[:2] == ["1.00 (1.00 to 1.00)", "1.60 (1.20 to 3.00)"]
    # From the command on: 13/25, 17/30, 20/25.
    assert relative[2] == "0.57 (0.52 to 0.80)"
    assert cpu[1] == "10.0 s"
    assert costs == ["5.0 s", "1.0 MiB", "0 B", "0.6000"]
    assert cells(lines, "streamed, all blocks cached")[1] == ["1", "1", "1"]
    assert any("After 2: the best" in line and "1.60 of the time" in line for line in lines)


def test_a_baseline_of_the_first_turn_alone_is_compared_with_that_turn() -> None:
    runs = {"stream-cached": [run(4.0), run(8.0)], "ray-data": [run(12.0)]}
    lines = tables(runs, [1])
    seconds, relative, _, _ = cells(lines, "Ray Data, recomputed in every epoch (1 of the turns)")
    assert (seconds[0], relative[0]) == ("12.0 s", "3.00")
    assert cells(lines, "streamed, all blocks cached")[0][0] == "6.0 s"


def test_the_start_is_counted_at_five_epochs_where_these_are_a_mark() -> None:
    runs = {"stream-cached": [run(*[1.0] * 10)]}
    assert "| from the command to 5 epochs |" in "\n".join(tables(runs, [1, 5, 10]))
    assert "| from the command to 10 epochs |" in "\n".join(tables(runs, [1, 10]))


def test_other_losses_on_the_same_batches_are_an_error() -> None:
    good = run(1.0, 1.0)
    check_losses({"stream-cached": [good], "recompute": [good]})
    worse = replace(good, outcome=replace(good.outcome, losses=(1 / 3, 0.2500001)))
    with pytest.raises(DifferentLossesError, match=r"DIFFERENT LOSSES\nstream-cached.*\nrecompute"):
        check_losses({"stream-cached": [good], "recompute": [worse]})
    with pytest.raises(DifferentLossesError):  # of the same baseline in another turn, too
        check_losses({"stream-cached": [good, worse]})


def test_padded_batches_and_ray_data_may_have_losses_of_their_own() -> None:
    good = run(1.0)
    other = replace(good, outcome=replace(good.outcome, losses=(9.0,)))
    check_losses({"stream-cached": [good], "dump": [other], "ray-data": [other]})


def test_a_score_is_reached_at_its_first_point_or_never() -> None:
    track = Track.of(Curve(("a", "b", "c"), (1010.0, 1020.0, 1030.0), (0.1, 0.3, 0.2)), BEGAN)
    assert [track.reaches(score) for score in (0.1, 0.2, 0.3)] == [10.0, 20.0, 20.0]
    assert track.reaches(0.31) == float("inf")
    assert track.best == 0.3


def test_times_to_scores_are_those_of_each_turn() -> None:
    full = Track(("1 epoch", "2 epochs"), (40.0, 80.0), (0.2, 0.6))
    ours = Track(("1 epoch", "head, epoch 1"), (50.0, 55.0), (0.3, 0.5))
    lines = time_to_score.tables([full, replace(full, seconds=(44.0, 90.0))], [ours, ours])
    assert cells(lines, "BERT's own, fine-tuned for 1 epoch, 0.3000") == [
        ["85.00 s (80.00 to 90.00)", "50.00 s (50.00 to 50.00)"]
    ]
    assert cells(lines, "the best that both reach, 0.5000")[0][0].startswith("85.00 s")
    assert cells(lines, "all of BERT fine-tuned")[0] == ["1 epoch", "42.0 s", "0.2000"]


def test_a_score_that_is_never_reached_is_called_so() -> None:
    full = Track(("1 epoch",), (40.0,), (0.2,))
    better = replace(full, scores=(0.5,))
    ours = Track(("1 epoch", "head, epoch 1"), (50.0, 55.0), (0.3, 0.5))
    lines = time_to_score.tables([full, full], [ours, ours])
    assert cells(lines, "the head's best, 0.5000")[0][0] == "never"
    lines = time_to_score.tables([full, better], [ours, ours])
    assert cells(lines, "the head's best, 0.5000")[0][0] == "never in 1 of 2 turns"


def test_cpu_time_of_trials_is_what_came_after_the_cluster() -> None:
    def trials(seconds: float, cpu: float) -> trials_against_tune.Run:
        return trials_against_tune.Run(
            Observed("", BEGAN, cpu, 2**20), TrialsOutcome(seconds, 12.0, 4000, 0.25)
        )

    of_count = {"search": [trials(10.0, 22.0)], "trials": [trials(30.0, 52.0)]}
    lines = trials_against_tune.tables({16: of_count})
    assert cells(lines, "16") == [
        ["one search, one stream", "10.0 s", "1", "4,000", "10.0 s", "1", "1.0 MiB", "0.2500"],
        [
            "independent trials, BERT runs in every epoch",
            *("30.0 s", "3.00", "4,000", "40.0 s", "4.00", "1.0 MiB", "0.2500"),
        ],
    ]
