"""What there is to embed: files, the tiles of each that are not acknowledged yet, and units of work to share out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.bands import Band, Sensor, Unit
from alidade.imagery.clouds import SCL_BAND
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.raster import Raster
from alidade.imagery.windows import tile_windows
from alidade.search.manifest import Manifest, missing
from alidade.search.sources import identify, relative_to_archive

LARGE_BYTES = 4 * 2**20
"""A file of this size has units of its own; smaller ones share units and batches with their neighbours in the list."""
GROUP_FILES = 64
UNIT_TILES = 1024
"""A large file is cut into units of so many tiles."""


class Embedder(Protocol):
    """What embedding needs of a model; ``alidade.models.Model`` has it."""

    @property
    def identity(self) -> str:
        """Name of the embedding space."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    @property
    def tile(self) -> int:
        """Preferred tile side in pixels."""

    @property
    def tile_range(self) -> tuple[int, int]:
        """Smallest and largest tile side in pixels."""

    def bands_for(self, sensor: Sensor, available: Sequence[str]) -> tuple[str, ...]:
        """The bands it reads of a file; SensorError when it cannot take the sensor."""

    def embed(self, rasters: list[Raster], *, batch_size: int = 16) -> npt.NDArray[np.float32]:
        """``[N, D]`` unit rows, computed ``batch_size`` at once; RasterError only for a raster without valid pixels."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to embed.

    Attributes:
        source: the path as given.
        relative, source_id: see ``sources``.
        previous: the state of the same path whose rows this one replaces, or ``None``.
        sensor: sensor id.
        read_bands: what is read from the file: the model's bands, and those that tell clouds.
        model_bands: what the model is given.
        total: tiles in the file.
        wanted: indices of the tiles that are not settled yet.
        stream: which files' tiles may share a batch; see :func:`units`.
        unit: number of the unit of work.
    """

    source: str
    relative: str
    source_id: str
    previous: str | None
    sensor: str
    read_bands: tuple[str, ...]
    model_bands: tuple[str, ...]
    total: int
    wanted: frozenset[int]
    stream: tuple[int, int]
    unit: int = 0

    @property
    def kind(self) -> tuple[str, tuple[str, ...]]:
        """Only tiles of one kind can share a batch."""
        return self.sensor, self.model_bands


WorkUnit = tuple[Job, ...]
"""Work that one worker does: jobs of one kind and stream, of which a large file's has a run of its tiles only."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part ``index`` of ``count`` of the work, for machines that do not know of each other; counted from 0.

    Raises:
        ArchiveError: there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a part that is not one of ``count``."""
        if not 0 <= self.index < self.count:
            raise ArchiveError(
                "shard",
                got=f"{self.index}/{self.count}",
                expected="I/N with I from 0 to N-1",
                next_step="Give each of N jobs its own number, from 0 on.",
            )

    def holds(self, stream: tuple[int, int]) -> bool:
        """Whether the stream is this part's; a file is never shared between parts."""
        return sum(stream) % self.count == self.index


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A source that could not be embedded, or a folder that could not be looked into, and why, in one line."""

    source: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs of one kind stand together. The order depends on nothing but the list of files."""

    jobs: tuple[Job, ...]
    skipped: tuple[str, ...]
    failures: tuple[Failure, ...]

    @property
    def tiles(self) -> int:
        """Tiles still to be read."""
        return sum(len(j.wanted) for j in self.jobs)


def check_tile(model: Embedder, tile: int) -> int:
    """``tile`` itself, when the model takes tiles of that side.

    Raises:
        ArchiveError: it does not.
    """
    least, most = model.tile_range
    if least <= tile <= most:
        return tile
    raise ArchiveError(
        "tile side",
        got=f"{tile} px",
        expected=f"{least} to {most} px for {model.identity}",
        next_step=f"Pass another --tile, or leave it out: this model prefers {model.tile} px.",
    )


def make_plan(
    files: Sequence[str],
    archive: Path,
    manifest: Manifest,
    model: Embedder,
    declared: Declared,
    tile: int,
    shard: Shard | None = None,
) -> Plan:
    """Read the headers of the files that are not settled; nothing is written.

    Args:
        files: see :func:`alidade.search.sources.expand`.
        archive: the archive's directory, which may not exist yet.
        manifest: what is acknowledged.
        model: the model that will embed.
        declared: what the user says about the files.
        tile: side of the tiles in pixels.
        shard: leaves out the files of other parts, whose headers are not read.
    """
    jobs, skipped, failures = [], [], []
    for position, source in enumerate(files):
        stream = _stream(position, source)
        if shard is not None and not shard.holds(stream):
            continue
        try:
            relative = relative_to_archive(source, archive)
            source_id = identify(source, relative, declared)
            if manifest.is_complete(source_id):
                skipped.append(source)
            else:
                jobs.append(_job(source, relative, source_id, stream, manifest, model, declared, tile))
        except AlidadeError as error:
            failures.append(Failure(source=source, message=str(error)))
    jobs.sort(key=lambda j: j.kind)
    return Plan(jobs=tuple(jobs), skipped=tuple(skipped), failures=tuple(failures))


def units(jobs: Sequence[Job]) -> tuple[WorkUnit, ...]:
    """The jobs as units of work, in the order of the list of files.

    Which tiles make a unit follows from the list of files and their sizes, and not from who works or what is done
    already: 64 neighbours in the list form a stream, of which the small files of one kind are one unit; each large
    file is a stream of its own, cut every ``UNIT_TILES`` tiles. Cuts fall on tile indices, since only reading would
    tell which tiles are empty.
    """
    found: list[WorkUnit] = []
    for _, together in groupby(sorted(jobs, key=lambda j: (j.stream, j.kind)), key=lambda j: (j.stream, j.kind)):
        group = list(together)
        if group[0].stream[1] == 0:
            parts = [group]
        else:
            starts = range(0, group[0].total, UNIT_TILES)
            parts = [[_part(group[0], start)] for start in starts]
        for part in parts:
            wanted = tuple(replace(job, unit=len(found)) for job in part if job.wanted)
            if wanted:
                found.append(wanted)
    return tuple(found)


def _part(job: Job, start: int) -> Job:
    return replace(job, wanted=frozenset(i for i in job.wanted if start <= i < start + UNIT_TILES))


def _stream(position: int, source: str) -> tuple[int, int]:
    """(number of the group, 0 for small files and the place in the group from 1 for a large one)."""
    group, place = divmod(position, GROUP_FILES)
    try:
        large = os.path.getsize(source) >= LARGE_BYTES
    except OSError:
        # it will be a failure, told when the file is opened
        large = False
    return group, place + 1 if large else 0


def _job(
    source: str,
    relative: str,
    source_id: str,
    stream: tuple[int, int],
    manifest: Manifest,
    model: Embedder,
    declared: Declared,
    tile: int,
) -> Job:
    with open_raster(source, declared) as file:
        model_bands = model.bands_for(file.sensor, [b.name for b in file.bands])
        # asked now, so that a file whose ground resolution cannot be told fails before any tile is read
        file.grid.mean_gsd_m()
        total = len(tile_windows(file.grid.height, file.grid.width, tile))
        previous = manifest.current.get(relative)
        return Job(
            source=source,
            relative=relative,
            source_id=source_id,
            previous=None if previous == source_id else previous,
            sensor=file.sensor.id,
            read_bands=tuple(dict.fromkeys((*model_bands, *_cloud_bands(file)))),
            model_bands=model_bands,
            total=total,
            wanted=frozenset(missing(manifest.covered.get(source_id, ()), total)),
            stream=stream,
        )


def _cloud_bands(file: RasterFile) -> list[str]:
    """The bands that ``reflectance_cloud_share`` wants to see."""
    names = [b.name for b in file.bands]
    if SCL_BAND in names:
        return [SCL_BAND]
    pairs: list[tuple[Band, Unit]] = [(b, e.unit) for b, e in zip(file.bands, file.encodings, strict=True)]
    return [b.name for b, unit in pairs if unit is Unit.REFLECTANCE and b.common_name in ("green", "red")]
