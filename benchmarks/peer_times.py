"""One head, trained by each peer: time after some epochs, CPU time, memory, disk and score."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.observe import Observed
from benchmarks.peers.launch import run_peer
from benchmarks.peers.outcome import PeerOutcome
from benchmarks.results import ratios, with_spread
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
BASELINE, UNCACHED = "stream-cached", "stream-uncached"

# The others make batches of their own.
SAME_BATCHES = ("stream-cached", "stream-half", "stream-uncached", "recompute", "dump-blocks")

# With the start of Ray the ratio is given at so many epochs, what a run has by default.
USUAL_EPOCHS = 5


@dataclass(frozen=True)
class Run:
    """One run of one peer."""

    observed: Observed
    outcome: PeerOutcome

    def seconds_from_command(self, epochs: int) -> float:
        """From the command to the end of an epoch: Python, rows, Ray and its actors, a dump."""
        return self.outcome.ended(epochs) - self.observed.began

    def cpu_seconds(self, epochs: int) -> float:
        """Of all processes, from the command to the end of an epoch."""
        return self.observed.cpu_seconds_until(self.outcome.ended(epochs))

    @property
    def first_step_seconds(self) -> float:
        """From the command to the first epoch."""
        return self.outcome.training_began - self.observed.began


class DifferentLossesError(Exception):
    """Peers that train on the same batches came to other numbers: one of them is wrong."""


def measure(
    repeats: int,
    *,
    names: Sequence[str],
    once: Sequence[str],
    marks: Sequence[int],
    keys: Sequence[str],
) -> list[str]:
    """Peers in turns, each with a process of its own and the same backbone, rows, head and threads.

    Args:
        repeats: Turns.
        names: Of `PEERS`, `BASELINE` among them.
        once: Those of them that take part in the first turn alone, as they take long.
        marks: Epochs after which times are compared, ascending; the last is how many are run.
        keys: Settings.

    Returns:
        Markdown.

    Raises:
        DifferentLossesError: Peers of `SAME_BATCHES` differ.
    """
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names:
            if turn and name in once:
                continue
            run = Run(*run_peer(name, [*keys, f"train.epochs={marks[-1]}"], PeerOutcome))
            runs[name].append(run)
            seconds = run.outcome.work_seconds(marks[-1])
            print(f"turn {turn + 1}, {name}: {seconds:.1f} s", flush=True)
            check_losses(runs)
    return tables(runs, marks)


def check_losses(runs: dict[str, list[Run]]) -> None:
    """Compare the losses of all epochs, to the last bit.

    Raises:
        DifferentLossesError: With the losses of two that differ.
    """
    done = [(name, run.outcome.losses) for name in SAME_BATCHES for run in runs.get(name, [])]
    for name, losses in done[1:]:
        first, expected = done[0]
        if losses != expected:
            raise DifferentLossesError(f"DIFFERENT LOSSES\n{first}: {expected}\n{name}: {losses}")


def tables(runs: dict[str, list[Run]], marks: Sequence[int]) -> list[str]:
    """Medians of each peer, and ratios to the streamed runs with a full cache and with none.

    Args:
        runs: By name of the peer, one a turn; some may lack the later turns.
        marks: See `measure`.
    """
    usual = USUAL_EPOCHS if USUAL_EPOCHS in marks else marks[-1]
    columns: list[Callable[[Run], float]] = [partial(_work_seconds, epochs=mark) for mark in marks]
    columns.append(lambda run: run.seconds_from_command(usual))

    def epochs(mark: int) -> str:
        return f"{mark} epoch{'s' if mark > 1 else ''}"

    def values(name: str, of: Callable[[Run], float]) -> list[float]:
        return [of(run) for run in runs[name]]

    def median(name: str, of: Callable[[Run], float]) -> float:
        return statistics.median(values(name, of))

    def ratio(name: str, base: str, of: Callable[[Run], float]) -> str:
        return "1" if name == base else with_spread(ratios(values(name, of), values(base, of)))

    def label(name: str) -> str:
        fewer = len(runs[name]) < len(runs[BASELINE])
        return PEERS[name] + (f" ({len(runs[name])} of the turns)" if fewer else "")

    times = [[label(name), *(f"{median(name, of):.1f} s" for of in columns)] for name in runs]
    heads = ["", *map(epochs, marks), f"from the command to {epochs(usual)}"]
    relative = []
    for base in (BASELINE, UNCACHED):
        if base in runs:
            rows = [[label(name), *(ratio(name, base, of) for of in columns)] for name in runs]
            relative += [
                f"Ratios to *{PEERS[base]}*: medians of those within a turn (least to largest).",
                "",
                *_table(heads, rows),
                "",
            ]
    last = runs[BASELINE][0].outcome.scores[-1]
    metric = next(iter(last))
    cpu_times: list[Callable[[Run], float]] = [partial(Run.cpu_seconds, epochs=m) for m in marks]
    cpu = [[label(name), *(f"{median(name, of):.1f} s" for of in cpu_times)] for name in runs]
    costs = [
        [
            label(name),
            f"{median(name, lambda run: run.first_step_seconds):.1f} s",
            format_bytes(median(name, lambda run: run.observed.peak_bytes)),
            format_bytes(median(name, lambda run: run.outcome.bytes_written)),
            f"{median(name, lambda run: run.outcome.scores[-1][metric]):.4f}",
        ]
        for name in runs
    ]
    return [
        "Time of the work, medians: a dump, and epochs with their evaluation. Only the last column "
        "has the start of Python, of Ray and of its actors as well.",
        "",
        *_table(heads, times),
        "",
        *relative,
        "CPU time of all processes together, from the command to the end of so many epochs, Ray's "
        "start included.",
        "",
        *_table(["", *map(epochs, marks)], cpu),
        "",
        f"All {epochs(marks[-1])}, from the command to its end: peak memory (proportional set "
        "size, heap and shared memory) of all processes together.",
        "",
        *_table(["", "training begins after", "peak memory", "on disk", metric], costs),
        "",
        *_sentences(runs, marks),
    ]


def _work_seconds(run: Run, epochs: int) -> float:
    return run.outcome.work_seconds(epochs)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(row)} |" for row in (heads, ruler, *rows)]


def _sentences(runs: dict[str, list[Run]], marks: Sequence[int]) -> list[str]:
    """What is to be seen, in words."""
    others = [name for name in runs if not name.startswith("stream")]
    lines = []
    for mark in marks if others else ():
        work = {
            name: [run.outcome.work_seconds(mark) for run in runs[name]]
            for name in (BASELINE, *others)
        }
        least = {name: statistics.median(ratios(work[name], work[BASELINE])) for name in others}
        best = min(others, key=least.__getitem__)
        lines.append(
            f"- After {mark}: the best that is not streamed is *{PEERS[best]}*, with "
            f"{least[best]:.2f} of the time of *{PEERS[BASELINE]}*."
        )
    alike = [PEERS[name] for name in SAME_BATCHES if name in runs]
    num_runs = sum(len(runs[name]) for name in SAME_BATCHES if name in runs)
    if num_runs > 1:
        lines.append(
            f"- The same losses to the last bit in all epochs of all {num_runs} runs of: "
            f"{'; '.join(alike)}."
        )
    if "ray-data" in runs:
        lines.append("- Ray Data starts its actors in every epoch, as a pipeline is run again.")
    return lines
