"""Streaming against the same work in one process: the same blocks, epochs, head and threads.

    python -m benchmarks.streaming_overhead [--repeats N] [key=value ...]

Prints each pair of runs and the median of their ratios (streamed / in process). Start-up of Ray and
of the actors stands apart; nothing is cached. The training losses of both must be equal to the last
bit.
"""

import argparse
import statistics
import sys
import time

import ray
import torch

from actors.cluster import cluster_resources, connect
from benchmarks.inputs import CPU, Inputs, load_inputs, make_extractor, run_streamed
from bertvision_stream.training import make_training, train_in_process

ONE_EPOCH = ["train.epochs=1", "stream.cache=0"]


def in_process(inputs: Inputs, num_threads: int) -> tuple[float, list[float]]:
    """Seconds and training losses of the plain loop."""
    torch.set_num_threads(num_threads)
    extractor = make_extractor(inputs)
    heads = {"head": inputs.settings}
    training = make_training(inputs.corpus, inputs.data.task, heads, inputs.shape, device=CPU)
    start = time.perf_counter()
    for _ in train_in_process(extractor, training):
        pass
    seconds = time.perf_counter() - start
    return seconds, [record.loss for record in training.results()["head"].history]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("keys", nargs="*", default=["task=demo"], help="settings")
    options = parser.parse_args()
    inputs = load_inputs([*ONE_EPOCH, *options.keys])
    start = time.perf_counter()
    connect(None)
    num_threads = cluster_resources().num_cpus
    print(f"Ray started in {time.perf_counter() - start:.1f} s; {num_threads} threads in all")
    ratios = []
    for _ in range(options.repeats):
        plain_seconds, plain_losses = in_process(inputs, num_threads)
        _, outcome = run_streamed(inputs)
        stream_losses = [record.loss for record in outcome.heads["head"].history]
        ratios.append(outcome.seconds / plain_seconds)
        same = "the same losses" if stream_losses == plain_losses else "DIFFERENT LOSSES"
        print(
            f"in process {plain_seconds:6.1f} s   streamed {outcome.seconds:6.1f} s "
            f"(+ {outcome.start_seconds:.1f} s to start)   ratio {ratios[-1]:.3f}   {same}"
        )
        if stream_losses != plain_losses:
            print(f"in process: {plain_losses}\nstreamed:   {stream_losses}")
            return 1
    print(f"median ratio {statistics.median(ratios):.3f}")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
