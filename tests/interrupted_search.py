"""A search that is interrupted when it finds no earlier one, and else goes on with that.

A script with the folder as its argument; `test_search.py` runs it twice.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from searches import assert_as_if_alone, job_of, search
from streams import make_corpus, make_weights

from actors.cluster import cluster_resources, connect
from tune.search import EXPERIMENT


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    resources = {"CPU": 2, "GPU": 0, "object_store_memory": 256 * 2**20}
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps(resources)
    connect(None)
    job = job_of(
        make_corpus(),
        make_weights(),
        cluster_resources(),
        "search.num_trials=4",
        "search.max_concurrent=2",
        "search.scheduler=fifo",
        "train.epochs=3",
        "train.stack_heads=false",
    )
    resume = (folder / EXPERIMENT).exists()

    def say(line: str) -> None:
        print(line, flush=True)
        if not resume and line.startswith("search: epoch 5 "):  # the second pair is at work
            raise KeyboardInterrupt

    try:
        outcome, found = search(job, folder, resume=resume, say=say)
    except KeyboardInterrupt:
        print("interrupted")
        return
    assert [trial.status for trial in found.trials] == ["finished"] * 4
    assert outcome.epochs <= 6
    assert_as_if_alone(job, found)
    print("as if alone")


if __name__ == "__main__":
    main()
