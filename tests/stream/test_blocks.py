"""Packing, orders and micro-batches, on lengths like GLUE's and on GLUE itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.tokenize import tokenize
from bertvision_stream.models.backbone import micro_batches
from bertvision_stream.models.sources import locate
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.tasks import GLUE_TASKS
from bertvision_stream.stream.blocks import (
    CHUNK_EXAMPLES,
    NUM_STRATA,
    TRAIN,
    Block,
    BlockKey,
    epoch_order,
    epoch_sequence,
    pack_blocks,
    pick_block_tokens,
    row_order,
    strata,
)
from bertvision_stream.utils.errors import BackboneError


def lognormal(*, median: int, sigma: float, shortest: int, longest: int) -> np.ndarray:
    lengths = np.random.default_rng(0).lognormal(np.log(median), sigma, 3000).round()
    return np.clip(lengths, shortest, longest).astype(np.int64)


# Shapes of GLUE's length distributions: single sentences, phrases and sentences, pairs, long pairs.
LENGTHS = {
    "like cola": lognormal(median=10, sigma=0.35, shortest=4, longest=47),
    "like sst2": lognormal(median=10, sigma=0.75, shortest=3, longest=66),
    "like stsb": lognormal(median=28, sigma=0.45, shortest=10, longest=125),
    "like rte": lognormal(median=60, sigma=0.6, shortest=15, longest=250),
}
every_kind_of_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
every_block_size = pytest.mark.parametrize("block_tokens", [512, 1024, 4096])


def padding(lengths: np.ndarray, runs: list[slice]) -> float:
    """Padded tokens as a share of the real ones."""
    padded = sum(int(lengths[run].max()) * len(lengths[run]) for run in runs)
    return padded / int(lengths.sum()) - 1


@every_kind_of_lengths
@every_block_size
def test_blocks_hold_every_example_once_within_their_size(lengths: np.ndarray, block_tokens: int):
    blocks = pack_blocks(TRAIN, lengths, block_tokens=block_tokens, seed=1)
    rows = np.concatenate([block.example_ids for block in blocks])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert [block.key for block in blocks] == [BlockKey(TRAIN, i) for i in range(len(blocks))]
    for block in blocks:
        np.testing.assert_array_equal(block.lengths, lengths[block.example_ids])
        assert (np.diff(block.lengths) >= 0).all()
        assert block.num_tokens <= block_tokens


@every_kind_of_lengths
@every_block_size
def test_blocks_are_of_nearly_equal_size(lengths: np.ndarray, block_tokens: int):
    blocks = pack_blocks(TRAIN, lengths, block_tokens=block_tokens, seed=1)
    sizes = np.array([block.num_tokens for block in blocks])
    assert sizes.std() < 0.12 * sizes.mean()
    assert sizes.min() > 0.5 * sizes.mean()  # none is a leftover


def test_a_block_is_as_long_as_the_limit_where_lengths_allow_it():
    sizes = [b.num_tokens for b in pack_blocks("s", np.full(64, 8), block_tokens=64, seed=0)]
    assert sizes == [64] * 8


def test_examples_of_the_full_block_size_stand_alone():
    blocks = pack_blocks("s", np.array([64, 64, 3]), block_tokens=64, seed=0)
    assert sorted(block.num_tokens for block in blocks) == [3, 64, 64]


def test_no_examples_make_no_blocks():
    assert pack_blocks("s", np.array([], dtype=np.int64), block_tokens=64, seed=0) == []


def test_an_example_longer_than_a_block_is_refused():
    expected = "an example of 65 tokens does not fit into a block of 64"
    with pytest.raises(ValueError, match=re.escape(expected)):
        pack_blocks("s", np.array([3, 65]), block_tokens=64, seed=0)


FROZEN_BLOCKS = [[0, 5, 10, 11, 1], [6, 2, 7, 3], [8, 9, 4]]
FROZEN_EPOCH = [9, 1, 5, 0, 2, 7, 4, 6, 8, 3]
FROZEN_ROWS = [1, 3, 2, 4, 0]


def test_blocks_and_orders_are_the_same_in_every_process():
    lengths = np.arange(12) % 5 + 3
    blocks = pack_blocks(TRAIN, lengths, block_tokens=20, seed=42)
    assert [block.example_ids.tolist() for block in blocks] == FROZEN_BLOCKS
    assert epoch_order(10, seed=42, epoch=3).tolist() == FROZEN_EPOCH
    assert row_order(blocks[0], seed=42, epoch=3).tolist() == FROZEN_ROWS


def test_splits_and_seeds_are_permuted_each_in_its_own_way():
    lengths = np.full(50, 4)
    first_blocks = {
        tuple(pack_blocks(split, lengths, block_tokens=64, seed=seed)[0].example_ids.tolist())
        for split in (TRAIN, "validation")
        for seed in (0, 1)
    }
    assert len(first_blocks) == 4


@pytest.mark.parametrize("num_blocks", [0, 1, 7, 8, 9, 50, 97])
def test_an_epoch_is_a_permutation_of_its_own(num_blocks: int):
    orders = [epoch_order(num_blocks, seed=3, epoch=epoch) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(num_blocks))
    np.testing.assert_array_equal(orders[1], epoch_order(num_blocks, seed=3, epoch=1))
    if num_blocks >= 7:
        assert len({tuple(order.tolist()) for order in orders}) == 3
        assert orders[0].tolist() != epoch_order(num_blocks, seed=4, epoch=0).tolist()


@pytest.mark.parametrize("num_blocks", [8, 9, 50, 97])
def test_each_round_of_an_epoch_holds_one_block_of_every_stratum(num_blocks: int):
    stratum_of = {int(b): i for i, s in enumerate(strata(num_blocks, seed=3)) for b in s}
    sizes = np.bincount(list(stratum_of.values()))
    assert len(sizes) == NUM_STRATA
    assert sizes.max() - sizes.min() <= 1
    for epoch in range(3):
        met = [stratum_of[int(block)] for block in epoch_order(num_blocks, seed=3, epoch=epoch)]
        for first in range(0, num_blocks, NUM_STRATA):
            members = met[first : first + NUM_STRATA]
            assert len(set(members)) == len(members)


def test_the_rows_of_a_block_are_permuted_anew_in_each_epoch():
    blocks = [Block(BlockKey(TRAIN, i), np.arange(30), np.full(30, 4)) for i in (0, 1)]
    orders = [row_order(block, seed=3, epoch=epoch) for block in blocks for epoch in range(2)]
    assert all(sorted(order.tolist()) == list(range(30)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_an_epoch_delivers_training_blocks_then_every_validation_block():
    validation = [BlockKey("matched", 0), BlockKey("matched", 1), BlockKey("mismatched", 0)]
    sequence = epoch_sequence(20, validation, seed=3, epoch=2)
    train = [BlockKey(TRAIN, int(i)) for i in epoch_order(20, seed=3, epoch=2)]
    assert sequence == train + validation
    assert str(sequence[-1]) == "mismatched[0]"


@every_kind_of_lengths
def test_the_length_of_a_block_says_nothing_of_the_next_one(lengths: np.ndarray):
    blocks = pack_blocks(TRAIN, lengths, block_tokens=512, seed=1)
    mean_lengths = np.array([block.lengths.mean() for block in blocks])
    assert mean_lengths.std() > 0.2 * mean_lengths.mean()  # there is something to mix
    correlations = []
    for epoch in range(10):
        ordered = mean_lengths[epoch_order(len(blocks), seed=1, epoch=epoch)]
        correlations.append(np.corrcoef(ordered[:-1], ordered[1:])[0, 1])
    assert abs(np.mean(correlations)) < 0.1
    # Blocks are made in chunks, each sorted: unpermuted, the same measure finds their order.
    assert np.corrcoef(mean_lengths[:-1], mean_lengths[1:])[0, 1] > 0.5


@every_kind_of_lengths
@pytest.mark.parametrize("max_tokens", [64, 1024, 16384])
def test_micro_batches_cover_ascending_lengths_with_little_padding(
    lengths: np.ndarray, max_tokens: int
):
    ascending = np.sort(lengths)
    runs = micro_batches(ascending, max_tokens=max_tokens)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(ascending)))
    for run in runs:
        size = run.stop - run.start
        assert size == 1 or size * ascending[run][-1] <= max_tokens
        assert padding(ascending[run], [slice(None)]) < 0.05


def test_no_micro_batches_of_nothing():
    assert micro_batches(np.array([], dtype=np.int64), max_tokens=64) == []


def test_micro_batches_are_as_long_as_the_limits_allow():
    assert micro_batches(np.full(10, 8), max_tokens=40) == [slice(0, 5), slice(5, 10)]
    # 4 x 26 = 104 positions for 101 tokens: 3 % padding, and a fifth of 40 would make it 42 %.
    assert micro_batches(np.array([25, 25, 25, 26, 40]), max_tokens=999) == [
        slice(0, 4),
        slice(4, 5),
    ]
    assert micro_batches(np.array([25, 25, 25, 26, 40]), max_tokens=999, max_padding=0.5) == [
        slice(0, 5)
    ]


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_padding_on_glue(task: str, shared_data: Path, minilm_tokenizer: object):
    settings = load_settings([f"task={task}", f"data.path={shared_data / 'glue'}"]).for_task(task)
    train = load_task_data(settings).train
    rows = np.random.default_rng(0).permutation(len(train))[:3000]
    sample = type(train)(train.name, [train.texts[i] for i in rows], train.labels[rows])
    lengths = tokenize(sample, minilm_tokenizer, settings.data.max_length).lengths
    blocks = pack_blocks(TRAIN, lengths, block_tokens=4096, seed=42)
    padded, num_runs = 0.0, 0
    for block in blocks:
        runs = micro_batches(block.lengths, max_tokens=1024)
        padded += padding(block.lengths, runs) * block.num_tokens
        num_runs += len(runs)
    assert padded / lengths.sum() < 0.05
    # No padding is easy with one example a run, and slow.
    assert lengths.sum() / num_runs > 200
    mean_lengths = [block.lengths.mean() for block in blocks]
    assert len(sample) < CHUNK_EXAMPLES or np.ptp(mean_lengths) > 0.5 * np.mean(mean_lengths)


@pytest.fixture(scope="module")
def minilm_tokenizer() -> object:
    from bertvision_stream.models.backbone import load_tokenizer

    try:
        return load_tokenizer(locate("minilm"))
    except BackboneError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 4096),
        ({"on_gpu": True}, 8192),
        ({"num_tokens": 64_000}, 2000),  # some tens of blocks to permute
        ({"num_tokens": 5_000}, 512),  # but none too small to be worth sending
        ({"num_tokens": 5_000, "longest": 700}, 700),
        ({"most_bytes": 1000 * 5376}, 1000),  # the budget holds several
        ({"most_bytes": 1000 * 5376, "on_gpu": True}, 1000),
    ],
)
def test_pick_block_tokens(changed: dict[str, int], expected: int):
    usual = {
        "num_tokens": 1_000_000,
        "longest": 128,
        "token_bytes": 5376,
        "most_bytes": 2**30,
        "on_gpu": False,
    }
    assert pick_block_tokens(**(usual | changed)) == expected
