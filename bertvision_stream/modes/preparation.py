"""The steps before heads are trained: tokens, blocks, budget and backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bertvision_stream.data.tokenize import tokenize_splits
from bertvision_stream.models.backbone import load_config, load_tokenizer, weight_bytes
from bertvision_stream.models.encoder_check import check_ids, num_positions
from bertvision_stream.models.job import Job, PlannedJob, TokenizedTask
from bertvision_stream.models.prepare import prepare_backbone
from bertvision_stream.modes.engine import Engine
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import BlockFormat
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources, Placement, plan_placement
from bertvision_stream.stream.plan import choose_block_tokens, plan_stream
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.utils.errors import ConfigError


def tokenize_task(inputs: TaskInputs) -> TokenizedTask:
    """Tokenize every split with the tokenizer of the backbone.

    Args:
        inputs: The settings, the rows and the source of the backbone.

    Raises:
        ConfigError: `data.max_length` is more than the backbone has positions.
        BackboneError: The configuration or the tokenizer cannot be loaded, or they do not belong
            together.
    """
    settings, revision = inputs.settings, inputs.settings.backbone.revision
    if inputs.planned is not None:
        config = inputs.planned.config(revision)
        tokenizer = load_tokenizer(inputs.planned.tokenizer_source, revision)
    else:
        config = load_config(inputs.source, revision)
        tokenizer = load_tokenizer(inputs.source, revision)
    stores = tokenize_splits(inputs.data, tokenizer, settings.data, num_positions(config))
    highest_id = max(int(store.input_ids.max()) for store in stores.values())
    check_ids(highest_id, config, settings.backbone.name)
    return TokenizedTask(
        settings=settings,
        data=inputs.data,
        source=inputs.source,
        config=config,
        tokenizer=tokenizer,
        stores=stores,
    )


def plan_job(
    tokenized: TokenizedTask,
    cluster: ClusterResources,
    placement: Placement,
    *,
    block_tokens: int | None = None,
    epochs_done: int = 0,
) -> PlannedJob:
    """Decide on the blocks and the budget, in `mode=plan` and in every run alike.

    Args:
        tokenized: The task as tokens.
        cluster: The resources to run on.
        placement: The number of actors, and what each of them gets of the resources.
        block_tokens: The most tokens of a block, in a run that is resumed; None decides on it.
        epochs_done: The epochs that the run which is resumed has finished.

    Raises:
        ConfigError: The settings and the memory of the cluster do not fit together.
    """
    settings, stores = tokenized.settings, tokenized.stores
    weights = weight_bytes(tokenized.config, per_token=tokenized.task.per_token)
    resident_bytes = weights + sum(store.nbytes for store in stores.values())
    store_bytes = cluster.free_store_bytes(resident_bytes)
    block_format = BlockFormat.of(tokenized.shape, settings.extract.codec)
    if block_tokens is None:
        block_tokens = choose_block_tokens(
            settings,
            stores,
            block_format,
            store_bytes=store_bytes,
            num_extractors=placement.num_extractors,
            on_gpu=placement.extractor_gpus > 0,
        )
    corpus = Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed)
    plan = plan_stream(
        settings,
        corpus,
        block_format,
        num_extractors=placement.num_extractors,
        num_nodes=cluster.num_nodes,
        store_bytes=store_bytes,
        # With the same order in every epoch, a head that joins a search late is given the blocks as
        # it would have been given them from the start.
        same_order=settings.mode == "search",
        epochs_done=epochs_done,
    )
    return PlannedJob(
        **vars(tokenized),
        cluster=cluster,
        placement=placement,
        store_bytes=store_bytes,
        block_tokens=block_tokens,
        corpus=corpus,
        plan=plan,
    )


def prepare_job(
    inputs: TaskInputs,
    engine: Engine,
    *,
    checkpoint: Checkpoint | None = None,
    reuse: bool = False,
) -> Job:
    """Take all steps that are needed before heads are trained.

    Args:
        inputs: The settings, the rows and the source of the backbone.
        engine: The engine, which knows the resources and fine-tunes.
        checkpoint: The checkpoint of the run that is resumed; None if none is.
        reuse: Whether the result of the same fine-tuning may be taken even if `finetune.reuse` is
            false, because this very run has made it.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: The backbone cannot be loaded.
        StreamError: The fine-tuning failed.
    """
    settings = inputs.settings
    tokenized = tokenize_task(inputs)
    cluster = engine.resources()
    placement = plan_placement(cluster, settings)
    then = checkpoint.facts if checkpoint else {}
    planned = plan_job(
        tokenized,
        cluster,
        placement,
        block_tokens=then["run"]["block_tokens"] if then else None,
        epochs_done=then["epoch"] if then else 0,
    )
    reuse = settings.finetune.reuse or reuse or checkpoint is not None
    backbone = prepare_backbone(_leave_finetuning_to_trials(planned), engine.fine_tune, reuse=reuse)
    on_backbones = settings.mode == "search" and settings.search.target == "backbone"
    settings = with_start(settings, trained=backbone.classifier_trained or on_backbones)
    return Job(**{**vars(planned), "settings": settings}, backbone=backbone)


def with_start(settings: TaskSettings, *, trained: bool) -> TaskSettings:
    """The settings with `head.start=auto` decided.

    Args:
        settings: The settings of a task, or of one head.
        trained: Whether BERT's own classifier is trained, so that a head can begin as it.

    Raises:
        ConfigError: A head is to begin as a classifier that is untrained.
    """
    head, searched = settings.head, settings.search.space.get("head.start", ())
    if not trained and (head.start == "bert" or "bert" in searched):
        raise ConfigError(
            "head.start=bert: BERT's own classifier is untrained (finetune.epochs=0), so that a "
            "head which begins as BERT would begin with chance. Fine-tune it, or leave bert out."
        )
    if head.start != "auto":
        return settings
    start = {"start": "bert" if trained else "new"}
    return settings.model_copy(update={"head": head.model_copy(update=start)})


def _leave_finetuning_to_trials(job: PlannedJob) -> PlannedJob:
    """The job without fine-tuning if it is a search over backbones, whose trials fine-tune."""
    settings = job.settings
    if settings.mode != "search" or settings.search.target != "backbone":
        return job
    finetune = settings.finetune.model_copy(update={"epochs": 0.0})
    return replace(job, settings=settings.model_copy(update={"finetune": finetune}))


def check_unchanged(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that an interrupted run can be resumed with the job of now.

    Args:
        then: The `Job.facts` in the checkpoint of the interrupted run.
        now: The `Job.facts` of now.

    Raises:
        ConfigError: The facts differ, so that resuming would not give the numbers of a run without
            interruption.
    """
    causes = {
        "corpus": "the rows, the tokenizer or the blocks are not those that it began with",
        "backbone": "the fine-tuned backbone is not the one that it began with",
    }
    changed = [cause for key, cause in causes.items() if then[key] != now[key]]
    if changed:
        raise ConfigError(
            f"resume=true cannot go on with the interrupted run: {'; '.join(changed)}. Leave "
            f"resume out to begin anew."
        )
