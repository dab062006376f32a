"""A search whose trials share one stream, against as many independent runs with a stream each.

    python -m benchmarks.search_sharing [--trials N] [--recompute] [key=value ...]

Both train the same heads for the same epochs; the independent runs come one after another, each
with all cores. They keep blocks between epochs as a run of ours does, or with `--recompute` run the
frozen BERT in every epoch, as trials do that know of no cache. The cluster is up and the backbone
is there for both; what is timed is the start of the actors, extraction, training and, for the
search, Ray Tune. The independent runs are also given without the start of their actors, which a
loop in one process would spare.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from actors.cluster import cluster_resources, connect, place
from actors.job import Job
from actors.prepare import PreparedBackbone
from actors.service import plan_stream
from benchmarks.inputs import Inputs, load_inputs, run_streamed
from bertvision_stream.backbone import load_tokenizer
from bertvision_stream.search_space import trial_settings
from bertvision_stream.sources import locate
from tune.analysis import read_search
from tune.search import search_heads

DEFAULTS = (
    "task=cola",
    "backbone=minilm",
    "data.path=../shared/data/glue",
    "data.train_fraction=0.3",
    "train.epochs=3",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("settings", nargs="*", default=DEFAULTS)
    arguments = parser.parse_args()
    search = ("mode=search", "search.searcher=random", "search.scheduler=fifo")
    inputs = load_inputs([*arguments.settings, *search, f"search.num_trials={arguments.trials}"])
    connect(inputs.settings.ray.address)
    job = job_of(inputs)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(job.settings.model_dump()), encoding="utf-8")
        start = time.perf_counter()
        outcome = search_heads(job, Path(folder), resume=False, show_progress=False, say=print)
        seconds = time.perf_counter() - start
        trials = read_search(Path(folder)).trials
    print(f"search: {seconds:.1f} s", flush=True)
    whole = streaming = tokens = 0.0
    for trial in trials:
        settings = trial_settings(inputs.settings, trial.config)
        # A run of its own, with the seed of the data that all have.
        alone = inputs.settings.model_copy(
            update={"mode": "train", "head": settings.head, "train": settings.train}
        )
        start = time.perf_counter()
        cache = 0 if arguments.recompute else None
        _, result = run_streamed(replace(inputs, settings=alone), cache=cache)
        whole += time.perf_counter() - start
        streaming += result.seconds
        tokens += result.stats.tokens_extracted
        print(f"trial {trial.number}: {result.seconds:.1f} s of streaming, {whole:.1f} s so far")
        sys.stdout.flush()
    print(f"{len(trials)} trials, {job.settings.train.epochs} epochs")
    print(f"tokens extracted: search {outcome.tokens_extracted:,}, independent {tokens:,.0f}")
    print(f"independent: {whole:.1f} s, {whole / seconds:.2f} times the search")
    print(f"  without the start of actors: {streaming:.1f} s, {streaming / seconds:.2f} times")
    return 0


def job_of(inputs: Inputs) -> Job:
    """What a search is given."""
    cluster = cluster_resources()
    placement = place(cluster, inputs.settings)
    source = locate(inputs.settings.backbone.name)
    store_bytes = cluster.store_room(0)
    return Job(
        settings=inputs.settings,
        data=inputs.data,
        source=source,
        tokenizer=load_tokenizer(source),
        cluster=cluster,
        placement=placement,
        corpus=inputs.corpus,
        block_tokens=max(b.num_tokens for split in inputs.corpus.blocks.values() for b in split),
        plan=plan_stream(
            inputs.settings,
            inputs.corpus,
            inputs.block_format,
            num_extractors=placement.num_extractors,
            num_nodes=cluster.num_nodes,
            store_bytes=store_bytes,
        ),
        shape=inputs.shape,
        backbone=PreparedBackbone(inputs.weights, None, 0.0, False, True, {}),
        store_bytes=store_bytes,
    )


if __name__ == "__main__":
    sys.exit(main())
