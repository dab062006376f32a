"""`mode=plan`: what a run would take. Nothing is fine-tuned, and no cluster is started.

Blocks and bytes are counted by the functions that a run decides by. Speeds that are not given are
measured on this machine: in one process, with as many threads as one extractor would have, on some
real examples and made-up weights. The values of weights do not change the time that products take.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.models.backbone import Backbone, auto_model, quiet
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.job import PlannedJob, TokenizedTask
from bertvision_stream.models.transformers_private import without_initial_weights
from bertvision_stream.modes.engine import Runtime
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.preparation import plan_job, tokenize_task
from bertvision_stream.modes.run_folder import RunFolder
from bertvision_stream.report.plan import Calibration, CodecPlan, RunPlan, plan_json, render_plan
from bertvision_stream.settings.tasks import Task
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, Block, BlockFormat, BlockKey, pack_blocks
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    Speeds,
    forecast,
    forward_flops,
    mean_attended_tokens,
)
from bertvision_stream.stream.placement import ClusterResources, Placement, plan_placement
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.devices import pick_dtype
from bertvision_stream.utils.errors import ConfigError, StreamError
from bertvision_stream.utils.files import write_json, write_text
from bertvision_stream.utils.log import log

# The tokens of the blocks that are measured: what a GPU, or a CPU, takes in one forward pass, or
# fewer if one pass of a large model would take longer than the whole measurement should.
GPU_TOKENS, CPU_TOKENS, LEAST_TOKENS = 8192, 1024, 256
SLOW_FLOPS = 1e11  # the operations a second of a slow core
SAMPLE_BLOCKS = 16
# No further block is begun after so many seconds.
EXTRACT_SECONDS = 2.5
TRAIN_SECONDS = 1.0


def plan_task(inputs: TaskInputs, folder: RunFolder, runtime: Runtime) -> None:
    """Write `plan.txt` and `plan.json` into the folder of the run.

    Raises:
        BertvisionError: The plan cannot be made, see `make_plan`.
    """
    plan = make_plan(inputs, runtime.planned_cluster(inputs.settings))
    text = render_plan(plan)
    write_text(folder.path / "plan.txt", text)
    write_json(folder.path / "plan.json", plan_json(plan))
    log.info("\n%s", text)
    log.info("plan in %s", folder.path)


def make_plan(inputs: TaskInputs, cluster: ClusterResources) -> RunPlan:
    """Count what is known, measure the speeds that are not given, and estimate the rest.

    Args:
        inputs: The settings with `plan.*`, the rows, and what is known of the backbone.
        cluster: The cluster that is planned for.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: The configuration or the tokenizer cannot be loaded.
        StreamError: A head diverged while its speed was measured.
    """
    settings, planned = inputs.settings, inputs.planned
    assert planned is not None
    tokenized = tokenize_task(inputs)
    if settings.plan.extractors == "auto":
        placement = plan_placement(cluster, settings)
    else:  # a cluster that is not at hand, of which no more than this is known
        gpus = 0 if settings.extract.num_gpus == "auto" else settings.extract.num_gpus
        placement = Placement(settings.plan.extractors, 1, gpus, 1, 0, 1)
    job = plan_job(tokenized, cluster, placement)
    lengths = np.concatenate([store.lengths for store in job.stores.values()])
    config = job.config
    num_layers, hidden_size = hidden_shape(config)  # a forward pass goes through all of them
    flops = forward_flops(
        num_layers=num_layers,
        hidden_size=hidden_size,
        # DistilBERT has another name for the width of its feed-forward layers.
        intermediate_size=getattr(config, "intermediate_size", None) or config.hidden_dim,
        attended=mean_attended_tokens(lengths.tolist()),
    )
    calibration = None
    if settings.plan.tokens_per_second is None:
        log.info("measuring for a few seconds ...")
        calibration = calibrate(job, forward_flops=flops)
    chosen = _codec_plan(job)
    others = [codec for codec in get_args(Codec) if codec != chosen.codec]
    notes = [planned.note] if planned.note else []
    return RunPlan(
        job=job,
        forward_flops=flops,
        codecs=(chosen, *(_other_codec(tokenized, job, codec, chosen) for codec in others)),
        speeds=_speeds(job, calibration),
        calibration=calibration,
        notes=(*notes, *_notes(job, calibration)),
    )


def _codec_plan(job: PlannedJob) -> CodecPlan:
    """The bytes of a job with the codec of its settings."""
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
    """The bytes of a job with another codec, for whose blocks the budget may be too small."""
    extract = job.settings.extract.model_copy(update={"codec": codec})
    other = replace(tokenized, settings=job.settings.model_copy(update={"extract": extract}))
    try:
        return _codec_plan(plan_job(other, job.cluster, job.placement))
    except ConfigError as error:
        block_format = BlockFormat.of(job.shape, codec)
        sizes = [(store.num_tokens, store.num_examples) for store in job.stores.values()]
        return CodecPlan(
            codec=codec,
            token_bytes=block_format.token_bytes,
            block_tokens=chosen.block_tokens,
            block_bytes=round(chosen.block_bytes / chosen.token_bytes * block_format.token_bytes),
            blocks=chosen.blocks,
            epoch_bytes=sum(block_format.block_bytes(*size) for size in sizes),
            refused=str(error),
        )


def calibrate(job: PlannedJob, *, forward_flops: float) -> Calibration:
    """Measure forward passes, and training steps of the heads on the hidden states that they make.

    Args:
        job: The task. Its placement says where an extractor computes, with how many threads.
            `plan.heads` heads are trained, or none if `plan.head_tokens_per_second` is given.
        forward_flops: The floating-point operations of the backbone for one token.

    Raises:
        StreamError: A head diverged.
    """
    start = time.perf_counter()
    settings, placement = job.settings, job.placement
    on_gpu = placement.extractor_gpus > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    heads = 0 if settings.plan.head_tokens_per_second else settings.plan.heads
    block_tokens = GPU_TOKENS if on_gpu else CPU_TOKENS
    if not on_gpu and block_tokens * forward_flops > EXTRACT_SECONDS * SLOW_FLOPS:
        block_tokens = LEAST_TOKENS
    corpus = sample_blocks(job.stores[TRAIN], block_tokens=block_tokens, seed=settings.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(placement.extractor_threads)
    try:
        dtype = pick_dtype(settings.backbone.dtype, device)
        model = made_up_model(job.config, job.task)
        backbone = Backbone(model, device=device, dtype=dtype, layers=job.layers)
        extractor = BlockExtractor(backbone, corpus, settings.extract.codec)
        extract_rate, blocks = _extract_rate(extractor)
        train_rate = _train_rate(job, corpus, blocks, device, heads) if heads else None
    finally:
        torch.set_num_threads(threads)
    return Calibration(
        extract_tokens_per_second=extract_rate,
        train_tokens_per_second=train_rate,
        tokens=sum(corpus.block(key).num_tokens for key in blocks),
        seconds=time.perf_counter() - start,
        device=device.type,
        dtype="bf16" if dtype == torch.bfloat16 else "fp32",
        threads=placement.extractor_threads,
        heads=heads,
    )


def made_up_model(config: Any, task: Task) -> PreTrainedModel:
    """A classifier of a configuration's shape, with uniform random weights."""
    config.num_labels = task.num_labels
    with quiet(), without_initial_weights(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = auto_model(task.per_token).from_config(config)
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
    return model


def sample_blocks(store: TokenStore, *, block_tokens: int, seed: int) -> Corpus:
    """Pack a few small blocks of training examples of all lengths.

    The blocks are shuffled, so that the first few of them have examples of all lengths as well.
    """
    block_tokens = max(block_tokens, int(store.lengths.max()))
    blocks = pack_blocks(TRAIN, store.lengths, block_tokens=block_tokens, seed=seed)
    blocks.sort(key=lambda block: block.num_tokens / block.num_examples)
    count = min(SAMPLE_BLOCKS, len(blocks))
    middles = ((np.arange(count) + 0.5) / count * len(blocks)).astype(int)
    chosen = [blocks[i] for i in np.random.default_rng(seed).permutation(middles)]
    sample = [Block(BlockKey(TRAIN, i), b.example_ids, b.lengths) for i, b in enumerate(chosen)]
    return Corpus({TRAIN: store}, {TRAIN: sample}, seed)


def _extract_rate(extractor: BlockExtractor) -> tuple[float, dict[BlockKey, EncodedBlock]]:
    """The tokens extracted in a second, and the blocks that were made."""
    corpus = extractor.corpus
    first = corpus.blocks[TRAIN][0]
    token_ids, token_types = corpus.packed_tokens(first)
    length = first.lengths[:1]
    # The first pass of a process loads libraries and kernels that later ones find loaded.
    extractor.backbone.forward_packed(token_ids[: length[0]], token_types[: length[0]], length)
    blocks: dict[BlockKey, EncodedBlock] = {}
    tokens, start = 0, time.perf_counter()
    for block in corpus.blocks[TRAIN]:
        blocks[block.key] = extractor.extract(block.key)
        tokens += block.num_tokens
        if (seconds := time.perf_counter() - start) > EXTRACT_SECONDS:
            break
    return tokens / seconds, blocks


def _train_rate(
    job: PlannedJob,
    corpus: Corpus,
    blocks: dict[BlockKey, EncodedBlock],
    device: torch.device,
    heads: int,
) -> float:
    """The tokens on which a number of heads, together, are trained in a second."""
    # With so many epochs none of them ends, and the learning rate hardly changes.
    endless = job.settings.train.model_copy(update={"epochs": 10**6})
    jobs = {}
    for i in range(heads):
        update = {"seed": job.settings.seed + i, "train": endless}
        jobs[f"head-{i}"] = HeadJob(job.settings.model_copy(update=update))
    training = make_training(corpus, job.task, jobs, job.shape, device=device)
    position, tokens, start = Position(0, 0), 0, 0.0
    for key in itertools.cycle(blocks):
        training.consume(position, key, blocks[key])
        position = position.next
        if position.index == 1:  # the first step also loads what later ones find loaded
            start = time.perf_counter()
            continue
        tokens += corpus.block(key).num_tokens
        if (seconds := time.perf_counter() - start) > TRAIN_SECONDS:
            break
    if len(training.active) < heads:
        raise StreamError(
            "a head diverged on the made-up hidden states that mode=plan measures with; lower "
            "train.lr, or give plan.head_tokens_per_second"
        )
    return tokens / seconds


def _speeds(job: PlannedJob, calibration: Calibration | None) -> Speeds:
    """The speeds that are given, and those that were measured in the place of the others."""
    plan, cluster = job.settings.plan, job.cluster
    extract_rate, train_rate = plan.tokens_per_second, plan.head_tokens_per_second
    if calibration is not None:
        extract_rate = calibration.extract_tokens_per_second
        train_rate = train_rate or calibration.train_tokens_per_second
    assert extract_rate is not None
    several = cluster.num_nodes > 1
    return Speeds(
        extractors=job.placement.num_extractors,
        extract_tokens_per_second=extract_rate,
        trainers=job.settings.train.num_trainers,
        train_tokens_per_second=train_rate,
        nodes=cluster.num_nodes,
        network_bytes_per_second=plan.network_gbps * GIGABIT_BYTES if several else math.inf,
        # Extractors that are given have a device each, and those on a GPU need few cores.
        shared_cores=cluster.num_cpus
        if plan.extractors == "auto" and not cluster.num_gpus
        else None,
    )


def _notes(job: PlannedJob, calibration: Calibration | None) -> Iterator[str]:
    """What is assumed of the cluster."""
    plan = job.settings.plan
    if plan.store == "auto":
        joined = job.settings.ray.address or os.environ.get("RAY_ADDRESS")
        whose = "the cluster's" if joined else "what Ray would take of this machine's memory"
        yield f"the size of the object stores is {whose}; plan.store sets another"
    if plan.extractors != "auto" and calibration is not None:
        yield (
            f"each of the {plan.extractors:,} extractors is taken to be as fast as the one "
            f"measured here; plan.tokens_per_second sets another speed"
        )
    if job.placement.extractor_gpus and calibration is not None and calibration.device == "cpu":
        yield "the extractors would have GPUs, but here is none to measure"
    if job.cluster.num_nodes > 1:
        yield (
            f"extractors are spread evenly over {job.cluster.num_nodes} nodes of "
            f"{plan.network_gbps:g} Gb/s each (plan.network_gbps)"
        )
