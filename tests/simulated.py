"""A simulated cluster around the real feature stream, without starting Ray.

`World` plays extractors, nodes and trainers, and decides by a seed who does what next, so that a
schedule that fails can be had again. What is looked at after each step:
bytes by node and in all, counted from the refs that are alive; whether anybody can still do
anything; and in the end, whether every trainer has consumed every block once, in order.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from actors.records import BlockReceipt, DeliveryReply, EpochEnd
from actors.stream import FeatureStream
from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.plan import DeliveryStatus, Position, StreamPlan
from bertvision_stream.stream.stats import DeviceInfo, StreamStats
from bertvision_stream.utils.errors import TrainerLostError

LARGEST = 1000  # bytes of a block at most
NUM_EPOCHS = 4
NUM_EXTRACTORS = 3


class Remote:
    """A method of an actor handle."""

    def __init__(self, method: Callable[..., Any]):
        self.remote = method


def later() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


class Block:
    """Stands for a ref: its bytes lie on its node for as long as anybody has it."""

    def __init__(self, key: BlockKey, num_bytes: int, node: str):
        self.key = key
        self.num_bytes = num_bytes
        self.node = node


class Actor:
    """Answers its calls in order, when the world lets it, and none once it is dead."""

    def __init__(self, world: World):
        self.world = world
        self.alive = True
        self.calls: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()

    def ask(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        answer = later()
        self.calls.append((answer, work))
        if not self.alive:
            self.die()
        return answer

    def answer(self) -> None:
        answer, work = self.calls.popleft()
        try:
            answer.set_result(work())
        except ObjectLostError as error:
            answer.set_exception(error.with_traceback(None))  # whose frames hold blocks

    def die(self) -> None:
        self.alive = False
        while self.calls:
            self.calls.popleft()[0].set_exception(ActorDiedError())


class Extractor(Actor):
    def __init__(self, world: World, node: str):
        super().__init__(world)
        self.node = node
        self.ready = False
        self.info = Remote(lambda: self.ask(self._info))
        self.extract = Remote(self._extract)

    def _info(self) -> DeviceInfo:
        self.ready = True
        return DeviceInfo("cpu", "fp32", self.node, self.world.stores[self.node])

    def _extract(self, key: BlockKey) -> tuple[Block, asyncio.Future[Any]]:
        block = Block(key, self.world.plan.block_bytes[key], self.node)
        self.world.blocks.add(block)
        return block, self.ask(lambda: self._make(key))

    def _make(self, key: BlockKey) -> BlockReceipt:
        self.world.made[key] += 1
        return BlockReceipt(0.0)

    def raise_error(self) -> None:
        """Fail at the next block, and live on."""
        error = RuntimeError("an error")
        self.calls.popleft()[0].set_exception(RayTaskError("extract", "an error", error))


class Trainer(Actor):
    """Knows its position as a head trainer does, and notes what it has consumed."""

    def __init__(self, world: World, epoch: int, consumed: list[BlockKey]):
        super().__init__(world)
        self.at = Position(epoch, 0)
        self.consumed = consumed
        self.handed: list[tuple[Position, int]] = []  # the first delivery, and how many
        self.position = Remote(lambda: self.ask(lambda: self.at))
        self.consume_all = Remote(lambda *args: self.ask(lambda: self._consume_all(*args)))
        self.end_epoch = Remote(lambda epoch: self.ask(lambda: self._end_epoch(epoch)))

    def _consume_all(
        self, deliveries: Sequence[tuple[Position, BlockKey]], *blocks: Block
    ) -> list[DeliveryReply]:
        assert [block.key for block in blocks] == [key for _, key in deliveries]
        self.handed.append((deliveries[0][0], len(deliveries)))
        if any(block.node not in self.world.stores for block in blocks):
            raise ObjectLostError("ref", None, "here")  # before the call begins
        return [self._consume(position, key) for position, key in deliveries]

    def _consume(self, position: Position, key: BlockKey) -> DeliveryReply:
        status = DeliveryStatus.CONSUMED
        if position != self.at:
            early = position > self.at
            status = DeliveryStatus.TOO_EARLY if early else DeliveryStatus.DUPLICATE
        else:
            self.at = position.next
            self.consumed.append(key)
        return DeliveryReply(status, 0.0, 0.0, 0.0)

    def _end_epoch(self, epoch: int) -> EpochEnd:
        end = Position(epoch, len(self.world.plan.block_bytes))
        assert self.at in (end, Position(epoch + 1, 0))
        self.at = Position(epoch + 1, 0)
        return EpochEnd({}, True)


class World:
    """Nodes, extractors and trainers, for one stream at a time; also its `ExtractorSpec`."""

    num_cpus, num_gpus = 1.0, 0.0

    def __init__(self, seed: int, *, num_nodes: int, num_trainers: int, share: float):
        self.random = Random(seed)
        self.stores = {f"node-{i}": self._store() for i in range(num_nodes)}
        self.extractors: list[Extractor] = []
        self.blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self.made: Counter[BlockKey] = Counter()
        self.stats = StreamStats()
        self.plan = self._plan(share)
        self.trainers = [Trainer(self, 0, []) for _ in range(num_trainers)]

    def _store(self) -> int:
        return self.random.randint(6 * LARGEST, 14 * LARGEST)

    def _plan(self, share: float) -> StreamPlan:
        num_train = self.random.randint(3, 40)  # at times, epochs shorter than the look-ahead
        validation = tuple(BlockKey("validation", i) for i in range(self.random.randint(1, 5)))
        keys = [*(BlockKey(TRAIN, i) for i in range(num_train)), *validation]
        sizes = {key: self.random.randint(LARGEST // 3, LARGEST) for key in keys}
        budget = plan_budget(
            sizes,
            validation,
            num_train=num_train,
            seed=1,
            settings=StreamSettings(cache=int(share * sum(sizes.values()))),
            store_bytes=sum(self.stores.values()),
            num_nodes=len(self.stores),
            num_extractors=NUM_EXTRACTORS,
        )
        return StreamPlan(
            seed=1,
            num_epochs=NUM_EPOCHS,
            same_order=False,
            num_train=num_train,
            validation=validation,
            block_bytes=sizes,
            block_tokens=sizes,
            budget=budget,
        )

    def start(self, index: int) -> Extractor:
        """The first extractors go to one node after the other, others where chance wants them."""
        nodes = list(self.stores)
        node = nodes[index % len(nodes)] if index < NUM_EXTRACTORS else self.random.choice(nodes)
        self.extractors.append(Extractor(self, node))
        return self.extractors[-1]

    def nodes(self) -> list[dict[str, Any]]:
        """`ray.nodes`."""
        return [{"NodeID": node, "Alive": True} for node in self.stores]

    def change_nodes(self) -> None:
        """A node dies; where it would be the last one, another joins."""
        if len(self.stores) == 1:
            self.stores["node-that-joined"] = self._store()
        else:
            self._lose_node(self.random.choice(list(self.stores)))

    def change_all_nodes(self) -> None:
        """All nodes die, but for one that joins."""
        nodes = list(self.stores)
        self.stores["node-that-replaces"] = self._store()
        for node in nodes:
            self._lose_node(node)

    def _lose_node(self, node: str) -> None:
        """With all blocks and extractors that are on it, busy or idle."""
        del self.stores[node]
        for extractor in self.extractors:
            if extractor.node == node:
                extractor.die()

    def kill_trainer(self) -> None:
        self.random.choice(self.trainers).die()

    def kill_stream(self) -> None:
        """With its refs, its extractors, and the deliveries that nobody has looked at."""
        for task in asyncio.all_tasks() - {asyncio.current_task(), self._driver}:
            task.cancel()
        self.blocks.clear()
        for actor in [*self.extractors, *self.trainers]:
            actor.calls.clear()
        for extractor in self.extractors:
            extractor.die()

    def run(self, faults: list[Callable[[World], None]], *, deaths: float, errors: float) -> None:
        """Let chance act until all epochs are through.

        Args:
            faults: Happen once each, some time.
            deaths: How probable it is that an extractor dies instead of making a block.
            errors: Likewise, that it raises an error and lives on.
        """
        asyncio.run(self._run(faults, deaths, errors))
        expected = [key for epoch in range(NUM_EPOCHS) for key in self.plan.sequence(epoch)]
        for trainer in self.trainers:
            assert trainer.consumed == expected

    async def _run(
        self, faults: list[Callable[[World], None]], deaths: float, errors: float
    ) -> None:
        self._driver = asyncio.create_task(self._all_epochs())
        num_steps = len(self.plan.block_bytes) * NUM_EPOCHS
        planned = {self.random.randrange(5, num_steps): fault for fault in faults}
        for step in range(100 * num_steps):
            await self._settle()
            self._check_bytes()
            if self._driver.done():
                return self._driver.result()
            if step in planned:
                planned[step](self)
                continue
            able = self._able()
            assert able, f"nobody can go on; trainers are at {[str(t.at) for t in self.trainers]}"
            actor, chance = self.random.choice(able), self.random.random()
            if isinstance(actor, Extractor) and actor.ready and chance < deaths:
                actor.die()
            elif isinstance(actor, Extractor) and actor.ready and chance < deaths + errors:
                actor.raise_error()
            else:
                actor.answer()
        raise AssertionError("there is no end to it")

    def _able(self) -> list[Actor]:
        return [actor for actor in [*self.extractors, *self.trainers] if actor.calls]

    async def _settle(self) -> None:
        """Let every task run until it waits, or most of them."""
        for turn in range(1000):
            await asyncio.sleep(0)
            if turn > 10 and (self._able() or self._driver.done()):
                return

    def _check_bytes(self) -> None:
        held = Counter[str]()
        for block in self.blocks:
            held[block.node] += block.num_bytes
        for node, store_bytes in self.stores.items():
            assert held[node] <= int(store_bytes * self.plan.budget.store_share), node
        assert sum(held[node] for node in self.stores) <= self.plan.budget.total_bytes

    async def _all_epochs(self) -> None:
        """What the driver does (see `actors.stream_actors`)."""
        stream = await self._new_stream()
        for epoch in range(NUM_EPOCHS):
            kept = [list(trainer.consumed) for trainer in self.trainers]
            while any(trainer.at.epoch == epoch for trainer in self.trainers):
                running = asyncio.create_task(stream.run_epoch(epoch, NUM_EPOCHS - 1))
                await asyncio.wait([running])
                if running.cancelled():
                    stream = await self._new_stream()
                elif isinstance(running.exception(), TrainerLostError):
                    for i, consumed in enumerate(kept):
                        if not self.trainers[i].alive:
                            self.trainers[i] = Trainer(self, epoch, list(consumed))
                    await stream.set_trainers(self.trainers)
                else:
                    running.result()

    async def _new_stream(self) -> FeatureStream:
        while True:
            stream = FeatureStream(
                self.plan,
                self,
                NUM_EXTRACTORS,
                self.trainers,
                stats=self.stats,
                tags={"task": "simulated", "run": "1"},
                show_progress=False,
            )
            starting = asyncio.create_task(stream.start())
            await asyncio.wait([starting])
            if not starting.cancelled():
                starting.result()
                return stream
