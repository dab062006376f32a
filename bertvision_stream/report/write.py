"""From what a stream leaves behind to the report of a run and the files in its folder."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from bertvision_stream import __version__
from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.export import export_model
from bertvision_stream.models.job import Job
from bertvision_stream.models.prepare import PreparedBackbone
from bertvision_stream.report.records import (
    FinetuneSummary,
    HeadSummary,
    RunReport,
    SearchSummary,
    Seconds,
    SplitResult,
    StreamSummary,
    TrainSummary,
    metrics_json,
)
from bertvision_stream.report.text import render_markdown
from bertvision_stream.settings.settings import TaskSettings, dotted
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import dump_bytes
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StoreStats
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.objectives.base import Objective, PredictorScores
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.objectives.span import score_spans
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.files import write_json, write_text, writing
from bertvision_stream.utils.units import format_bytes, format_seconds


def write_results(
    folder: Path,
    job: Job,
    outcome: StreamOutcome,
    *,
    command: str,
    start: float,
    search: SearchSummary | None = None,
) -> RunReport:
    """Write everything that a run leaves in its folder.

    Raises:
        StreamError: The head failed: its loss was no longer finite.
    """
    settings, data, corpus, plan = job.settings, job.data, job.corpus, job.plan
    backbone, tokenizer, shape = job.backbone, job.tokenizer, job.shape
    head = outcome.heads["head"]
    if head.failure:
        raise StreamError(f"the head was stopped: {head.failure}")
    objective = make_objective(data.task)
    predictor_scores = {
        split.name: _predictor_scores(split.name, objective, outcome, head, settings, corpus)
        for split in data.validation
    }
    splits = tuple(
        _split_result(split, predictor_scores[split.name], objective, corpus)
        for split in data.validation
    )
    report = _report(
        settings, data, corpus, plan, backbone, shape, outcome, head, splits, command, start
    )
    report = replace(report, search=search, notes=(*report.notes, *_search_notes(search)))
    for split in data.validation:
        store = corpus.stores[split.name]
        objective.write_predictions(folder, split, store, predictor_scores[split.name])
    export_model(
        folder / "model",
        head=head.state,
        settings=settings,
        backbone=backbone.weights,
        backbone_folder=backbone.folder,
        tokenizer=tokenizer,
        report=report,
    )
    drawing = time.perf_counter()
    from bertvision_stream.report.html import render_html

    plots = _write_plots(folder / "plots", report, predictor_scores, data, corpus)
    report = _with_stages(report, outcome, start=start, plots=time.perf_counter() - drawing)
    write_text(folder / "report.html", render_html(report, plots))
    write_text(folder / "results.md", render_markdown(report))
    write_json(folder / "metrics.json", metrics_json(report))
    return report


def _write_plots(
    folder: Path,
    report: RunReport,
    predictor_scores: Mapping[str, PredictorScores],
    data: TaskData,
    corpus: Corpus,
) -> list[Path]:
    """Plots of the run; those of a search that came first are listed after them."""
    from bertvision_stream.report.plots import SplitScores, write_plots

    earlier = sorted(folder.glob("*.png"))
    splits = []
    for split in data.validation:
        scores = predictor_scores[split.name].by_name()
        if data.task.per_token:
            store = corpus.stores[split.name]
            spans = {name: score_spans(values, store) for name, values in scores.items()}
            splits.append(SplitScores(split.name, split.labels, {}, spans))
        else:
            splits.append(SplitScores(split.name, split.labels, scores))
    with writing(folder):
        files = write_plots(report, splits, folder)
    return [*files, *(file for file in earlier if file not in files)]


def _with_stages(
    report: RunReport, outcome: StreamOutcome, *, start: float, plots: float
) -> RunReport:
    """The report with all that the run did, in order, and how long it took in all.

    Args:
        report: Of the run.
        outcome: When the stream began, and how long its epochs took.
        start: When the run began, by `time.perf_counter`.
        plots: Seconds that the plots took.
    """
    total = time.perf_counter() - start
    search = report.search.seconds if report.search else 0.0
    first, *later = outcome.epoch_seconds
    stages = {
        "search": search,
        "fine-tuning": report.seconds.finetune,
        "rows, tokens, imports, start of Ray": outcome.began
        - start
        - search
        - report.seconds.finetune,
        "start of extractors and trainer": outcome.start_seconds,
        "epoch 1": first,
        f"epochs 2 to {1 + len(later)}" if len(later) > 1 else "epoch 2": sum(later),
        "plots": plots,
    }
    # An epoch of an interrupted run that was gone on with took its time before this one began.
    stages["the rest"] = total - sum(stages.values())
    kept = {name: seconds for name, seconds in stages.items() if seconds > 0}
    return replace(report, seconds=replace(report.seconds, total=total, stages=kept))


def _predictor_scores(
    split: str,
    objective: Objective,
    outcome: StreamOutcome,
    head: HeadResult,
    settings: TaskSettings,
    corpus: Corpus,
) -> PredictorScores:
    bert_scores = objective.scores(outcome.bert_logits[split])
    head_scores = objective.scores(head.logits[split])
    method = settings.evaluate.ensemble
    both = objective.ensemble(bert_scores, head_scores, method, corpus.stores[split])
    return PredictorScores(bert_scores, head_scores, both)


def _report(
    settings: TaskSettings,
    data: TaskData,
    corpus: Corpus,
    plan: StreamPlan,
    backbone: PreparedBackbone,
    shape: HeadShape,
    outcome: StreamOutcome,
    head: HeadResult,
    splits: tuple[SplitResult, ...],
    command: str,
    start: float,
) -> RunReport:
    train, stats = corpus.stores[TRAIN], outcome.stats
    notes = list(data.notes)
    if not backbone.classifier_trained:
        notes.append(
            "BERT's own classifier is untrained (finetune.epochs=0): its row is by chance."
        )
    if note := disk_note(outcome.store):
        notes.append(note)
    notes += [f"{death}; it was started again" for death in outcome.deaths]
    notes.append(f"the backbone ran on {outcome.extractor}, the head on {outcome.trainer}")
    examples = sum(store.num_examples for store in corpus.stores.values())
    finetuned = settings.finetune.epochs > 0
    trained = Head(settings.head, shape, seed=settings.seed)
    trained.load_state_dict(head.state)
    mix = trained.mix
    return RunReport(
        task=data.task,
        backbone=settings.backbone.name,
        seed=settings.seed,
        ensemble=settings.evaluate.ensemble,
        head=HeadSummary(
            kind=settings.head.kind,
            parameters=head.num_parameters,
            backbone_parameters=backbone.num_parameters,
            mix_weights=tuple(mix.weights.softmax(0).tolist()) if mix else (),
            mix_gamma=mix.gamma.item() if mix else None,
            adapter_shares=head.adapter_shares,
        ),
        splits=splits,
        finetune=FinetuneSummary(
            epochs=settings.finetune.epochs,
            parameters=backbone.num_parameters if finetuned else 0,
            reused=finetuned and not backbone.seconds,
        ),
        train=TrainSummary(
            examples=len(data.train),
            tokens=train.num_tokens,
            history=head.history,
            planned_epochs=settings.train.epochs,
            best_epoch=head.chosen_epoch,
            chosen_by=head.chosen_by,
        ),
        stream=StreamSummary(
            blocks=len(plan.block_bytes),
            blocks_extracted=stats.blocks_extracted,
            blocks_from_cache=stats.blocks_from_cache,
            tokens_extracted=stats.tokens_extracted,
            bytes_per_epoch=plan.budget.epoch_bytes,
            budget_bytes=plan.budget.total_bytes,
            peak_bytes=stats.peak_bytes,
            cache_bytes=stats.cache_bytes,
            spilled_bytes=outcome.store.spilled_bytes,
            fallback_bytes=outcome.store.fallback_bytes,
            dump_bytes_avoided=dump_bytes(
                examples,
                num_layers=shape.num_layers,
                max_length=shape.max_length,
                hidden_size=shape.hidden_size,
            ),
        ),
        seconds=Seconds(
            total=time.perf_counter() - start, finetune=backbone.seconds, stream=outcome.seconds
        ),
        settings=dotted(settings.model_dump()),
        command=command,
        versions={
            "bertvision_stream": __version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("ray", "torch", "transformers")},
        },
        notes=tuple(notes),
    )


def _split_result(
    split: Split, predictor_scores: PredictorScores, objective: Objective, corpus: Corpus
) -> SplitResult:
    store = corpus.stores[split.name]
    metrics = {
        name: objective.all_metrics(scores, store)
        for name, scores in predictor_scores.by_name().items()
    }
    return SplitResult(name=split.name, examples=len(split), **metrics)


def _search_notes(search: SearchSummary | None) -> list[str]:
    if search is None:
        return []
    values = ", ".join(f"{key}={value}" for key, value in search.best_config.items())
    return [
        f"settings found by a search of {search.trials} trials in {format_seconds(search.seconds)} "
        f"on {search.examples:,} training examples: {values}"
    ]


def disk_note(store: StoreStats) -> str:
    """What to say where hidden states may have gone to disk; empty where they did not."""
    if not store.spilled_bytes and not store.fallback_bytes:
        return ""
    return (
        f"WARNING: while this run went on, Ray's object store wrote "
        f"{format_bytes(store.spilled_bytes)} to disk by spilling and "
        f"{format_bytes(store.fallback_bytes)} into files mapped into memory (those of other jobs "
        f"on the cluster included). Lower stream.budget, or give Ray a larger object store."
    )
