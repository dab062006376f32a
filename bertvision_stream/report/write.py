"""From what a stream leaves behind to the report of a run and the files in its folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from bertvision_stream import __version__
from bertvision_stream.heads.head import Head
from bertvision_stream.models.export import backbone_source, export_model
from bertvision_stream.models.job import Job
from bertvision_stream.report.cautions import cautions_on_split, rising_loss
from bertvision_stream.report.model_card import render_card
from bertvision_stream.report.predictions import write_predictions
from bertvision_stream.report.records import (
    FinetuneSummary,
    HeadSummary,
    RunReport,
    SearchSummary,
    Seconds,
    SplitResult,
    StreamSummary,
    TrainSummary,
    death_notes,
    metrics_json,
)
from bertvision_stream.report.text import render_markdown
from bertvision_stream.settings.settings import dotted
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.cost_model import dump_bytes
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_training import num_measured
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.objectives.span import score_spans
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.files import write_json, write_text, writing
from bertvision_stream.utils.units import format_bytes, format_seconds, format_value


@dataclass(frozen=True)
class Earlier:
    """The time of the processes that began a run and were interrupted, up to its checkpoint.

    Attributes:
        total: Their wall time, in seconds.
        finetune: The part of it that fine-tuning took.
        epochs: The part of it that the epochs of the stream took.
    """

    total: float = 0.0
    finetune: float = 0.0
    epochs: float = 0.0

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> Earlier:
        """The time in the checkpoint of a run that is resumed."""
        if checkpoint is None:
            return cls()
        epochs = sum(checkpoint.facts["stream"]["epoch_seconds"])
        return cls(**checkpoint.facts["seconds"], epochs=epochs)


def write_results(
    folder: Path,
    job: Job,
    outcome: StreamOutcome,
    *,
    command: str,
    start: float,
    search: SearchSummary | None = None,
    earlier: Earlier | None = None,
) -> RunReport:
    """Write everything that a run leaves in its folder.

    Args:
        folder: The folder of the run.
        job: The task, as it was trained on.
        outcome: What the stream left behind; its head is named `head`.
        command: The command line that does the run again.
        start: When the run began, by `time.perf_counter`.
        search: The search that came first; None without one.
        earlier: The time of the interrupted processes of this run; None without any.

    Returns:
        The report of the run.

    Raises:
        StreamError: The head failed: its loss was no longer finite.
        OutputError: A file cannot be written.
    """
    head = outcome.heads["head"]
    if head.failure:
        raise StreamError(f"the head was stopped: {head.failure}")
    settings, stores = job.settings, job.corpus.stores
    objective = make_objective(job.task)
    scores = {
        split.name: objective.predictor_scores(
            outcome.bert_logits[split.name],
            head.logits[split.name],
            settings.evaluate.ensemble,
            stores[split.name],
        )
        for split in job.data.validation
    }
    splits = tuple(
        SplitResult.of(split, scores[split.name], objective, stores[split.name])
        for split in job.data.validation
    )
    seconds = Seconds(total=0.0, finetune=job.backbone.seconds, stream=outcome.seconds)
    report = RunReport(
        task=job.task,
        backbone=settings.backbone.name,
        seed=settings.seed,
        ensemble=settings.evaluate.ensemble,
        head=_head_summary(job, head),
        splits=splits,
        finetune=_finetune_summary(job),
        train=_train_summary(job, head),
        stream=_stream_summary(job, outcome),
        seconds=seconds,
        settings=dotted(settings.model_dump()),
        command=command,
        versions={
            "bertvision_stream": __version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("ray", "torch", "transformers")},
        },
        notes=(*_notes(job, outcome, search), *_cautions(job, head, splits, scores)),
        search=search,
    )
    for split in job.data.validation:
        write_predictions(folder, job.task, split, stores[split.name], scores[split.name])
    model = folder / "model"
    source = backbone_source(model, settings, job.backbone)
    export_model(
        model,
        head=head.state,
        target_scale=objective.target_scale(stores[TRAIN].labels),
        settings=settings,
        task=job.task,
        backbone=job.backbone,
        tokenizer=job.tokenizer,
        card=render_card(report, backbone_source=source),
    )
    drawing = time.perf_counter()
    from bertvision_stream.report.html import render_html

    plots = _write_plots(folder / "plots", report, job, scores)
    report = _with_stages(
        report, outcome, start=start, plots=time.perf_counter() - drawing, earlier=earlier
    )
    write_text(folder / "report.html", render_html(report, plots))
    write_text(folder / "results.md", render_markdown(report))
    write_json(folder / "metrics.json", metrics_json(report))
    return report


def _head_summary(job: Job, result: HeadResult) -> HeadSummary:
    head = Head(job.settings.head, job.shape, seed=job.settings.seed)
    head.load_state_dict(result.state)
    mix = head.mix
    return HeadSummary(
        kind=job.settings.head.kind,
        parameters=result.num_parameters,
        backbone_parameters=job.backbone.num_parameters,
        layers=job.layers,
        mix_weights=tuple(mix.weights.softmax(0).tolist()) if mix else (),
        mix_gamma=mix.gamma.item() if mix else None,
        adapter_shares=result.adapter_shares,
        adapter_rows=num_measured(job.corpus) if result.adapter_shares else 0,
    )


def _finetune_summary(job: Job) -> FinetuneSummary:
    epochs = job.settings.finetune.epochs
    return FinetuneSummary(
        epochs=epochs,
        parameters=job.backbone.num_parameters if epochs > 0 else 0,
        reused=epochs > 0 and not job.backbone.seconds,
    )


def _train_summary(job: Job, head: HeadResult) -> TrainSummary:
    return TrainSummary(
        examples=len(job.data.train),
        tokens=job.corpus.stores[TRAIN].num_tokens,
        history=head.history,
        planned_epochs=job.settings.train.epochs,
        best_epoch=head.chosen_epoch,
        chosen_by=head.chosen_by,
        start=head.start,
    )


def _stream_summary(job: Job, outcome: StreamOutcome) -> StreamSummary:
    plan, stats = job.plan, outcome.stats
    return StreamSummary(
        blocks=len(plan.block_bytes),
        blocks_extracted=stats.blocks_extracted,
        blocks_from_cache=stats.blocks_from_cache,
        tokens_extracted=stats.tokens_extracted,
        extractors_lost=stats.extractors_lost,
        bytes_per_epoch=plan.budget.epoch_bytes,
        budget_bytes=plan.budget.total_bytes,
        peak_bytes=stats.peak_bytes,
        cache_bytes=stats.cache_bytes,
        spilled_bytes=outcome.store.spilled_bytes,
        fallback_bytes=outcome.store.fallback_bytes,
        store_file=outcome.store_file,
        dump_bytes_avoided=dump_bytes(
            sum(store.num_examples for store in job.corpus.stores.values()),
            num_layers=job.shape.num_layers,
            max_length=job.shape.max_length,
            hidden_size=job.shape.hidden_size,
        ),
    )


def _notes(job: Job, outcome: StreamOutcome, search: SearchSummary | None) -> tuple[str, ...]:
    """Sentences for the user, in the order in which they are shown."""
    notes = list(job.data.notes)
    if not job.backbone.classifier_trained:
        notes.append(
            "BERT's own classifier is untrained (finetune.epochs=0): its row is by chance."
        )
    if note := disk_note(outcome):
        notes.append(note)
    notes += death_notes(outcome.stats.extractors_lost, outcome.deaths)
    if job.settings.extract.layers != "all":
        layers = ", ".join(map(str, job.layers))
        notes.append(f"the head reads the hidden states of layers {layers} alone (extract.layers)")
    notes.append(f"the backbone ran on {outcome.extractor}, the head on {outcome.trainer}")
    if search is not None:
        values = ", ".join(
            f"{key}={format_value(value)}" for key, value in search.best_config.items()
        )
        notes.append(
            f"settings found by a search of {search.trials} trials in "
            f"{format_seconds(search.seconds)} on {search.examples:,} training examples: {values}"
        )
        notes += [f"search: {n}" for n in death_notes(search.extractors_lost, search.deaths)]
    return tuple(notes)


def _cautions(
    job: Job,
    head: HeadResult,
    splits: Sequence[SplitResult],
    scores: Mapping[str, PredictorScores],
) -> Iterator[str]:
    for split, result in zip(job.data.validation, splits, strict=True):
        yield from cautions_on_split(job.task, split, result, scores[split.name])
    if note := rising_loss(head.history, job.settings.train.patience):
        yield note


def _write_plots(
    folder: Path, report: RunReport, job: Job, scores: Mapping[str, PredictorScores]
) -> list[Path]:
    """Plots of the run; those of a search that came first are listed after them."""
    # matplotlib takes most of a second to import, which nobody who fails before should wait for.
    from bertvision_stream.report.plots import SplitScores, write_plots

    earlier = sorted(folder.glob("*.png"))
    splits = []
    for split in job.data.validation:
        by_name = scores[split.name].by_name()
        if job.task.per_token:
            store = job.corpus.stores[split.name]
            spans = {name: score_spans(values, store) for name, values in by_name.items()}
            splits.append(SplitScores(split.name, split.labels, {}, spans))
        else:
            splits.append(SplitScores(split.name, split.labels, by_name))
    with writing(folder):
        files = write_plots(report, splits, folder)
    return [*files, *(file for file in earlier if file not in files)]


def _with_stages(
    report: RunReport,
    outcome: StreamOutcome,
    *,
    start: float,
    plots: float,
    earlier: Earlier | None,
) -> RunReport:
    """The report with everything that the run did, in order, and how long it took in all.

    Args:
        report: The report of the run.
        outcome: When the stream began, and how long its epochs took.
        start: When the run began, by `time.perf_counter`.
        plots: The seconds that the plots took.
        earlier: The time of the interrupted processes of the run, if there were any.
    """
    earlier = earlier or Earlier()
    total = earlier.total + time.perf_counter() - start
    search = report.search.seconds if report.search else 0.0
    finetune = report.seconds.finetune
    first, *later = outcome.epoch_seconds
    stages = {
        "search": search,
        "fine-tuning": finetune,
        "rows, tokens, imports, start of Ray": (
            outcome.began - start - search - (finetune - earlier.finetune)
        ),
        "start of extractors and trainer": outcome.start_seconds,
        "epoch 1": first,
        f"epochs 2 to {1 + len(later)}" if len(later) > 1 else "epoch 2": sum(later),
        "plots": plots,
        "the rest, before interruptions": earlier.total - earlier.finetune - earlier.epochs,
    }
    stages["the rest"] = total - sum(stages.values())
    kept = {name: seconds for name, seconds in stages.items() if seconds > 0}
    return replace(report, seconds=replace(report.seconds, total=total, stages=kept))


def disk_note(outcome: StreamOutcome) -> str:
    """What to say where hidden states may have gone to disk; empty where they did not."""
    store = outcome.store
    if outcome.store_file:
        return (
            f"WARNING: Ray's object store lies in a file on disk ({outcome.store_file}), as a "
            f"rule because /dev/shm is too small: hidden states passed through that file. Give the "
            f"machine more shared memory: `docker run --shm-size=...` or, in Kubernetes, a memory "
            f"volume at /dev/shm."
        )
    if not store.spilled_bytes and not store.fallback_bytes:
        return ""
    return (
        f"WARNING: while this run went on, Ray's object store wrote "
        f"{format_bytes(store.spilled_bytes)} to disk by spilling and "
        f"{format_bytes(store.fallback_bytes)} into files mapped into memory (those of other jobs "
        f"on the cluster included). Lower stream.budget, or give Ray a larger object store."
    )
