"""The tests that need a CUDA device; all others run without one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import test_span_training as spans
import torch
from test_checkpoint import CLASSES, SCORES, Job, assert_same_training
from tiny import random_lengths, task_settings, tiny_classifier, token_store

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.heads.stacked import stacked_logits
from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.finetune import FinetuneOptions, finetune
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.settings.groups import HeadSettings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.codecs import decode, scales_tensor, stored_tensor
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.device_copy import BUFFER_BYTES, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def corpus() -> Corpus:
    stores = {
        split: token_store(random_lengths(count, seed=seed), labels=np.arange(count) % 2)
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
        heads = {"head": HeadJob(settings)}
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


@pytest.mark.parametrize(
    ("task", "precision"),
    [(CLASSES, "fp32"), (SCORES, "bf16")],
    ids=["classification in fp32", "regression in bf16"],
)
def test_training_goes_on_bit_for_bit(tmp_path: Path, task, precision: str):
    job = Job(task, precision, torch.device("cuda"))
    through = job.start()
    restarted = job.start()
    while through.active:
        job.run_epoch(through)
        job.run_epoch(restarted)
        restarted = job.restart(restarted, tmp_path / "checkpoint.safetensors")
        assert_same_training(restarted, through)


def test_heads_of_spans_train_on_the_gpu_as_on_the_cpu():
    losses = {}
    for device in (torch.device("cpu"), torch.device("cuda")):
        corpus = spans.make_corpus()
        model = tiny_classifier(per_token=True, **spans.VOCAB)
        backbone = Backbone(model, device=device, dtype=torch.float32)
        settings = task_settings("squad_v2", "train.precision=fp32", "train.epochs=2")
        heads = {
            f"{seed}": HeadJob(settings.model_copy(update={"seed": seed})) for seed in range(3)
        }
        training = make_training(corpus, spans.SQUAD, heads, spans.SHAPE, device=device)
        for _ in train_in_process(BlockExtractor(backbone, corpus, "fp32"), training):
            pass
        losses[device.type] = [r.loss for f in training.fits.values() for r in f.history]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_a_backbone_is_finetuned_on_the_gpu_as_on_the_cpu():
    rng = np.random.default_rng(0)
    store = token_store(random_lengths(40, longest=20), rng.integers(0, 2, 40))
    objective = make_objective(TASKS["cola"])
    options = FinetuneOptions(epochs=1.0, lr=1e-3, batch_size=8, seed=42, dtype="fp32")
    on_cpu, on_gpu = (
        BackboneWeights.of(
            finetune(
                tiny_classifier(), store, objective, options, device=torch.device(device)
            ).cpu()
        )
        for device in ("cpu", "cuda")
    )
    for name, weights in on_cpu.arrays.items():
        np.testing.assert_allclose(on_gpu.arrays[name], weights, atol=2e-3, err_msg=name)


def test_micro_batches_are_halved_where_memory_ends(monkeypatch: pytest.MonkeyPatch):
    whole = extractor("cuda", "fp32")
    expected = [whole.extract(block.key) for block in whole.corpus.blocks[TRAIN]]
    small = extractor("cuda", "fp32")
    forward = small.backbone.forward_packed

    def with_little_memory(*arguments: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if small.backbone.micro_batch_tokens > 256:
            torch.empty(2**50, device="cuda")
        return forward(*arguments)

    monkeypatch.setattr(small.backbone, "forward_packed", with_little_memory)
    for block, one in zip(small.corpus.blocks[TRAIN], expected, strict=True):
        np.testing.assert_allclose(small.extract(block.key).hidden, one.hidden, atol=1e-4)
    assert small.backbone.micro_batch_tokens == 256


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_blocks_reach_the_gpu_whole(dtype: torch.dtype):
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    for num_bytes in (0, 100, BUFFER_BYTES, 5 * BUFFER_BYTES + 12):
        values = torch.randint(-100, 100, (num_bytes // dtype.itemsize,), generator=generator)
        tensor = values.to(dtype).reshape(-1, 1)
        for _ in range(3):  # its buffers are those of the copy before
            copied = to_device(tensor, device)
            assert copied.device.type == "cuda"
            assert torch.equal(copied.cpu(), tensor)
