"""The trials of a search: on one stream, or each with a frozen BERT of its own under Ray Tune."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from benchmarks.baselines.outcome import TrialsOutcome
from benchmarks.inputs import CountedBlocks, Inputs, cluster, make_head, make_job
from benchmarks.processes import cpu_seconds
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.utils.files import write_json
from tune.search import search_heads
from tune.space import trial_settings
from tune.trial_results import MODE, SCORE, epoch_result, failure_result
from tune.trials import best_trial, read_search

# The search writes its samples here, so that the independent trials train the same heads.
SAMPLES = "samples.json"

_TOKENS = "tokens_extracted"


def searched(inputs: Inputs, folder: Path) -> TrialsOutcome:
    """A search of ours; it leaves `SAMPLES` in the folder."""
    with cluster():
        start, cpu = time.perf_counter(), cpu_seconds()
        outcome = search_heads(make_job(inputs), folder, resume=False)
        seconds = time.perf_counter() - start
    search = read_search(folder)
    write_json(folder / SAMPLES, [dict(trial.config) for trial in search.trials])
    return TrialsOutcome(seconds, cpu, outcome.tokens_extracted, best_trial(search).score)


def independent(inputs: Inputs, folder: Path, *, hold_blocks: bool) -> TrialsOutcome:
    """Ray Tune as one would use it: a trainable that trains a head, as many at once as cores.

    Args:
        inputs: What the heads are trained on.
        folder: Holds `SAMPLES`; Tune's experiment goes there too.
        hold_blocks: Whether a trial keeps its hidden states in memory. It runs BERT in each epoch
            otherwise.
    """
    samples = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
    with cluster():
        start, cpu = time.perf_counter(), cpu_seconds()
        trainable = tune.with_parameters(_train, inputs=inputs, hold_blocks=hold_blocks)
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"sample": tune.grid_search(samples)},
            # Processes are used again: the start of one for each trial is no part of the work.
            tune_config=tune.TuneConfig(metric=SCORE, mode=MODE, reuse_actors=True),
            run_config=tune.RunConfig(
                name="independent", storage_path=str(folder.resolve()), verbose=0
            ),
        ).fit()
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
    """One trial, in its own process."""
    torch.set_num_threads(1)
    blocks = CountedBlocks(inputs, hold=hold_blocks)
    settings = trial_settings(inputs.settings, config["sample"])
    training = make_head(inputs, HeadJob(settings, with_report=False))
    for records in train_in_process(blocks, training):
        record = records["head"]
        result = failure_result("diverged") if record is None else epoch_result(record, kept=record)
        tune.report({**result, _TOKENS: blocks.tokens})
