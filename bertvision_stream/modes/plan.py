"""`mode=plan`: a run on paper. No fine-tuning, no actors, and no cluster but one that is joined."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

from actors.cluster import cluster_resources, connect
from bertvision_stream.data.splits import TaskData
from bertvision_stream.data.tokenize import tokenize_splits
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.shape import HeadShape, hidden_shape
from bertvision_stream.models.backbone import load_tokenizer, weight_bytes
from bertvision_stream.modes.calibration import calibrate
from bertvision_stream.modes.planned_backbone import PlannedBackbone
from bertvision_stream.modes.run_folder import RunFolder
from bertvision_stream.report.plan import CodecPlan, RunPlan
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockFormat
from bertvision_stream.stream.corpus import Corpus
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
from bertvision_stream.stream.plan import StreamPlan, choose_block_tokens, plan_stream
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log


def make_plan(
    settings: TaskSettings, data: TaskData, backbone: PlannedBackbone, say: Callable[[str], None]
) -> RunPlan:
    """Count what is known, measure or take the speeds, and estimate the rest.

    Args:
        settings: Of the task, with `plan.*`.
        data: Its rows.
        backbone: Its configuration and tokenizer, or what stands in for them.
        say: Prints a line.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: Configuration or tokenizer cannot be loaded.
    """
    config = backbone.config(settings.backbone.revision)
    tokenizer = load_tokenizer(backbone.tokenizer_source, settings.backbone.revision)
    stores = tokenize_splits(data, tokenizer, settings.data, config, say)
    num_layers, hidden_size = hidden_shape(config)
    cluster = _planned_cluster(settings)
    here = settings.plan.extractors == "auto"
    placement = plan_placement(cluster, settings) if here else _given(settings)
    task = data.task
    weights_bytes = weight_bytes(config, per_token=task.per_token)
    resident_bytes = weights_bytes + sum(store.nbytes for store in stores.values())
    free_store_bytes = cluster.free_store_bytes(resident_bytes)
    block_format = BlockFormat(
        num_layers, hidden_size, task.num_labels, settings.extract.codec, task.per_token
    )
    others = [codec for codec in get_args(Codec) if codec != settings.extract.codec]
    stream_plan, chosen = _codec_plan(
        settings, stores, block_format, placement, cluster, free_store_bytes
    )
    codecs = [chosen]
    for codec in others:
        other = replace(block_format, codec=codec)
        try:
            codecs.append(
                _codec_plan(settings, stores, other, placement, cluster, free_store_bytes)[1]
            )
        except ConfigError as error:
            codecs.append(_refused(codec, other, stores, chosen, str(error)))
    lengths = np.concatenate([store.lengths for store in stores.values()])
    flops = forward_flops(
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(config),
        attended=mean_attended_tokens(lengths.tolist()),
    )
    calibration = None
    if settings.plan.tokens_per_second is None:
        say("measuring for a few seconds ...")
        calibration = calibrate(
            config,
            stores[TRAIN],
            task,
            HeadShape(
                num_layers, hidden_size, task.num_labels, settings.data.max_length, task.per_token
            ),
            settings,
            device=torch.device("cuda" if placement.extractor_gpus and _gpu_here() else "cpu"),
            num_threads=placement.extractor_threads,
            forward_flops=flops,
            heads=0 if settings.plan.head_tokens_per_second else settings.plan.heads,
        )
    shared = here and not cluster.num_gpus
    speeds = _speeds(settings, placement, cluster, calibration, shared=shared)
    train, validation = stores[TRAIN], [s for name, s in stores.items() if name != TRAIN]
    num_examples = sum(store.num_examples for store in stores.values())
    adapter = settings.head.kind == "adapter_pooler"
    return RunPlan(
        task=task.name,
        backbone=settings.backbone.name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        train_examples=train.num_examples,
        train_tokens=train.num_tokens,
        validation_examples=sum(store.num_examples for store in validation),
        validation_tokens=sum(store.num_tokens for store in validation),
        epochs=settings.train.epochs,
        dump_bytes=dump_bytes(
            num_examples,
            num_layers=num_layers,
            max_length=settings.data.max_length,
            hidden_size=hidden_size,
        ),
        forward_flops=flops,
        adapter_flops=adapter_flops(
            num_layers=num_layers, hidden_size=hidden_size, adapter_dim=settings.head.adapter_dim
        )
        if adapter
        else 0.0,
        codecs=tuple(codecs),
        speeds=speeds,
        store_bytes=cluster.store_bytes,
        free_store_bytes=free_store_bytes,
        calibration=calibration,
        first=epoch_seconds(epoch_work(stream_plan, first=True), speeds),
        later=epoch_seconds(epoch_work(stream_plan, first=False), speeds),
        finetune_seconds=_finetune_seconds(settings, train, speeds),
        notes=_notes(settings, backbone, cluster, calibration, placement),
    )


def _planned_cluster(settings: TaskSettings) -> ClusterResources:
    """The cluster to join, or this machine as a cluster; scaled to the nodes that are planned."""
    if settings.ray.address or os.environ.get("RAY_ADDRESS"):
        connect(settings.ray.address)
        cluster = cluster_resources()
    else:
        # What Ray would make of this machine, without starting it.
        found = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
        cluster = ClusterResources(
            num_cpus=int(found.get("CPU", 1)),
            num_gpus=int(found.get("GPU", 0)),
            num_nodes=1,
            store_bytes=int(found["object_store_memory"]),
            memory_bytes=int(found.get("memory", 0)),
        )
    nodes = cluster.num_nodes if settings.plan.nodes == "auto" else settings.plan.nodes
    store = settings.plan.store
    if nodes == cluster.num_nodes and store == "auto":
        return cluster
    scale = nodes / cluster.num_nodes
    return ClusterResources(
        num_cpus=round(cluster.num_cpus * scale),
        num_gpus=round(cluster.num_gpus * scale),
        num_nodes=nodes,
        store_bytes=round(cluster.store_bytes * scale) if store == "auto" else store * nodes,
        memory_bytes=round(cluster.memory_bytes * scale),
    )


def _given(settings: TaskSettings) -> Placement:
    """Extractors of a cluster that is not here: no more is known than their number."""
    assert settings.plan.extractors != "auto"
    gpus = settings.extract.num_gpus
    return Placement(settings.plan.extractors, 1, 0 if gpus == "auto" else gpus, 1, 0, 1)


def _codec_plan(
    settings: TaskSettings,
    stores: Mapping[str, TokenStore],
    block_format: BlockFormat,
    placement: Placement,
    cluster: ClusterResources,
    free_store_bytes: int,
) -> tuple[StreamPlan, CodecPlan]:
    """The plan that a run would make, with the functions that it would make it with."""
    block_tokens = choose_block_tokens(
        settings,
        stores,
        block_format,
        store_bytes=free_store_bytes,
        num_extractors=placement.num_extractors,
        on_gpu=placement.extractor_gpus > 0,
    )
    plan = plan_stream(
        settings,
        Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed),
        block_format,
        num_extractors=placement.num_extractors,
        num_nodes=cluster.num_nodes,
        store_bytes=free_store_bytes,
    )
    return plan, CodecPlan(
        codec=block_format.codec,
        token_bytes=block_format.token_bytes,
        block_tokens=block_tokens,
        block_bytes=plan.largest_bytes,
        blocks=len(plan.block_bytes),
        epoch_bytes=plan.budget.epoch_bytes,
        budget_bytes=plan.budget.total_bytes,
        cached_share=plan.budget.cached_share,
        forecast=forecast(plan, epochs=plan.num_epochs),
    )


def _refused(
    codec: str,
    block_format: BlockFormat,
    stores: Mapping[str, TokenStore],
    chosen: CodecPlan,
    reason: str,
) -> CodecPlan:
    """A codec that the budget has no room for; its blocks as those of the chosen one."""
    sizes = [(store.num_tokens, store.num_examples) for store in stores.values()]
    return CodecPlan(
        codec=codec,
        token_bytes=block_format.token_bytes,
        block_tokens=chosen.block_tokens,
        block_bytes=round(chosen.block_bytes / chosen.token_bytes * block_format.token_bytes),
        blocks=chosen.blocks,
        epoch_bytes=sum(block_format.block_bytes(*size) for size in sizes),
        refused=reason,
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


def _plan_task(
    settings: TaskSettings, data: TaskData, backbone: PlannedBackbone, folder: RunFolder
) -> None:
    """Say what a run would take."""
    from bertvision_stream.report.plan import plan_json, render_plan
    from bertvision_stream.utils.files import write_json, write_text

    plan = make_plan(settings, data, backbone, log.info)
    text = render_plan(plan)
    write_text(folder.path / "plan.txt", text)
    write_json(folder.path / "plan.json", plan_json(plan))
    log.info("\n%s", text)
    log.info("plan in %s", folder.path)
