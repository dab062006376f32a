"""The barrier at which the trials of a search wait for each other, before each epoch."""

import asyncio
import time
from dataclasses import dataclass, field

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.training.records import EpochRecord

# The pause between two heartbeats of a trial ...
HEARTBEAT_SECONDS = 2.0
# ... and the time without one after which a trial is taken for dead. Its head leaves the stream.
SILENCE_SECONDS = 30.0
# The time that an epoch waits for trials that are expected and have not attached a head yet.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class HeadReport:
    """What a trial is told of its head after an epoch.

    Attributes:
        history: The records of all epochs that the head has trained, the last one included.
        kept: The record of the epoch whose weights the head would keep if it ended now; None
            before its first epoch.
        failure: Why the training of the head was stopped; empty if it was not.
        active: Whether the head has epochs left.
        checkpoint: The whole state of the head as a safetensors file. It is bytes and no tensor, so
            that a trial can keep it without torch.
    """

    history: tuple[EpochRecord, ...]
    kept: EpochRecord | None
    failure: str
    active: bool
    checkpoint: bytes


@dataclass(frozen=True)
class EpochRequest:
    """The changes that the trials want before the next epoch.

    Attributes:
        attach: For each new head, by name, its settings and the checkpoint from which it resumes;
            None starts it.
        detach: The names of the heads to remove.
        epochs_left: The most epochs that any attached head has left.
    """

    attach: dict[str, tuple[TaskSettings, bytes | None]]
    detach: tuple[str, ...]
    epochs_left: int


@dataclass
class _Trial:
    """A trial that has attached a head.

    Attributes:
        settings: The settings of the head.
        checkpoint: The state from which the head resumes; None starts it.
        epochs_left: The most epochs that the head has left.
        last_heard: When the trial last called, by `time.monotonic`.
        attached: Whether the head was handed on in an `EpochRequest`.
        waiting: Whether the trial waits for the end of an epoch.
        report: What the trial waits for.
    """

    settings: TaskSettings
    checkpoint: bytes | None
    epochs_left: int
    last_heard: float
    attached: bool = False
    waiting: bool = False
    report: asyncio.Future[HeadReport] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class EpochBarrier:
    """Trials attach heads and wait for epochs; the search runs one when all trials wait.

    The barrier waits for all of them so that every head on the stream takes part in every epoch: a
    block is then extracted once for all heads, and no head has trained more epochs than Ray Tune
    has seen reports of. While no head is attached, no epoch is run.

    It is an actor, and its methods are coroutines: a trial that waits in one blocks no other.

    Args:
        num_trials: The number of trials that are still to run.
        max_concurrent: The most trials that run at once.
    """

    def __init__(self, num_trials: int, max_concurrent: int):
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._ended: set[str] = set()
        self._trials: dict[str, _Trial] = {}
        self._detached: list[str] = []  # heads to remove before the next epoch
        self._changed = asyncio.Event()  # set by whatever may let an epoch begin
        self._last_change = time.monotonic()  # when a trial last came or left

    async def attach(
        self, name: str, settings: TaskSettings, checkpoint: bytes | None, epoch: int
    ) -> None:
        """Attach the head of a trial; a head of the same name, of a trial that died, is replaced.

        Args:
            name: The name of the trial.
            settings: The settings of its head: `head`, `train` and `seed`.
            checkpoint: The state from which the head resumes; None starts it.
            epoch: The number of epochs that the head has trained.
        """
        left = settings.train.epochs - epoch
        self._trials[name] = _Trial(settings, checkpoint, left, time.monotonic())
        self._ended.discard(name)
        self._last_change = time.monotonic()
        self._changed.set()

    async def next_report(self, name: str) -> HeadReport:
        """Ask for one more epoch, and wait for its end.

        Args:
            name: The name of the trial.
        """
        trial = self._trials[name]
        trial.waiting = True
        trial.last_heard = time.monotonic()
        self._changed.set()
        return await trial.report

    async def heartbeat(self, name: str) -> None:
        """Note that a trial is alive."""
        if trial := self._trials.get(name):
            trial.last_heard = time.monotonic()

    async def detach(self, name: str) -> None:
        """Note that a trial has ended; its head is removed before the next epoch."""
        self._ended.add(name)
        self._remove(name)

    async def next_request(self, timeout_seconds: float) -> EpochRequest | None:
        """Wait until an epoch can begin.

        Args:
            timeout_seconds: The longest wait. The search calls again after it, and meanwhile looks
                whether there are trials left.

        Returns:
            The changes to make before the epoch; None if the time has passed.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._can_begin():
            self._changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout=min(left, 1.0))
            except TimeoutError:
                self._remove_silent()
        attach = {}
        for name, trial in self._trials.items():
            if not trial.attached:
                trial.attached = True
                attach[name] = (trial.settings, trial.checkpoint)
        detach, self._detached = tuple(self._detached), []
        epochs_left = max(trial.epochs_left for trial in self._trials.values())
        return EpochRequest(attach, detach, epochs_left)

    async def publish(self, reports: dict[str, HeadReport]) -> None:
        """Hand each trial the report of the epoch that it waits for.

        Args:
            reports: The report of each head that took part in the epoch, by name.
        """
        for name, report in reports.items():
            trial = self._trials.get(name)
            # During the epoch the trial may have left, or a new one may have taken its name.
            if trial is None or not trial.attached:
                continue
            trial.epochs_left -= 1
            trial.waiting = False
            # The next call of `next_report` waits for a new future.
            reported, trial.report = trial.report, asyncio.get_running_loop().create_future()
            reported.set_result(report)

    def _can_begin(self) -> bool:
        """Whether all trials wait, and all that are expected have come or were waited for."""
        trials = self._trials.values()
        if not trials or not all(trial.waiting for trial in trials):
            return False
        # Tune starts a new trial soon after one has ended. An epoch that began before would be
        # extracted for fewer heads, and once more for the late one. As a trial may also fail to
        # start, the wait has a limit.
        num_left = self._num_trials - len(self._ended)
        expected = min(self._max_concurrent, num_left)
        return len(trials) >= expected or time.monotonic() - self._last_change > PATIENCE_SECONDS

    def _remove_silent(self) -> None:
        """Remove the trials that have been silent for too long, which would hold up all others."""
        now = time.monotonic()
        for name, trial in list(self._trials.items()):
            if now - trial.last_heard > SILENCE_SECONDS:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Forget a trial; its head is removed before the next epoch if the trainers have it."""
        trial = self._trials.pop(name, None)
        if trial is not None and trial.attached:
            self._detached.append(name)
        self._last_change = time.monotonic()
        self._changed.set()
