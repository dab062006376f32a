"""The trials of a search on one stream, against independent trials of the same heads."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines.outcome import TrialsOutcome, run_baseline
from benchmarks.processes import Observed
from benchmarks.results import relative, turns
from bertvision_stream.utils.units import format_bytes

SEARCH = "search"
NAMES = {
    SEARCH: "one search, one stream",
    "trials": "independent trials, BERT runs in every epoch",
    "trials-holding": "independent trials, each keeps its blocks in memory",
}


@dataclass(frozen=True)
class Run:
    """One run of all trials."""

    observed: Observed
    outcome: TrialsOutcome

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all processes from the connected cluster on."""
        return self.observed.cpu_seconds - self.outcome.cpu_seconds_before


def measure(repeats: int, *, counts: Sequence[int], keys: Sequence[str]) -> list[str]:
    """Run each number of trials in each way, in turns; the search is first and samples for all.

    Args:
        repeats: The number of turns.
        counts: Numbers of trials.
        keys: `key=value` settings of the search, without `search.num_trials`.

    Returns:
        Lines of Markdown.
    """
    runs: dict[int, dict[str, list[Run]]] = {n: {name: [] for name in NAMES} for n in counts}
    for count in turns(repeats, counts):
        options = [*keys, f"search.num_trials={count}"]
        with tempfile.TemporaryDirectory() as folder:
            for name in NAMES:
                run = Run(*run_baseline(name, options, TrialsOutcome, folder=Path(folder)))
                runs[count][name].append(run)
    return tables(runs)


def tables(runs: Mapping[int, Mapping[str, Sequence[Run]]]) -> list[str]:
    """Medians, and ratios to the search.

    Args:
        runs: The runs by number of trials and by name, one a turn.
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
                f"| {count} | {NAMES[name]} | {statistics.median(seconds[name]):.1f} s "
                f"| {relative(seconds, name, SEARCH)} | {tokens:,.0f} "
                f"| {statistics.median(cpu[name]):.1f} s | {relative(cpu, name, SEARCH)} "
                f"| {format_bytes(peak)} | {score:.4f} |"
            )
    return lines
