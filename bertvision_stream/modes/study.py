"""`mode=study`: BERT and heads on nested fractions of the rows, on as few streams as possible."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from bertvision_stream.data.splits import nested_sample, take_fraction
from bertvision_stream.models.job import Job
from bertvision_stream.modes.engine import Engine
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.preparation import prepare_job
from bertvision_stream.modes.run_folder import STUDY, RunFolder
from bertvision_stream.report.study import (
    BERT,
    HEAD,
    HEAD_ON_ALL,
    Point,
    StreamUse,
    Study,
    read_study,
    render_study,
    render_study_markdown,
    rows_fingerprint,
)
from bertvision_stream.report.study_plots import write_study_plots
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_json, write_text, writing
from bertvision_stream.utils.log import log


def study_task(inputs: TaskInputs, folder: RunFolder, command: str, engine: Engine) -> None:
    """Compare amounts of data and of fine-tuning, and write the results.

    Args:
        inputs: The settings, with `study.*` filled in, and all rows.
        folder: The folder of the run.
        command: The command line, which the results record.
        engine: The engine that fine-tunes and runs the streams.

    Raises:
        ConfigError: The rows are not those of the study that is resumed.
        StreamError: A fine-tuning or a stream failed.
    """
    task = inputs.data.task
    study = run_study(
        inputs, folder.checkpoint.with_name(STUDY), engine=engine, resume=folder.resumed
    )
    plots = write_study_plots(study, task, folder.path / "plots")
    write_text(folder.path / "study.md", render_study_markdown(study, task, command, plots))
    write_json(folder.path / STUDY, study.to_json() | {"command": command})
    log.info("\n%s", render_study(study, task))
    log.info("study in %s", folder.path)


def run_study(inputs: TaskInputs, path: Path, *, engine: Engine, resume: bool) -> Study:
    """Fine-tune BERT for each amount of fine-tuning, fraction and seed, and train heads on each.

    Each fine-tuned BERT has one stream, of the rows that it was fine-tuned on, and a head that
    learns from the same rows. On the stream of the largest fraction there is one more head for
    every smaller fraction, which learns from the rows of that fraction alone. BERT without
    fine-tuning (`finetune_epochs=0`) is the same for all fractions, so that one stream of the
    largest fraction serves all of them.

    Args:
        inputs: The settings, with `study.*` filled in, and all rows.
        path: The file in which the study so far is kept, in case it is interrupted.
        engine: The engine that fine-tunes and runs the streams.
        resume: Whether to resume the study in `path`, if there is one.

    Raises:
        ConfigError: The rows are not those of the study that is resumed.
        StreamError: A fine-tuning or a stream failed.
    """
    settings, data = inputs.settings, inputs.data
    wanted = settings.study
    assert wanted.fractions is not None  # `Settings.for_task` has filled these in
    assert wanted.finetune_epochs is not None
    assert wanted.seeds is not None
    fractions = sorted(wanted.fractions, reverse=True)
    study = Study(settings.task, settings.backbone.name, settings.head.kind, rows_fingerprint(data))
    if resume and (earlier := read_study(path)) is not None:
        if earlier.rows != study.rows:
            raise ConfigError(
                "resume=true cannot go on with the interrupted study: its rows were others. Leave "
                "resume out to begin anew."
            )
        study = earlier
    for seed, fraction, epochs in product(wanted.seeds, fractions, wanted.finetune_epochs):
        same_as_the_largest = epochs == 0 and fraction < fractions[0]
        if same_as_the_largest or study.has(epochs, fraction, seed):
            continue
        rows = take_fraction(data, fraction=fraction, seed=seed)
        log.info(
            f"study: {fraction:g} of the rows ({len(rows.train):,}), {epochs:g} epochs of "
            f"fine-tuning, seed {seed}"
        )
        part = part_settings(settings, fraction=fraction, epochs=epochs, seed=seed)
        job = prepare_job(replace(inputs, settings=part, data=rows), engine, reuse=resume)
        smaller = fractions[1:] if fraction == fractions[0] else []
        outcome, examples = _run_part(job, len(data.train), smaller, engine)
        study.points += _points(job, outcome, examples)
        study.streams.append(_stream_use(job, outcome))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, study.to_json())
    return study


def part_settings(
    settings: TaskSettings, *, fraction: float, epochs: float, seed: int
) -> TaskSettings:
    """The settings of one part of a study, as `mode=train` would have them.

    Args:
        settings: The settings of the study.
        fraction: The fraction of the training rows.
        epochs: The epochs of fine-tuning.
        seed: The seed of the part.
    """
    return settings.model_copy(
        update={
            "seed": seed,
            "data": settings.data.model_copy(update={"train_fraction": fraction}),
            "finetune": settings.finetune.model_copy(update={"epochs": epochs}),
        }
    )


def subset_rows(job: Job, num_examples: int, fraction: float) -> tuple[np.ndarray, int]:
    """The training rows of a job that belong to a smaller fraction than the job's own.

    The seed of the job draws the samples of both fractions, and the smaller sample lies inside the
    larger one.

    Args:
        job: A job with the rows of its own fraction.
        num_examples: The number of training examples before any sample was drawn.
        fraction: The smaller fraction.

    Returns:
        The rows in the token store of the job, int64, ascending; and the number of examples that
        they belong to, which is smaller where long examples have several rows.
    """
    seed, largest = job.settings.seed, job.settings.data.train_fraction
    within = nested_sample(num_examples, fraction=largest, seed=seed)
    sample = nested_sample(num_examples, fraction=fraction, seed=seed)
    examples = np.searchsorted(within, sample)
    return job.corpus.stores[TRAIN].rows_of(examples), len(examples)


def _run_part(
    job: Job, num_examples: int, smaller: list[float], engine: Engine
) -> tuple[StreamOutcome, dict[float, int]]:
    """Run the stream of one part of a study, with all its heads.

    Args:
        job: The part, with the rows of its own fraction.
        num_examples: The number of training examples before any sample was drawn.
        smaller: The smaller fractions that get a head on this stream too.
        engine: The engine that runs the stream.

    Returns:
        The results of the stream, and the number of training examples of each fraction.
    """
    settings = job.settings
    own, epochs = settings.data.train_fraction, settings.finetune.epochs
    heads, examples = {_name(own): HeadJob(settings)}, {own: len(job.data.train)}
    for fraction in smaller:
        rows, examples[fraction] = subset_rows(job, num_examples, fraction)
        head = part_settings(settings, fraction=fraction, epochs=epochs, seed=settings.seed)
        heads[_name(fraction)] = HeadJob(head, rows=rows)
    log.info("%s", job.memory)
    return engine.run(job, heads), examples


def _name(fraction: float) -> str:
    """The name of the head of a fraction."""
    return f"head on {fraction:g} of the rows"


def _points(job: Job, outcome: StreamOutcome, examples: dict[float, int]) -> list[Point]:
    """The scores of BERT and of the heads of one stream."""
    settings = job.settings
    epochs, own = settings.finetune.epochs, settings.data.train_fraction
    objective, stores = make_objective(job.data.task), job.corpus.stores
    points = []
    if job.backbone.classifier_trained:
        scores = objective.metrics_by_split(outcome.bert_logits, stores)
        points.append(Point(BERT, epochs, own, settings.seed, examples[own], scores))
    for fraction, count in examples.items():
        head = outcome.heads[_name(fraction)]
        # Without fine-tuning BERT has seen no row, so that the head alone depends on the fraction.
        predictor = HEAD if fraction == own or epochs == 0 else HEAD_ON_ALL
        scores = {} if head.failure else objective.metrics_by_split(head.logits, stores)
        points.append(
            Point(predictor, epochs, fraction, settings.seed, count, scores, head.failure)
        )
    return points


def _stream_use(job: Job, outcome: StreamOutcome) -> StreamUse:
    """What one stream extracted, and the time that it took."""
    return StreamUse(
        finetune_epochs=job.settings.finetune.epochs,
        fraction=job.settings.data.train_fraction,
        seed=job.settings.seed,
        heads=len(outcome.heads),
        tokens_extracted=outcome.stats.tokens_extracted,
        blocks_extracted=outcome.stats.blocks_extracted,
        blocks_from_cache=outcome.stats.blocks_from_cache,
        finetune_seconds=job.backbone.seconds,
        stream_seconds=outcome.seconds,
        extractors_lost=outcome.stats.extractors_lost,
        deaths=list(outcome.deaths),
    )
