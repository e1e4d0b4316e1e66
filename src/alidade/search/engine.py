"""Who embeds: this process, a pool of processes, or (``ray_engine``) a cluster. All give the same rows, bit for bit.

A model's numbers for a tile depend, in their last bits, on the tiles that share its batch. So batches are formed
inside a unit of work (:func:`alidade.search.plan.units`) and never across: a unit's rows do not depend on who does it,
when, or what else there is to do. They do depend on the batch size, on the kind of processor, and may depend on the
number of threads that torch shares an operation among.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time as clock
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait as wait_for_handles
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alidade.errors import AlidadeError, ArchiveError, RasterError
from alidade.imagery.files import Declared
from alidade.search.plan import Embedder, Job, WorkUnit
from alidade.search.reader import Finished, Tile, read_ahead
from alidade.search.schema import TileRow


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """A tile is embedded, or (``row`` is ``None``) holds nothing to embed."""

    job: Job
    index: int
    row: TileRow | None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Nothing more comes of a job; ``message`` says why where it failed."""

    job: Job
    message: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Done:
    """A piece of work: whole batches, after which the archive may be written. ``seconds`` were spent in the model."""

    events: Sequence[Settled | Ended]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all units have in common: what the user says about the files, the tiles' side, and the batch size."""

    declared: Declared
    tile: int
    batch: int


class Engine(Protocol):
    """What does units of work."""

    def run(self, units: Sequence[WorkUnit], task: Task, model: Embedder) -> Generator[Done, None, None]:
        """What came of the units, in any order; closing it ends the work.

        Raises:
            ArchiveError: workers died, or have another model than ``model``.
        """


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """The default: this process, which reads ahead in a thread of its own.

    Attributes:
        threads: that torch uses from now on; as it is set already when not given.
    """

    threads: int | None = None

    def run(self, units: Sequence[WorkUnit], task: Task, model: Embedder) -> Generator[Done, None, None]:
        """One unit after the other; see :class:`Engine`."""
        if self.threads is not None:
            _set_threads(self.threads)
        jobs = [job for unit in units for job in unit]
        with closing(read_ahead(jobs, task.declared, task.tile, ahead=3 * task.batch)) as items:
            yield from Batches(model=model, size=task.batch).of(items)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Processes on this machine, each with the model in memory.

    Attributes:
        load: makes the model in a worker; picklable, such as ``partial(load, "alidade-tiny")``.
        workers: how many processes.
        threads: that torch uses in each; the processors shared out among the workers when not given.
    """

    load: Callable[[], Embedder]
    workers: int
    threads: int | None = None

    def run(self, units: Sequence[WorkUnit], task: Task, model: Embedder) -> Generator[Done, None, None]:
        """As :class:`Engine` says. Of a unit that is under way when the work is closed nothing is kept."""
        pool = ProcessPoolExecutor(
            self.workers,
            # a fork would copy torch's locks, but not the threads that hold them
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.load, self.threads or threads_each(self.workers)),
        )
        try:
            left = iter(units)
            # so few at once that memory does not grow with the list
            under_way = {pool.submit(_do_unit, unit, task) for unit in islice(left, 2 * self.workers)}
            while under_way:
                ready, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                under_way |= {pool.submit(_do_unit, unit, task) for unit in islice(left, len(ready))}
                for future in ready:
                    yield checked(*future.result(), model)
        except BrokenProcessPool:
            raise worker_died() from None
        finally:
            pool.shutdown(cancel_futures=True)


class Worker:
    """A model in a process of its own, which does one unit after the other."""

    def __init__(self, load: Callable[[], Embedder], threads: int) -> None:
        _set_threads(threads)
        self._model = load()

    def do(self, unit: WorkUnit, task: Task) -> tuple[str, Done]:
        """The identity of the model, and all that came of the unit."""
        parts = list(InProcess().run([unit], task, self._model))
        events = tuple(event for part in parts for event in part.events)
        return self._model.identity, Done(events=events, seconds=sum(part.seconds for part in parts))


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def threads_each(workers: int) -> int:
    """How many threads of this machine's processors each of ``workers`` gets, at least one."""
    return max(1, (os.cpu_count() or 1) // workers)


def checked(identity: str, done: Done, model: Embedder) -> Done:
    """``done``, when it comes from the model that the archive is made with.

    Raises:
        ArchiveError: a worker has loaded another one.
    """
    if identity != model.identity:
        raise ArchiveError(
            "model of a worker",
            got=identity,
            expected=model.identity,
            next_step="Give all machines the same weights and the same version of alidade.",
        )
    return done


def worker_died(why: str = "killed, or out of memory") -> ArchiveError:
    """The error for a worker that ended in the middle of its work."""
    return ArchiveError(
        "workers",
        got=f"one that ended in the middle of its work ({why})",
        expected="workers that live until all is done",
        next_step="Run the same command again, with fewer workers or a smaller batch: it goes on from here.",
    )


_worker: list[Worker] = []
"""The one of this process, if it is a worker."""


def _start_worker(load: Callable[[], Embedder], threads: int) -> None:
    # Ctrl-C reaches the whole group: the driver tells what happened, the workers just end
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(Worker(load, threads))


def _end_with_parent() -> None:
    """A worker waits for work by itself holding the other end of the queue: it would outlive a killed parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_handles([parent.sentinel])
        os._exit(1)


def _do_unit(unit: WorkUnit, task: Task) -> tuple[str, Done]:
    return _worker[0].do(unit, task)


@dataclass(kw_only=True)
class Batches:
    """Tiles of units in, settled tiles out."""

    model: Embedder
    size: int
    _waiting: list[Tile] = field(default_factory=list)
    _events: list[Settled | Ended] = field(default_factory=list)
    _broken: set[str] = field(default_factory=set)
    _seconds: float = 0.0

    def of(self, items: Iterable[Tile | Finished]) -> Iterator[Done]:
        """What comes of the items, given out after whole batches only.

        A run that goes on after a kill then forms the same batches again.
        """
        unit: int | None = None
        for item in items:
            if item.job.unit != unit:
                unit = item.job.unit
                yield self._embed_waiting()
            if item.job.source_id in self._broken:
                continue
            if isinstance(item, Finished):
                self._finish(item)
            elif item.raster is None:
                self._settle_empty(item)
            else:
                self._waiting.append(item)
                if len(self._waiting) >= self.size:
                    yield self._embed_waiting()
        yield self._embed_waiting()

    def _finish(self, item: Finished) -> None:
        if item.error is not None:
            self._break(item.job, str(item.error))
        else:
            self._events.append(Ended(job=item.job, message=None))

    def _break(self, job: Job, message: str) -> None:
        self._broken.add(job.source_id)
        self._waiting = [t for t in self._waiting if t.job.source_id != job.source_id]
        self._events.append(Ended(job=job, message=message))

    def _embed_waiting(self) -> Done:
        tiles, self._waiting = self._waiting, []
        if tiles:
            try:
                vectors = self._vectors(tiles)
            except AlidadeError:
                for tile in tiles:
                    self._embed_alone(tile)
            else:
                for tile, vector in zip(tiles, vectors, strict=True):
                    self._settle(tile, vector)
        done = Done(events=tuple(self._events), seconds=self._seconds)
        self._events, self._seconds = [], 0.0
        return done

    def _embed_alone(self, tile: Tile) -> None:
        if tile.job.source_id in self._broken:
            return
        try:
            self._settle(tile, self._vectors([tile])[0])
        except RasterError:
            # not one pixel is valid in the model's own bands and units, such as radar power of 0
            self._settle_empty(tile)
        except AlidadeError as error:
            self._break(tile.job, str(error))

    def _vectors(self, tiles: list[Tile]) -> npt.NDArray[np.float32]:
        rasters = [t.raster for t in tiles if t.raster is not None]
        began = clock.perf_counter()
        try:
            return self.model.embed(rasters, batch_size=self.size)
        finally:
            self._seconds += clock.perf_counter() - began

    def _settle(self, tile: Tile, vector: npt.NDArray[np.float32]) -> None:
        self._events.append(Settled(job=tile.job, index=tile.index, row=_row(tile, vector)))

    def _settle_empty(self, tile: Tile) -> None:
        self._events.append(Settled(job=tile.job, index=tile.index, row=None))


def _row(tile: Tile, vector: npt.NDArray[np.float32]) -> TileRow:
    raster, window = tile.raster, tile.window
    return TileRow(
        id=f"{tile.job.source_id}-{window.row}-{window.col}",
        footprint=tile.footprint,
        time=None if raster is None else raster.time,
        sensor=tile.job.sensor,
        gsd_m=tile.gsd_m,
        valid_share=tile.valid_share,
        cloud_share=tile.cloud_share,
        source=tile.job.source,
        source_id=tile.job.source_id,
        row=window.row,
        col=window.col,
        height=window.height,
        width=window.width,
        embedding=vector,
    )
