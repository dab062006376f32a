"""The model of cost: against counting, against a simulated pipeline, against torch's own count."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny import random_lengths, tiny_classifier
from torch.utils.flop_counter import FlopCounterMode

from bertvision_stream.heads.adapter_pooler import adapt
from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    EpochWork,
    Speeds,
    adapter_flops,
    break_even_tokens_per_second,
    dump_bytes,
    epoch_seconds,
    epoch_work,
    extract_tokens_per_second,
    forecast,
    forward_flops,
    mean_attended_tokens,
    run_seconds,
    train_tokens_per_second,
    transfer_seconds,
    trials_at_once,
)
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.stream.stats import StreamStats

TOKEN_BYTES = 1000


def plan_of(*, cache: int, num_epochs: int = 4) -> StreamPlan:
    """30 training and 5 validation blocks of 100 to 200 tokens."""
    keys = [BlockKey(TRAIN, i) for i in range(30)] + [BlockKey("validation", i) for i in range(5)]
    tokens = np.random.default_rng(0).integers(100, 201, len(keys)).tolist()
    sizes = {key: n * TOKEN_BYTES for key, n in zip(keys, tokens, strict=True)}
    budget = plan_budget(
        sizes,
        keys[30:],
        num_train=30,
        seed=1,
        settings=StreamSettings(cache=cache),
        store_bytes=10**9,
        num_nodes=1,
        num_extractors=2,
    )
    return StreamPlan(
        seed=1,
        num_epochs=num_epochs,
        same_order=False,
        num_train=30,
        validation=tuple(keys[30:]),
        block_bytes=sizes,
        block_tokens=dict(zip(keys, tokens, strict=True)),
        budget=budget,
    )


@pytest.mark.parametrize("cache", [0, 700_000, 2_500_000, 10**8])
@pytest.mark.parametrize("epochs", [1, 4])
def test_the_forecast_is_what_comes_of_following_the_plan(cache: int, epochs: int):
    plan = plan_of(cache=cache)
    kept: set[BlockKey] = set()
    made: list[list[int]] = []
    hits: list[int] = []
    for epoch in range(epochs):
        made.append([])
        for key in plan.sequence(epoch):
            if key in kept:
                hits.append(plan.block_tokens[key])
                continue
            made[-1].append(plan.block_tokens[key])
            kept |= {key} & plan.budget.pinned
    found = forecast(plan, epochs=epochs)
    assert found.blocks_extracted == sum(map(len, made))
    assert found.tokens_extracted == sum(map(sum, made))
    assert found.blocks_from_cache == len(hits)
    assert found.tokens_spared == sum(hits)
    assert found.cache_bytes == sum(plan.block_bytes[key] for key in kept)
    total = sum(plan.block_tokens.values())
    assert found.spared_share == pytest.approx(sum(hits) / (epochs * total))
    for epoch, tokens in enumerate(made):
        work = epoch_work(plan, first=epoch == 0)
        assert (work.tokens, work.extracted_tokens) == (total, sum(tokens))
        assert work.num_bytes == total * TOKEN_BYTES


def simulate(blocks: Mapping[int, int], extracted: set[int], speeds: Speeds) -> float:
    """Seconds of an epoch, block by block: extractors, the link of the trainer's node, a trainer.

    Every block but each `nodes`-th is on another node than the trainer.
    """
    assert speeds.train_tokens_per_second is not None
    free = [0.0] * speeds.extractors
    link = trainer = 0.0
    for i, tokens in blocks.items():
        ready = 0.0
        if i in extracted:
            ready = heapq.heappop(free) + tokens / speeds.extract_tokens_per_second
            heapq.heappush(free, ready)
        if i % speeds.nodes:
            link = max(link, ready) + tokens * TOKEN_BYTES / speeds.network_bytes_per_second
            ready = link
        trainer = max(trainer, ready) + tokens / speeds.train_tokens_per_second
    return trainer


@pytest.mark.parametrize(
    ("speeds", "cached", "bottleneck"),
    [
        (Speeds(extractors=3, extract_tokens_per_second=100, train_tokens_per_second=900), 0,
         "extraction"),
        (Speeds(extractors=3, extract_tokens_per_second=500, train_tokens_per_second=900), 0,
         "heads"),
        (Speeds(extractors=3, extract_tokens_per_second=100, train_tokens_per_second=900), 0.9,
         "heads"),
        (Speeds(extractors=8, extract_tokens_per_second=100, train_tokens_per_second=900, nodes=4,
                network_bytes_per_second=300 * TOKEN_BYTES), 0, "transfer"),
    ],
)  # fmt: skip
def test_an_epoch_takes_as_long_as_a_simulated_pipeline(
    speeds: Speeds, cached: float, bottleneck: str
):
    blocks = {i: int(n) for i, n in enumerate(random_lengths(1200, longest=200))}
    extracted = {i for i in blocks if i % 10 >= 10 * cached}
    work = EpochWork(
        tokens=sum(blocks.values()),
        extracted_tokens=sum(blocks[i] for i in extracted),
        num_bytes=sum(blocks.values()) * TOKEN_BYTES,
    )
    estimate = epoch_seconds(work, speeds)
    assert estimate.bottleneck == bottleneck
    assert estimate.total == getattr(estimate, bottleneck)
    # The pipeline fills and empties once; blocks are dealt only nearly evenly.
    assert simulate(blocks, extracted, speeds) == pytest.approx(estimate.total, rel=0.03)


def test_what_heads_of_an_unknown_speed_bound_is_unknown():
    work = EpochWork(tokens=1000, extracted_tokens=1000, num_bytes=1000)
    speeds = Speeds(extractors=2, extract_tokens_per_second=10)
    estimate = epoch_seconds(work, speeds)
    assert (estimate.heads, estimate.bottleneck, estimate.total) == (None, None, 50)


def test_on_shared_cores_no_work_is_free():
    work = EpochWork(tokens=1000, extracted_tokens=1000, num_bytes=0)
    speeds = Speeds(
        extractors=2, extract_tokens_per_second=10, train_tokens_per_second=50, shared_cores=2
    )
    estimate = epoch_seconds(work, speeds)
    assert (estimate.extraction, estimate.heads) == (50, 20)
    assert estimate.total == (100 + 20) / 2
    assert estimate.bottleneck == "extraction"
    more = epoch_seconds(work, Speeds(extractors=9, extract_tokens_per_second=10, shared_cores=2))
    assert (more.extraction, more.heads, more.total) == (50, None, 50)  # nine share two cores
    assert run_seconds(estimate, more, epochs=4) == 60 + 3 * 50


def test_a_trainer_reads_what_other_nodes_made():
    sizes = np.random.default_rng(0).integers(1, 100, 4000)
    made_on = np.arange(4000) % 4
    through_link = sizes[made_on != 1].sum()  # the trainer's node is number 1
    seconds = transfer_seconds(int(sizes.sum()), nodes=4, bytes_per_second=10.0)
    assert seconds == pytest.approx(through_link / 10, rel=0.01)
    assert transfer_seconds(10**9, nodes=1, bytes_per_second=math.inf) == 0


def test_at_break_even_moving_takes_as_long_as_making():
    link = 25 * GIGABIT_BYTES
    rate = break_even_tokens_per_second(TOKEN_BYTES, link)
    assert 10**6 / rate == pytest.approx(10**6 * TOKEN_BYTES / link)
    assert GIGABIT_BYTES == 125_000_000


def test_the_dump_of_qqp_by_bert_large():
    array = np.empty((3, 5, 7, 11), dtype=np.float32)  # examples, layers, positions, width
    assert dump_bytes(3, num_layers=5, max_length=7, hidden_size=11) == array.nbytes
    qqp = dump_bytes(363_846 + 40_430, num_layers=25, max_length=128, hidden_size=1024)
    assert qqp / 2**40 == pytest.approx(4.82, abs=0.01)


@pytest.mark.parametrize("length", [7, 40])
def test_operations_of_a_forward_pass(length: int):
    model = tiny_classifier(attn_implementation="eager")
    config = model.config
    ids = torch.ones((3, length), dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.bert.encoder(model.bert.embeddings(ids))
    expected = counter.get_total_flops() / ids.numel()
    assert expected > 0
    assert expected == forward_flops(
        num_layers=config.num_hidden_layers + 1,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        attended=mean_attended_tokens([length] * 3),
    )


def test_long_examples_count_for_more_in_attention():
    lengths = [3, 50, 8]
    per_token = [n for n in lengths for _ in range(n)]
    assert mean_attended_tokens(lengths) == pytest.approx(np.mean(per_token))


def test_operations_of_an_adapters_step():
    tokens, layers, size, width = 50, 4, 16, 6
    weight = torch.randn(1, size, width, requires_grad=True)
    hidden = torch.randn(tokens, layers, size)
    counter = FlopCounterMode(display=False)
    with counter:
        adapt(hidden, weight, torch.zeros(1, width)).sum().backward()
    assert counter.get_total_flops() / tokens == adapter_flops(
        num_layers=layers, hidden_size=size, adapter_dim=width
    )


def test_a_later_epoch_is_estimated_from_the_first():
    plan = plan_of(cache=2_500_000, num_epochs=3)
    tokens = sum(plan.block_tokens.values())
    first = StreamStats()
    first.count_extracted(0, tokens, seconds=40.0)  # by two extractors: 20 s side by side
    first.train_seconds = 5.0
    speeds = Speeds(
        extractors=2,
        extract_tokens_per_second=first.tokens_extracted / first.extract_seconds,
        train_tokens_per_second=tokens / first.train_seconds,
    )
    later = epoch_work(plan, first=False)
    assert 0.3 < later.extracted_tokens / tokens < 0.9
    estimate = epoch_seconds(later, speeds)
    assert estimate.total == pytest.approx(20 * later.extracted_tokens / tokens)
    assert epoch_seconds(epoch_work(plan, first=True), speeds).total == pytest.approx(20)


def pipelined(blocks: list[int], compute: float, copy: float) -> float:
    """Seconds of blocks whose copy runs beside the next one's forward pass."""
    computed = copied = 0.0
    for tokens in blocks:
        computed += tokens * compute
        copied = max(copied, computed) + tokens * copy
    return copied


@pytest.mark.parametrize(("flops", "copy_rate"), [(1e12, 1e6), (1e9, 1e9)])
def test_a_device_extracts_at_the_speed_of_its_slower_half(flops: float, copy_rate: float):
    blocks = random_lengths(2000, longest=200).tolist()
    rate = extract_tokens_per_second(
        forward_flops=1e7,
        flops_per_second=flops,
        token_bytes=TOKEN_BYTES,
        copy_bytes_per_second=copy_rate,
    )
    assert rate == min(flops / 1e7, copy_rate / TOKEN_BYTES)
    seconds = pipelined(blocks, 1e7 / flops, TOKEN_BYTES / copy_rate)
    assert sum(blocks) / seconds == pytest.approx(rate, rel=0.01)
    without = extract_tokens_per_second(
        forward_flops=1e7, flops_per_second=flops, token_bytes=TOKEN_BYTES
    )
    assert without == flops / 1e7


def test_a_trainers_copies_and_steps_add_up():
    batch, num_batches = 500, 40
    rate = train_tokens_per_second(
        heads=3,
        adapter_flops=2e6,
        flops_per_second=1e12,
        token_bytes=TOKEN_BYTES,
        copy_bytes_per_second=1e8,
        step_seconds=0.01,
        step_tokens=batch,
    )
    copies = num_batches * batch * TOKEN_BYTES / 1e8
    products = num_batches * batch * 3 * 2e6 / 1e12
    assert num_batches * batch / rate == pytest.approx(copies + products + num_batches * 0.01)


@pytest.mark.parametrize(
    ("shared_seconds", "expected"),
    [(0.0, 1), (0.05, 3), (0.5, 10), (3.0, 20)],
)
def test_trials_at_once(shared_seconds: float, expected: int):
    """20 trials of 5 epochs; a process takes 0.7 s to start. Near sqrt(100 S / 0.7)."""
    found = trials_at_once(
        num_trials=20, epochs=5, shared_seconds=shared_seconds, start_seconds=0.7
    )
    assert found == expected
