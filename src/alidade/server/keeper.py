"""The opened archive and the threads that work on it, from the server's first moment to its last."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from alidade.errors import AlidadeError
from alidade.models.model import Model
from alidade.models.registry import load
from alidade.server.config import ServerConfig
from alidade.server.engine import Engine
from alidade.server.problems import not_ready

T = TypeVar("T")

LOG = logging.getLogger("alidade.server")
UPLOADS_AT_ONCE = 2
"""Each may use the gigabyte that the sandbox allows."""
_THREADS = {"model": 1, "search": 2, "scene": 1, "map": 1, "upload": UPLOADS_AT_ONCE, "note": 1}
_NEWS_SECONDS = 5.0


class Keeper:
    """Opens the archive in the background, opens it again when it has grown, and closes it in the end.

    Every kind of work has threads of its own, so that a slow scene holds up no search, and a long search no label.

    Attributes:
        state: ``"starting"``, ``"ready"``, ``"failed"`` or ``"stopping"``.
        failure: why it failed.
        repairs: what was put right at the start, one sentence each.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.state = "starting"
        self.failure: AlidadeError | None = None
        self.repairs: tuple[str, ...] = ()
        self.opened: Engine | None = None
        self._pools = {name: ThreadPoolExecutor(count, f"alidade-{name}") for name, count in _THREADS.items()}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked = time.monotonic()

    def begin(self, repair: Callable[[], tuple[str, ...]], when_known: Callable[[], None]) -> None:
        """Load archive and model; call in the running event loop.

        Args:
            repair: puts right what a kill has left, and says what.
            when_known: is called when the state is ``"ready"`` or ``"failed"``.
        """

        def work() -> tuple[Engine, tuple[str, ...]]:
            model = load(self.config.model, weights=self.config.weights)
            return self._engine(model), repair()

        async def opening() -> None:
            self.opened, self.repairs = await self.run("search", work)
            self.state = "ready" if self.state == "starting" else self.state

        def known(error: BaseException | None) -> None:
            if error is not None:
                self.state, self.failure = "failed", _told(error)
            when_known()

        self._spawn(opening(), known)

    @property
    def engine(self) -> Engine:
        """The opened archive.

        Raises:
            Refused: it is not ready (503).
        """
        if self.state == "ready" and self.opened is not None:
            return self.opened
        told = {"failed": f"an archive that cannot be served: {self.failure}"}
        raise not_ready("archive", told.get(self.state, f"a server that is {self.state}"))

    async def run(self, kind: str, work: Callable[..., T], *arguments: object) -> T:
        """Do something that takes time in a thread of its kind.

        Raises:
            Refused: the server is shutting down (503).
            Exception: whatever ``work`` raises.
        """
        if self.state == "stopping":
            raise not_ready("server", "a server that is shutting down")
        return await asyncio.get_running_loop().run_in_executor(self._pools[kind], work, *arguments)

    def pool(self, kind: str) -> ThreadPoolExecutor:
        """The threads of one kind."""
        return self._pools[kind]

    def look_for_news(self) -> None:
        """Open the archive again in the background when it has been written to, at most every five seconds.

        Until that is done the old state answers, and it goes on to when the new one cannot be opened: an archive
        that is being moved or mended does not end its server.
        """
        engine = self.engine
        if time.monotonic() - self._looked < _NEWS_SECONDS:
            return
        self._looked = time.monotonic()

        async def looking() -> None:
            if not await self.run("note", engine.changed):
                return
            self.opened = await self.run("search", self._engine, engine.model)
            # whoever still draws from the old one opens its files again
            await self.run("scene", engine.close)

        self._spawn(looking(), lambda _: None)

    async def close(self) -> None:
        """End what is under way, and close all files."""
        self.state = "stopping"
        if self._tasks:
            await asyncio.wait(self._tasks)
        for pool in self._pools.values():
            pool.shutdown()
        if self.opened is not None:
            self.opened.close()

    def _engine(self, model: Model) -> Engine:
        return Engine(self.config.archive, model, self.config.model, self.config.declared)

    def _spawn(self, work: Coroutine[Any, Any, None], ended: Callable[[BaseException | None], None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, AlidadeError):
                LOG.error("in the background", exc_info=error)
            ended(error)

        task.add_done_callback(end)


def _told(error: BaseException) -> AlidadeError:
    if isinstance(error, AlidadeError):
        return error
    return AlidadeError(
        "server",
        got=f"an unexpected {type(error).__name__}",
        expected="an archive and a model that can be loaded",
        next_step="Look into the server's log; if it happens again, report it.",
    )
