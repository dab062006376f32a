"""What one GPU does of a run, part by part: forward passes, extractors, copies, trainers.

Backbones have the shape of BERT-base and BERT-large and made-up weights. Examples have made-up
tokens, and lengths with the mean and the spread that were counted for `docs/scaling.md`.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
import torch
from transformers import BertConfig

from benchmarks.extraction import padded_batches
from benchmarks.layouts import GPUS, Case, Gpu, Rows
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.modes.plan import made_up_model
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock, stored_tensor
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.device_copy import to_device
from bertvision_stream.utils.devices import attention_of_any_shape, pick_dtype

VOCABULARY = BertConfig().vocab_size
HEAD_SIZE = 64  # of an attention head, in every BERT
EXTRACTOR_THREADS = 2  # as many calls as an extractor's actor takes at once
PRODUCT = 8192  # rows, depth and columns of the matrix product whose speed is the ceiling

Call = Callable[[], object]


def known_gpu(name: str) -> Gpu | None:
    """The GPU that a driver's name stands for, with the speed of its data sheet."""
    if "H200" in name:  # the same chip as that of an H100 SXM, with more memory
        name = "H100 80GB HBM3"
    if "H100" in name and "HBM3" not in name:  # on PCIe it is slower
        return None
    words = {gpu.name.partition(" ")[0]: gpu for gpu in GPUS}
    found = [gpu for word, gpu in words.items() if word in name.replace("-", " ").split()]
    return found[0] if found else None


def sample_lengths(rows: Rows, num_tokens: int, *, seed: int = 0) -> np.ndarray:
    """Lengths of about so many tokens, int64 [N]: gamma variates with the rows' two moments."""
    mean = rows.example_tokens
    variance = mean * (rows.attended - mean)  # E[s^2] - E[s]^2
    drawn = np.random.default_rng(seed).gamma(
        mean**2 / variance, variance / mean, math.ceil(num_tokens / mean)
    )
    return drawn.round().clip(4, rows.settings.max_length).astype(np.int64)


def sample_corpus(rows: Rows, *, num_tokens: int, block_tokens: int, seed: int = 0) -> Corpus:
    """Training blocks of about so many tokens."""
    lengths = sample_lengths(rows, num_tokens, seed=seed)
    ids = np.random.default_rng(1).integers(1000, VOCABULARY, lengths.sum())
    labels = np.arange(len(lengths)) % 2
    store = TokenStore(
        input_ids=ids.astype(np.int32),
        token_type_ids=np.zeros(len(ids), dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.stack([labels, labels], axis=1) if rows.settings.per_token else labels,
    )
    return Corpus.pack({TRAIN: store}, block_tokens=block_tokens, seed=seed)


def make_backbone(case: Case, device: torch.device) -> Backbone:
    """A backbone of the case's shape, in the dtype that a run takes."""
    config = BertConfig(
        hidden_size=case.hidden_size,
        num_hidden_layers=case.num_layers - 1,
        num_attention_heads=max(1, case.hidden_size // HEAD_SIZE),
        intermediate_size=case.intermediate_size,
    )
    model = made_up_model(config, case.rows.settings)
    return Backbone(model, device=device, dtype=pick_dtype("auto", device))


def seconds_of(calls: Iterable[Call], device: torch.device) -> list[float]:
    """Seconds of each call until the device is done; the first call warms up and is left out."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found = []
    for call in calls:
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return found[1:]


def count_tokens(corpus: Corpus) -> int:
    """Tokens of all training blocks."""
    return sum(block.num_tokens for block in corpus.blocks[TRAIN])


def forward_alone(backbone: Backbone, corpus: Corpus) -> Call:
    """A call that runs the model on all micro-batches, which lie on the device beforehand."""
    batches = [b for block in corpus.blocks[TRAIN] for b in padded_batches(backbone, corpus, block)]

    @torch.inference_mode()
    def run_all() -> None:
        with attention_of_any_shape(backbone.device):
            for batch in batches:
                backbone.model(**batch)

    return run_all


def extraction(backbone: Backbone, corpus: Corpus, codec: Codec, *, stored: bool = False) -> Call:
    """A call that extracts all blocks, from as many threads as in a run.

    Args:
        backbone: The encoder.
        corpus: The blocks.
        codec: How the blocks are encoded.
        stored: Whether each block also goes to Ray's object store.
    """
    extractor = BlockExtractor(backbone, corpus, codec)

    def one(key: BlockKey) -> None:
        encoded = extractor.extract(key)
        if stored:
            ray.put(encoded)

    def run_all() -> None:
        with ThreadPoolExecutor(EXTRACTOR_THREADS) as threads:
            list(threads.map(one, [block.key for block in corpus.blocks[TRAIN]]))

    return run_all


def copies(num_bytes: int, device: torch.device, repeats: int) -> Mapping[str, list[float]]:
    """Bytes a second of copies of a block of that size, by what is copied where."""
    on_device = torch.randint(0, 100, (num_bytes,), dtype=torch.int8, device=device)
    pageable = on_device.cpu()
    pinned = torch.empty_like(pageable, pin_memory=device.type == "cuda")
    nothing = np.empty(0, dtype=np.float32)
    block = EncodedBlock(hidden=pageable.numpy(), scales=nothing, logits=nothing)
    stored = stored_tensor(ray.get(ray.put(block)))
    calls: dict[str, Call] = {
        "GPU to pinned memory": lambda: pinned.copy_(on_device, non_blocking=True),
        "GPU to pageable memory": lambda: pageable.copy_(on_device),
        "pinned memory to the object store": lambda: ray.put(pinned.numpy()),
        "object store to GPU, as a trainer does": lambda: to_device(stored, device),
        "object store to GPU, by the driver alone": lambda: on_device.copy_(stored),
        "pageable memory to GPU": lambda: on_device.copy_(pageable),
        "pinned memory to GPU": lambda: on_device.copy_(pinned, non_blocking=True),
    }
    return {
        name: [num_bytes / seconds for seconds in seconds_of([call] * (repeats + 1), device)]
        for name, call in calls.items()
    }


def product_speed(device: torch.device, repeats: int) -> float:
    """Operations a second of one large matrix product in bf16."""
    left, right = (
        torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(left)
    times = 20 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    seconds = statistics.median(seconds_of([multiply] * (repeats + 1), device))
    return times * 2 * PRODUCT**3 / seconds


@dataclass(frozen=True)
class Trained:
    """What a trainer did: tokens and steps of each call, and the seconds of all calls."""

    tokens: int
    steps: float
    seconds: list[float]

    @property
    def rate(self) -> float:
        """The median of the tokens a second."""
        return self.tokens / statistics.median(self.seconds)


def train(
    case: Case,
    corpus: Corpus,
    blocks: Sequence[EncodedBlock],
    *,
    heads: int,
    device: torch.device,
    repeats: int,
) -> Trained:
    """Train heads on blocks from the object store, as a trainer is given them.

    Args:
        case: The task and the backbone.
        corpus: Its first blocks are those that are given.
        blocks: The blocks, encoded.
        heads: The number of heads.
        device: Where they compute.
        repeats: How often all blocks are consumed.
    """
    task = case.rows.settings
    settings = load_settings([f"task={task.name}", "train.epochs=100000"]).for_task(task.name)
    of_heads = {f"{i}": HeadJob(settings.model_copy(update={"seed": i})) for i in range(heads)}
    training = make_training(corpus, task, of_heads, case.head_shape, device=device)
    chosen = corpus.blocks[TRAIN][: len(blocks)]
    positions = itertools.count()

    def consume() -> None:
        for block, encoded in zip(chosen, blocks, strict=True):
            training.consume(Position(0, next(positions)), block.key, encoded)

    seconds = seconds_of([consume] * (repeats + 1), device)
    if len(training.active) < heads:
        raise RuntimeError("a head diverged on made-up hidden states")
    return Trained(
        tokens=sum(block.num_tokens for block in chosen),
        steps=sum(block.num_examples for block in chosen) / settings.train.batch_size,
        seconds=seconds,
    )
