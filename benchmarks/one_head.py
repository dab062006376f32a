"""One head, trained by each baseline: time after some epochs, CPU time, memory, disk and score."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.baselines.outcome import HeadOutcome, run_baseline
from benchmarks.processes import Observed
from benchmarks.results import ratios, relative, table, turns
from bertvision_stream.utils.units import format_bytes

PEERS = {
    "stream-cached": "streamed, all blocks cached",
    "stream-half": "streamed, half of the bytes cached",
    "stream-uncached": "streamed, nothing cached",
    "recompute": "recomputed in one process",
    "dump": "dumped (HDF5, padded, fp32), then trained",
    "dump-blocks": "dumped as unpadded bf16 blocks, memory-mapped",
    "ray-data": "Ray Data, recomputed in every epoch",
}
CACHED, UNCACHED = "stream-cached", "stream-uncached"

# The others make batches of their own.
SAME_BATCHES = ("stream-cached", "stream-half", "stream-uncached", "recompute", "dump-blocks")

# The ratio that includes the start of Ray is given at so many epochs, what a run has by default.
USUAL_EPOCHS = 5


@dataclass(frozen=True)
class Run:
    """One run of one baseline."""

    observed: Observed
    outcome: HeadOutcome

    def seconds_from_command(self, epochs: int) -> float:
        """Time from the command to the end of an epoch, with the start of Python and of Ray."""
        return self.outcome.ended(epochs) - self.observed.began

    def cpu_seconds(self, epochs: int) -> float:
        """CPU time of all processes from the command to the end of an epoch."""
        return self.observed.cpu_seconds_until(self.outcome.ended(epochs))

    @property
    def first_step_seconds(self) -> float:
        """Time from the command to the first epoch."""
        return self.outcome.training_began - self.observed.began


class DifferentLossesError(Exception):
    """Baselines that train on the same batches have other losses: one of them is wrong."""


def measure(
    repeats: int,
    *,
    names: Sequence[str],
    once: Sequence[str],
    marks: Sequence[int],
    keys: Sequence[str],
) -> list[str]:
    """Run the baselines in turns, all with the same backbone, rows, head and threads.

    Args:
        repeats: The number of turns.
        names: Names of `PEERS`, `CACHED` among them.
        once: Those of them that take part in the first turn only, as they take long.
        marks: Epochs after which times are compared, ascending. The last one is how many are run.
        keys: `key=value` settings.

    Returns:
        Lines of Markdown.

    Raises:
        DifferentLossesError: The losses of baselines of `SAME_BATCHES` differ.
    """
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for name in turns(repeats, names, once=once):
        runs[name].append(
            Run(*run_baseline(name, [*keys, f"train.epochs={marks[-1]}"], HeadOutcome))
        )
        check_losses(runs)
    return tables(runs, marks)


def check_losses(runs: Mapping[str, Sequence[Run]]) -> None:
    """Compare the losses of all epochs, to the last bit.

    Raises:
        DifferentLossesError: Two runs have other losses; the message has both.
    """
    done = [(name, run.outcome.losses) for name in SAME_BATCHES for run in runs.get(name, [])]
    for name, losses in done[1:]:
        first, expected = done[0]
        if losses != expected:
            raise DifferentLossesError(f"DIFFERENT LOSSES\n{first}: {expected}\n{name}: {losses}")


def tables(runs: Mapping[str, Sequence[Run]], marks: Sequence[int]) -> list[str]:
    """Medians of each baseline, and ratios to the streamed runs with a full cache and with none.

    Args:
        runs: The runs by the name of the baseline, one a turn; some may lack the later turns.
        marks: See `measure`.
    """
    usual = USUAL_EPOCHS if USUAL_EPOCHS in marks else marks[-1]
    labels = {name: _label(name, runs) for name in runs}

    def at_marks(of: Callable[[Run, int], float]) -> list[dict[str, list[float]]]:
        """For each mark the values of all runs, by the name of the baseline."""
        return [{name: [of(run, mark) for run in runs[name]] for name in runs} for mark in marks]

    def medians(columns: Sequence[Mapping[str, Sequence[float]]]) -> list[list[str]]:
        return [
            [labels[name], *(f"{statistics.median(values[name]):.1f} s" for values in columns)]
            for name in runs
        ]

    work = at_marks(lambda run, mark: run.outcome.work_seconds(mark))
    started = {name: [run.seconds_from_command(usual) for run in runs[name]] for name in runs}
    header = ["", *map(_epochs, marks), f"from the command to {_epochs(usual)}"]
    lines = [
        "Time of the work, medians: a dump, and epochs with their evaluation. Only the last column "
        "has the start of Python, of Ray and of its actors as well.",
        "",
        *table(header, medians([*work, started])),
        "",
    ]
    for base in (CACHED, UNCACHED):
        if base in runs:
            rows = [
                [labels[name], *(relative(values, name, base) for values in (*work, started))]
                for name in runs
            ]
            lines += [
                f"Ratios to *{PEERS[base]}*: medians of those within a turn (least to largest).",
                "",
                *table(header, rows),
                "",
            ]
    metric = next(iter(runs[CACHED][0].outcome.scores[-1]))
    return [
        *lines,
        "CPU time of all processes together, from the command to the end of so many epochs, Ray's "
        "start included.",
        "",
        *table(["", *map(_epochs, marks)], medians(at_marks(Run.cpu_seconds))),
        "",
        f"All {_epochs(marks[-1])}, from the command to its end: peak memory (proportional set "
        "size, heap and shared memory) of all processes together.",
        "",
        *table(
            ["", "training begins after", "peak memory", "on disk", metric],
            [[labels[name], *_costs(runs[name], metric)] for name in runs],
        ),
        "",
        *_sentences(runs, dict(zip(marks, work, strict=True))),
    ]


def _epochs(mark: int) -> str:
    return f"{mark} epoch{'s' if mark > 1 else ''}"


def _label(name: str, runs: Mapping[str, Sequence[Run]]) -> str:
    fewer = len(runs[name]) < len(runs[CACHED])
    return PEERS[name] + (f" ({len(runs[name])} of the turns)" if fewer else "")


def _costs(runs: Sequence[Run], metric: str) -> list[str]:
    """Medians of what else a baseline takes, and of the score that it reaches."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    return [
        f"{median(lambda run: run.first_step_seconds):.1f} s",
        format_bytes(median(lambda run: run.observed.peak_bytes)),
        format_bytes(median(lambda run: run.outcome.bytes_written)),
        f"{median(lambda run: run.outcome.scores[-1][metric]):.4f}",
    ]


def _sentences(
    runs: Mapping[str, Sequence[Run]], work: Mapping[int, Mapping[str, Sequence[float]]]
) -> list[str]:
    """The findings in words. `work` has the times of the work by mark and by baseline."""
    others = [name for name in runs if not name.startswith("stream")]
    lines = []
    for mark, seconds in work.items() if others else ():
        shares = {
            name: statistics.median(ratios(seconds[name], seconds[CACHED])) for name in others
        }
        best = min(others, key=shares.__getitem__)
        lines.append(
            f"- After {mark}: the best that is not streamed is *{PEERS[best]}*, with "
            f"{shares[best]:.2f} of the time of *{PEERS[CACHED]}*."
        )
    alike = [name for name in SAME_BATCHES if name in runs]
    num_runs = sum(len(runs[name]) for name in alike)
    if num_runs > 1:
        lines.append(
            f"- The same losses to the last bit in all epochs of all {num_runs} runs of: "
            f"{'; '.join(PEERS[name] for name in alike)}."
        )
    if "ray-data" in runs:
        lines.append("- Ray Data starts its actors in every epoch, as a pipeline is run again.")
    return lines
