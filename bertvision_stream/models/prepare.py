"""The backbone of a run: fine-tuned now, found again from an earlier run, or taken as it is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertvision_stream.models.backbone import BackboneWeights, load_classifier, set_output_bias
from bertvision_stream.models.finetune import FinetuneOptions, content_hash
from bertvision_stream.models.finetuned_store import find_finetuned, save_finetuned
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.units import format_seconds


@dataclass(frozen=True)
class PreparedBackbone:
    """A classifier ready to be frozen.

    Attributes:
        weights: Its parameters.
        folder: Where it is on disk; None where `finetune.epochs=0` left the source as it was.
        seconds: What fine-tuning took in this run; 0 where it was found again.
        classifier_trained: Whether its classification layer means anything.
        scores: Its metrics by validation split, measured after the fine-tuning; empty without one.
    """

    weights: BackboneWeights
    folder: Path | None
    seconds: float
    classifier_trained: bool
    scores: Mapping[str, Mapping[str, float]]

    @property
    def num_parameters(self) -> int:
        return sum(array.size for array in self.weights.arrays.values())


def prepare_backbone(
    settings: TaskSettings,
    task: Task,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    cluster: ClusterResources,
    *,
    reuse: bool,
    show_progress: bool,
    say: Callable[[str], None],
) -> PreparedBackbone:
    """Fine-tune the backbone as `finetune.*` says, or find the result of the same one.

    Args:
        settings: Of the task.
        task: What is learned.
        corpus: Tokens and labels.
        tokenizer: Saved beside the weights.
        source: Where the backbone comes from.
        cluster: What there is to run on.
        reuse: Whether a result of the same fine-tuning may be taken.
        show_progress: Whether to draw a bar.
        say: Prints a line.

    Raises:
        BackboneError: The source cannot be loaded.
        ConfigError: More workers than the cluster has room for.
        StreamError: The fine-tuning failed.
    """
    options = FinetuneOptions(
        epochs=settings.finetune.epochs,
        lr=settings.finetune.lr,
        batch_size=settings.finetune.batch_size,
        seed=settings.seed,
        dtype=settings.backbone.dtype,
    )
    objective = make_objective(task)
    model, has_classifier = load_classifier(
        source,
        num_labels=task.num_labels,
        label_names=task.label_names,
        per_token=task.per_token,
        revision=settings.backbone.revision,
        seed=settings.seed,
    )
    if options.epochs == 0:
        return PreparedBackbone(BackboneWeights.of(model), None, 0.0, has_classifier, {})
    bias = objective.initial_bias(corpus.stores[TRAIN].labels)
    if bias is not None and not has_classifier:
        set_output_bias(model, bias)
    num_workers = settings.finetune.num_workers
    commit = getattr(model.config, "_commit_hash", None)
    key = content_hash(
        source,
        commit,
        corpus.stores[TRAIN],
        options,
        outputs=task.label_names,
        num_workers=num_workers,
    )
    folder = Path(settings.output_dir) / "backbones" / f"{task.name}-{key}"
    record = find_finetuned(folder) if reuse else None
    if record is not None:
        say(f"fine-tuning: found again in {folder}")
        model, _ = load_classifier(
            str(folder),
            num_labels=task.num_labels,
            label_names=task.label_names,
            per_token=task.per_token,
        )
        return PreparedBackbone(BackboneWeights.of(model), folder, 0.0, True, record["validation"])
    check_num_workers(num_workers, cluster)
    use_gpu = cluster.num_gpus > 0
    from actors.finetune import run_finetune

    say(f"fine-tuning for {options.epochs:g} epochs at {options.lr:g} ...")
    result = run_finetune(
        BackboneWeights.of(model),
        corpus,
        objective,
        options,
        num_workers=num_workers,
        cpus_per_worker=1 if use_gpu else max(1, cluster.num_cpus // num_workers),
        use_gpu=use_gpu,
        show_progress=show_progress,
    )
    scores = objective.metrics_by_split(result.logits, corpus.stores)
    record = {
        "task": task.name,
        "backbone": settings.backbone.name,
        "options": asdict(options),
        "num_workers": num_workers,
        "examples": corpus.stores[TRAIN].num_examples,
        "tokens": corpus.stores[TRAIN].num_tokens,
        "content_hash": key,
        "seconds": result.seconds,
        "validation": scores,
    }
    save_finetuned(folder, result.weights, tokenizer, record)
    say(f"fine-tuned in {format_seconds(result.seconds)}: {folder}")
    return PreparedBackbone(result.weights, folder, result.seconds, True, scores)


def check_num_workers(num_workers: int, cluster: ClusterResources) -> None:
    """Raises `ConfigError` for more workers than the cluster has room for."""
    use_gpu = cluster.num_gpus > 0
    if num_workers > (cluster.num_gpus if use_gpu else cluster.num_cpus):
        what = f"{cluster.num_gpus} GPUs" if use_gpu else f"{cluster.num_cpus} CPU cores"
        raise ConfigError(
            f"finetune.num_workers={num_workers} is more than the cluster's {what}; lower it"
        )


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned classifier and its validation logits by split, float32 [R, C]."""

    weights: BackboneWeights
    logits: dict[str, np.ndarray]
    seconds: float
