"""Heads trained side by side on one stream of blocks: what a head trainer does, without Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import TRAIN, Block, BlockKey, row_order
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.plan import DeliveryStatus, Position
from bertvision_stream.training.batches import Batch, BatchCutter, OpenBlock
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.fit import (
    HeadFit,
    HeadResult,
    evaluate_together,
    measure_adapters,
    train_together,
)
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.records import EpochRecord
from bertvision_stream.utils.devices import pick_dtype

# Of a validation block, whose rows are sorted by length, every eighth tells how large the adapters'
# outputs are: an eighth of the cost, and rows of all lengths.
ADAPTERS_MEASURED_ON = 8

# Columns of one matrix product, the adapters of all its heads side by side. Twice as many are no
# faster (3 %), and narrower products are what several threads can share evenly.
COLUMNS_TOGETHER = 512


def num_measured(corpus: Corpus) -> int:
    """The number of validation rows on which adapters are measured, see `ADAPTERS_MEASURED_ON`."""
    blocks = map(corpus.block, corpus.validation_keys)
    return sum(math.ceil(block.num_examples / ADAPTERS_MEASURED_ON) for block in blocks)


@dataclass
class _Stack:
    """Heads computed together: equal in shape, given the same batches, in the same epoch of theirs.

    `row_mask` is bool [N], whether they learn from a training row; None if they learn from all.
    """

    epoch: int
    cutter: BatchCutter
    row_mask: np.ndarray | None
    fits: list[HeadFit]

    def train(self, opened: OpenBlock, block: Block, seed: int) -> None:
        """Steps on the block's rows that they learn from, in the order of their epoch."""
        rows = row_order(block, seed=seed, epoch=self.epoch)
        if self.row_mask is not None:
            rows = rows[self.row_mask[block.example_ids[rows]]]
        for batch in self.cutter.push(opened, rows):
            train_together(self.fits, batch)
        for fit in self.fits:
            fit.check_finite(f"in epoch {fit.epoch + 1}, at block {block.key}")

    def weight(self) -> int:
        """A number that grows with the time that the heads take."""
        return sum(fit.head.num_parameters for fit in self.fits)

    def end_training(self) -> None:
        """Take a step on what is left of the epoch's rows."""
        for batch in self.cutter.flush():
            train_together(self.fits, batch)

    def evaluate(
        self,
        split: str,
        example_ids: np.ndarray,
        all_rows: Batch,
        sampled_rows: Batch | None,
    ) -> None:
        """Keep the logits of a validation block, and norms of the adapters' output on a part."""
        evaluate_together(self.fits, split, example_ids, all_rows)
        if sampled_rows is not None:
            measured = [fit for fit in self.fits if fit.tracks_adapter_norms]
            measure_adapters(measured, sampled_rows)


class HeadTraining:
    """Feeds each block to every head, in the order of the plan.

    It knows the position that it has reached, so that a stream may deliver a block again, or start
    anew, without harm. Heads come and go between epochs. The rows of a block come in an order that
    depends on the head's own epoch, and so not on when it joined. A head may learn from some of the
    rows alone (`HeadJob.rows`): it is told nothing of the others.

    Args:
        corpus: The blocks, the labels and the seed of the row orders.
        task: What is learned.
        shape: What the heads read and write.
        device: Where the heads compute.
        dtype: The dtype of the heads' products, bf16 or fp32.
        stack_heads: Whether heads of equal shape are computed together: much faster, and equal to
            one by one but for rounding.
        num_threads: Threads for heads that are not computed together; the numbers are the same with
            any number of them.
    """

    def __init__(
        self,
        corpus: Corpus,
        task: Task,
        shape: HeadShape,
        *,
        device: torch.device,
        dtype: torch.dtype,
        stack_heads: bool,
        num_threads: int = 1,
    ):
        self.corpus = corpus
        self.objective = make_objective(task)
        self.shape = shape
        self.device = device
        self.dtype = dtype
        self.stack_heads = stack_heads
        self.fits: dict[str, HeadFit] = {}
        self._rows: dict[str, np.ndarray | None] = {}
        self.position = Position(0, 0)
        self.bert_logits: dict[str, np.ndarray] = {}
        self._stacks: list[_Stack] = []
        self._threads = _threads(num_threads) if num_threads > 1 else None
        self._taking_part: frozenset[str] = frozenset()
        self._ended: dict[str, EpochRecord | None] = {}

    def attach(self, name: str, head: HeadJob, checkpoint: Checkpoint | None = None) -> None:
        """Add a head, between two epochs.

        Args:
            name: The name of the head; a head of the same name is replaced.
            head: What to train.
            checkpoint: The state from which the head goes on; None starts it.

        Raises:
            ValueError: An epoch is going on.
        """
        if self.position.index:
            raise ValueError(f"no head can be attached within an epoch, at {self.position}")
        settings, labels = head.settings, self.corpus.stores[TRAIN].labels
        labels = labels if head.rows is None else labels[head.rows]
        mean, std = self.objective.target_scale(labels)
        shape = replace(self.shape, target_mean=mean, target_std=std)
        fit = HeadFit(
            Head(settings.head, shape, seed=settings.seed),
            settings.train,
            self.objective,
            num_examples=len(labels),
            validation={s: self.corpus.stores[s] for s in self.corpus.validation_splits},
            device=self.device,
            with_report=head.with_report,
        )
        if checkpoint is not None:
            fit.restore(checkpoint)
        self.fits[name] = fit
        self._rows[name] = head.rows

    def detach(self, name: str) -> None:
        """Let a head go, between two epochs."""
        self.fits.pop(name, None)
        self._rows.pop(name, None)

    def consume(self, position: Position, key: BlockKey, encoded: EncodedBlock) -> DeliveryStatus:
        """Train on a training block, or evaluate on a validation block. Nothing of it is kept.

        Args:
            position: The position of the delivery; every position is taken once and in order.
            key: The name of the block.
            encoded: The block's hidden states and BERT's logits.
        """
        if position != self.position:
            early = position > self.position
            return DeliveryStatus.TOO_EARLY if early else DeliveryStatus.DUPLICATE
        if position.index == 0:  # heads come and go between epochs, so stacks last for one
            self._stacks = self._make_stacks()
            self._taking_part = self.active
        block = self.corpus.block(key)
        labels_B = self.corpus.stores[key.split].labels[block.example_ids]
        opened = OpenBlock(encoded, block.lengths, labels_B, device=self.device, dtype=self.dtype)
        if key.split == TRAIN:
            self._each_stack(lambda stack: stack.train(opened, block, self.corpus.seed))
        else:
            self._end_training()
            self._keep_bert_logits(key.split, block.example_ids, encoded.logits)
            all_rows = opened.take(np.arange(opened.num_rows))
            sampled_rows = None
            if any(fit.tracks_adapter_norms for fit in self.fits.values()):
                sampled_rows = opened.take(np.arange(0, opened.num_rows, ADAPTERS_MEASURED_ON))
            ids = block.example_ids
            self._each_stack(lambda stack: stack.evaluate(key.split, ids, all_rows, sampled_rows))
        self.position = position.next
        return DeliveryStatus.CONSUMED

    def end_epoch(self, epoch: int) -> dict[str, EpochRecord | None]:
        """Close the epoch of every head that took part; None for one that failed on the way.

        Called again for the same epoch, after a fault, it gives the same answer.

        Raises:
            ValueError: Deliveries of the epoch are missing.
        """
        if self.position == Position(epoch + 1, 0):
            return self._ended
        if self.position != Position(epoch, self.corpus.num_blocks):
            raise ValueError(f"epoch {epoch} cannot end at {self.position}")
        self._end_training()
        self._ended = {
            name: fit.end_epoch(self.bert_logits)
            for name, fit in self.fits.items()
            if name in self._taking_part
        }
        self.position = Position(epoch + 1, 0)
        return self._ended

    def results(self) -> dict[str, HeadResult]:
        """The result of each head so far, by name."""
        return {name: fit.result() for name, fit in self.fits.items()}

    @property
    def active(self) -> frozenset[str]:
        """The names of the heads that still train."""
        return frozenset(name for name, fit in self.fits.items() if fit.active)

    def checkpoint(self) -> Checkpoint:
        """All heads, BERT's logits and the position, between two epochs."""
        if self.position.index:
            raise ValueError(f"no checkpoint within an epoch, at {self.position}")
        parts = {f"head:{name}": fit.checkpoint() for name, fit in self.fits.items()}
        logits = {split: torch.from_numpy(a) for split, a in self.bert_logits.items()}
        parts["bert"] = Checkpoint(logits)
        return Checkpoint.join(parts, {"epoch": self.position.epoch})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`; heads that it does not know stay as they are."""
        for name, fit in self.fits.items():
            if f"head:{name}" in checkpoint.facts["parts"]:
                fit.restore(checkpoint.part(f"head:{name}"))
        self.bert_logits = {
            split: t.numpy().copy() for split, t in checkpoint.part("bert").tensors.items()
        }
        self.position = Position(checkpoint.facts["epoch"], 0)

    def _make_stacks(self) -> list[_Stack]:
        """The heads that train in this epoch, together where they can be computed together."""
        kinds: dict[tuple[int, int, bytes | None, Hashable], list[str]] = {}
        for name, fit in self.fits.items():
            if fit.active:
                rows = self._rows[name]
                # Heads of a stack share its batches, so their rows must be the same. An array
                # cannot be a part of a key, its bytes can.
                same_rows = None if rows is None else rows.tobytes()
                alike = fit.head.stack_key if self.stack_heads else name
                kinds.setdefault((fit.epoch, fit.batch_size, same_rows, alike), []).append(name)
        stacks = []
        for (epoch, size, _, _), names in kinds.items():
            fits = [self.fits[name] for name in names]
            count = max(1, COLUMNS_TOGETHER // fits[0].head.num_columns)
            row_mask = self._row_mask(self._rows[names[0]])
            stacks += [
                _Stack(epoch, BatchCutter(size), row_mask, fits[i : i + count])
                for i in range(0, len(fits), count)
            ]
        return stacks

    def _row_mask(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Whether each training row is one of `rows`, bool [N]; None for all rows."""
        if rows is None:
            return None
        mask = np.zeros(self.corpus.stores[TRAIN].num_examples, dtype=bool)
        mask[rows] = True
        return mask

    def _each_stack(self, do: Callable[[_Stack], None]) -> None:
        """Call it for each stack, in all threads; a stack is in one at a time.

        Heads that failed by then leave their stacks.
        """
        # Before the work and not after it: whoever failed has no finite numbers left to compute.
        for stack in self._stacks:
            stack.fits = [fit for fit in stack.fits if fit.active]
        self._stacks = [stack for stack in self._stacks if stack.fits]
        if self._threads is None or len(self._stacks) == 1:
            for stack in self._stacks:
                do(stack)
        else:
            # The heaviest first: a thread that begins with it is not waited for in the end.
            list(self._threads.map(do, sorted(self._stacks, key=_Stack.weight, reverse=True)))

    def _end_training(self) -> None:
        """The last, smaller batch of the epoch, once its training blocks are through."""
        self._each_stack(_Stack.end_training)

    def _keep_bert_logits(self, split: str, ids: np.ndarray, logits: np.ndarray) -> None:
        store = self.corpus.stores[split]
        if split not in self.bert_logits:
            self.bert_logits[split] = self.objective.empty_logits(store)
        self.bert_logits[split][self.objective.rows(store, ids)] = logits


def _threads(count: int) -> ThreadPoolExecutor:
    """Threads of one core each: none of them starts more for its products."""
    return ThreadPoolExecutor(count, "heads", initializer=torch.set_num_threads, initargs=(1,))


def make_training(
    corpus: Corpus,
    task: Task,
    heads: Mapping[str, HeadJob],
    shape: HeadShape,
    *,
    device: torch.device,
) -> HeadTraining:
    """Set up the training of heads in this process: modules, optimisers, all that is in settings.

    Args:
        corpus: The blocks and labels.
        task: What is learned.
        heads: What to train, by the name of the head. `train.precision` and `train.stack_heads`
            of the first head hold for all.
        shape: What the heads read and write.
        device: Where they compute.
    """
    train = next(iter(heads.values())).settings.train
    dtype = pick_dtype(train.precision, device)
    training = HeadTraining(
        corpus, task, shape, device=device, dtype=dtype, stack_heads=train.stack_heads
    )
    for name, head in heads.items():
        training.attach(name, head)
    return training
