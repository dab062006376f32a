"""The search over the partial fine-tuning itself (BERTVision's `models.hypersearch`)."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from transformers import PreTrainedTokenizerBase

from actors.cluster import in_thread
from bertvision_stream.models.prepare import check_num_workers, prepare_backbone
from bertvision_stream.modes.job import Job
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.training.metrics import main_score
from bertvision_stream.utils.errors import SearchError
from tune.search import SearchOutcome, make_tuner
from tune.space import trial_settings
from tune.trial_results import SCORE


def search_backbones(
    job: Job, folder: Path, *, resume: bool, show_progress: bool, say: Callable[[str], None]
) -> SearchOutcome:
    """Run the trials of `search.target=backbone`: each fine-tunes, and reports BERT's score.

    Every fine-tuning is kept beside the results, and the best one found again by the training that
    follows. One runs for each set of GPUs that `finetune.num_workers` want; on CPUs one at a time,
    as it takes all cores.

    Args:
        job: The task.
        folder: Of the run.
        resume: Whether to go on with an interrupted search.
        show_progress: Not used: trials draw no bars.
        say: Prints a line.

    Raises:
        ConfigError: More workers than the cluster has room for.
        SearchError: The search itself failed.
    """
    start = time.perf_counter()
    settings = job.settings
    check_num_workers(settings.finetune.num_workers, job.cluster)  # now, and not in each trial
    asked = settings.search.max_concurrent
    room = max(1, job.cluster.num_gpus // settings.finetune.num_workers)
    at_once = min(room if asked == "auto" else asked, settings.search.num_trials)
    say(f"search: {settings.search.num_trials} fine-tunings, {at_once} at a time")
    # Trials run in folders of their own.
    local = Path(job.source)
    base = settings.model_copy(update={"output_dir": str(Path(settings.output_dir).resolve())})
    trainable = tune.with_parameters(
        _fine_tune,
        base=base,
        task=job.data.task,
        corpus=job.corpus,
        tokenizer=job.tokenizer,
        source=str(local.resolve()) if local.is_dir() else job.source,
        cluster=job.cluster,
    )
    tuner = make_tuner(settings, folder, trainable, max_concurrent=at_once, resume=resume)
    try:
        in_thread(tuner.fit, "ray-tune").result()
    except (tune.TuneError, OSError) as error:
        raise SearchError(f"the search failed: {error}") from error
    return SearchOutcome(seconds=time.perf_counter() - start, max_concurrent=at_once)


def _fine_tune(
    config: dict[str, Any],
    *,
    base: TaskSettings,
    task: Task,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    cluster: ClusterResources,
) -> None:
    """One trial."""
    settings = trial_settings(base, config)
    backbone = prepare_backbone(
        settings,
        task,
        corpus,
        tokenizer,
        source,
        cluster,
        reuse=True,
        show_progress=False,
        say=lambda message: None,
    )
    scores = {
        f"{split}_{metric}": value
        for split, metrics in backbone.scores.items()
        for metric, value in metrics.items()
    }
    tune.report({SCORE: main_score(backbone.scores), "epoch": 1, **scores})
