"""A whole search: trials, their analysis, and the settings of the training that follows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bertvision_stream.modes.job import Job
from bertvision_stream.report.records import SearchSummary
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.units import format_seconds
from tune.analysis import render_trials, write_analysis
from tune.backbone import search_backbones
from tune.search import search_heads
from tune.space import trial_settings
from tune.trials import best_trial, read_search


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        settings: Of the training that follows, best values included.
        head: Settings of its head; the seed is that of the best head's initialisation.
        summary: For the report.
    """

    settings: TaskSettings
    head: TaskSettings
    summary: SearchSummary


def run_search(
    job: Job,
    after: TaskSettings,
    folder: Path,
    *,
    resume: bool,
    show_progress: bool,
    say: Callable[[str], None],
) -> Found:
    """Run the trials of `search.*`, write the analysis and pick the best.

    Args:
        job: The task; with the rows that a search takes.
        after: Settings of the training that follows, but for what is searched.
        folder: Of the run. Gets `tune/`, `trials.csv` and `plots/`.
        resume: Whether to go on with an interrupted search.
        show_progress: Whether to draw bars.
        say: Prints a line.

    Raises:
        SearchError: All trials failed or diverged, or the search itself failed.
        StreamError: A block could not be made, an actor died again and again.
    """
    settings = job.settings
    run = search_heads if settings.search.target == "head" else search_backbones
    outcome = run(job, folder, resume=resume, show_progress=show_progress, say=say)
    search = read_search(folder)
    say(f"\n{render_trials(search)}\n")
    files = write_analysis(search, folder)
    say(f"the search took {format_seconds(outcome.seconds)}; see {', '.join(map(str, files))}")
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
    )
    if settings.search.target == "backbone":
        return Found(chosen, chosen, summary)
    final = after.model_copy(update={"head": chosen.head, "train": chosen.train})
    return Found(final, chosen, summary)
