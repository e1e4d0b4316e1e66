"""Rasters in, archive out: read ahead, embed in batches, write shards; a second run does what is missing."""

from __future__ import annotations

import os
import time as clock
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.files import Declared
from alidade.imagery.raster import Raster
from alidade.search.manifest import Coverage, ranges_of
from alidade.search.plan import Embedder, Failure, Job, Plan, check_tile, make_plan
from alidade.search.reader import Finished, Tile, read_ahead
from alidade.search.schema import TileRow
from alidade.search.sources import expand
from alidade.search.writer import ArchiveWriter

SHARD_ROWS = 2048
"""A shard is written at so many rows, or when ``SHARD_SECONDS`` have gone by since the last one."""
SHARD_SECONDS = 30.0


class Progress(Protocol):
    """What a caller can show while ``embed`` works; the library itself prints nothing."""

    def started(self, *, tiles: int, sources: int) -> None:
        """So many tiles of so many sources will be read."""

    def advanced(self, *, tiles: int, source: str) -> None:
        """So many more tiles are done, the last of them from ``source``."""

    def failed(self, failure: Failure) -> None:
        """A source failed; the others go on."""


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What a run did.

    Attributes:
        embedded: sources of which this run settled the last tile.
        skipped: sources that an earlier run had settled.
        failures: sources that could not be embedded, none of whose rows is in the archive, and folders that
            could not be looked into.
        tiles: rows written by this run.
        nodata_tiles: tiles left out because no pixel in them is valid.
        rows: rows in the archive now.
        archive_made: whether there is an archive now; none is made when no source can be read.
        seconds: duration of the run.
        model_seconds: time spent inside the model.
        repairs: what was put right when the archive was opened, one sentence each.
    """

    embedded: tuple[str, ...]
    skipped: tuple[str, ...]
    failures: tuple[Failure, ...]
    tiles: int
    nodata_tiles: int
    rows: int
    archive_made: bool
    seconds: float
    model_seconds: float
    repairs: tuple[str, ...]

    @property
    def tiles_per_second(self) -> float:
        """Rows written per second of the run."""
        return self.tiles / self.seconds if self.seconds > 0 else 0.0

    @property
    def model_share(self) -> float:
        """Share of the run spent inside the model, 0–1."""
        return self.model_seconds / self.seconds if self.seconds > 0 else 0.0

    def sentence(self) -> str:
        """The run in one line."""
        parts = [
            f"{self.tiles:,} tiles of {_sources(len(self.embedded))} embedded in {self.seconds:.1f} s "
            f"({self.tiles_per_second:.1f} tiles/s, {self.model_share:.0%} of it in the model)"
        ]
        if self.skipped:
            parts.append(f"{_sources(len(self.skipped))} already there")
        if self.nodata_tiles:
            parts.append(f"{self.nodata_tiles:,} tiles without data left out")
        if self.failures:
            parts.append(f"{_sources(len(self.failures))} failed")
        parts.append(f"the archive holds {self.rows:,} rows" if self.archive_made else "no archive was made")
        return "; ".join(parts) + "."


def embed(
    paths: Iterable[str | Path],
    out: str | Path,
    model: Embedder,
    *,
    declared: Declared | None = None,
    tile: int | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> EmbedSummary:
    """Embed every tile of the rasters into the archive ``out``; what it covers already is left alone.

    A source that fails is listed in the summary and leaves no rows; the others go on. A file that has changed
    since it was embedded replaces its old rows. Stopped at any moment, the same call goes on from the last
    acknowledged shard.

    Args:
        paths: GeoTIFF files, and folders that are searched for ``*.tif`` and ``*.tiff``.
        out: directory of the archive, made when there is none (and only if a source can be read at all).
        model: what embeds.
        declared: what the files do not say themselves, the same for all of them.
        tile: side of the tiles in pixels, within the model's ``tile_range``; its preferred side by default.
        batch: tiles given to the model at once.
        progress: is told how far the run is.

    Raises:
        RasterError: ``paths`` hold no GeoTIFF.
        ArchiveError: a tile side that the model cannot take; ``out`` is something else, was made by another
            model or tile side, is damaged, is being written by another process, or cannot be written (full
            disk, permissions). What was acknowledged stays.
    """
    began = clock.perf_counter()
    declared = declared or Declared()
    side = check_tile(model, model.tile if tile is None else tile)
    folder = Path(out)
    files, closed = expand(paths)
    with ExitStack() as stack:
        writer = ArchiveWriter(folder, model=model.identity, dim=model.dim, tile=side)
        entered = os.path.isfile(folder) or os.path.lexists(folder / "archive.json")
        if entered:
            stack.enter_context(writer)
        plan = make_plan(files, folder, writer.manifest, model, declared, side)
        if plan.jobs and not entered:
            stack.enter_context(writer)
            entered = True
            if writer.manifest.covered:
                plan = make_plan(files, folder, writer.manifest, model, declared, side)
        folders = (Failure(source=path, message=str(error)) for path, error in closed.items())
        plan = replace(plan, failures=(*folders, *plan.failures))
        run = _Run(writer=writer, model=model, batch=batch, progress=progress)
        run.execute(plan, declared, side)
        return EmbedSummary(
            embedded=run.done,
            skipped=plan.skipped,
            failures=(*plan.failures, *run.failures),
            tiles=run.written.total(),
            nodata_tiles=run.nodata.total(),
            rows=writer.manifest.rows,
            archive_made=entered,
            seconds=clock.perf_counter() - began,
            model_seconds=run.model_seconds,
            repairs=writer.repairs,
        )


@dataclass(kw_only=True)
class _Pending:
    """Tiles of one job that are embedded or found empty, and not acknowledged yet."""

    job: Job
    tiles: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)

    def coverage(self) -> Coverage:
        return Coverage(
            source=self.job.source,
            relative=self.job.relative,
            source_id=self.job.source_id,
            total=self.job.total,
            tiles=ranges_of(self.tiles),
            empty=ranges_of(self.empty),
        )


@dataclass(kw_only=True)
class _Run:
    writer: ArchiveWriter
    model: Embedder
    batch: int
    progress: Progress | None
    waiting: list[Tile] = field(default_factory=list)
    rows: list[TileRow] = field(default_factory=list)
    pending: dict[str, _Pending] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    finished: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    nodata: Counter[str] = field(default_factory=Counter)
    model_seconds: float = 0.0
    last_flush: float = field(default_factory=clock.monotonic)

    @property
    def done(self) -> tuple[str, ...]:
        return tuple(j.source for j in self.finished if j.source_id not in self.broken)

    def execute(self, plan: Plan, declared: Declared, tile: int) -> None:
        if self.progress is not None:
            self.progress.started(tiles=plan.tiles, sources=len(plan.jobs))
            for failure in plan.failures:
                self.progress.failed(failure)
        with closing(read_ahead(plan.jobs, declared, tile, ahead=3 * self.batch)) as items:
            for item in items:
                if item.job.source_id in self.broken:
                    continue
                if isinstance(item, Finished):
                    self._finish(item)
                else:
                    self._take(item)
        self._embed_waiting()
        for job in self.finished:
            if job.source_id not in self.broken and not self._has_rows(job):
                self._break(job, str(_without_data(job)))
        self._flush()

    def _has_rows(self, job: Job) -> bool:
        pending = self.pending.get(job.source_id)
        acknowledged = (c for shard in self.writer.manifest.shards for c in shard.coverage)
        return bool(pending and pending.tiles) or any(c.source_id == job.source_id and c.tiles for c in acknowledged)

    def _take(self, tile: Tile) -> None:
        job = tile.job
        if job.source_id not in self.begun:
            self.begun.add(job.source_id)
            if job.previous is not None:
                self.writer.retire(job.source, job.previous, "the file has changed")
        if tile.raster is None:
            self._settle_empty(tile)
            return
        if self.waiting and _kind(self.waiting[0].job) != _kind(job):
            self._embed_waiting()
        self.waiting.append(tile)
        if len(self.waiting) >= self.batch:
            self._embed_waiting()
            # only here, between batches: a run that goes on after a kill then forms the same batches again
            if len(self.rows) >= SHARD_ROWS or clock.monotonic() - self.last_flush >= SHARD_SECONDS:
                self._flush()

    def _finish(self, item: Finished) -> None:
        if item.error is not None:
            self._break(item.job, str(item.error))
        else:
            self.finished.append(item.job)

    def _break(self, job: Job, message: str) -> None:
        """Forget a source that failed, even what is acknowledged: half a scene would pass for a whole one."""
        self.broken.add(job.source_id)
        self.waiting = [t for t in self.waiting if t.job.source_id != job.source_id]
        self.rows = [r for r in self.rows if r.source_id != job.source_id]
        for counts in (self.pending, self.written, self.nodata):
            counts.pop(job.source_id, None)
        if job.source_id in self.writer.manifest.covered:
            self.writer.retire(job.source, job.source_id, message)
        failure = Failure(source=job.source, message=message)
        self.failures.append(failure)
        if self.progress is not None:
            self.progress.failed(failure)

    def _embed_waiting(self) -> None:
        tiles, self.waiting = self.waiting, []
        if not tiles:
            return
        try:
            vectors = self._vectors(tiles)
        except AlidadeError:
            for tile in tiles:
                self._embed_alone(tile)
            return
        for tile, vector in zip(tiles, vectors, strict=True):
            self._settle(tile, vector)

    def _embed_alone(self, tile: Tile) -> None:
        if tile.job.source_id in self.broken:
            return
        try:
            self._settle(tile, self._vectors([tile])[0])
        except RasterError:
            # not one pixel is valid in the model's own bands and units, such as radar power of 0
            self._settle_empty(tile)
        except AlidadeError as error:
            self._break(tile.job, str(error))

    def _vectors(self, tiles: list[Tile]) -> npt.NDArray[np.float32]:
        rasters: list[Raster] = [t.raster for t in tiles if t.raster is not None]
        began = clock.perf_counter()
        try:
            return self.model.embed(rasters, batch_size=self.batch)
        finally:
            self.model_seconds += clock.perf_counter() - began

    def _settle(self, tile: Tile, vector: npt.NDArray[np.float32]) -> None:
        self.rows.append(_row(tile, vector))
        self._pending_of(tile.job).tiles.append(tile.index)
        self._advance(tile)

    def _settle_empty(self, tile: Tile) -> None:
        self._pending_of(tile.job).empty.append(tile.index)
        self._advance(tile)

    def _pending_of(self, job: Job) -> _Pending:
        return self.pending.setdefault(job.source_id, _Pending(job=job))

    def _advance(self, tile: Tile) -> None:
        if self.progress is not None:
            self.progress.advanced(tiles=1, source=tile.job.source)

    def _flush(self) -> None:
        if self.pending:
            self.writer.append(self.rows, [p.coverage() for p in self.pending.values()])
        for source_id, settled in self.pending.items():
            self.written[source_id] += len(settled.tiles)
            self.nodata[source_id] += len(settled.empty)
        self.rows, self.pending = [], {}
        self.last_flush = clock.monotonic()


def _without_data(job: Job) -> RasterError:
    return RasterError(
        f"{job.source}: pixels",
        got=f"no valid pixel in any of its {job.total:,} tiles (all nodata, NaN or masked)",
        expected="some imagery",
        next_step="Check its nodata value with `alidade inspect`, or leave the file out.",
    )


def _kind(job: Job) -> tuple[str, tuple[str, ...]]:
    return job.sensor, job.model_bands


def _row(tile: Tile, vector: npt.NDArray[np.float32]) -> TileRow:
    raster = tile.raster
    window = tile.window
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


def _sources(number: int) -> str:
    return f"{number:,} source" if number == 1 else f"{number:,} sources"
