"""Streaming against what users would do instead, side by side in one go.

    python -m benchmarks.run [--tasks cola,rte] [--epochs 1,5] [--repeats N] [key=value ...]

Every peer is a process of its own, with the same backbone, rows, head, epochs and threads; peers
take turns, and the medians of `--repeats` turns count. Writes `benchmarks/RESULTS.md`. Needs the
extra `bench` (`pip install -e '.[demo,bench]'`), and disk for BERTVision's dump: 13 GB for CoLA.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from os import cpu_count
from pathlib import Path

from benchmarks.observe import Observed, observe
from benchmarks.peers.outcome import PeerOutcome
from bertvision_stream.units import format_bytes

DEFAULTS = ("backbone=minilm", "data.path=../shared/data/glue")

PEERS = {
    "stream-cached": "streamed, all blocks cached",
    "stream-half": "streamed, half of the bytes cached",
    "stream-uncached": "streamed, nothing cached",
    "recompute": "recomputed in one process",
    "dump": "dumped (HDF5, padded, fp32), then trained",
    "dump-blocks": "dumped as unpadded bf16 blocks, memory-mapped",
    "ray-data": "Ray Data, recomputed in every epoch",
}
BASELINE = "stream-cached"


@dataclass(frozen=True)
class Run:
    """One run of one peer."""

    observed: Observed
    outcome: PeerOutcome

    @property
    def work_seconds(self) -> float:
        """All epochs, and a dump before them; the stream's start-up is no work."""
        return sum(self.outcome.epoch_seconds) + self.outcome.dump_seconds

    @property
    def first_step_seconds(self) -> float:
        return self.outcome.training_began - self.observed.began


def run_peer(name: str, keys: Sequence[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--folder", folder, "--threads", str(cpu_count()), name, *keys]
        observed = observe([sys.executable, "-m", "benchmarks.peers", *options])
        return Run(observed, PeerOutcome.parse(observed.output))


def table(runs: dict[str, list[Run]]) -> list[str]:
    """Medians of each peer, and ratios to the streamed run with a full cache."""
    lines = [
        "| | time of the work | ratio | from command to end | CPU time | training begins after "
        "| peak memory | on disk | score |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    baseline = [run.work_seconds for run in runs[BASELINE]]
    for name, its_runs in runs.items():
        ratios = [run.work_seconds / base for run, base in zip(its_runs, baseline, strict=True)]
        metric, score = next(iter(its_runs[0].outcome.scores.items()))

        def median(attribute: str, its_runs: list[Run] = its_runs) -> float:
            return statistics.median(getattr(run.observed, attribute) for run in its_runs)

        lines.append(
            f"| {PEERS[name]} "
            f"| {statistics.median(run.work_seconds for run in its_runs):.1f} s "
            f"| {statistics.median(ratios):.2f} "
            f"| {median('wall_seconds'):.1f} s | {median('cpu_seconds'):.1f} s "
            f"| {statistics.median(run.first_step_seconds for run in its_runs):.1f} s "
            f"| {format_bytes(int(median('peak_bytes')))} "
            f"| {format_bytes(its_runs[0].outcome.bytes_written)} | {metric} {score:.4f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tasks", default="cola,rte")
    parser.add_argument("--epochs", default="1,5")
    parser.add_argument("--peers", default=",".join(PEERS), help="%(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/RESULTS.md"))
    parser.add_argument("keys", nargs="*", default=list(DEFAULTS), help="settings")
    options = parser.parse_args()
    names = options.peers.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"--peers={','.join(unknown)}: known are {', '.join(PEERS)}")
    if BASELINE not in names:
        parser.error(f"--peers lacks {BASELINE}, which the others are compared with")
    lines = [
        "# Streaming against what users would do instead",
        "",
        f"`python -m benchmarks.run {' '.join(sys.argv[1:])}`, {date.today()}: {cpu_count()} "
        f"cores, {platform.machine()}, torch {version('torch')}, Ray {version('ray')}, "
        f"transformers {version('transformers')}. Medians of {options.repeats} turns.",
    ]
    for task in options.tasks.split(","):
        for epochs in options.epochs.split(","):
            keys = [f"task={task}", f"train.epochs={epochs}", *options.keys]
            runs: dict[str, list[Run]] = {name: [] for name in names}
            for _ in range(options.repeats):
                for name in names:
                    runs[name].append(run_peer(name, keys))
                    seconds = runs[name][-1].work_seconds
                    print(f"{task}, {epochs} epochs, {name}: {seconds:.1f} s", flush=True)
            lines += ["", f"## {task}, {epochs} epochs", "", *table(runs)]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
