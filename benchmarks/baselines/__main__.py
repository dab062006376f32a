"""Run one baseline in this process, and print its outcome.

    python -m benchmarks.baselines NAME --folder FOLDER --threads N key=value ...

`python -m benchmarks.run` runs all of them in turns.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.dump import dump, dump_blocks
from benchmarks.baselines.finetuned import finetuned, finetuned_then_streamed
from benchmarks.baselines.one_head import recompute, streamed
from benchmarks.baselines.outcome import print_outcome
from benchmarks.baselines.ray_data import ray_data
from benchmarks.baselines.trials import independent, searched
from benchmarks.inputs import Inputs, load_inputs

BASELINES: Mapping[str, Callable[[Inputs, Path], Any]] = {
    "stream-cached": partial(streamed, share=1.0),
    "stream-half": partial(streamed, share=0.5),
    "stream-uncached": partial(streamed, share=0.0),
    "recompute": recompute,
    "dump": dump,
    "dump-blocks": dump_blocks,
    "ray-data": ray_data,
    "finetuned": finetuned,
    "finetuned-then-streamed": finetuned_then_streamed,
    "search": searched,
    "trials": partial(independent, hold_blocks=False),
    "trials-holding": partial(independent, hold_blocks=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=BASELINES)
    parser.add_argument("--folder", type=Path, required=True, help="where it leaves files")
    parser.add_argument("--threads", type=int, required=True, help="torch's threads, without Ray")
    parser.add_argument("keys", nargs="+", help="settings, key=value")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = load_inputs(options.keys)
    if inputs.task.per_token:
        parser.error(f"baselines know sentence tasks only, and task={inputs.task.name} is none")
    print_outcome(BASELINES[options.name](inputs, options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
