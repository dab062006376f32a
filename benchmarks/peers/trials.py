"""The trials of a search: on one stream, or each with a frozen BERT of its own under Ray Tune."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from bertvision_stream.modes.job import Job
from ray import tune

from actors.cluster import cluster_resources, connect
from benchmarks.inputs import CPU, Inputs, make_extractor
from benchmarks.peers.outcome import TrialsOutcome
from benchmarks.processes import cpu_seconds
from bertvision_stream.models.backbone import load_tokenizer
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.prepare import PreparedBackbone
from bertvision_stream.models.sources import locate
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.placement import plan_placement
from bertvision_stream.stream.plan import plan_stream
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.files import write_json
from tune.search import search_heads
from tune.space import trial_settings
from tune.trial_results import MODE, SCORE, epoch_result, failure_result
from tune.trials import best_trial, read_search

# What the search sampled, for the independent trials to train the same heads.
SAMPLES = "samples.json"

_TOKENS = "tokens_extracted"


def searched(inputs: Inputs, folder: Path) -> TrialsOutcome:
    """A search of ours; leaves `SAMPLES` in the folder."""
    connect(None)
    start, cpu = time.perf_counter(), cpu_seconds()
    job = _job_of(inputs)
    write_json(folder / "config.json", job.settings.model_dump())
    outcome = search_heads(job, folder, resume=False, show_progress=False, say=print)
    seconds = time.perf_counter() - start
    search = read_search(folder)
    write_json(folder / SAMPLES, [dict(trial.config) for trial in search.trials])
    return TrialsOutcome(seconds, cpu, outcome.tokens_extracted, best_trial(search).score)


def independent(inputs: Inputs, folder: Path, *, hold_blocks: bool) -> TrialsOutcome:
    """Ray Tune as one would use it: a trainable that trains a head, as many at once as cores.

    Args:
        inputs: What they train on.
        folder: With `SAMPLES`; Tune's own goes there too.
        hold_blocks: Whether a trial keeps its hidden states in memory, and does not run BERT again
            in each epoch.
    """
    samples = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
    connect(None)
    start, cpu = time.perf_counter(), cpu_seconds()
    trainable = tune.with_parameters(_train, inputs=inputs, hold_blocks=hold_blocks)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"sample": tune.grid_search(samples)},
        # Without the start of a process for each trial.
        tune_config=tune.TuneConfig(metric=SCORE, mode=MODE, reuse_actors=True),
        run_config=tune.RunConfig(
            name="independent", storage_path=str(folder.resolve()), verbose=0
        ),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - start
    if results.errors:
        raise results.errors[0]
    metrics = [results[trial].metrics or {} for trial in range(len(results))]
    return TrialsOutcome(
        seconds=seconds,
        cpu_seconds_before=cpu,
        tokens_extracted=sum(each[_TOKENS] for each in metrics),
        best_score=max(each[SCORE] for each in metrics if math.isfinite(each[SCORE])),
    )


def _train(config: dict[str, Any], inputs: Inputs, hold_blocks: bool) -> None:
    """A trial, in its own process."""
    torch.set_num_threads(1)
    settings = trial_settings(inputs.settings, config["sample"])
    extractor = _TrialExtractor(inputs, hold_blocks=hold_blocks)
    training = make_training(
        inputs.corpus,
        inputs.data.task,
        {"head": HeadJob(settings, with_report=False)},
        inputs.shape,
        device=CPU,
    )
    for records in train_in_process(extractor, training):
        record = records["head"]
        result = failure_result("diverged") if record is None else epoch_result(record, kept=record)
        tune.report({**result, _TOKENS: extractor.tokens})


class _TrialExtractor(BlockExtractor):
    """Counts the tokens of the blocks that it makes, and may hold these."""

    def __init__(self, inputs: Inputs, *, hold_blocks: bool):
        maker = make_extractor(inputs)
        super().__init__(maker.backbone, maker.corpus, maker.codec)
        self.tokens = 0
        self._hold_blocks = hold_blocks
        self._held: dict[BlockKey, EncodedBlock] = {}

    def extract(self, key: BlockKey) -> EncodedBlock:
        if key in self._held:
            return self._held[key]
        encoded = super().extract(key)
        self.tokens += self.corpus.block(key).num_tokens
        if self._hold_blocks:
            self._held[key] = encoded
        return encoded


def _job_of(inputs: Inputs) -> Job:
    """What a search is given."""
    cluster = cluster_resources()
    placement = plan_placement(cluster, inputs.settings)
    source = locate(inputs.settings.backbone.name)
    store_bytes = cluster.free_store_bytes(0)
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
        backbone=PreparedBackbone(inputs.weights, None, 0.0, True, {}),
        store_bytes=store_bytes,
    )
