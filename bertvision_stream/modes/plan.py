"""`mode=plan`: a run on paper. Nothing is fine-tuned, and no cluster is started."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.job import PlannedJob, TokenizedTask
from bertvision_stream.modes.calibration import calibrate
from bertvision_stream.modes.engine import Runtime
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.planned_backbone import PlannedBackbone
from bertvision_stream.modes.preparation import plan_job, tokenize_task
from bertvision_stream.modes.run_folder import RunFolder
from bertvision_stream.report.plan import CodecPlan, RunPlan, plan_json, render_plan
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockFormat
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    Calibration,
    Speeds,
    adapter_flops,
    dump_bytes,
    epoch_seconds,
    epoch_work,
    forecast,
    forward_flops,
    mean_attended_tokens,
)
from bertvision_stream.stream.placement import ClusterResources, Placement, plan_placement
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_json, write_text
from bertvision_stream.utils.log import log


def plan_task(inputs: TaskInputs, folder: RunFolder, runtime: Runtime) -> None:
    """Say what a run would take, and write it down.

    Args:
        inputs: The settings with `plan.*`, the rows, and what is known of the backbone.
        folder: The folder for the results.
        runtime: Knows the cluster that is planned for.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: The configuration or the tokenizer cannot be loaded.
    """
    plan = make_plan(inputs, runtime.planned_cluster(inputs.settings))
    text = render_plan(plan)
    write_text(folder.path / "plan.txt", text)
    write_json(folder.path / "plan.json", plan_json(plan))
    log.info("\n%s", text)
    log.info("plan in %s", folder.path)


def make_plan(inputs: TaskInputs, cluster: ClusterResources) -> RunPlan:
    """Count what is known, measure or take the speeds, and estimate the rest.

    Args:
        inputs: The settings with `plan.*`, the rows, and what is known of the backbone.
        cluster: The cluster that is planned for.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: The configuration or the tokenizer cannot be loaded.
    """
    settings = inputs.settings
    tokenized = tokenize_task(inputs)
    on_this_machine = settings.plan.extractors == "auto"
    placement = plan_placement(cluster, settings) if on_this_machine else _given(settings)
    job = plan_job(tokenized, cluster, placement)
    chosen = _codec_plan(job)
    others = [codec for codec in get_args(Codec) if codec != chosen.codec]
    shape, stores = tokenized.shape, tokenized.stores
    lengths = np.concatenate([store.lengths for store in stores.values()])
    flops = forward_flops(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=_intermediate_size(tokenized.config),
        attended=mean_attended_tokens(lengths.tolist()),
    )
    calibration = None
    if settings.plan.tokens_per_second is None:
        log.info("measuring for a few seconds ...")
        calibration = calibrate(job, forward_flops=flops)
    shared = on_this_machine and not cluster.num_gpus
    speeds = _speeds(settings, placement, cluster, calibration, shared=shared)
    train, validation = stores[TRAIN], [s for name, s in stores.items() if name != TRAIN]
    adapter = settings.head.kind == "adapter_pooler"
    assert inputs.planned is not None
    return RunPlan(
        task=tokenized.task.name,
        backbone=settings.backbone.name,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        train_examples=train.num_examples,
        train_tokens=train.num_tokens,
        validation_examples=sum(store.num_examples for store in validation),
        validation_tokens=sum(store.num_tokens for store in validation),
        epochs=settings.train.epochs,
        dump_bytes=dump_bytes(
            sum(store.num_examples for store in stores.values()),
            num_layers=shape.num_layers,
            max_length=shape.max_length,
            hidden_size=shape.hidden_size,
        ),
        forward_flops=flops,
        adapter_flops=adapter_flops(
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            adapter_dim=settings.head.adapter_dim,
        )
        if adapter
        else 0.0,
        codecs=(chosen, *(_other_codec(tokenized, job, codec, chosen) for codec in others)),
        speeds=speeds,
        store_bytes=cluster.store_bytes,
        store_room=job.store_bytes,
        calibration=calibration,
        first=epoch_seconds(epoch_work(job.plan, first=True), speeds),
        later=epoch_seconds(epoch_work(job.plan, first=False), speeds),
        finetune_seconds=_finetune_seconds(settings, train, speeds),
        notes=_notes(settings, inputs.planned, cluster, calibration, placement),
    )


def _given(settings: TaskSettings) -> Placement:
    """The extractors of a cluster that is not here: no more is known than their number."""
    assert settings.plan.extractors != "auto"
    gpus = settings.extract.num_gpus
    return Placement(settings.plan.extractors, 1, 0 if gpus == "auto" else gpus, 1, 0, 1)


def _codec_plan(job: PlannedJob) -> CodecPlan:
    """What the plan of a job is for the codec of its settings."""
    plan, codec = job.plan, job.settings.extract.codec
    return CodecPlan(
        codec=codec,
        token_bytes=BlockFormat.of(job.shape, codec).token_bytes,
        block_tokens=job.block_tokens,
        block_bytes=plan.largest_bytes,
        blocks=len(plan.block_bytes),
        epoch_bytes=plan.budget.epoch_bytes,
        budget_bytes=plan.budget.total_bytes,
        cached_share=plan.budget.cached_share,
        forecast=forecast(plan, epochs=plan.num_epochs),
    )


def _other_codec(
    tokenized: TokenizedTask, job: PlannedJob, codec: Codec, chosen: CodecPlan
) -> CodecPlan:
    """What another codec would make of the job; the budget may have no room for its blocks."""
    settings = tokenized.settings
    extract = settings.extract.model_copy(update={"codec": codec})
    other = replace(tokenized, settings=settings.model_copy(update={"extract": extract}))
    try:
        return _codec_plan(plan_job(other, job.cluster, job.placement))
    except ConfigError as error:
        block_format = BlockFormat.of(tokenized.shape, codec)
        sizes = [(store.num_tokens, store.num_examples) for store in tokenized.stores.values()]
        return CodecPlan(
            codec=codec,
            token_bytes=block_format.token_bytes,
            block_tokens=chosen.block_tokens,
            block_bytes=round(chosen.block_bytes / chosen.token_bytes * block_format.token_bytes),
            blocks=chosen.blocks,
            epoch_bytes=sum(block_format.block_bytes(*size) for size in sizes),
            refused=str(error),
        )


def _speeds(
    settings: TaskSettings,
    placement: Placement,
    cluster: ClusterResources,
    calibration: Calibration | None,
    *,
    shared: bool,
) -> Speeds:
    plan = settings.plan
    extract_rate, train_rate = plan.tokens_per_second, plan.head_tokens_per_second
    if calibration is not None:
        extract_rate = calibration.extract_tokens_per_second
        train_rate = train_rate or calibration.train_tokens_per_second
    assert extract_rate is not None
    several = cluster.num_nodes > 1
    return Speeds(
        extractors=placement.num_extractors,
        extract_tokens_per_second=extract_rate,
        trainers=settings.train.num_trainers,
        train_tokens_per_second=train_rate,
        nodes=cluster.num_nodes,
        network_bytes_per_second=plan.network_gbps * GIGABIT_BYTES if several else math.inf,
        shared_cores=cluster.num_cpus if shared else None,
    )


def _finetune_seconds(settings: TaskSettings, train: TokenStore, speeds: Speeds) -> float:
    """Forward and backward pass of every token, on the devices that fine-tune."""
    devices = speeds.shared_cores or settings.finetune.num_workers
    tokens = 3 * settings.finetune.epochs * train.num_tokens
    return tokens / speeds.extract_tokens_per_second / devices


def _notes(
    settings: TaskSettings,
    backbone: PlannedBackbone,
    cluster: ClusterResources,
    calibration: Calibration | None,
    placement: Placement,
) -> tuple[str, ...]:
    plan = settings.plan
    notes = [backbone.note] if backbone.note else []
    if plan.store == "auto":
        joined = settings.ray.address or os.environ.get("RAY_ADDRESS")
        whose = "the cluster's" if joined else "what Ray would take of this machine's memory"
        notes.append(f"the size of the object stores is {whose}; plan.store sets another")
    if plan.extractors != "auto" and calibration is not None:
        notes.append(
            f"each of the {plan.extractors:,} extractors is taken to be as fast as the one "
            f"measured here; plan.tokens_per_second sets another speed"
        )
    if placement.extractor_gpus and calibration is not None and calibration.device == "cpu":
        notes.append("the extractors would have GPUs, but here is none to measure")
    if cluster.num_nodes > 1:
        notes.append(
            f"extractors are spread evenly over {cluster.num_nodes} nodes of "
            f"{plan.network_gbps:g} Gb/s each (plan.network_gbps)"
        )
    return tuple(notes)


def _gpu_here() -> bool:
    return torch.cuda.is_available()


def _intermediate_size(config: Any) -> int:
    """DistilBERT has another name for it."""
    return int(getattr(config, "intermediate_size", None) or config.hidden_dim)
