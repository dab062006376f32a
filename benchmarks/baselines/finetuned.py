"""Fine-tune all of BERT for several epochs; or for fewer, and then train a head on the stream."""

import time
from dataclasses import replace
from pathlib import Path

from actors.engine import RayEngine
from benchmarks.baselines.outcome import Curve
from benchmarks.inputs import CPU, Inputs, cluster, make_job, run_head
from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    rescale_output,
)
from bertvision_stream.models.extract import validation_logits
from bertvision_stream.models.finetune import FinetuneOptions, StepReport, finetune
from bertvision_stream.models.prepare import prepare_backbone
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.metrics import main_score
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.devices import pick_dtype

# Full fine-tuning is scored so often in an epoch, at the next step that the loop reports.
POINTS_AN_EPOCH = 3


def finetuned(inputs: Inputs, folder: Path) -> Curve:
    """All weights, for `finetune.epochs` epochs, by the loop of a run, in this process.

    The evaluations are left out of the times, as fewer of them would do.
    """
    settings, task, stores = inputs.settings, inputs.task, inputs.corpus.stores
    objective = make_objective(task)
    model, has_classifier = load_classifier(
        inputs.tokenized.source, num_labels=task.num_labels, seed=settings.seed
    )
    if task.kind == "regression" and not has_classifier:
        mean, std = objective.target_scale(stores[TRAIN].labels)
        rescale_output(model, mean=mean, std=std)
    options = FinetuneOptions(
        epochs=settings.finetune.epochs,
        lr=settings.finetune.lr,
        batch_size=settings.finetune.batch_size,
        seed=settings.seed,
        dtype=settings.backbone.dtype,
    )
    points: list[tuple[str, float, float]] = []
    evaluating = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal evaluating
        epochs = options.epochs * report.step / report.total_steps
        if epochs * POINTS_AN_EPOCH < len(points) + 1 and report.step < report.total_steps:
            return
        begun = time.time()
        weights = BackboneWeights.of(model)
        backbone = Backbone(weights.build(), device=CPU, dtype=pick_dtype(options.dtype, CPU))
        logits = validation_logits(backbone, inputs.corpus, objective)
        score = main_score(objective.metrics_by_split(logits, stores))
        points.append((f"{epochs:.2f} epochs of fine-tuning", begun - evaluating, score))
        evaluating += time.time() - begun

    finetune(model, stores[TRAIN], objective, options, device=CPU, on_step=on_step)
    steps, times, scores = zip(*points, strict=True)
    return Curve(steps, times, scores)


def finetuned_then_streamed(inputs: Inputs, folder: Path) -> Curve:
    """A run of ours: `finetune.epochs` under Ray Train, then a head on the stream, all cached.

    The first point is BERT's own score. The times hold everything: Ray, its workers, evaluations.
    """
    with cluster():
        job = make_job(inputs, cache=inputs.epoch_bytes)
        settings = job.settings.model_copy(update={"output_dir": str(folder)})
        job = replace(job, settings=settings)
        backbone = prepare_backbone(job, RayEngine().fine_tune, reuse=False)
        times = [time.time()]
        outcome = run_head(
            replace(job, backbone=backbone),
            on_epoch=lambda checkpoint: times.append(time.time()),
        )
    history = outcome.heads["head"].history
    scores = [backbone.scores, *(record.scores for record in history)]
    return Curve(
        steps=(
            f"{settings.finetune.epochs:.2f} epochs of fine-tuning",
            *(f"head, epoch {record.epoch}" for record in history),
        ),
        times=tuple(times),
        scores=tuple(main_score(each) for each in scores),
    )
