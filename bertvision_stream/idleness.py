"""How long somebody has had nothing to do, summed over all who may have."""

from collections.abc import Callable


class Idleness:
    """The sum, over time, of how many are idle.

    Args:
        clock: The time in seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._since = clock()
        self._num_idle = 0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Up to now: two that are idle for a second make two."""
        now = self._clock()
        self._seconds += self._num_idle * (now - self._since)
        self._since = now
        return self._seconds

    def set(self, num_idle: int) -> None:
        """From now on so many are idle."""
        _ = self.seconds
        self._num_idle = num_idle
