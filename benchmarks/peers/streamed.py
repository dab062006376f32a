"""The plain loop in one process, and the stream: what the others are compared with."""

import time
from collections.abc import Sequence
from pathlib import Path

from actors.cluster import connect
from benchmarks.inputs import CPU, Inputs, make_extractor, run_streamed
from benchmarks.peers.outcome import PeerOutcome, Stopwatch, scores_of
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.records import EpochRecord


def recompute(inputs: Inputs, folder: Path, watch: Stopwatch) -> tuple[Sequence[EpochRecord], int]:
    """Forward pass and head in one process, in every epoch; no Ray, nothing moved or kept."""
    extractor = make_extractor(inputs)
    heads = {"head": HeadJob(inputs.settings)}
    training = make_training(inputs.corpus, inputs.data.task, heads, inputs.shape, device=CPU)
    watch.training_begins()
    for _ in train_in_process(extractor, training):
        watch.lap()
    return training.results()["head"].history, 0


def streamed(inputs: Inputs, folder: Path, *, share: float) -> PeerOutcome:
    """The stream, with a cache for a share of an epoch's bytes; Ray and its actors start before."""
    connect(None)
    cache = int(inputs.epoch_bytes * share)
    _, outcome = run_streamed(inputs, cache=cache)
    history = outcome.heads["head"].history
    ready = outcome.began + outcome.start_seconds
    return PeerOutcome(
        training_began=time.time() - (time.perf_counter() - ready),
        dump_seconds=0.0,
        epoch_seconds=outcome.epoch_seconds,
        losses=tuple(record.loss for record in history),
        scores=scores_of(history),
        bytes_written=outcome.store.spilled_bytes + outcome.store.fallback_bytes,
    )
