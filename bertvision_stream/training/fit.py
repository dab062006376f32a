"""Fit one head: the training step, the schedule, evaluation, early stopping."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.stacked import num_together, stacked_logits
from bertvision_stream.settings.settings import ResolvedTrain
from bertvision_stream.training.batches import Batch
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.training.optimizer import learning_rate, make_adamw, set_learning_rate
from bertvision_stream.training.records import EpochRecord

# Rules for the epoch whose weights count, as they read after "chosen by".
LAST_EPOCH = "being the last one (train.patience is not set)"
LOWEST_LOSS = "lowest validation loss"


@dataclass(frozen=True)
class HeadResult:
    """A fitted head.

    Attributes:
        state: The parameters of the chosen epoch, on the CPU.
        logits: The validation logits of these parameters by split: float32 [R, C] as the objective
            keeps them.
        history: One record for each epoch that ran.
        start: The record of the head before its first step, with BERT's own logits; None where that
            was no candidate (without `train.patience`, or with a head that does not begin as BERT).
        chosen_epoch: The number of the chosen epoch, counted from 1; 0 where it is `start`, and
            before any epoch.
        chosen_by: The rule that chose the epoch.
        num_parameters: The number of trained parameters.
        failure: Why the head was stopped, or empty.
        adapter_shares: The share of each layer in the norm of the adapters' output, over a sample
            of the validation tokens; empty for a head without adapters, one without a report, and
            one that was stopped before its last epoch or is as it began.
    """

    state: dict[str, torch.Tensor]
    logits: dict[str, np.ndarray]
    history: tuple[EpochRecord, ...]
    chosen_epoch: int
    chosen_by: str
    num_parameters: int
    failure: str
    adapter_shares: tuple[float, ...] = ()
    start: EpochRecord | None = None


class HeadFit:
    """One head with its optimiser, schedule and results.

    AdamW without decay on biases and mixing weights, a linear warm-up and a linear decay to zero.
    Depends on the batches it is given and on nothing else, so that its numbers are the same alone
    or among others, in one process or at the end of a stream.

    Args:
        head: The head, which is moved to `device`.
        settings: The settings `train.*`.
        objective: Loss and metrics.
        num_examples: The number of training examples that the head learns from.
        validation: The tokens and labels by validation split.
        device: Where to compute.
        with_report: Whether the head itself is reported on, and not only its scores.
    """

    def __init__(
        self,
        head: Head,
        settings: ResolvedTrain,
        objective: Objective,
        *,
        num_examples: int,
        validation: Mapping[str, TokenStore],
        device: torch.device,
        with_report: bool = True,
    ):
        self.head = head.to(device)
        self.settings = settings
        self.objective = objective
        self.batch_size = settings.batch_size
        self.total_steps = settings.epochs * math.ceil(num_examples / settings.batch_size)
        self.steps = 0
        self.failure = ""
        self.history: list[EpochRecord] = []
        self._optimizer = make_adamw(head, lr=settings.lr, weight_decay=settings.weight_decay)
        self._validation = validation
        self._chosen_epoch = 0
        self._chosen_state: dict[str, torch.Tensor] = {}
        self._chosen_logits: dict[str, np.ndarray] = {}
        self._chosen_norms = torch.zeros(0, dtype=torch.float64)
        # Before its first step the head is BERT, and may already be the best that it will be.
        self._may_stay_bert = settings.patience is not None and head.begins_as_bert
        self._start: EpochRecord | None = None
        if self._may_stay_bert:
            self._chosen_state = self._state()
        self._device = device
        self._with_report = with_report
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._num_trained = 0
        self._norms = torch.zeros(0, dtype=torch.float64)
        self._logits = {
            split: self.objective.empty_logits(store) for split, store in self._validation.items()
        }

    @property
    def epoch(self) -> int:
        """The head's own epoch, counted from 0: how many it has behind it."""
        return len(self.history)

    @property
    def active(self) -> bool:
        """Whether the head still trains: not failed, not stopped early, epochs left."""
        if self.failure or len(self.history) >= self.settings.epochs:
            return False
        patience = self.settings.patience
        return patience is None or len(self.history) - self._chosen_epoch < patience

    @property
    def tracks_adapter_norms(self) -> bool:
        """Whether this epoch's weights may be those that are kept and reported on.

        Without patience only the last epoch's are, whatever becomes of the head before.
        """
        last = self.epoch + 1 == self.settings.epochs
        return self._with_report and (last or self.settings.patience is not None)

    def begin_step(self) -> None:
        """What comes before the forward pass of a training step."""
        train = self.settings
        lr = learning_rate(train.lr, self.steps, self.total_steps, warmup_ratio=train.warmup_ratio)
        set_learning_rate(self._optimizer, lr)
        self.head.train()
        self._optimizer.zero_grad(set_to_none=True)

    def end_step(self, loss: torch.Tensor, num_examples: int) -> None:
        """What comes after the backward pass from `loss`, the mean over `num_examples`."""
        self._optimizer.step()
        self.steps += 1
        self._num_trained += num_examples
        self._loss_sum += loss.detach().double() * num_examples

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean loss of the batch's examples."""
        return self.objective.loss(logits, batch.labels_B, batch.lengths_B)

    def weighted(self, loss: torch.Tensor) -> torch.Tensor:
        """What is minimised: the loss of a regression in units of its target's spread."""
        std = self.head.shape.target_std
        return loss if std == 1 else loss / std**2

    def keep_logits(self, split: str, example_ids: np.ndarray, logits: torch.Tensor) -> None:
        """Keep logits of validation examples for the epoch's end: [B, C], or packed [T, C]."""
        rows = self.objective.rows(self._validation[split], example_ids)
        self._logits[split][rows] = logits.cpu().numpy()

    def keep_norms(self, norms_L: torch.Tensor) -> None:
        """Add the adapters' norms of some validation tokens."""
        self._norms = norms_L.cpu() + (self._norms if len(self._norms) else 0)

    @property
    def mean_loss(self) -> float:
        """The mean training loss of the epoch so far; waits for the device."""
        return self._loss_sum.item() / max(self._num_trained, 1)

    def check_finite(self, where: str) -> None:
        """Stop the head where its loss is no longer finite; others are not touched."""
        if not self.failure and not math.isfinite(self.mean_loss):
            self.failure = (
                f"the training loss became {self.mean_loss} {where}; try a lower train.lr "
                f"(it was {self.settings.lr})"
            )

    def end_epoch(self, bert_logits: Mapping[str, np.ndarray]) -> EpochRecord | None:
        """Close the epoch: losses and metrics, and whether its weights are the ones to keep.

        Args:
            bert_logits: BERT's own validation logits by split, float32 [R, C]: those of a head that
                begins as BERT before its first step, which is a candidate as well.
        """
        epoch = len(self.history) + 1
        self.check_finite(f"in epoch {epoch}")  # its last batch came after its last training block
        if not self.failure and not all(np.isfinite(a).all() for a in self._logits.values()):
            self.failure = (
                f"validation logits of epoch {epoch} are not finite; try a lower train.lr"
            )
        if self.failure:
            return None
        record = EpochRecord(
            epoch=epoch,
            loss=self.mean_loss,
            validation_loss=self._validation_loss(self._logits),
            scores=self.objective.metrics_by_split(self._logits, self._validation),
        )
        if self._may_stay_bert and not self.history:
            self._chosen_logits = {split: logits.copy() for split, logits in bert_logits.items()}
            self._start = EpochRecord(
                epoch=0,
                loss=math.nan,
                validation_loss=self._validation_loss(self._chosen_logits),
                scores=self.objective.metrics_by_split(self._chosen_logits, self._validation),
            )
        lowest = min((r.validation_loss for r in self._candidates()), default=math.inf)
        self.history.append(record)
        if self.settings.patience is None or record.validation_loss < lowest:
            self._chosen_epoch = epoch
            self._chosen_state = self._state()
            self._chosen_logits = self._logits
            self._chosen_norms = self._norms
        self._start_epoch()
        return record

    def _candidates(self) -> list[EpochRecord]:
        """The records of all states that may be chosen, the one before the first step included."""
        return self.history if self._start is None else [self._start, *self.history]

    def _state(self) -> dict[str, torch.Tensor]:
        """The head's parameters as they are now, on the CPU."""
        return {name: t.detach().cpu().clone() for name, t in self.head.state_dict().items()}

    def result(self) -> HeadResult:
        """What is left of the head, so far."""
        return HeadResult(
            state=self._chosen_state,
            logits=self._chosen_logits,
            history=tuple(self.history),
            chosen_epoch=self._chosen_epoch,
            chosen_by=LAST_EPOCH if self.settings.patience is None else LOWEST_LOSS,
            num_parameters=self.head.num_parameters,
            failure=self.failure,
            start=self._start,
            adapter_shares=tuple((self._chosen_norms / self._chosen_norms.sum()).tolist()),
        )

    def checkpoint(self) -> Checkpoint:
        """The head's whole state between two epochs; `restore` goes on from it, bit for bit."""
        tensors = {f"head/{name}": t for name, t in self.head.state_dict().items()}
        tensors |= {f"chosen/{name}": t for name, t in self._chosen_state.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": t for name, t in state.items()}
        for split, logits in self._chosen_logits.items():
            tensors[f"logits/{split}"] = torch.from_numpy(logits)
        tensors["chosen_norms"] = self._chosen_norms
        tensors |= {f"dropout/{name}": t for name, t in self.head.dropout_state().items()}
        facts = {
            "steps": self.steps,
            "failure": self.failure,
            "chosen_epoch": self._chosen_epoch,
            "start": asdict(self._start) if self._start else None,
            "history": [asdict(record) for record in self.history],
        }
        return Checkpoint({name: t.detach().cpu().clone() for name, t in tensors.items()}, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, which a fit with the same settings made."""
        facts, subtree = checkpoint.facts, checkpoint.subtree
        self.head.load_state_dict(subtree("head"))
        self.head.load_dropout_state(subtree("dropout"))
        self._chosen_state = subtree("chosen")
        self._chosen_logits = {n: t.numpy().copy() for n, t in subtree("logits").items()}
        self._chosen_norms = checkpoint.tensors["chosen_norms"].clone()
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in subtree("optimizer").items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor.clone()  # it is changed in place
        # Of the groups nothing need be kept: rates are set anew at each step, the rest by settings.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.steps = facts["steps"]
        self.failure = facts["failure"]
        self._chosen_epoch = facts["chosen_epoch"]
        self.history = [EpochRecord(**record) for record in facts["history"]]
        self._start = EpochRecord(**facts["start"]) if facts["start"] else None
        self._start_epoch()

    def _validation_loss(self, logits_by_split: Mapping[str, np.ndarray]) -> float:
        """The mean loss over the examples of all validation splits."""
        total, count = 0.0, 0
        for split, logits in logits_by_split.items():
            store = self._validation[split]
            labels = torch.from_numpy(np.asarray(store.labels))
            lengths = torch.from_numpy(store.lengths)
            # In float64: epochs are compared by this mean, and fp32 would round it.
            loss = self.objective.loss(torch.from_numpy(logits).double(), labels, lengths)
            total += loss.item() * len(labels)
            count += len(labels)
        return total / count


def train_together(fits: Sequence[HeadFit], batch: Batch) -> None:
    """One step of each head's optimiser, all on one batch.

    Args:
        fits: Heads of one `stack_key`; of several the products are computed together, which gives
            the numbers of each alone but for rounding.
        batch: The examples that all heads learn from.
    """
    for fit in fits:
        fit.begin_step()
    for part in _parts(fits, batch):
        all_logits = _logits(part, batch)
        losses = [fit.loss(logits, batch) for fit, logits in zip(part, all_logits, strict=True)]
        pairs = [*zip(part, losses, strict=True)]
        # None depends on the parameters of another.
        torch.autograd.backward([fit.weighted(loss) for fit, loss in pairs])
        for fit, loss in pairs:
            fit.end_step(loss, len(batch.labels_B))


@torch.no_grad()
def evaluate_together(
    fits: Sequence[HeadFit], split: str, example_ids: np.ndarray, batch: Batch
) -> None:
    """Keep the logits of validation examples.

    Args:
        fits: Heads of one `stack_key`, as for `train_together`.
        split: The name of the validation split.
        example_ids: The rows of the split that the examples are, int64 [B].
        batch: The examples.
    """
    for fit in fits:
        fit.head.eval()
    for part in _parts(fits, batch):
        for fit, logits in zip(part, _logits(part, batch), strict=True):
            fit.keep_logits(split, example_ids, logits)


def _logits(fits: Sequence[HeadFit], batch: Batch) -> list[torch.Tensor]:
    """The logits of each head for the batch's examples."""
    heads = [fit.head for fit in fits]
    return stacked_logits(heads, batch.hidden_TLD, batch.lengths_B, batch.bert_logits)


def _parts(fits: Sequence[HeadFit], batch: Batch) -> Iterator[Sequence[HeadFit]]:
    """The heads in groups, as many at a time as there is room for."""
    size = num_together(fits[0].head, len(batch.hidden_TLD))
    return (fits[first : first + size] for first in range(0, len(fits), size))


@torch.no_grad()
def measure_adapters(fits: Sequence[HeadFit], batch: Batch) -> None:
    """Add to each head the norms of its adapters' output on validation examples."""
    for fit in fits:
        norms_L = fit.head.adapter_norms(batch.hidden_TLD, batch.lengths_B)
        if norms_L is not None:
            fit.keep_norms(norms_L)
