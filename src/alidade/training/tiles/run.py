"""Making the samples: square by square, with what was made acknowledged shard by shard."""

from __future__ import annotations

import time as clock
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alidade.errors import AlidadeError
from alidade.imagery.bands import Unit
from alidade.imagery.clouds import SCL_BAND, reflectance_cloud_share
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.remote import Door
from alidade.imagery.sensors import sensor as sensor_of
from alidade.training.tiles.align import encode
from alidade.training.tiles.choose import Candidate, choose
from alidade.training.tiles.grid import Square
from alidade.training.tiles.leakage import Ground, Guard
from alidade.training.tiles.parts import laid
from alidade.training.tiles.plan import Split, split_of
from alidade.training.tiles.scenes import Failure, Part, Scene
from alidade.training.tiles.schema import Sample, SampleView
from alidade.training.tiles.writer import StoreWriter, full

SHARD_SECONDS = 30.0
"""What is made is acknowledged at least so often."""

_OPEN_FILES = 64


class Progress(Protocol):
    """What a caller can show while ``build_tiles`` works; the library itself prints nothing."""

    def started(self, *, squares: int, scenes: int) -> None:
        """So many squares will be tried, from so many scenes."""

    def advanced(self, *, squares: int) -> None:
        """So many more squares are done."""

    def failed(self, failure: Failure) -> None:
        """A scene failed; the others go on."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a sample must meet.

    Attributes:
        min_views: so many views must be there.
        max_date_gap_days: no two of its views lie further apart; views without a time are then left out.
        max_cloud: no view is known to be cloudier, as a share of its valid pixels.
        min_valid: every view has at least this share of valid pixels.
    """

    min_views: int
    max_date_gap_days: float | None
    max_cloud: float | None
    min_valid: float


@dataclass(kw_only=True)
class Run:
    """One call of ``build_tiles`` on an open store."""

    writer: StoreWriter
    scenes: Sequence[Scene]
    filters: Filters
    plan: str
    failures: list[Failure]
    progress: Progress | None
    files: Files
    broken: set[int] = field(default_factory=set)
    waiting: list[Sample] = field(default_factory=list)
    waiting_bytes: int = 0
    without: list[str] = field(default_factory=list)
    last_flush: float = field(default_factory=clock.monotonic)
    written: int = 0
    present: int = 0
    rejected: int = 0
    at_seams: int = 0
    views: Counter[str] = field(default_factory=Counter)

    def execute(self, squares: dict[Square, list[Candidate]], split: Split) -> None:
        """Try every square that is not settled yet.

        Raises:
            StoreError: a square would leak, or the disk is full or refuses.
        """
        todo = self._unsettled(squares, split)
        if self.progress is not None:
            self.progress.started(squares=len(todo), scenes=len(self.scenes))
            for failure in self.failures:
                self.progress.failed(failure)
        for square, name in todo.items():
            sample = self._make(square, name, squares[square])
            if sample is None:
                self.without.append(square.key)
            else:
                self.waiting.append(sample)
                self.waiting_bytes += sample.nbytes
            if self.progress is not None:
                self.progress.advanced(squares=1)
            if full(len(self.waiting), self.waiting_bytes) or clock.monotonic() - self.last_flush >= SHARD_SECONDS:
                self._flush()
        self._flush()

    def _unsettled(self, squares: Iterable[Square], split: Split) -> dict[Square, str]:
        """The squares to try and their splits; refuses those that would leak before anything is read."""
        settled, fresh = self.writer.settled(self.plan), Guard()
        todo = {}
        for square in squares:
            name = split_of(square, split)
            if square.key in settled:
                self.rejected += 1
                continue
            ground = Ground(key=square.key, split=name, bbox=square.bbox())
            # squares of two zones may overlap where the zones meet: by hash they can fall into different splits
            seam = None if isinstance(split, str) else fresh.conflict(ground) or self._across(ground)
            if seam is not None:
                self.at_seams += 1
                continue
            self.writer.check_ground(ground)
            fresh.add(ground)
            if self.writer.split_of(square.key) is None:
                todo[square] = name
            else:
                self.present += 1
        return todo

    def _across(self, ground: Ground) -> Ground | None:
        """A ground of the store in another split, in another zone."""
        other = self.writer.conflict(ground)
        theirs = None if other is None else Square.from_key(other.key)
        ours = Square.from_key(ground.key)
        return other if theirs is not None and ours is not None and theirs.epsg != ours.epsg else None

    def _make(self, square: Square, split: str, candidates: Sequence[Candidate]) -> Sample | None:
        """The best sample that the filters allow, or ``None``."""
        left = [c for c in candidates if c.scene not in self.broken]
        made: dict[tuple[str, int], SampleView | None] = {}
        while True:
            chosen = choose(left, self.filters.max_date_gap_days)
            if len(chosen) < self.filters.min_views:
                return None
            for c in chosen.values():
                if (c.view, c.scene) not in made:
                    made[c.view, c.scene] = self._view(square, c)
            poor = {(c.view, c.scene) for c in chosen.values() if made[c.view, c.scene] is None}
            if not poor:
                break
            left = [c for c in left if (c.view, c.scene) not in poor]
        views = {name: made[c.view, c.scene] for name, c in chosen.items()}
        lon, lat = square.centre()
        return Sample(
            sample_id=square.key, square=square.key, split=split, lon=lon, lat=lat, bbox=square.bbox(),
            views={name: v for name in self.writer.views if (v := views.get(name)) is not None},
        )  # fmt: skip

    def _view(self, square: Square, candidate: Candidate) -> SampleView | None:
        """A scene's part in a sample; ``None`` when it is too empty, too cloudy or cannot be read."""
        scene, spec = self.scenes[candidate.scene], self.writer.views[candidate.view]
        if candidate.scene in self.broken:
            return None
        try:
            bands = tuple(dict.fromkeys((*spec.bands, *_cloud_bands(scene))))
            raster = laid(scene, bands, square.grid(spec.side), self.files.open)
        except AlidadeError as error:
            self.broken.add(candidate.scene)
            failure = Failure(source=scene.source, message=str(error))
            self.failures.append(failure)
            if self.progress is not None:
                self.progress.failed(failure)
            return None
        if raster is None or not raster.valid.any() or raster.valid_share < self.filters.min_valid:
            return None
        cloud = reflectance_cloud_share(raster)
        if self.filters.max_cloud is not None and cloud is not None and cloud > self.filters.max_cloud:
            return None
        return SampleView(
            pixels=encode(raster, spec), valid=raster.valid, gsd_m=raster.grid.gsd_m(), time=scene.time,
            source=scene.source, cloud_share=cloud,
        )  # fmt: skip

    def _flush(self) -> None:
        self.writer.append(self.waiting)
        self.writer.settle(self.plan, self.without)
        self.written += len(self.waiting)
        self.rejected += len(self.without)
        for sample in self.waiting:
            self.views.update(sample.views.keys())
        self.waiting, self.without, self.waiting_bytes = [], [], 0
        self.last_flush = clock.monotonic()


class Files:
    """The files used last stay open, so that neighbouring squares share what GDAL has decoded."""

    def __init__(self, declared: Declared, door: Door | None = None) -> None:
        self._declared, self._door = declared, door
        self._open: OrderedDict[str, RasterFile] = OrderedDict()

    def open(self, part: Part) -> RasterFile:
        """The file, open; it stays so until many others were asked for."""
        if part.path in self._open:
            self._open.move_to_end(part.path)
        else:
            self._open[part.path] = open_raster(part.path, self._declared, door=self._door, said=part.said)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        return self._open[part.path]

    def close(self) -> None:
        """Close them all."""
        for file in self._open.values():
            file.close()
        self._open.clear()


def _cloud_bands(scene: Scene) -> list[str]:
    """The bands that ``reflectance_cloud_share`` wants to see."""
    if SCL_BAND in scene.bands:
        return [SCL_BAND]
    names = [b.name for b in sensor_of(scene.sensor).bands if b.common_name in ("green", "red")]
    return [n for n in names if n in scene.bands and scene.bands[n].unit is Unit.REFLECTANCE]
