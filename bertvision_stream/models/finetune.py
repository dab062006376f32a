"""Partial fine-tuning of a BERT classifier: the loop, and a hash to find its result again.

The loop runs in one process as it is, and under Ray Train in several (`actors/finetune.py`).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import has_token_logits, model_logits
from bertvision_stream.training.losses import example_loss, span_loss
from bertvision_stream.utils.devices import attention_of_any_shape, pick_dtype

WARMUP_RATIO = 0.1
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0

# Rows are sorted by length inside windows of so many batches: little padding, and batches of all
# lengths.
_BATCHES_SORTED_TOGETHER = 8

# A part of the hash: raise it when the loop changes its numbers.
_VERSION = 1


@dataclass(frozen=True)
class FinetuneOptions:
    """What the loop depends on, besides the model and the tokens.

    Attributes:
        epochs: May be a fraction: 0.3 stops after 30 % of the first epoch's steps.
        lr: Peak learning rate, reached after `WARMUP_RATIO` of the steps and brought down to zero.
        batch_size: Examples in a step, of all workers together.
        seed: Orders the examples and seeds dropout.
        dtype: `auto`, `bf16` or `fp32`: of the products (autocast; weights and optimiser stay
            in fp32).
    """

    epochs: float
    lr: float
    batch_size: int
    seed: int
    dtype: str


@dataclass(frozen=True)
class StepReport:
    """Progress after a step: steps done and in all, mean loss of the last steps, tokens so far."""

    step: int
    total_steps: int
    loss: float
    tokens: int


def num_steps(num_examples: int, options: FinetuneOptions) -> int:
    """Steps of the whole fine-tuning, at least one where `epochs` is above zero."""
    # The fraction as it was written: in floats 0.07 of 100 steps is a little more than 7.
    epochs = Fraction(str(options.epochs))
    return math.ceil(epochs * math.ceil(num_examples / options.batch_size))


def batch_order(lengths: np.ndarray, options: FinetuneOptions, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every example once, examples of similar length together."""
    rng = np.random.default_rng([options.seed, epoch])
    order = rng.permutation(len(lengths))
    window = options.batch_size * _BATCHES_SORTED_TOGETHER
    batches: list[np.ndarray] = []
    for first in range(0, len(order), window):
        rows = order[first : first + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [
            rows[i : i + options.batch_size] for i in range(0, len(rows), options.batch_size)
        ]
    return [batches[i] for i in rng.permutation(len(batches))]


def finetune(
    model: PreTrainedModel,
    store: TokenStore,
    options: FinetuneOptions,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> PreTrainedModel:
    """Fine-tune all parameters in place: AdamW, linear warm-up and decay, gradient clipping.

    Args:
        model: A sequence classifier or a question-answering model in fp32.
        store: Training tokens and labels.
        options: The hyperparameters.
        device: Where to compute.
        rank: This worker among `world_size`; each takes its share of the rows of every batch.
        world_size: Number of workers.
        wrap: Makes the model a distributed one, where there are several workers.
        on_step: Told of each step.

    Returns:
        The model, on `device`.
    """
    torch.manual_seed(options.seed * 1000 + rank)  # dropout
    nn.Module.to(model, device).train()  # transformers' own `to` hides its types
    autocast = pick_dtype(options.dtype, device) == torch.bfloat16
    wrapped = wrap(model)
    optimizer = _adamw(model, options)
    total = num_steps(store.num_examples, options)
    tokens, losses = 0, []
    for step, rows in enumerate(_batches(store.lengths, options, total)):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _schedule(step, total)
        own = rows[rank::world_size]
        # A worker without a row still takes part in the exchange of gradients, with weight zero.
        own_or_any = own if len(own) else rows[:1]
        inputs, labels, real_t = _padded(store, own_or_any, model.config, device)
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=autocast)
        with attention_of_any_shape(device), mixed:
            logits = model_logits(wrapped(**inputs), real_t)
        if has_token_logits(model):
            lengths_b = torch.from_numpy(store.lengths[own_or_any]).to(device)
            losses_b = span_loss(logits, labels, lengths_b, "none")
        else:
            losses_b = example_loss(logits, labels, "none")
        # DDP averages gradients over workers; this makes that the mean over the batch's rows.
        loss = losses_b.sum() * (bool(len(own)) * world_size / len(rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        tokens += int(store.lengths[rows].sum())
        losses.append(loss.detach())
        if (step + 1) % 20 == 0 or step + 1 == total:
            mean_loss = torch.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"the loss became {mean_loss} by step {step + 1} of {total}; "
                    f"try a lower finetune.lr (it was {options.lr})"
                )
            on_step(StepReport(step + 1, total, mean_loss, tokens))
            losses = []
    return model


def _batches(lengths: np.ndarray, options: FinetuneOptions, total: int) -> Iterator[np.ndarray]:
    """`total` batches, epoch after epoch."""
    epoch = 0
    while total > 0:
        batches = batch_order(lengths, options, epoch)[:total]
        yield from batches
        total -= len(batches)
        epoch += 1


def _schedule(step: int, total: int) -> float:
    warmup = round(WARMUP_RATIO * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(total - warmup, 1)


def _padded(
    store: TokenStore, rows: np.ndarray, config: Any, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A padded batch, its labels, and where its real tokens are, one padded row after another."""
    lengths = store.lengths[rows]
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, config.pad_token_id or 0, dtype=np.int64)
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    for i, row in enumerate(rows):
        span = slice(store.offsets[row], store.offsets[row + 1])
        input_ids[i, : lengths[i]] = store.input_ids[span]
        type_ids[i, : lengths[i]] = store.token_type_ids[span]
    arrays = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64)}
    if getattr(config, "type_vocab_size", 0) > 1:
        arrays["token_type_ids"] = type_ids
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    labels = torch.from_numpy(np.asarray(store.labels[rows])).to(device)
    return inputs, labels, torch.from_numpy(np.flatnonzero(mask)).to(device)


def _adamw(model: nn.Module, options: FinetuneOptions) -> torch.optim.AdamW:
    """No decay on biases and LayerNorm weights: the one-dimensional parameters."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    # Fused: one pass over the word embeddings instead of seven (116 -> 16 ms a step on a CPU).
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


def content_hash(
    source: str,
    commit: str | None,
    store: TokenStore,
    options: FinetuneOptions,
    *,
    outputs: Sequence[str],
    num_workers: int,
) -> str:
    """A hash of everything that goes into a fine-tuning: weights, tokens, labels, options.

    Args:
        source: A local folder, whose files are hashed, or a hub id.
        commit: The hub's commit of the weights, where `source` is a hub id.
        store: Training tokens and labels.
        options: The hyperparameters.
        outputs: The names of the classes, in order; empty for regression.
        num_workers: Workers that share a step: the order of their sums changes the last bits.
    """
    digest = hashlib.sha256(repr((_VERSION, asdict(options), tuple(outputs), num_workers)).encode())
    if Path(source).is_dir():
        for path in sorted(Path(source).glob("*")):
            if path.suffix in {".json", ".safetensors", ".txt"}:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(f"{source}@{commit}".encode())
    for array in store.arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
