"""The archive's sources as registered scenes: a list with ids, and each drawn into map tiles.

Only files that the archive names are ever opened, by id, through ``imagery.files.open_raster``. Pixels come through
``RasterFile.read`` and nothing else: one set of defences, one idea of what is valid, one stretch for map and chips.
A library that draws tiles itself (rio-tiler) would need the dataset underneath, and read it by overviews and a
warper of GDAL's with other rules of nodata.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import RLock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from alidade.errors import AlidadeError
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.footprint import Box, Footprint, boxes_intersect, normalise_lon
from alidade.imagery.grid import Grid
from alidade.imagery.quicklook import Stretch, channels, shown_bands, stretch_of
from alidade.imagery.windows import Window, panels
from alidade.search.archive import Archive
from alidade.search.filters import Columns
from alidade.server.lru import Lru
from alidade.server.mercator import SIDE, box_of, check_tile, metres_per_pixel, to_degrees
from alidade.server.problems import gone, unknown

_OVERVIEW_SIDE = 2048
_OPEN_SCENES = 6
"""Each holds an overview of up to 2048 x 2048 x 4 bytes and its halvings: 22 MB."""
_MOST_PIXELS = 16 * 2**20
_EXACT_ZOOMS = 5
_LATTICE = 16
_KEPT_TILES = 32 * 2**20

Picture = npt.NDArray[np.uint8]
"""``[H, W, 4]``: red, green, blue, and 0 where nothing is valid."""


@dataclass(frozen=True, kw_only=True)
class SceneInfo:
    """One registered scene: a source of the archive in one state.

    Attributes:
        id: the asset id, 16 hexadecimal digits from the file's path, state and content.
        name: file name without folders.
        source: path as it was given when it was embedded.
        sensor, time, gsd_m: of its first tile.
        tiles: rows in the archive.
        bbox: around its tiles; ``None`` where they have no place.
    """

    id: str
    name: str
    source: str
    sensor: str
    time: datetime | None
    gsd_m: float
    tiles: int
    bbox: Box | None

    def footprint(self) -> dict[str, object] | None:
        """The box as GeoJSON."""
        return None if self.bbox is None else Footprint.box(self.bbox).geojson()


def list_scenes(table: pa.Table, columns: Columns) -> dict[str, SceneInfo]:
    """The scenes of an archive's rows by id, in the order of their first rows."""
    ids = table["source_id"].combine_chunks()
    ids = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    codes = ids.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if not starts.size:
        return {}
    boxes = _boxes_of(columns.boxes[:, order], starts)
    counts = np.diff(starts, append=codes.size)
    firsts = order[starts]
    rows = table.select(["source", "source_id", "sensor", "time", "gsd_m"]).take(firsts).to_pylist()
    found = [
        SceneInfo(
            id=row["source_id"], name=Path(row["source"]).name, source=row["source"], sensor=row["sensor"],
            time=row["time"], gsd_m=row["gsd_m"], tiles=int(count), bbox=box,
        )
        for row, count, box in zip(rows, counts, boxes, strict=True)
    ]  # fmt: skip
    return {found[i].id: found[i] for i in np.argsort(firsts).tolist()}


def _boxes_of(boxes: npt.NDArray[np.float64], starts: npt.NDArray[np.intp]) -> list[Box | None]:
    """The box around each stretch of rows; eastward from each stretch's first row, so that 180 degrees is no wall."""
    west, south, east, north = boxes
    lengths = np.diff(starts, append=west.size)
    origin = np.repeat(west[starts], lengths)
    begins = (west - origin + 180.0) % 360.0 - 180.0
    ends = begins + np.where(east - west == 360.0, 360.0, (east - west) % 360.0)
    found: list[Box | None] = []
    sides = (
        np.fmin.reduceat(begins, starts), np.fmin.reduceat(south, starts),
        np.fmax.reduceat(ends, starts), np.fmax.reduceat(north, starts),
    )  # fmt: skip
    for first, low, bottom, high, top in zip(west[starts], *sides, strict=True):
        if not math.isfinite(low + bottom + high + top):
            found.append(None)
        elif high - low >= 360.0:
            found.append((-180.0, float(bottom), 180.0, float(top)))
        else:
            left, right = (float(normalise_lon(first + side)) for side in (low, high))
            found.append((left, float(bottom), right, float(top)))
    return found


class OpenScene:
    """A source file kept open, with what drawing it needs; made once, because it takes a look at the whole scene."""

    def __init__(self, path: Path, declared: Declared) -> None:
        self.file: RasterFile = open_raster(path, declared)
        self.stretch: Stretch = stretch_of(self.file)
        footprint = self.file.grid.footprint()
        self.bbox: Box | None = None if footprint is None else footprint.bbox()
        self._levels: list[tuple[int, Picture]] = []

    def part(self, window: Window | None = None) -> Picture:
        """A part of the scene at its own resolution."""
        raster = self.file.read(window, shown_bands(self.file.sensor, self.file.bands))
        values = channels(raster)
        seen = raster.valid & ~np.isnan(values).any(axis=0)
        return np.dstack([self.stretch.colours(values), np.where(seen, 255, 0).astype(np.uint8)])

    def level(self, step: float) -> tuple[int, Picture]:
        """The whole scene reduced to a pixel for every ``step`` of its own, or to the finest picture that is kept."""
        if not self._levels:
            self._levels = self._reduced()
        return next((level for level in reversed(self._levels) if level[0] <= step), self._levels[0])

    def _reduced(self) -> list[tuple[int, Picture]]:
        height, width = self.file.grid.height, self.file.grid.width
        step = -(-max(height, width) // _OVERVIEW_SIDE)
        out = np.zeros((-(-height // step), -(-width // step), 4), np.uint8)
        for panel in panels(height, width, step * max(1, 512 // step), self.file.block_shape):
            last = panel.tiles[-1]
            window = Window(
                row=panel.window.row, col=panel.window.col,
                height=last.row + last.height - panel.window.row, width=last.col + last.width - panel.window.col,
            )  # fmt: skip
            part = shrink(self.part(window), step)
            top, left = window.row // step, window.col // step
            out[top : top + part.shape[0], left : left + part.shape[1]] = part
        levels = [(step, out)]
        while max(levels[-1][1].shape[:2]) > SIDE:
            levels.append((2 * levels[-1][0], shrink(levels[-1][1], 2)))
        return levels


def shrink(picture: Picture, step: int) -> Picture:
    """Means of ``step`` x ``step`` pixels, in which pixels without data have no part; valid where half of them are."""
    if step == 1:
        return picture
    reduced = np.asarray(Image.fromarray(picture, "RGBA").convert("RGBa").reduce(step).convert("RGBA")).copy()
    reduced[..., 3] = np.where(reduced[..., 3] >= 128, 255, 0)
    return reduced


class SceneBook:
    """The registered scenes of an archive, and the few of their files that are open. One thread reads at a time.

    Args:
        archive: says where the files lie.
        scenes: see :func:`list_scenes`.
        declared: what the user said about the files.
    """

    def __init__(self, archive: Archive, scenes: dict[str, SceneInfo], declared: Declared) -> None:
        self._archive, self.scenes, self._declared = archive, scenes, declared
        self._open: Lru[str, OpenScene] = Lru(_OPEN_SCENES, drop=lambda scene: scene.file.close())
        self._tiles: Lru[tuple[str, int, int, int], bytes] = Lru(_KEPT_TILES, weigh=len)
        self._turn = RLock()

    def info(self, scene_id: str) -> SceneInfo:
        """One scene.

        Raises:
            Refused: there is none (404).
        """
        if scene_id not in self.scenes:
            raise unknown("scene", repr(scene_id[:80]), "the id of a registered scene", "GET /api/scenes lists them.")
        return self.scenes[scene_id]

    def chip(self, scene_id: str, source: str, window: Window) -> Picture:
        """A tile's pixels.

        Raises:
            AlidadeError: the file is gone, cannot be read, or no longer has this window.
        """
        with self._turn:
            return self._scene(scene_id, source).part(window)

    def tile(self, scene_id: str, z: int, x: int, y: int) -> bytes:
        """A scene in one map tile, as a PNG; transparent where it has no valid pixel.

        Raises:
            Refused: no such scene or tile, or the scene's file is gone or cannot be read (404).
        """
        check_tile(z, x, y)
        info = self.info(scene_id)
        key = (scene_id, z, x, y)
        kept = self._tiles.get(key)
        if kept is None:
            try:
                with self._turn:
                    drawn = draw(self._scene(scene_id, info.source), z, x, y)
            except AlidadeError as error:
                raise gone(error) from error
            kept = _EMPTY if drawn is None else encode(drawn)
            self._tiles.put(key, kept)
        return kept

    def close(self) -> None:
        """Close the files."""
        with self._turn:
            self._open.clear()

    def _scene(self, scene_id: str, source: str) -> OpenScene:
        scene = self._open.get(scene_id)
        if scene is None:
            scene = OpenScene(self._archive.locate(source, scene_id), self._declared)
            self._open.put(scene_id, scene)
        return scene


def draw(scene: OpenScene, z: int, x: int, y: int) -> Picture | None:
    """A scene in one map tile ``[256, 256, 4]``, nearest neighbour of a picture no finer than the tile; or nothing.

    Raises:
        AlidadeError: the scene has no place, or its file cannot be read.
    """
    grid = scene.file.grid
    box = box_of(z, x, y)
    if scene.bbox is None:
        grid.gsd_m()
        return None
    if not boxes_intersect(scene.bbox, box):
        return None
    rows, cols = _pixels_of(grid, scene.bbox, z, x, y)
    inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
    if not inside.any():
        return None
    seen_rows, seen_cols = rows[inside], cols[inside]
    step = metres_per_pixel(z, (box[1] + box[3]) / 2) / grid.mean_gsd_m()
    finest, _ = scene.level(math.inf)
    top, left = int(seen_rows.min()), int(seen_cols.min())
    height, width = int(seen_rows.max()) + 1 - top, int(seen_cols.max()) + 1 - left
    finest, picture = scene.level(step)
    if step < finest and height * width <= _MOST_PIXELS:
        # finer than the finest picture that is kept: read what the tile shows
        finest = max(1, int(step))
        picture = shrink(scene.part(Window(row=top, col=left, height=height, width=width)), finest)
        seen_rows, seen_cols = seen_rows - top, seen_cols - left
    out = np.zeros((SIDE, SIDE, 4), np.uint8)
    at = [(values / finest).astype(np.intp) for values in (seen_rows, seen_cols)]
    out[inside] = picture[at[0].clip(max=picture.shape[0] - 1), at[1].clip(max=picture.shape[1] - 1)]
    return out


def _pixels_of(
    grid: Grid, bbox: Box, z: int, x: int, y: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where a tile's pixel centres lie in a scene: rows and columns ``[256, 256]``; NaN outside the scene's box.

    From zoom 5 on the projection is worked out on a lattice of 16 pixels and straight between: a tile spans 11
    degrees then, and the error stays below a hundredth of a pixel. Tiles of the whole world have seams in them.
    """
    exact = z < _EXACT_ZOOMS
    knots = np.arange(SIDE) + 0.5 if exact else np.arange(0, SIDE + 1, _LATTICE, dtype=np.float64)
    lon, lat = to_degrees((x + knots / SIDE) / 2**z, (y + knots / SIDE) / 2**z)
    rows, cols = grid.from_lonlat(lon[None, :], lat[:, None])
    if not exact:
        rows, cols = _between(rows), _between(cols)
        centres = (np.arange(SIDE) + 0.5) / SIDE
        lon, lat = to_degrees((x + centres) / 2**z, (y + centres) / 2**z)
    west, south, east, north = bbox
    span = 360.0 if east - west == 360.0 else (east - west) % 360.0
    # a projection may put the far side of the Earth into the scene
    in_lon = (lon - west) % 360.0 <= span
    in_lat = (lat >= south) & (lat <= north)
    outside = ~(in_lat[:, None] & in_lon[None, :])
    return np.where(outside, np.nan, rows), np.where(outside, np.nan, cols)


def _between(knots: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values at pixel centres from those at the lattice's knots, bilinear: ``[17, 17]`` to ``[256, 256]``."""
    share = (np.arange(SIDE) + 0.5) / _LATTICE
    first = share.astype(np.intp)
    share -= first
    down = knots[first] * (1 - share)[:, None] + knots[first + 1] * share[:, None]
    return np.asarray(down[:, first] * (1 - share) + down[:, first + 1] * share)


def encode(picture: Sequence[object] | Picture) -> bytes:
    """A picture ``[H, W, 3 or 4]`` as a PNG."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(picture, dtype=np.uint8)).save(out, format="PNG", compress_level=3)
    return out.getvalue()


_EMPTY = encode(np.zeros((SIDE, SIDE, 4), np.uint8))
