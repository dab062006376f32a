"""A study: BERT and heads on nested shares of the rows, heads of all shares on one stream."""

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
    write_study_plots,
)
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_json, write_text, writing
from bertvision_stream.utils.log import log


def study_task(inputs: TaskInputs, folder: RunFolder, command: str, engine: Engine) -> None:
    """`mode=study`: compare amounts of data and of fine-tuning, and write what came of it.

    Args:
        inputs: The settings, with `study.*` filled in, and all rows.
        folder: The folder for the results.
        command: The command line, for the records.
        engine: Computes.

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
    """Fine-tune BERT for each amount of fine-tuning, fraction and seed; train heads on each.

    Every BERT has one stream, of the rows that it was fine-tuned on. A head learns from it on the
    same rows. On the stream of the largest fraction there is one more head for every other
    fraction, which learns from the rows of that fraction alone. BERT without fine-tuning
    (`finetune_epochs=0`) is the same for all fractions, and needs no stream but that one.

    Args:
        inputs: The settings, with `study.*` filled in, and all rows.
        path: The file in which a study that is interrupted is kept.
        engine: Computes.
        resume: Whether to go on with what is in `path`.

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
    """The settings with which `mode=train` would do one part of a study."""
    return settings.model_copy(
        update={
            "seed": seed,
            "data": settings.data.model_copy(update={"train_fraction": fraction}),
            "finetune": settings.finetune.model_copy(update={"epochs": epochs}),
        }
    )


def subset_rows(job: Job, num_examples: int, fraction: float) -> tuple[np.ndarray, int]:
    """The job's training rows that belong to a smaller fraction, and how many examples they are.

    Args:
        job: Its seed draws both samples, of which the smaller lies inside the larger.
        num_examples: Of all, before any sample was drawn.
        fraction: The smaller one.
    """
    seed, largest = job.settings.seed, job.settings.data.train_fraction
    within = nested_sample(num_examples, fraction=largest, seed=seed)
    sample = nested_sample(num_examples, fraction=fraction, seed=seed)
    examples = np.searchsorted(within, sample)
    return job.corpus.stores[TRAIN].rows_of(examples), len(examples)


def _run_part(
    job: Job, num_examples: int, smaller: list[float], engine: Engine
) -> tuple[StreamOutcome, dict[float, int]]:
    """Run a stream with all its heads; also returns the training examples by fraction.

    Args:
        job: The part, with the rows of its own fraction.
        num_examples: The training examples of the study before any sample was drawn.
        smaller: The fractions of the heads beside the part's own.
        engine: Computes.
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
    return f"head on {fraction:g} of the rows"


def _points(job: Job, outcome: StreamOutcome, examples: dict[float, int]) -> list[Point]:
    """What BERT and the heads of one stream are worth."""
    settings = job.settings
    epochs, own = settings.finetune.epochs, settings.data.train_fraction
    objective, stores = make_objective(job.data.task), job.corpus.stores
    points = []
    if job.backbone.classifier_trained:
        scores = objective.metrics_by_split(outcome.bert_logits, stores)
        points.append(Point(BERT, epochs, own, settings.seed, examples[own], scores))
    for fraction, count in examples.items():
        head = outcome.heads[_name(fraction)]
        # BERT as it is has learned from no row, whatever the fraction.
        predictor = HEAD if fraction == own or epochs == 0 else HEAD_ON_ALL
        scores = {} if head.failure else objective.metrics_by_split(head.logits, stores)
        points.append(
            Point(predictor, epochs, fraction, settings.seed, count, scores, head.failure)
        )
    return points


def _stream_use(job: Job, outcome: StreamOutcome) -> StreamUse:
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
    )
