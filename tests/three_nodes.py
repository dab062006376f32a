"""A stream on a head node and two nodes with extractors, one of which dies with its blocks.

This is a script, as a process can connect to one cluster only; `test_faults.py` runs it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster
from streams import (
    assert_bounded,
    assert_same_numbers,
    make_corpus,
    make_weights,
    plan_of,
    settings_of,
    stream,
)

from actors.cluster import cluster_resources
from actors.ray_private import OWN_CLUSTER

MIB = 2**20
STORE_BYTES = 100 * MIB
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


def drop_copies() -> None:
    """Fill the trainer's node once, so that Ray evicts its copies of blocks made elsewhere."""
    full = []
    with contextlib.suppress(ray.exceptions.OutOfDiskError):
        while True:
            full.append(ray.put(np.zeros(MIB, dtype=np.uint8)))
    full.clear()


def main() -> None:
    torch.set_num_threads(1)
    config = {**OWN_CLUSTER, **QUICK_TO_NOTICE}
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "_system_config": config,
            "include_dashboard": False,
        },
    )
    doomed = nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ray.init(address=nodes.address, logging_level="ERROR")
    corpus, weights = make_corpus(), make_weights()
    heads = {"head": settings_of("extract.codec=bf16", "backbone.dtype=bf16", epochs=5)}
    cluster = cluster_resources()
    assert cluster.num_nodes == 3
    plan = plan_of(heads["head"], corpus, cluster, num_extractors=2)
    assert plan.budget.pinned == set(plan.block_bytes)
    # A node may hold seven tenths of an epoch: two can cache all of it, and one cannot.
    share = 0.7 * plan.budget.epoch_bytes / STORE_BYTES
    plan = replace(plan, budget=replace(plan.budget, store_share=share))

    def say(message: str) -> None:
        print(message, flush=True)
        if message.startswith("epoch 2"):
            drop_copies()
            nodes.remove_node(doomed, allow_graceful=False)

    outcome = stream(plan, heads, corpus, weights, num_extractors=2, say=say, cpus=1)
    stats = outcome.stats
    print(stats)
    num_blocks = len(plan.block_bytes)
    by_epoch = stats.tokens_by_epoch
    total = sum(plan.block_tokens.values())
    assert by_epoch[0] == total
    assert by_epoch.get(1, 0) == 0, "two nodes keep everything"
    assert 0 < by_epoch[2] < 2 * total, "what was lost is made again, the rest is not"
    assert 0 < by_epoch[4] < total, "the node that is left keeps what it may"
    assert stats.blocks_lost > 0
    assert stats.blocks_extracted < 5 * num_blocks
    assert stats.cache_bytes <= share * STORE_BYTES
    assert outcome.deaths == ()
    assert_bounded(outcome, plan)
    assert_same_numbers(outcome, heads, corpus, weights)
    print("the same numbers")


if __name__ == "__main__":
    main()
