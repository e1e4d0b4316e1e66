"""What there is to embed: files, and the tiles of each that no acknowledged shard covers yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A source that could not be embedded, or a folder that could not be looked into, and why, in one line."""

    source: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs of one kind stand together, so that tiles of small files share batches.

    The order depends on nothing but the list of files: a run that goes on after a kill forms the same
    batches, and so the same numbers, as a run that was never stopped.
    """

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
    files: Sequence[str], archive: Path, manifest: Manifest, model: Embedder, declared: Declared, tile: int
) -> Plan:
    """Read the headers of the files that are not settled; nothing is written.

    Args:
        files: see :func:`alidade.search.sources.expand`.
        archive: the archive's directory, which may not exist yet.
        manifest: what is acknowledged.
        model: the model that will embed.
        declared: what the user says about the files.
        tile: side of the tiles in pixels.
    """
    jobs, skipped, failures = [], [], []
    for source in files:
        try:
            relative = relative_to_archive(source, archive)
            source_id = identify(source, relative, declared)
            if manifest.is_complete(source_id):
                skipped.append(source)
            else:
                jobs.append(_job(source, relative, source_id, manifest, model, declared, tile))
        except AlidadeError as error:
            failures.append(Failure(source=source, message=str(error)))
    jobs.sort(key=lambda j: (j.sensor, j.model_bands))
    return Plan(jobs=tuple(jobs), skipped=tuple(skipped), failures=tuple(failures))


def _job(
    source: str,
    relative: str,
    source_id: str,
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
        )


def _cloud_bands(file: RasterFile) -> list[str]:
    """The bands that ``reflectance_cloud_share`` wants to see."""
    names = [b.name for b in file.bands]
    if SCL_BAND in names:
        return [SCL_BAND]
    pairs: list[tuple[Band, Unit]] = [(b, e.unit) for b, e in zip(file.bands, file.encodings, strict=True)]
    return [b.name for b, unit in pairs if unit is Unit.REFLECTANCE and b.common_name in ("green", "red")]
