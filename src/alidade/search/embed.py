"""Rasters in, archive out: an engine embeds, shards are written here; a second run does what is missing."""

from __future__ import annotations

import os
import time as clock
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from alidade.errors import RasterError
from alidade.imagery.files import Declared
from alidade.search.engine import Done, Engine, InProcess, Settled, Task
from alidade.search.manifest import Coverage, Manifest, ranges_of
from alidade.search.parts import combined, part_folder, read_base, take_in, when_free
from alidade.search.plan import Embedder, Failure, Job, Plan, Shard, check_tile, make_plan, units
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
        model_seconds: time spent inside the model, by all workers together.
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
        """Share of the run spent inside the model, 0–1; more where several workers were inside at once."""
        return self.model_seconds / self.seconds if self.seconds > 0 else 0.0

    def _in_the_model(self) -> str:
        share = self.model_share
        return f"{share:.0%} of it in the model" if share <= 1 else f"{share:.1f} workers in the model on average"

    def sentence(self) -> str:
        """The run in one line."""
        parts = [
            f"{self.tiles:,} tiles of {_sources(len(self.embedded))} embedded in {self.seconds:.1f} s "
            f"({self.tiles_per_second:.1f} tiles/s, {self._in_the_model()})"
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
    shard: Shard | None = None,
    engine: Engine | None = None,
) -> EmbedSummary:
    """Embed every tile of the rasters into the archive ``out``; what it covers already is left alone.

    A source that fails is listed in the summary and leaves no rows; the others go on. A file that has changed
    since it was embedded replaces its old rows. Stopped at any moment, the same call goes on from the last
    acknowledged shard. The rows are the same, bit for bit, whichever engine makes them in however many parts, if
    the list of files, the batch and the kind of processor are the same (see :mod:`alidade.search.engine`).

    Args:
        paths: GeoTIFF files, and folders that are searched for ``*.tif`` and ``*.tiff``.
        out: directory of the archive, made when there is none (and only if a source can be read at all).
        model: what embeds.
        declared: what the files do not say themselves, the same for all of them.
        tile: side of the tiles in pixels, within the model's ``tile_range``; its preferred side by default.
        batch: tiles given to the model at once.
        progress: is told how far the run is.
        shard: does this part of the files only; other jobs do the others, at any time, into the same ``out``.
        engine: who does the work; this process by default.

    Raises:
        RasterError: ``paths`` hold no GeoTIFF.
        ArchiveError: a tile side that the model cannot take; ``out`` is something else, was made by another
            model or tile side, is damaged, is being written by another process, or cannot be written (full
            disk, permissions); workers died. What was acknowledged stays.
    """
    began = clock.perf_counter()
    declared = declared or Declared()
    side = check_tile(model, model.tile if tile is None else tile)
    folder = Path(out)
    files, closed = expand(paths)
    place = folder if shard is None else part_folder(folder, shard)
    base = Manifest() if shard is None else read_base(folder, model=model.identity, tile=side)

    def writer_of(path: Path) -> ArchiveWriter:
        return ArchiveWriter(path, model=model.identity, dim=model.dim, tile=side)

    def plan_now() -> Plan:
        return make_plan(files, folder, combined(base, writer.manifest), model, declared, side, shard)

    with ExitStack() as stack:
        writer = writer_of(place)
        entered = os.path.isfile(place) or os.path.lexists(place / "archive.json")
        if entered:
            stack.enter_context(writer)
        plan = plan_now()
        if plan.jobs and not entered:
            if shard is not None and not os.path.lexists(folder / "archive.json"):
                # made first, because a folder with something else in it is not taken for an archive
                with when_free(lambda: writer_of(folder)):
                    pass
            stack.enter_context(writer)
            entered = True
            if writer.manifest.covered:
                plan = plan_now()
        folders = (Failure(source=path, message=str(error)) for path, error in closed.items())
        plan = replace(plan, failures=(*folders, *plan.failures))
        run = _Run(writer=writer, base=base, progress=progress)
        run.execute(plan, Task(declared=declared, tile=side, batch=batch), engine or InProcess(), model)
        rows, repairs = writer.manifest.rows, writer.repairs
        if shard is not None:
            rows = base.rows
            if entered:
                rows, more = take_in(lambda: writer_of(folder), place, run.broken)
                repairs = (*repairs, *more)
        return EmbedSummary(
            embedded=run.done,
            skipped=plan.skipped,
            failures=(*plan.failures, *run.failures),
            tiles=run.written.total(),
            nodata_tiles=run.nodata.total(),
            rows=rows,
            archive_made=entered or bool(base.totals),
            seconds=clock.perf_counter() - began,
            model_seconds=run.model_seconds,
            repairs=repairs,
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
    """Takes what an engine gives, and writes it."""

    writer: ArchiveWriter
    base: Manifest
    progress: Progress | None
    rows: list[TileRow] = field(default_factory=list)
    pending: dict[str, _Pending] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)
    finished: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    nodata: Counter[str] = field(default_factory=Counter)
    model_seconds: float = 0.0
    last_flush: float = field(default_factory=clock.monotonic)

    @property
    def done(self) -> tuple[str, ...]:
        return tuple(j.source for j in self.finished if j.source_id not in self.broken)

    def execute(self, plan: Plan, task: Task, engine: Engine, model: Embedder) -> None:
        if self.progress is not None:
            self.progress.started(tiles=plan.tiles, sources=len(plan.jobs))
            for failure in plan.failures:
                self.progress.failed(failure)
        work = units(plan.jobs)
        parts = Counter(job.source_id for unit in work for job in unit)
        with closing(engine.run(work, task, model)) as pieces:
            for done in pieces:
                self._take(done, parts)
                # only here, between batches: a run that goes on after a kill then forms the same batches again
                if len(self.rows) >= SHARD_ROWS or clock.monotonic() - self.last_flush >= SHARD_SECONDS:
                    self._flush()
        for job in self.finished:
            if job.source_id not in self.broken and not self._has_rows(job):
                self._break(job, str(_without_data(job)))
        self._flush()

    def _has_rows(self, job: Job) -> bool:
        pending = self.pending.get(job.source_id)
        shards = (*self.base.shards, *self.writer.manifest.shards)
        acknowledged = (c for shard in shards for c in shard.coverage)
        return bool(pending and pending.tiles) or any(c.source_id == job.source_id and c.tiles for c in acknowledged)

    def _take(self, done: Done, parts: Counter[str]) -> None:
        self.model_seconds += done.seconds
        for event in done.events:
            job = event.job
            if job.source_id in self.broken:
                continue
            self._begin(job)
            if isinstance(event, Settled):
                self._settle(event)
            elif event.message is not None:
                self._break(job, event.message)
            else:
                self.ended[job.source_id] += 1
                if self.ended[job.source_id] == parts[job.source_id]:
                    self.finished.append(job)

    def _begin(self, job: Job) -> None:
        if job.source_id not in self.begun:
            self.begun.add(job.source_id)
            if job.previous is not None:
                self.writer.retire(job.source, job.previous, "the file has changed")

    def _settle(self, event: Settled) -> None:
        pending = self.pending.setdefault(event.job.source_id, _Pending(job=event.job))
        if event.row is None:
            pending.empty.append(event.index)
        else:
            self.rows.append(event.row)
            pending.tiles.append(event.index)
        if self.progress is not None:
            self.progress.advanced(tiles=1, source=event.job.source)

    def _break(self, job: Job, message: str) -> None:
        """Forget a source that failed, even what is acknowledged: half a scene would pass for a whole one."""
        self.broken.add(job.source_id)
        self.rows = [r for r in self.rows if r.source_id != job.source_id]
        for counts in (self.pending, self.written, self.nodata):
            counts.pop(job.source_id, None)
        if job.source_id in self.writer.manifest.covered:
            self.writer.retire(job.source, job.source_id, message)
        failure = Failure(source=job.source, message=message)
        self.failures.append(failure)
        if self.progress is not None:
            self.progress.failed(failure)

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


def _sources(number: int) -> str:
    return f"{number:,} source" if number == 1 else f"{number:,} sources"
