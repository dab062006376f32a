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
from bertvision_stream.models.backbone import (
    model_logits,
    padded_inputs,
    real_positions,
    rescale_output,
)
from bertvision_stream.stream.corpus import packed_positions
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.training.optimizer import learning_rate, make_adamw, set_learning_rate
from bertvision_stream.utils.devices import attention_of_any_shape, pick_dtype
from bertvision_stream.utils.hashing import hash_contents

WARMUP_RATIO = 0.1
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0

# Rows are sorted by length inside windows of so many batches: little padding, and batches of all
# lengths.
_BATCHES_SORTED_TOGETHER = 8

# A part of the hash: raise it when the loop changes its numbers.
_VERSION = 1
_REGRESSION_VERSION = 2


@dataclass(frozen=True)
class FinetuneOptions:
    """What the loop depends on, besides the model and the tokens.

    Attributes:
        epochs: The number of epochs, which may be a fraction: 0.3 stops after 30 % of the first
            epoch's steps.
        lr: The highest learning rate, reached after `WARMUP_RATIO` of the steps and then brought
            down to zero.
        batch_size: The examples of a step, of all workers together.
        seed: Orders the examples and seeds dropout.
        dtype: The dtype of products, `auto`, `bf16` or `fp32` (by autocast: weights and optimiser
            stay in fp32).
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
    """The steps of the whole fine-tuning, at least one where `epochs` is above zero."""
    # The fraction as it was written: in floats 0.07 of 100 steps is a little more than 7.
    epochs = Fraction(str(options.epochs))
    return math.ceil(epochs * math.ceil(num_examples / options.batch_size))


def batch_order(lengths: np.ndarray, options: FinetuneOptions, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every example once, examples of similar length together."""
    # The same in every worker: each takes its share of the rows from the same batches.
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


@dataclass(frozen=True)
class Worker:
    """One of the processes that fine-tune a model together; by default the only one.

    Attributes:
        rank: The number of the worker, counted from 0. It decides which rows of a batch are its.
        world_size: The number of workers.
        wrap: Makes the model a distributed one, whose workers exchange their gradients.
    """

    rank: int = 0
    world_size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module


def finetune(
    model: PreTrainedModel,
    store: TokenStore,
    objective: Objective,
    options: FinetuneOptions,
    *,
    device: torch.device,
    worker: Worker = Worker(),
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> PreTrainedModel:
    """Fine-tune all parameters in place: AdamW, linear warm-up and decay, gradient clipping.

    A regression learns labels of mean 0 and standard deviation 1, so that the rates and the clipped
    gradients suit labels of any size. Its last layer is scaled before and after: what comes in and
    what comes out are models in the labels' own units.

    Args:
        model: A sequence classifier or a question-answering model in fp32.
        store: The training tokens and labels.
        objective: The loss.
        options: The hyperparameters.
        device: Where to compute.
        worker: Which share of every batch is computed here.
        on_step: Is called with the progress after every twentieth step and the last one.

    Returns:
        The model, on `device`.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    torch.manual_seed(options.seed * 1000 + worker.rank)  # dropout
    nn.Module.to(model, device).train()  # transformers' own `to` hides its types
    mean, std = objective.target_scale(store.labels)
    if objective.task.kind == "regression":
        rescale_output(model, mean=-mean / std, std=1 / std)
    autocast = pick_dtype(options.dtype, device) == torch.bfloat16
    wrapped = worker.wrap(model)
    optimizer = make_adamw(model, lr=options.lr, weight_decay=WEIGHT_DECAY)
    total = num_steps(store.num_examples, options)
    tokens, losses = 0, []
    for step, rows in enumerate(_batches(store.lengths, options, total)):
        # The factor is rounded before it is multiplied by the rate: a change of that order would
        # change the last bits, and with them the weights that users have.
        factor = learning_rate(1.0, step, total, warmup_ratio=WARMUP_RATIO)
        set_learning_rate(optimizer, options.lr * factor)
        own = rows[worker.rank :: worker.world_size]
        # A worker without a row still takes part in the exchange of gradients, with weight zero.
        own_or_any = own if len(own) else rows[:1]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = _logits(wrapped, store, own_or_any, model.config, device)
        labels = torch.from_numpy(np.asarray(store.labels[own_or_any])).to(device)
        if objective.task.kind == "regression":
            labels = (labels - mean) / std
        lengths_b = torch.from_numpy(store.lengths[own_or_any]).to(device)
        losses_b = objective.loss(logits, labels, lengths_b, "none")
        # DDP averages gradients over workers; this makes that the mean over the batch's rows.
        loss = losses_b.sum() * (bool(len(own)) * worker.world_size / len(rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        tokens += int(store.lengths[rows].sum())
        losses.append(loss.detach())
        # A look at the loss makes a GPU wait for what it was told to do, so not after each step.
        if (step + 1) % 20 == 0 or step + 1 == total:
            mean_loss = torch.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"the loss became {mean_loss} by step {step + 1} of {total}; "
                    f"try a lower finetune.lr (it was {options.lr:g})"
                )
            on_step(StepReport(step + 1, total, mean_loss, tokens))
            losses = []
    if objective.task.kind == "regression":
        rescale_output(model, mean=mean, std=std)
    return model


def _batches(lengths: np.ndarray, options: FinetuneOptions, total: int) -> Iterator[np.ndarray]:
    """`total` batches, epoch after epoch."""
    epoch = 0
    while total > 0:
        batches = batch_order(lengths, options, epoch)[:total]
        yield from batches
        total -= len(batches)
        epoch += 1


def _logits(
    model: nn.Module, store: TokenStore, rows: np.ndarray, config: Any, device: torch.device
) -> torch.Tensor:
    """The logits of the rows in fp32, as `model_logits` gives them."""
    lengths = store.lengths[rows]
    mask = np.arange(lengths.max()) < lengths[:, None]
    positions = packed_positions(store.offsets[rows], lengths)
    inputs = padded_inputs(
        config, mask, store.input_ids[positions], store.token_type_ids[positions], device
    )
    with attention_of_any_shape(device):
        return model_logits(model(**inputs), real_positions(mask, device))


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
        store: The training tokens and labels.
        options: The hyperparameters.
        outputs: The names of the classes, in order; empty for regression.
        num_workers: The number of workers that share a step: the order of their sums changes the
            last bits.
    """
    version = _REGRESSION_VERSION if store.labels.dtype.kind == "f" else _VERSION
    parts: list[Any] = [repr((version, asdict(options), tuple(outputs), num_workers))]
    if Path(source).is_dir():
        for path in sorted(Path(source).glob("*")):
            if path.suffix in {".json", ".safetensors", ".txt"}:
                with path.open("rb") as file:
                    parts += [path.name, hashlib.file_digest(file, "sha256").digest()]
    else:
        parts.append(f"{source}@{commit}")
    return hash_contents([*parts, *store.arrays])
