"""The search over the partial fine-tuning itself, as in BERTVision's `models.hypersearch`."""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray import tune

from actors.cluster import in_thread
from actors.finetune import run_finetune
from bertvision_stream.models.job import Job, PlannedJob
from bertvision_stream.models.prepare import check_num_workers, prepare_backbone
from bertvision_stream.training.metrics import main_score
from bertvision_stream.utils.errors import SearchError
from bertvision_stream.utils.log import log
from tune.search import SearchOutcome, make_tuner
from tune.space import trial_settings
from tune.trial_results import SCORE


def search_backbones(job: Job, folder: Path, *, resume: bool) -> SearchOutcome:
    """Run the trials of `search.target=backbone`, each of which is a fine-tuning.

    A trial reports the scores of BERT's own classifier. Every fine-tuned backbone is kept beside
    the results, so that the training that follows finds the best one again. There are as many
    trials at a time as the GPUs suffice for, with `finetune.num_workers` for each; on CPUs there is
    one, as it takes all cores.

    Args:
        job: The task, whose backbone is not fine-tuned.
        folder: The folder of the run.
        resume: Whether to resume an interrupted search.

    Raises:
        ConfigError: `finetune.num_workers` is more than the cluster has room for.
        SearchError: The search itself failed.
    """
    start = time.perf_counter()
    settings = job.settings
    check_num_workers(settings.finetune.num_workers, job.cluster)  # once, and not in each trial
    asked = settings.search.max_concurrent
    room = max(1, job.cluster.num_gpus // settings.finetune.num_workers)
    at_once = min(room if asked == "auto" else asked, settings.search.num_trials)
    log.info("search: %d fine-tunings, %d at a time", settings.search.num_trials, at_once)
    # A trial runs in a folder of its own, where relative paths would point elsewhere.
    local = Path(job.source)
    planned = PlannedJob(
        **{field.name: getattr(job, field.name) for field in fields(PlannedJob)}
        | {
            "settings": settings.model_copy(
                update={"output_dir": str(Path(settings.output_dir).resolve())}
            ),
            "source": str(local.resolve()) if local.is_dir() else job.source,
        }
    )
    trainable = tune.with_parameters(_fine_tune, job=planned)
    tuner = make_tuner(settings, folder, trainable, max_concurrent=at_once, resume=resume)
    try:
        in_thread(tuner.fit, "ray-tune").result()
    except (tune.TuneError, OSError) as error:
        raise SearchError(f"the search failed: {error}") from error
    return SearchOutcome(seconds=time.perf_counter() - start, max_concurrent=at_once)


def _fine_tune(config: dict[str, Any], *, job: PlannedJob) -> None:
    """Run one trial: fine-tune with the sampled values, and report the scores."""
    trial = replace(job, settings=trial_settings(job.settings, config))
    backbone = prepare_backbone(trial, run_finetune, reuse=True)
    scores = {
        f"{split}_{metric}": value
        for split, metrics in backbone.scores.items()
        for metric, value in metrics.items()
    }
    tune.report({SCORE: main_score(backbone.scores), "epoch": 1, **scores})
