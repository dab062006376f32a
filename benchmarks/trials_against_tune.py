"""The trials of a search on one stream, against independent trials of the same heads."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.observe import Observed
from benchmarks.peers.launch import run_peer
from benchmarks.peers.outcome import TrialsOutcome
from benchmarks.results import ratios, with_spread
from bertvision_stream.utils.units import format_bytes

PEERS = {
    "search": "one search, one stream",
    "trials": "independent trials, BERT runs in every epoch",
    "trials-holding": "independent trials, each keeps its blocks in memory",
}
BASELINE = "search"


@dataclass(frozen=True)
class Run:
    """One run of all trials."""

    observed: Observed
    outcome: TrialsOutcome

    @property
    def cpu_seconds(self) -> float:
        """From the connected cluster on."""
        return self.observed.cpu_seconds - self.outcome.cpu_seconds_before


def measure(repeats: int, *, counts: Sequence[int], keys: Sequence[str]) -> list[str]:
    """Each number of trials by each peer, in turns; the search comes first, and samples for all.

    Args:
        repeats: Turns.
        counts: Numbers of trials.
        keys: Settings of the search, but for `search.num_trials`.

    Returns:
        Markdown.
    """
    runs: dict[int, dict[str, list[Run]]] = {n: {name: [] for name in PEERS} for n in counts}
    for turn in range(repeats):
        for count, of_count in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                for name, its_runs in of_count.items():
                    options = [*keys, f"search.num_trials={count}"]
                    run = Run(*run_peer(name, options, TrialsOutcome, folder=Path(folder)))
                    its_runs.append(run)
                    print(
                        f"turn {turn + 1}, {count} trials, {name}: {run.outcome.seconds:.1f} s",
                        flush=True,
                    )
    return tables(runs)


def tables(runs: dict[int, dict[str, list[Run]]]) -> list[str]:
    """Medians, and ratios to the search.

    Args:
        runs: By number of trials and by peer, one a turn.
    """
    lines = [
        "The same samples for all, drawn by the search. Times from the connected cluster on, "
        "medians; ratios to the search, medians of those within a turn (least to largest). "
        "Independent trials run under Ray Tune, as many at once as there are cores, with a thread "
        "each and processes that are used again. Peak memory is of all processes, Ray's too.",
        "",
        "| trials | | time | ratio | tokens extracted | CPU time | ratio | peak memory | "
        "best score |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count, of_count in runs.items():
        seconds = {n: [run.outcome.seconds for run in its] for n, its in of_count.items()}
        cpu = {n: [run.cpu_seconds for run in its] for n, its in of_count.items()}
        for name, its_runs in of_count.items():
            tokens = statistics.median(run.outcome.tokens_extracted for run in its_runs)
            peak = statistics.median(run.observed.peak_bytes for run in its_runs)
            score = statistics.median(run.outcome.best_score for run in its_runs)
            lines.append(
                f"| {count} | {PEERS[name]} | {statistics.median(seconds[name]):.1f} s "
                f"| {_ratio(seconds, name)} | {tokens:,.0f} "
                f"| {statistics.median(cpu[name]):.1f} s | {_ratio(cpu, name)} "
                f"| {format_bytes(peak)} | {score:.4f} |"
            )
    return lines


def _ratio(values: dict[str, list[float]], name: str) -> str:
    return "1" if name == BASELINE else with_spread(ratios(values[name], values[BASELINE]))
