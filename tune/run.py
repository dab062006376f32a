"""A whole search: its trials, their analysis, and the settings of the training that follows."""

from pathlib import Path

from bertvision_stream.models.job import Job
from bertvision_stream.modes.engine import SearchResult
from bertvision_stream.report.records import SearchSummary
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.log import log
from bertvision_stream.utils.units import format_seconds
from tune.analysis import render_trials, write_analysis
from tune.backbone import search_backbones
from tune.search import search_heads
from tune.space import trial_settings
from tune.trials import best_trial, read_search


def run_search(job: Job, after: TaskSettings, folder: Path, *, resume: bool) -> SearchResult:
    """Run the trials of a search, write their analysis and pick the best.

    Args:
        job: The task, with the rows that a search takes.
        after: The settings of the training that follows, without the values that are searched.
        folder: The folder of the run. It gets `tune/`, `trials.csv` and `plots/`.
        resume: Whether to resume an interrupted search.

    Raises:
        SearchError: All trials failed or diverged, or the search itself failed.
        StreamError: A block could not be made, or an actor died again and again.
    """
    settings = job.settings
    run = search_heads if settings.search.target == "head" else search_backbones
    outcome = run(job, folder, resume=resume)
    search = read_search(folder, job.task.f1_class)
    log.info("\n%s\n", render_trials(search))
    files = write_analysis(search, folder)
    listed = ", ".join(map(str, files))
    log.info("the search took %s; see %s", format_seconds(outcome.seconds), listed)
    best = best_trial(search)
    chosen = trial_settings(after, best.config)
    summary = SearchSummary(
        target=settings.search.target,
        trials=len(search.trials),
        lost=sum(not trial.is_eligible for trial in search.trials),
        best_trial=best.number,
        best_score=best.score,
        best_config=dict(best.config),
        max_concurrent=outcome.max_concurrent,
        seconds=outcome.seconds,
        epochs=outcome.epochs,
        examples=len(job.data.train.labels),
        tokens_extracted=outcome.tokens_extracted,
        blocks_extracted=outcome.blocks_extracted,
        blocks_from_cache=outcome.blocks_from_cache,
        extractors_lost=outcome.extractors_lost,
        deaths=outcome.deaths,
    )
    if settings.search.target == "backbone":
        return SearchResult(chosen, chosen.seed, summary)
    # The seed may be searched too. It is that of the head's initialisation, and must not draw other
    # rows for the training that follows: that keeps the seed of the run.
    final = after.model_copy(update={"head": chosen.head, "train": chosen.train})
    return SearchResult(final, chosen.seed, summary)
