"""One head by the stream, and by the plain loop in one process."""

import time
from pathlib import Path

from benchmarks.baselines.outcome import HeadOutcome, Stopwatch, head_scores
from benchmarks.inputs import Inputs, cluster, make_extractor, make_head, make_job, run_head
from bertvision_stream.modes.local import BlockSource, train_in_process


def streamed(inputs: Inputs, folder: Path, *, share: float) -> HeadOutcome:
    """The stream, with a cache for a share of an epoch's bytes. Ray and its actors start before."""
    with cluster():
        outcome = run_head(make_job(inputs, cache=int(inputs.epoch_bytes * share)))
        ready = outcome.began + outcome.start_seconds
        training_began = time.time() - (time.perf_counter() - ready)
    history = outcome.heads["head"].history
    return HeadOutcome(
        training_began=training_began,
        dump_seconds=0.0,
        epoch_seconds=outcome.epoch_seconds,
        losses=tuple(record.loss for record in history),
        scores=head_scores(history),
        bytes_written=outcome.store.spilled_bytes + outcome.store.fallback_bytes,
    )


def train_alone(blocks: BlockSource, inputs: Inputs, folder: Path) -> HeadOutcome:
    """Train the head in this process, and count the bytes of the files in the folder."""
    training, watch = make_head(inputs), Stopwatch()
    watch.training_begins()
    for _ in train_in_process(blocks, training):
        watch.epoch_ends()
    return watch.outcome(training.results()["head"].history, folder)


def recompute(inputs: Inputs, folder: Path) -> HeadOutcome:
    """Forward pass and head in one process, in every epoch: no Ray, nothing is moved or kept."""
    return train_alone(make_extractor(inputs), inputs, folder)
