"""The benchmark of the control plane: its arithmetic, and actors that do nothing."""

from __future__ import annotations

import pytest

from benchmarks.control_plane import largest_gpu_rate, smallest_block
from benchmarks.layouts import A100, H100, L4, QQP_BASE, QQP_LARGE, Layout
from benchmarks.stream_cost import BLOCK_BYTES, BLOCK_SHAPE, LAYOUTS, Cost, IdleTrainer
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.plan import DeliveryStatus, Position


def test_bounds_are_each_others_inverse():
    rate = largest_gpu_rate(500, block_tokens=8192, num_gpus=64)
    assert rate == 64_000
    assert smallest_block(500, gpu_rate=rate, num_gpus=64) == 8192


def test_rates_follow_from_cpu_time():
    cost = Cost(blocks_per_second=100, cpu_seconds=0.002, thread_seconds=0.001)
    assert (cost.core_rate, cost.thread_rate) == (500, 1000)


def test_speeds_of_gpus_as_assumed():
    # 85 M and 302 M weights of the encoder layers, two operations for each, and the attention.
    for gpu, speed in ((L4, 0.4 * 121e12), (A100, 120e12), (H100, 120e12)):
        for case, flops in ((QQP_BASE, 170e6), (QQP_LARGE, 604e6)):
            assert Layout(case, gpu).made_rate == pytest.approx(speed / flops, rel=0.05)
    assert (QQP_BASE.token_bytes(), QQP_LARGE.token_bytes()) == (13 * 768 * 2, 25 * 1024 * 2)


def test_extractors_are_spread_evenly():
    assert all(layout.extractors % layout.nodes == 0 for layout in LAYOUTS)


def test_blocks_pass_through_the_object_store():
    assert BLOCK_SHAPE[0] * BLOCK_SHAPE[1] * 2 == BLOCK_BYTES > 100 * 2**10


def test_an_idle_trainer_keeps_to_the_order():
    trainer, key = IdleTrainer(), BlockKey(TRAIN, 0)
    statuses = [
        reply.status
        for reply in trainer.consume_all([(Position(0, index), key) for index in (0, 2, 0, 1)])
    ]
    assert statuses == [
        DeliveryStatus.CONSUMED,
        DeliveryStatus.TOO_EARLY,
        DeliveryStatus.DUPLICATE,
        DeliveryStatus.CONSUMED,
    ]
    trainer.end_epoch(0)
    assert trainer.position() == Position(1, 0)
    trainer.restart()
    assert trainer.position() == Position(0, 0)
