"""Batches of exactly the batch size, each row once, as copies."""

import numpy as np
import pytest
import torch
from tiny import CPU, RandomExtractor, one_thread, random_lengths, token_store  # noqa: F401

from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, Block, row_order
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.batches import Batch, BatchCutter, OpenBlock

NUM_EXAMPLES = 53


@pytest.fixture
def corpus() -> Corpus:
    """Labels are row numbers, so that a batch says which rows it holds."""
    store = token_store(random_lengths(NUM_EXAMPLES), np.arange(NUM_EXAMPLES))
    corpus = Corpus.pack({TRAIN: store}, block_tokens=256, seed=1)
    assert len(corpus.blocks[TRAIN]) >= 4
    return corpus


def open_block(
    corpus: Corpus, block: Block, encoded: EncodedBlock, dtype: torch.dtype = torch.float32
) -> OpenBlock:
    labels = corpus.stores[TRAIN].labels[block.example_ids]
    return OpenBlock(encoded, block.lengths, labels, device=CPU, dtype=dtype)


def rows_in_order(corpus: Corpus, epoch: int) -> list[int]:
    orders = [row_order(block, seed=1, epoch=epoch) for block in corpus.blocks[TRAIN]]
    blocks = zip(corpus.blocks[TRAIN], orders, strict=True)
    return np.concatenate([block.example_ids[order] for block, order in blocks]).tolist()


def writable(encoded: EncodedBlock) -> EncodedBlock:
    return EncodedBlock(encoded.hidden.copy(), encoded.scales.copy(), encoded.logits.copy())


@pytest.mark.parametrize("batch_size", [1, 7, 16, 53, 100])
def test_each_row_once_in_order_with_its_own_tokens(corpus: Corpus, batch_size: int):
    extractor = RandomExtractor(corpus)
    cutter = BatchCutter(batch_size)
    batches: list[Batch] = []
    for block in corpus.blocks[TRAIN]:
        encoded = writable(extractor.extract(block.key))
        opened = open_block(corpus, block, encoded)
        batches += cutter.push(opened, row_order(block, seed=1, epoch=0))
        # The store may reuse a block's memory as soon as it is consumed.
        encoded.hidden[...] = np.nan
    full = len(batches)
    batches += cutter.flush()
    sizes = [len(batch.labels_B) for batch in batches]
    assert sizes[:full] == [batch_size] * (NUM_EXAMPLES // batch_size)
    assert sizes[full:] == [NUM_EXAMPLES % batch_size] * (NUM_EXAMPLES % batch_size > 0)
    rows = torch.cat([batch.labels_B for batch in batches]).tolist()
    assert rows == rows_in_order(corpus, epoch=0)
    for batch in batches:
        states = batch.hidden_TLD.split(batch.lengths_B.tolist())
        for row, hidden_SLD in zip(batch.labels_B.tolist(), states, strict=True):
            assert torch.equal(hidden_SLD, extractor.hidden(TRAIN, row))


def test_a_flushed_cutter_starts_afresh(corpus: Corpus):
    block = corpus.blocks[TRAIN][0]
    opened = open_block(corpus, block, RandomExtractor(corpus).extract(block.key))
    cutter = BatchCutter(1000)
    rows = np.arange(block.num_examples)
    assert list(cutter.push(opened, rows)) == []
    assert [len(batch.labels_B) for batch in cutter.flush()] == [block.num_examples]
    assert list(cutter.flush()) == []


@pytest.mark.parametrize("codec", ["bf16", "int8", "fp32"])
def test_nothing_of_a_batch_lies_in_the_memory_of_its_block(corpus: Corpus, codec: Codec):
    block = corpus.blocks[TRAIN][0]
    encoded = writable(RandomExtractor(corpus, codec=codec).extract(block.key))
    stored_dtype = torch.float32 if codec == "fp32" else torch.bfloat16
    opened = open_block(corpus, block, encoded, stored_dtype)
    batch = opened.take(np.arange(block.num_examples))  # all rows in order: nothing to gather
    before = batch.hidden_TLD.clone(), batch.lengths_B.clone(), batch.labels_B.clone()
    for array in (encoded.hidden, encoded.scales):
        array[...] = 1
    after = (batch.hidden_TLD, batch.lengths_B, batch.labels_B)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_decoded_by_the_scale_of_each_token_and_layer(corpus: Corpus, dtype: torch.dtype):
    block = corpus.blocks[TRAIN][0]
    encoded = RandomExtractor(corpus, codec="int8").extract(block.key)
    batch = open_block(corpus, block, encoded, dtype).take(np.array([2, 0]))
    ends = np.cumsum(block.lengths)
    spans = [slice(ends[1], ends[2]), slice(0, ends[0])]
    expected = np.concatenate(
        [
            encoded.hidden[span].astype(np.float32) * encoded.scales[span][..., None]
            for span in spans
        ]
    )
    assert batch.hidden_TLD.dtype == dtype
    assert torch.equal(batch.hidden_TLD, torch.from_numpy(expected).to(dtype))
    assert batch.lengths_B.tolist() == block.lengths[[2, 0]].tolist()
    assert batch.labels_B.tolist() == block.example_ids[[2, 0]].tolist()
