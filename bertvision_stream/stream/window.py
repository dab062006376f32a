"""The window: how many bytes and blocks may be in flight at once."""

import asyncio
from collections import deque


class ByteWindow:
    """Admits blocks in the order in which they ask, as long as their bytes and number fit.

    A block larger than the whole window would wait for ever; the budget rules that out beforehand
    (`budget.plan_budget`), and `acquire` refuses it.

    Args:
        max_bytes: The most bytes admitted at once.
        max_blocks: The most blocks admitted at once.
    """

    def __init__(self, max_bytes: int, max_blocks: int):
        self.max_bytes = max_bytes
        self.max_blocks = max_blocks
        self.bytes = 0
        self.blocks = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, num_bytes: int) -> None:
        """Wait until a block of `num_bytes` fits; first come, first served.

        Raises:
            ValueError: The block is larger than the whole window.
        """
        if num_bytes > self.max_bytes:
            raise ValueError(f"a block of {num_bytes} bytes, but the window has {self.max_bytes}")
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, admitted))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.release(num_bytes)
            else:
                self._admit()  # those behind it wait no longer for its sake
            raise

    def release(self, num_bytes: int) -> None:
        """Give back what one block held."""
        self.bytes -= num_bytes
        self.blocks -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            num_bytes, admitted = self._waiting[0]
            if admitted.cancelled():
                self._waiting.popleft()
                continue
            if self.bytes + num_bytes > self.max_bytes or self.blocks >= self.max_blocks:
                return
            self._waiting.popleft()
            self.bytes += num_bytes
            self.blocks += 1
            admitted.set_result(None)
