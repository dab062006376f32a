"""One run of one peer in this process: `python -m benchmarks.peers NAME --folder F key=value ...`.

Prints a `PeerOutcome`. `benchmarks.run` runs all of them in turns.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.inputs import load_inputs
from benchmarks.peers.dump import dump, dump_blocks
from benchmarks.peers.outcome import Stopwatch
from benchmarks.peers.ray_data import ray_data
from benchmarks.peers.streamed import recompute, streamed

PEERS = {"dump": dump, "dump-blocks": dump_blocks, "recompute": recompute, "ray-data": ray_data}
CACHED_SHARE = {"stream-cached": 1.0, "stream-half": 0.5, "stream-uncached": 0.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=[*PEERS, *CACHED_SHARE])
    parser.add_argument("--folder", type=Path, required=True, help="empty; for what it dumps")
    parser.add_argument("--threads", type=int, required=True, help="of a peer that is one process")
    parser.add_argument("keys", nargs="+", help="settings")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = load_inputs(options.keys)
    if inputs.settings.task == "squad_v2":
        parser.error("peers know of sentence tasks alone, and task=squad_v2 is none")
    if options.name in CACHED_SHARE:
        outcome = streamed(inputs, CACHED_SHARE[options.name])
    else:
        watch = Stopwatch()
        history, bytes_written = PEERS[options.name](inputs, options.folder, watch)
        outcome = watch.outcome(history, bytes_written)
    outcome.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
