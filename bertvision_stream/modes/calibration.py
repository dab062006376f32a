"""How fast this machine extracts and trains: measured for a few seconds, on a few real examples.

One process, and the threads that one extractor would have. The backbone has its configuration's
shape and weights made up here: what they are changes nothing of the time that products take.
"""

import itertools
import time
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import Backbone, auto_model, quiet
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.job import PlannedJob
from bertvision_stream.models.transformers_private import without_initial_weights
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import TRAIN, Block, BlockKey, pack_blocks
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.cost_model import Calibration
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.devices import pick_dtype
from bertvision_stream.utils.errors import StreamError

# Blocks of so many tokens are measured: what a GPU, or a CPU, takes in one forward pass, and less
# where a pass of a large model would take longer than all of the measurement should.
GPU_TOKENS, CPU_TOKENS, LEAST_TOKENS = 8192, 1024, 256
SLOW_FLOPS = 1e11  # a second, of a slow core
SAMPLE_BLOCKS = 16
# After so long no further block is begun.
EXTRACT_SECONDS = 2.5
TRAIN_SECONDS = 1.0


def calibrate(job: PlannedJob, *, forward_flops: float) -> Calibration:
    """Measure a forward pass, and a training step of the heads on what it made.

    Args:
        job: The task. Its placement says where an extractor computes, with how many threads;
            `plan.heads` is how many heads are trained, none if `plan.head_tokens_per_second` is
            given.
        forward_flops: The floating-point operations of the backbone, for one token.
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
        backbone = Backbone(made_up_model(job.config, job.task), device=device, dtype=dtype)
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
    """A few small blocks of training examples of all lengths, each first few of them as well."""
    block_tokens = max(block_tokens, int(store.lengths.max()))
    blocks = pack_blocks(TRAIN, store.lengths, block_tokens=block_tokens, seed=seed)
    blocks.sort(key=lambda block: block.num_tokens / block.num_examples)
    count = min(SAMPLE_BLOCKS, len(blocks))
    middles = ((np.arange(count) + 0.5) / count * len(blocks)).astype(int)
    chosen = [blocks[i] for i in np.random.default_rng(seed).permutation(middles)]
    sample = [Block(BlockKey(TRAIN, i), b.example_ids, b.lengths) for i, b in enumerate(chosen)]
    return Corpus({TRAIN: store}, {TRAIN: sample}, seed)


def _extract_rate(extractor: BlockExtractor) -> tuple[float, dict[BlockKey, EncodedBlock]]:
    """Tokens a second, and the blocks that were made."""
    corpus = extractor.corpus
    first = corpus.blocks[TRAIN][0]
    token_ids, token_types = corpus.packed_tokens(first)
    length = first.lengths[:1]
    # The first pass of a process loads what later ones find loaded.
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
    """Tokens a second of training so many heads together on the blocks."""
    settings = job.settings
    endless = settings.train.model_copy(update={"epochs": 10**6})  # the learning rate stays
    each = (
        settings.model_copy(update={"seed": settings.seed + i, "train": endless})
        for i in range(heads)
    )
    jobs = {f"head-{i}": HeadJob(head) for i, head in enumerate(each)}
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
        raise StreamError("a head diverged on made-up hidden states; lower train.lr to plan")
    return tokens / seconds
