"""What only a CUDA device can show; the rest of the suite does without one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import random_lengths, task_settings, tiny_classifier, token_store

from bertvision_stream.backbone import Backbone
from bertvision_stream.blocks import TRAIN
from bertvision_stream.corpus import Corpus
from bertvision_stream.extract import BlockExtractor
from bertvision_stream.heads import Head, HeadShape
from bertvision_stream.heads.stacked import stacked_logits
from bertvision_stream.setting_groups import HeadSettings
from bertvision_stream.tasks import TASKS
from bertvision_stream.training import make_training, train_in_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def corpus() -> Corpus:
    stores = {
        split: token_store(random_lengths(count, seed=seed), labels=[0, 1] * (count // 2))
        for seed, (split, count) in enumerate({TRAIN: 200, "validation": 60}.items())
    }
    return Corpus.pack(stores, block_tokens=512, seed=1)


def extractor(device: str, codec: str) -> BlockExtractor:
    backbone = Backbone(tiny_classifier(), device=torch.device(device), dtype=torch.float32)
    return BlockExtractor(backbone, corpus(), codec)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_blocks_are_those_of_the_cpu(codec: str):
    on_cpu, on_gpu = extractor("cpu", "fp32"), extractor("cuda", codec)
    tolerance = {"fp32": 1e-4, "bf16": 3e-2, "int8": 5e-2}[codec]
    from bertvision_stream.codecs import decode, scales_tensor, stored_tensor

    for block in on_cpu.corpus.blocks[TRAIN]:
        expected, actual = on_cpu.extract(block.key), on_gpu.extract(block.key)
        decoded = decode(stored_tensor(actual), scales_tensor(actual), torch.float32)
        torch.testing.assert_close(
            decoded, torch.from_numpy(expected.hidden), atol=tolerance, rtol=tolerance
        )
        torch.testing.assert_close(
            torch.from_numpy(actual.logits), torch.from_numpy(expected.logits), atol=1e-4, rtol=1e-3
        )


def test_two_callers_get_what_one_gets():
    on_gpu = extractor("cuda", "bf16")
    keys = [block.key for block in on_gpu.corpus.blocks[TRAIN]] * 5
    alone = [on_gpu.extract(key) for key in keys]
    with ThreadPoolExecutor(2) as callers:
        together = list(callers.map(on_gpu.extract, keys))
    for one, other in zip(alone, together, strict=True):
        assert (one.hidden == other.hidden).all()
        assert (one.logits == other.logits).all()


def test_a_head_trains_on_the_gpu_as_on_the_cpu():
    losses = {}
    for device in ("cpu", "cuda"):
        blocks = extractor(device, "fp32")
        settings = task_settings("rte", "train.precision=fp32", "train.epochs=2")
        backbone = blocks.backbone
        shape = HeadShape(backbone.num_layers, backbone.hidden_size, 2, 64)
        heads = {"head": settings}
        training = make_training(
            blocks.corpus, TASKS["rte"], heads, shape, device=torch.device(device)
        )
        for _ in train_in_process(blocks, training):
            pass
        losses[device] = [record.loss for record in training.results()["head"].history]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


@pytest.mark.parametrize("pool", ["mean", "attention", "flatten"])
def test_stacked_heads_on_the_gpu_are_those_of_the_cpu(pool: str):
    settings, shape = HeadSettings(pool=pool, skip="mix"), HeadShape(5, 32, 3, 20)
    lengths = torch.arange(1, 21)
    hidden = torch.randn(int(lengths.sum()), 5, 32, generator=torch.Generator().manual_seed(0))
    outcome = {}
    for device in ("cpu", "cuda"):
        heads = [Head(settings, shape, seed=seed).to(device) for seed in range(4)]
        logits = torch.stack(stacked_logits(heads, hidden.to(device), lengths.to(device)))
        logits.square().sum().backward()
        gradients = [p.grad.cpu() for head in heads for p in head.parameters()]
        outcome[device] = [logits.detach().cpu(), *gradients]
    torch.testing.assert_close(outcome["cuda"], outcome["cpu"], rtol=1e-3, atol=1e-4)
