"""A search that is interrupted in its second pair of trials.

This is a script, whose argument is the folder: the trials of an interrupted search end with its
process. `test_search.py` runs it, and resumes the search.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conftest import RESOURCES
from searches import IN_PAIRS, job_of, search
from streams import make_corpus, make_weights

from actors.cluster import cluster_resources, connect


def main() -> None:
    torch.set_num_threads(1)
    os.environ.update(RESOURCES)
    connect(None)
    job = job_of(make_corpus(), make_weights(), cluster_resources(), *IN_PAIRS)

    def say(line: str) -> None:
        print(line, flush=True)
        if line.startswith("search: epoch 5 "):  # the second pair is at work
            raise KeyboardInterrupt

    try:
        search(job, Path(sys.argv[1]), say=say)
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main()
