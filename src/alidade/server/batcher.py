"""What stands in front of slow work: a bounded queue that makes batches, and a door that counts who is inside."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Generic, TypeVar

from alidade.errors import AlidadeError
from alidade.server.config import QueueConfig
from alidade.server.problems import busy, not_ready

T = TypeVar("T")
R = TypeVar("R")

_FEWEST = 2
_FIRST = 8.0
_CUT = 0.8


class Batcher(Generic[T, R]):
    """A bounded queue whose items are worked on in batches, one batch at a time. Lives in one event loop.

    Args:
        what: is done, in words, for refusals.
        work: one result per item, in order; runs in ``pool``. An :class:`AlidadeError` of a batch is traced to the
            items that cause it; the others get their results.
        pool: where the work runs.
        queue: its sizes.
    """

    def __init__(self, what: str, work: Callable[[list[T]], Sequence[R]], pool: Executor, queue: QueueConfig) -> None:
        self._what, self._work, self._pool, self._queue = what, work, pool, queue
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, item: T) -> R:
        """The result for one item.

        Raises:
            Refused: the queue is full (429) or closed (503).
            AlidadeError: what ``work`` raises for this item.
        """
        if self._closed:
            raise not_ready(self._what, "a server that is shutting down")
        if len(self._waiting) >= self._queue.most_waiting:
            raise busy(self._what, len(self._waiting))
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Take nothing more, refuse what waits, and end what is being worked on."""
        self._closed = True
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(not_ready(self._what, "a server that is shutting down"))
        if self._task is not None:
            await self._task

    async def _drain(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._queue.max_batch:
                await asyncio.sleep(self._queue.max_wait_s)
            taken = [self._waiting.popleft() for _ in range(min(self._queue.max_batch, len(self._waiting)))]
            # whoever has gone in the meantime needs no answer
            batch = [(item, future) for item, future in taken if not future.done()]
            if batch:
                await self._settle(batch)

    async def _settle(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._work, [item for item, _ in batch])
        await asyncio.wait([running])
        error = running.exception()
        if isinstance(error, AlidadeError) and len(batch) > 1:
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
            return
        results = [None] * len(batch) if error is not None else running.result()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            elif result is not None:
                future.set_result(result)


class Door:
    """Lets in as many requests at once as are answered in time, and turns the others away at once.

    The number rises by one for a round of answers within ``target_s`` and falls by a fifth after a late one, at
    most once every ``target_s``: what a machine can do need not be known beforehand.

    Args:
        what: is done behind it, in words.
        most: never more at once.
        target_s: what an answer should take; without one ``most`` are always let in.
    """

    def __init__(self, what: str, *, most: int, target_s: float | None = None) -> None:
        self._what, self._most, self._target_s = what, most, target_s
        self._limit = float(most) if target_s is None else min(_FIRST, float(most))
        self._inside = 0
        self._cut_at = 0.0
        self.closed = False

    @property
    def limit(self) -> int:
        """How many are let in at once now."""
        return int(self._limit)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The time of one request.

        Raises:
            Refused: too many are inside (429), or the door is closed (503).
        """
        if self.closed:
            raise not_ready(self._what, "a server that is shutting down")
        if self._inside >= self.limit:
            raise busy(self._what, self._inside)
        self._inside += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._learn(began, time.monotonic())
            self._inside -= 1

    def _learn(self, began: float, now: float) -> None:
        if self._target_s is None:
            return
        if now - began > self._target_s:
            if now - self._cut_at > self._target_s:
                self._limit, self._cut_at = max(float(_FEWEST), self._limit * _CUT), now
        elif 2 * self._inside >= self.limit:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
