"""One run of one peer in this process: `python -m benchmarks.peers NAME --folder F key=value ...`.

Prints its outcome. `benchmarks.run` runs all of them in turns.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import Inputs, load_inputs
from benchmarks.peers.dump import dump, dump_blocks
from benchmarks.peers.finetuned import finetuned, finetuned_then_streamed
from benchmarks.peers.outcome import PeerOutcome, Stopwatch, tell
from benchmarks.peers.ray_data import ray_data
from benchmarks.peers.streamed import recompute, streamed
from benchmarks.peers.trials import independent, searched
from bertvision_stream.training.records import EpochRecord


def timed(
    peer: Callable[[Inputs, Path, Stopwatch], tuple[Sequence[EpochRecord], int]],
) -> Callable[[Inputs, Path], PeerOutcome]:
    """A peer that has its epochs timed: it returns its history and the bytes that it wrote."""

    def run(inputs: Inputs, folder: Path) -> PeerOutcome:
        watch = Stopwatch()
        history, bytes_written = peer(inputs, folder, watch)
        return watch.outcome(history, bytes_written)

    return run


PEERS: Mapping[str, Callable[[Inputs, Path], Any]] = {
    "stream-cached": partial(streamed, share=1.0),
    "stream-half": partial(streamed, share=0.5),
    "stream-uncached": partial(streamed, share=0.0),
    "recompute": timed(recompute),
    "dump": timed(dump),
    "dump-blocks": timed(dump_blocks),
    "ray-data": timed(ray_data),
    "finetuned": finetuned,
    "finetuned-then-streamed": finetuned_then_streamed,
    "search": searched,
    "trials": partial(independent, hold_blocks=False),
    "trials-holding": partial(independent, hold_blocks=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--folder", type=Path, required=True, help="for what it leaves")
    parser.add_argument("--threads", type=int, required=True, help="of a peer that is one process")
    parser.add_argument("keys", nargs="+", help="settings")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = load_inputs(options.keys)
    if inputs.settings.task == "squad_v2":
        parser.error("peers know of sentence tasks alone, and task=squad_v2 is none")
    tell(PEERS[options.name](inputs, options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
