"""Extraction on a device whose memory ends: smaller micro-batches from then on, the same states."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, one_thread, random_lengths, tiny_classifier, token_store  # noqa: F401

from bertvision_stream.models.backbone import Backbone, micro_batches
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.stream.blocks import TRAIN, Block
from bertvision_stream.stream.corpus import Corpus

BLOCK_TOKENS = 400


def corpus_of(lengths: np.ndarray) -> Corpus:
    store = token_store(lengths, np.zeros(len(lengths), dtype=np.int64))
    return Corpus.pack({TRAIN: store}, block_tokens=BLOCK_TOKENS, seed=1)


class SmallDevice:
    """An extractor on a device with memory for so many padded tokens.

    Attributes:
        passes: Padded tokens of each forward pass that fitted.
        failures: Of each one that did not.
    """

    def __init__(self, corpus: Corpus, *, room: int):
        self.passes: list[int] = []
        self.failures: list[int] = []
        self.backbone = Backbone(tiny_classifier(), device=CPU, dtype=torch.float32)
        self.backbone.micro_batch_tokens = BLOCK_TOKENS
        self.extractor = BlockExtractor(self.backbone, corpus, "fp32")
        forward = self.backbone.model.forward

        def limited(*, input_ids: torch.Tensor, **inputs: Any) -> Any:
            fits = input_ids.numel() <= room
            (self.passes if fits else self.failures).append(input_ids.numel())
            if not fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(input_ids=input_ids, **inputs)

        self.backbone.model.forward = limited


def test_micro_batches_are_halved_for_good_where_memory_ends(caplog: pytest.LogCaptureFixture):
    corpus = corpus_of(np.sort(random_lengths(60)))
    large, small = SmallDevice(corpus, room=10_000), SmallDevice(corpus, room=70)
    assert len(corpus.blocks[TRAIN]) > 2
    with caplog.at_level(logging.WARNING):
        for block in corpus.blocks[TRAIN]:
            expected, actual = (d.extractor.extract(block.key) for d in (large, small))
            np.testing.assert_allclose(actual.hidden, expected.hidden, rtol=0, atol=1e-5)
            np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=1e-5)
    assert (large.failures, large.backbone.micro_batch_tokens) == ([], BLOCK_TOKENS)
    assert small.backbone.micro_batch_tokens == 50
    assert [record.getMessage() for record in caplog.records] == [
        f"the device is out of memory: micro-batches of at most {limit} tokens from now on"
        for limit in (200, 100, 50)
    ]
    assert len(small.failures) == 3
    later = [size for block in corpus.blocks[TRAIN][1:] for size in padded(block, 50)]
    assert small.passes[-len(later) :] == later


def padded(block: Block, max_tokens: int) -> list[int]:
    """Padded tokens of a block's micro-batches."""
    runs = micro_batches(block.lengths, max_tokens=max_tokens)
    return [len(block.lengths[run]) * int(block.lengths[run][-1]) for run in runs]


def test_the_longest_example_is_the_smallest_micro_batch():
    corpus = corpus_of(np.array([10] * 20 + [39]))
    device = SmallDevice(corpus, room=39)
    device.extractor.extract(corpus.blocks[TRAIN][0].key)
    assert device.backbone.micro_batch_tokens == 39
    assert max(device.passes) == 39


def test_an_example_that_does_not_fit_by_itself_is_an_error():
    corpus = corpus_of(np.array([10] * 20 + [39]))
    device = SmallDevice(corpus, room=38)
    key = corpus.blocks[TRAIN][0].key
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            device.extractor.extract(key)
    assert len(device.failures) < 10
