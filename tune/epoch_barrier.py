"""The board on which trials of a search leave their wishes, and the search its reports."""

import asyncio
import time
from dataclasses import dataclass, field

from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.training.records import EpochRecord

# A trial tells so often that it is alive ...
HEARTBEAT_SECONDS = 2.0
# ... and is taken for dead after so long without a word. Its head leaves the stream.
SILENCE_SECONDS = 30.0
# So long an epoch waits for trials that are expected and have not come yet.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class HeadReport:
    """What an epoch made of a head.

    Attributes:
        history: One record for each epoch behind it, the last one included.
        chosen_epoch: Whose weights it would leave if it ended now; counted from 1.
        failure: Why it was stopped, or empty.
        active: Whether it has epochs left.
        checkpoint: Its whole state, a safetensors file: a trial needs no torch to keep it.
    """

    history: tuple[EpochRecord, ...]
    chosen_epoch: int
    failure: str
    active: bool
    checkpoint: bytes


@dataclass(frozen=True)
class EpochRequest:
    """What is to change before the next epoch.

    Attributes:
        attach: Settings of new heads, and the checkpoint to go on from or None, by name.
        detach: Names of heads to let go.
        epochs_left: The most epochs that an attached head has left.
    """

    attach: dict[str, tuple[TaskSettings, bytes | None]]
    detach: tuple[str, ...]
    epochs_left: int


@dataclass
class _Trial:
    """A trial at the board."""

    settings: TaskSettings
    checkpoint: bytes | None
    epochs_left: int
    last_word: float
    attached: bool = False  # whether the trainers know of it
    asked: bool = False  # whether it wants an epoch
    answer: asyncio.Future[HeadReport] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class EpochBarrier:
    """Trials attach heads and ask for epochs; the search runs one when all have asked.

    So every head on the stream takes part in every epoch, none is ahead of what Tune knows of it,
    and an epoch is extracted once for all. With no head attached nothing happens.

    Args:
        num_trials: Trials that are to come.
        max_concurrent: Of those, how many run at once.
    """

    def __init__(self, num_trials: int, max_concurrent: int):
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._ended: set[str] = set()
        self._seats: dict[str, _Trial] = {}
        self._leaving: list[str] = []
        self._changed = asyncio.Event()
        self._last_arrival = time.monotonic()

    async def attach(
        self, name: str, settings: TaskSettings, checkpoint: bytes | None, epoch: int
    ) -> None:
        """Add a head. One of the same name, of a trial that died, is replaced.

        Args:
            name: The trial's.
            settings: Its `head`, `train` and `seed`.
            checkpoint: Where it goes on; None starts it.
            epoch: Epochs behind it.
        """
        left = settings.train.epochs - epoch
        self._seats[name] = _Trial(settings, checkpoint, left, time.monotonic())
        self._ended.discard(name)
        self._last_arrival = time.monotonic()
        self._changed.set()

    async def next_report(self, name: str) -> HeadReport:
        """Ask for one more epoch, and wait for its end."""
        seat = self._seats[name]
        seat.asked = True
        seat.last_word = time.monotonic()
        self._changed.set()
        return await seat.answer

    async def heartbeat(self, name: str) -> None:
        """A trial is alive."""
        if seat := self._seats.get(name):
            seat.last_word = time.monotonic()

    async def detach(self, name: str) -> None:
        """A trial has ended."""
        self._ended.add(name)
        self._leave(name)

    async def next_request(self, timeout_seconds: float) -> EpochRequest | None:
        """Wait until an epoch can begin.

        Returns:
            What is to change before it; None after `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._ready():
            self._changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout=min(left, 1.0))
            except TimeoutError:
                self._drop_silent()
        attach = {}
        for name, seat in self._seats.items():
            if not seat.attached:
                seat.attached = True
                attach[name] = (seat.settings, seat.checkpoint)
        leaving, self._leaving = tuple(self._leaving), []
        return EpochRequest(attach, leaving, max(seat.epochs_left for seat in self._seats.values()))

    async def publish(self, reports: dict[str, HeadReport]) -> None:
        """An epoch is over: answer the trials that asked for it."""
        for name, report in reports.items():
            seat = self._seats.get(name)
            if seat is None or not seat.attached:  # gone, or attached anew, meanwhile
                continue
            seat.epochs_left -= 1
            seat.asked = False
            answer, seat.answer = seat.answer, asyncio.get_running_loop().create_future()
            answer.set_result(report)

    def _ready(self) -> bool:
        seats = self._seats.values()
        if not seats or not all(seat.asked for seat in seats):
            return False
        unended = self._num_trials - len(self._ended)
        expected = min(self._max_concurrent, unended)
        return len(seats) >= expected or time.monotonic() - self._last_arrival > PATIENCE_SECONDS

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for name, seat in list(self._seats.items()):
            if now - seat.last_word > SILENCE_SECONDS:
                self._leave(name)

    def _leave(self, name: str) -> None:
        seat = self._seats.pop(name, None)
        if seat is not None and seat.attached:
            self._leaving.append(name)
        self._last_arrival = time.monotonic()
        self._changed.set()
