"""Open-vocabulary classification: which of the named classes each tile of a file shows, and the file as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError, ArchiveError, RasterError
from alidade.imagery.files import Declared
from alidade.imagery.footprint import Footprint
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.words import tower_of
from alidade.search.manifest import Manifest
from alidade.search.plan import Failure, check_tile, make_plan
from alidade.search.reader import Finished, Tile, read_ahead
from alidade.search.sources import expand
from alidade.search.words import encode_text, read_otherwise

MAX_CLASSES = 255
"""As many as fit a map of 8-bit numbers of which one means no data."""

Probabilities = NDArray[np.float32]


class Progress(Protocol):
    """What a caller can show meanwhile; the library itself prints nothing."""

    def started(self, *, tiles: int, sources: int) -> None:
        """So many tiles of so many files will be read."""

    def advanced(self, *, tiles: int, source: str) -> None:
        """So many more are done, the last of them from ``source``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """Named classes as vectors in a model's space. Made by ``make_classes``.

    Attributes:
        names: as the user wrote them, ``[C]``.
        sentences: what the text encoder read for them.
        vectors: ``[C, D]`` float32 of unit length.
        scale: what cosines are multiplied by before the softmax, as it was learnt.
        model: identity of the model.
        note: one line on sentences that the text encoder did not read whole; None when it did.
    """

    names: tuple[str, ...]
    sentences: tuple[str, ...]
    vectors: NDArray[np.float32]
    scale: float
    model: str
    note: str | None = None

    def probabilities(self, images: NDArray[np.float32]) -> Probabilities:
        """Of each class for image vectors ``[N, D]`` of unit length: ``[N, C]`` float32, rows sum to 1.

        They are shares among the classes that were named: an image that shows none of them gets one all the same.
        """
        logits = np.float32(self.scale) * (images @ self.vectors.T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        out: Probabilities = shares / shares.sum(axis=1, keepdims=True)
        return out


def class_names(text: str) -> tuple[str, ...]:
    """Names from a list with commas between, white space folded.

    Raises:
        AlidadeError: an empty name, one twice (whatever its case and spaces), or not 2 to 255 of them.
    """
    names = tuple(" ".join(part.split()) for part in text.split(","))
    folded = [name.casefold() for name in names]
    twice = next((n for n, f in zip(names, folded, strict=True) if folded.count(f) > 1), None)
    if "" in names and text.strip():
        got = f"an empty name, number {names.index('') + 1} of {len(names)}"
    elif twice is not None:
        got = f"{twice!r} {folded.count(twice.casefold())} times"
    elif not 2 <= len(names) <= MAX_CLASSES:
        got = "no name" if names == ("",) else f"{len(names)} name{'s' if len(names) > 1 else ''}"
    else:
        return names
    raise AlidadeError(
        "--classes",
        got=got,
        expected=f'2 to {MAX_CLASSES} different names, such as "river,forest,airport"',
        next_step="Name what is to be told apart.",
    )


def make_classes(model: Model, names: Sequence[str]) -> Classes:
    """The classes' vectors: one text pass for each, in the sentence that the model's words were learnt in.

    Raises:
        ModelError: the model knows no words.
        TextError: a name that has no vector.
    """
    words = model.words
    sentences = list(names) if words is None else words.prompted(names)
    found = encode_text(model, sentences)
    return Classes(
        names=tuple(names),
        sentences=tuple(sentences),
        vectors=found.vectors,
        scale=1.0 if words is None else words.scale,
        model=model.identity,
        note=found.note,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TileClasses:
    """One tile of a file.

    Attributes:
        window: its pixels.
        footprint: on the globe; ``None`` without a CRS.
        valid: pixels with data.
        probabilities: ``[C]``.
    """

    window: Window
    footprint: Footprint | None
    valid: float
    probabilities: Probabilities


@dataclass(frozen=True, kw_only=True)
class FileClasses:
    """One file.

    Attributes:
        source: the path as given.
        sensor: sensor id.
        tiles: those with data, in reading order.
        nodata_tiles: how many others there are.
    """

    source: str
    sensor: str
    tiles: tuple[TileClasses, ...]
    nodata_tiles: int

    @property
    def probabilities(self) -> Probabilities:
        """Mean over the tiles ``[C]``, each counting by its pixels with data: a sliver at the edge says little."""
        weights = [t.valid for t in self.tiles]
        out: Probabilities = np.average([t.probabilities for t in self.tiles], axis=0, weights=weights)
        return out.astype(np.float32)

    @property
    def best(self) -> int:
        """Number of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of the tiles of which each class is the most probable one, ``[C]``."""
        best = [int(t.probabilities.argmax()) for t in self.tiles]
        return np.bincount(best, minlength=len(self.tiles[0].probabilities)) / len(best)


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What ``classify`` found.

    Attributes:
        classes: what was asked for.
        files: in the order given, without those that failed.
        failures: files that could not be classified, and folders that could not be looked into.
        notes: what is to be known about the numbers, one line each.
    """

    classes: Classes
    files: tuple[FileClasses, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...] = ()


def classify(
    paths: Iterable[str | Path],
    model: Model,
    names: Sequence[str],
    *,
    declared: Declared | None = None,
    tile: int | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> Classified:
    """Classify every tile of the rasters: one image pass a tile and one text pass a class.

    Tiles are those of ``embed``; a file that fails is listed and the others go on.

    Args:
        paths: GeoTIFF files, and folders that are searched for ``*.tif`` and ``*.tiff``.
        model: one that knows words.
        names: of the classes; see ``class_names``.
        declared: what the files do not say themselves.
        tile: side of the tiles in pixels, a multiple of the model's patches; the model's by default.
        batch: tiles given to the model at once.
        progress: is told how far the run is.

    Raises:
        RasterError: ``paths`` hold no GeoTIFF.
        ArchiveError: a tile side that the model cannot take, or takes only a part of.
        ModelError: the model knows no words.
        TextError: a name that has no vector.
    """
    told, side = declared or Declared(), model.tile if tile is None else check_side(model, tile)
    files, closed = expand(paths)
    classes = make_classes(model, names)
    plan = make_plan(files, Path.cwd(), Manifest(), model, told, side)
    run = _Run(model=model, classes=classes, batch=batch, progress=progress)
    if progress is not None:
        progress.started(tiles=plan.tiles, sources=len(plan.jobs))
    with closing(read_ahead(plan.jobs, told, side, ahead=3 * batch)) as items:
        for item in items:
            run.take(item)
    run.flush()
    found = {s: f for s, f in run.files() if s not in run.failed}
    failures = [Failure(source=path, message=str(error)) for path, error in closed.items()]
    failures += [*plan.failures, *(Failure(source=s, message=m) for s, m in run.failed.items())]
    notes = classes.note, read_otherwise(model, {s: t for s, t in run.towers.items() if s in found})
    return Classified(
        classes=classes,
        files=tuple(found[s] for s in files if s in found),
        failures=tuple(failures),
        notes=tuple(note for note in notes if note is not None),
    )


def check_side(model: Model, tile: int) -> int:
    """``tile`` itself, when the model takes tiles of that side whole.

    Between tiles of another side than a multiple of its patches lie strips that the model would see in no tile, or
    together with padding: other numbers than those of the same ground in whole patches.

    Raises:
        ArchiveError: it does not.
    """
    patch = math.lcm(*(tower.patch for tower in model.towers))
    if check_tile(model, tile) % patch:
        raise ArchiveError(
            "tile side",
            got=f"{tile} px",
            expected=f"a multiple of {patch} px, the side of a patch of {model.identity}",
            next_step=f"Pass --tile {max(tile // patch, 1) * patch}, or leave it out (then it is {model.tile} px).",
        )
    return tile


@dataclass(kw_only=True)
class _Run:
    model: Model
    classes: Classes
    batch: int
    progress: Progress | None
    waiting: list[Tile] = field(default_factory=list)
    tiles: dict[str, list[TileClasses]] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)
    sensors: dict[str, str] = field(default_factory=dict)
    towers: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def take(self, item: Tile | Finished) -> None:
        source = item.job.source
        self.sensors[source] = item.job.sensor
        if isinstance(item, Finished):
            if item.error is not None:
                self.failed[source] = str(item.error)
        elif item.raster is None:
            self._settle_empty(item)
        else:
            tower = tower_of(self.model.towers, item.raster.sensor, item.job.model_bands)
            if tower is not None:
                self.towers[source] = tower.name
            self.waiting.append(item)
            if len(self.waiting) >= self.batch:
                self.flush()

    def flush(self) -> None:
        tiles, self.waiting = self.waiting, []
        if not tiles:
            return
        try:
            self._settle(tiles)
        except AlidadeError:
            for tile in tiles:
                self._alone(tile)

    def _alone(self, tile: Tile) -> None:
        try:
            self._settle([tile])
        except RasterError:
            # not one pixel is valid in the model's own bands and units, such as radar power of 0
            self._settle_empty(tile)
        except AlidadeError as error:
            self.failed[tile.job.source] = str(error)

    def _settle(self, tiles: list[Tile]) -> None:
        vectors = self.model.embed([t.raster for t in tiles if t.raster is not None], batch_size=self.batch)
        for tile, shares in zip(tiles, self.classes.probabilities(vectors), strict=True):
            w = tile.window
            found = TileClasses(
                window=w,
                footprint=tile.footprint,
                valid=tile.valid_share * w.height * w.width,
                probabilities=shares,
            )
            self.tiles.setdefault(tile.job.source, []).append(found)
            self._advance(tile)

    def _settle_empty(self, tile: Tile) -> None:
        self.empty[tile.job.source] = self.empty.get(tile.job.source, 0) + 1
        self._advance(tile)

    def _advance(self, tile: Tile) -> None:
        if self.progress is not None:
            self.progress.advanced(tiles=1, source=tile.job.source)

    def files(self) -> Iterable[tuple[str, FileClasses]]:
        """Files that have been read; one without any tile with data has failed."""
        for source, sensor in self.sensors.items():
            tiles = sorted(self.tiles.get(source, []), key=lambda t: t.window)
            empty = self.empty.get(source, 0)
            if not tiles and source not in self.failed:
                error = RasterError(
                    f"{source}: pixels",
                    got=f"no valid pixel in any of its {empty:,} tiles (all nodata, NaN or masked)",
                    expected="some imagery",
                    next_step="Check its nodata value with `alidade inspect`, or leave the file out.",
                )
                self.failed[source] = str(error)
            yield source, FileClasses(source=source, sensor=sensor, tiles=tuple(tiles), nodata_tiles=empty)
