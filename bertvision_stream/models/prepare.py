"""The backbone of a run: fine-tuned now, found again from an earlier run, or taken as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    rescale_output,
)
from bertvision_stream.models.encoder_check import check_states
from bertvision_stream.models.extract import validation_logits
from bertvision_stream.models.finetune import FinetuneOptions, content_hash
from bertvision_stream.models.finetuned_store import (
    FinetuneRecord,
    find_finetuned,
    reusing,
    save_finetuned,
    when_finetuned,
)
from bertvision_stream.models.job import PlannedJob, PreparedBackbone
from bertvision_stream.models.sources import hub_commit
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.devices import pick_dtype
from bertvision_stream.utils.errors import BackboneError, ConfigError
from bertvision_stream.utils.log import log
from bertvision_stream.utils.units import format_seconds


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned classifier.

    Attributes:
        weights: The fine-tuned parameters.
        logits: The validation logits by split, float32 [R, C] as `Objective` keeps them.
        seconds: The wall time of the fine-tuning, the start of its processes included.
    """

    weights: BackboneWeights
    logits: dict[str, np.ndarray]
    seconds: float


FineTune = Callable[[PlannedJob, BackboneWeights, FinetuneOptions], FinetuneResult]
"""Fine-tunes a classifier on the training split of a job, and evaluates it: `Engine.fine_tune`."""


def prepare_backbone(job: PlannedJob, fine_tune: FineTune, *, reuse: bool) -> PreparedBackbone:
    """Fine-tune the backbone as `finetune.*` says, or find the result of the same fine-tuning.

    Args:
        job: The task, tokenized and planned.
        fine_tune: Does the work.
        reuse: Whether the result of an earlier fine-tuning with the same inputs may be taken.

    Raises:
        BackboneError: The source cannot be loaded.
        ConfigError: `finetune.num_workers` is more than the cluster has room for.
        StreamError: The fine-tuning failed.
    """
    settings, task = job.settings, job.task
    train = job.stores[TRAIN]
    options = FinetuneOptions(
        epochs=settings.finetune.epochs,
        lr=settings.finetune.lr,
        batch_size=settings.finetune.batch_size,
        seed=settings.seed,
        dtype=settings.backbone.dtype,
    )
    if options.epochs == 0:
        model, has_classifier = _load(job, job.source)
        return PreparedBackbone(BackboneWeights.of(model), None, 0.0, has_classifier, {})
    num_workers = settings.finetune.num_workers
    key = content_hash(
        job.source,
        hub_commit(job.source, settings.backbone.revision),
        train,
        options,
        outputs=task.label_names,
        num_workers=num_workers,
    )
    folder = Path(settings.output_dir) / "backbones" / f"{task.name}-{key}"
    if reuse and (found := find_finetuned(folder)) is not None:
        log.info("fine-tuning: found again in %s", folder)
        return _reuse(job, folder, found, seconds=0.0)
    saved_before = when_finetuned(folder)
    check_num_workers(num_workers, job.cluster)
    model, has_classifier = _load(job, job.source)
    objective = make_objective(task)
    if task.kind == "regression" and not has_classifier:
        mean, std = objective.target_scale(train.labels)
        rescale_output(model, mean=mean, std=std)
    log.info("fine-tuning for %g epochs at %g ...", options.epochs, options.lr)
    result = fine_tune(job, BackboneWeights.of(model), options)
    scores = objective.metrics_by_split(result.logits, job.stores)
    record = {
        "task": task.name,
        "backbone": settings.backbone.name,
        "options": asdict(options),
        "num_workers": num_workers,
        "examples": train.num_examples,
        "tokens": train.num_tokens,
        "content_hash": key,
        "seconds": result.seconds,
        "validation": scores,
    }
    if when_finetuned(folder) == saved_before:
        save_finetuned(folder, result.weights, job.tokenizer, record)
    log.info("fine-tuned in %s: %s", format_seconds(result.seconds), folder)
    found = find_finetuned(folder)
    if found is not None and not found.is_of(result.weights):
        # The numbers of two GPUs may differ in their last bits, and exported heads of that run
        # refer to what is in the folder.
        log.info("another run has finished the same fine-tuning meanwhile: its result is taken")
        return _reuse(job, folder, found, seconds=result.seconds)
    return PreparedBackbone(result.weights, folder, result.seconds, True, scores)


def evaluate_classifier(
    model: PreTrainedModel,
    corpus: Corpus,
    task: Task,
    options: FinetuneOptions,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Take the parameters of a fine-tuned classifier, then evaluate it as it will be frozen.

    Args:
        model: The classifier in fp32; its encoder is cast in place to the precision of forward
            passes.
        corpus: The validation splits.
        task: What is learned.
        options: Says the precision.
        device: Where to compute.

    Returns:
        The state dict in float32, and the validation logits by split, float32 [R, C].
    """
    arrays = BackboneWeights.of(model.cpu()).arrays
    arrays = {name: array.copy() for name, array in arrays.items()}  # the cast below is in place
    backbone = Backbone(model, device=device, dtype=pick_dtype(options.dtype, device))
    return arrays, validation_logits(backbone, corpus, make_objective(task))


def check_num_workers(num_workers: int, cluster: ClusterResources) -> None:
    """Raises `ConfigError` for more workers than the cluster has room for."""
    use_gpu = cluster.num_gpus > 0
    if num_workers > (cluster.num_gpus if use_gpu else cluster.num_cpus):
        what = f"{cluster.num_gpus} GPUs" if use_gpu else f"{cluster.num_cpus} CPU cores"
        raise ConfigError(
            f"finetune.num_workers={num_workers} is more than the cluster's {what}; lower it"
        )


def _reuse(
    job: PlannedJob, folder: Path, record: FinetuneRecord, *, seconds: float
) -> PreparedBackbone:
    """The backbone in the folder of a finished fine-tuning.

    Args:
        job: The task, tokenized and planned.
        folder: The folder.
        record: What `find_finetuned` found there.
        seconds: What fine-tuning took in this run.

    Raises:
        BackboneError: The files are damaged.
    """
    with reusing(folder):
        model, has_classifier = _load(job, str(folder))
        weights = BackboneWeights.of(model)
        if not has_classifier:
            raise BackboneError("the weights of its classification layer are missing")
        if record.hashes is not None and not record.is_of(weights):
            raise BackboneError("its weights are not those that were written")
    return PreparedBackbone(weights, folder, seconds, True, record.validation)


def _load(job: PlannedJob, source: str) -> tuple[PreTrainedModel, bool]:
    """The classifier for the job's task, and whether its last layer came with the source."""
    settings, task = job.settings, job.task
    model, has_classifier = load_classifier(
        source,
        num_labels=task.num_labels,
        label_names=task.label_names,
        per_token=task.per_token,
        revision=settings.backbone.revision if source == job.source else None,
        seed=settings.seed,
    )
    check_states(model, settings.backbone.name)
    return model, has_classifier
