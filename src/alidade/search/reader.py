"""Tiles of many files, read in one background thread while the model works on earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from queue import Empty, Full, Queue

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.clouds import reflectance_cloud_share
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.footprint import Footprint
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window, read_tiles
from alidade.search.plan import Job
from alidade.search.sources import identify

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A tile on its way to the model.

    Attributes:
        job, index, window: which one.
        raster: the model's bands, ``tile`` x ``tile`` pixels; ``None`` when no pixel is valid.
        footprint: of the cut window; ``None`` without a CRS.
        gsd_m: mean true ground metres per pixel.
        valid_share, cloud_share: see :class:`alidade.search.schema.TileRow`.
    """

    job: Job
    index: int
    window: Window
    raster: Raster | None
    footprint: Footprint | None = None
    gsd_m: float = 0.0
    valid_share: float = 0.0
    cloud_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job's last tile has been read, or reading it has failed."""

    job: Job
    error: AlidadeError | None = None


def read_ahead(
    jobs: Sequence[Job], declared: Declared, tile: int, ahead: int
) -> Generator[Tile | Finished, None, None]:
    """The wanted tiles of all jobs, in order, with at most ``ahead`` tiles waiting.

    A job that fails ends with ``Finished(error=...)``; the next one follows. Closing the iterator ends the
    thread.

    Args:
        jobs: what to read.
        declared: what the user says about the files.
        tile: side of the tiles in pixels.
        ahead: capacity of the queue.
    """
    queue: Queue[Tile | Finished] = Queue(maxsize=ahead)
    stop = threading.Event()

    def produce() -> None:
        # one opening for all parts of a large file: it costs as much as some tiles
        for _, parts in groupby(jobs, key=lambda j: j.source_id):
            for item in _read_parts(list(parts), declared, tile):
                while not stop.is_set():
                    try:
                        queue.put(item, timeout=_POLL_S)
                        break
                    except Full:
                        continue
                if stop.is_set():
                    return

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="alidade-reader") as pool:
        reading = pool.submit(produce)
        try:
            while True:
                try:
                    yield queue.get(timeout=_POLL_S)
                except Empty:
                    if reading.done() and queue.empty():
                        break
            # a fault that is no AlidadeError must not look like the end of the list
            reading.result()
        finally:
            stop.set()


def _read_parts(parts: Sequence[Job], declared: Declared, tile: int) -> Iterator[Tile | Finished]:
    job = parts[0]
    try:
        with open_raster(job.source, declared) as file:
            for job in parts:
                for index, window, raster in read_tiles(file, tile, only=job.wanted, bands=job.read_bands):
                    yield _tile(job, file, index, window, raster)
                _check_unchanged(job, declared)
                yield Finished(job=job)
    except AlidadeError as error:
        yield Finished(job=job, error=error)


def _check_unchanged(job: Job, declared: Declared) -> None:
    if identify(job.source, job.relative, declared) != job.source_id:
        raise RasterError(
            job.source,
            got="other content than when reading began",
            expected="a file that stays as it is while it is embedded",
            next_step="Run the command again when the file is complete.",
        )


def _tile(job: Job, file: RasterFile, index: int, window: Window, raster: Raster) -> Tile:
    if not raster.valid.any():
        return Tile(job=job, index=index, window=window, raster=None)
    ground = file.grid.window(window.row, window.col, window.height, window.width)
    return Tile(
        job=job,
        index=index,
        window=window,
        raster=raster if job.read_bands == job.model_bands else raster.select(job.model_bands),
        footprint=ground.footprint(),
        gsd_m=ground.mean_gsd_m(),
        valid_share=float(raster.valid[: window.height, : window.width].mean()),
        cloud_share=reflectance_cloud_share(raster),
    )
