"""A raster laid onto a square's own pixels: reprojected, resampled by what its bands are, masks respected."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS as RasterioCRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

from alidade.errors import GridError
from alidade.imagery.bands import Unit
from alidade.imagery.files import RasterFile
from alidade.imagery.gdal import reading
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.training.tiles.schema import ViewSpec

SAME_GSD = 1.01
"""Pixels that differ by less than this ratio count as equally large."""

_NO_COVER = -1.0
_EXACT_IN_FLOAT32 = ("uint8", "int8", "uint16", "int16", "float16", "float32")


def align(file: RasterFile, bands: tuple[str, ...], grid: Grid) -> Raster | None:
    """The file's bands on ``grid``, each value for the middle of its pixel.

    Where the grid is coarser than the file, values are means over the pixel; where it is as fine or finer, they
    are interpolated bilinearly (a file that lies on the very grid comes back as it is). Class bands take the
    nearest pixel. Nodata takes no part in any value; a pixel is valid when at least half of it, weighed like the
    values, is.

    Args:
        file: the opened file.
        bands: names of the bands to take.
        grid: north-up pixels on the ground.

    Returns:
        float32 or float64 stored numbers, 0 where not valid; ``None`` where the file does not reach the grid.

    Raises:
        RasterError: the file cannot be read there.
        GridError: a place that the file's projection does not know.
    """
    window = _window(file, grid)
    if window is None:
        return None
    raster = file.read(window, bands)
    pixels, valid = _warp(raster, grid)
    return Raster(
        pixels=pixels, bands=raster.bands, encodings=raster.encodings, valid=valid, grid=grid,
        sensor=raster.sensor, time=raster.time, source=raster.source,
    )  # fmt: skip


def encode(raster: Raster, spec: ViewSpec) -> npt.NDArray[Any]:
    """The view's bands in the view's own encoding and type, ``[C, S, S]``; 0 where not valid.

    Whole numbers are rounded to the nearest and kept within their type.
    """
    chosen = raster.select(spec.bands)
    values = chosen.pixels.astype(np.float64)
    for band, (theirs, ours) in enumerate(zip(chosen.encodings, spec.encodings, strict=True)):
        if (theirs.scale, theirs.offset) != (ours.scale, ours.offset) and ours.unit is not Unit.CLASS:
            assert theirs.offset is not None
            assert ours.offset is not None
            values[band] = (values[band] * theirs.scale + theirs.offset - ours.offset) / ours.scale
    kind = np.dtype(spec.dtype)
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        values = np.clip(np.round(values), limits.min, limits.max)
    values[:, ~raster.valid] = 0.0
    return values.astype(kind)


def _window(file: RasterFile, grid: Grid) -> Window | None:
    """The file's pixels around the grid, with a rim: what lies beyond the file's edge is then known as missing."""
    steps = np.linspace(0.0, 1.0, 17)
    zero, one = np.zeros(17), np.ones(17)
    rows = np.concatenate([zero, one, steps, steps]) * grid.height
    cols = np.concatenate([steps, steps, zero, one]) * grid.width
    there_rows, there_cols = file.grid.from_lonlat(*grid.to_lonlat(rows, cols))
    if not (np.isfinite(there_rows).all() and np.isfinite(there_cols).all()):
        raise GridError(
            f"{file.path}: the square", got="a place that the file's projection does not know",
            expected="a projection that holds the whole square", next_step="Reproject the file (gdalwarp -t_srs).",
        )  # fmt: skip
    rim = 2
    top, left = math.floor(there_rows.min()) - rim, math.floor(there_cols.min()) - rim
    bottom, right = math.ceil(there_rows.max()) + rim, math.ceil(there_cols.max()) + rim
    if bottom <= 0 or right <= 0 or top >= file.grid.height or left >= file.grid.width:
        return None
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def _warp(raster: Raster, grid: Grid) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Values ``[C, S, S]`` and validity ``[S, S]`` of a raster on another grid."""
    coarser = grid.mean_gsd_m() > SAME_GSD * raster.gsd_m
    method = Resampling.average if coarser else Resampling.bilinear
    kind = np.float32 if str(raster.pixels.dtype) in _EXACT_IN_FLOAT32 else np.float64
    source = raster.pixels.astype(kind)
    source[:, ~raster.valid] = np.nan
    values = np.full((len(source), grid.height, grid.width), np.nan, dtype=kind)
    classes = np.array([e.unit is Unit.CLASS for e in raster.encodings])
    for picks, how in ((classes, Resampling.nearest), (~classes, method)):
        if picks.any():
            values[picks] = _reproject(source[picks], raster, grid, how, np.nan)
    cover = _reproject(raster.valid[None].astype(np.float32), raster, grid, method, _NO_COVER)[0]
    valid = (cover >= 0.5 - 1e-6) & np.isfinite(values).all(axis=0)
    values[:, ~valid] = 0.0
    return values, valid


def _reproject(
    source: npt.NDArray[Any], raster: Raster, grid: Grid, how: Resampling, nodata: float
) -> npt.NDArray[Any]:
    out = np.full((len(source), grid.height, grid.width), nodata, dtype=source.dtype)
    # GDAL takes a rotated grid for a coarser one and would blur; what is coarser is averaged, and that we know
    options = {"XSCALE": "1", "YSCALE": "1"} if how is Resampling.bilinear else {}
    with reading(raster.source, None):
        reproject(
            source, out,
            src_transform=raster.grid.transform, src_crs=_crs(raster.grid), src_nodata=nodata,
            dst_transform=grid.transform, dst_crs=_crs(grid), dst_nodata=nodata,
            # an eighth of a pixel, GDAL's usual error, would be seen by a model that is told metres
            resampling=how, tolerance=0.01, **options,
        )  # fmt: skip
    return out


def _crs(grid: Grid) -> RasterioCRS:
    assert grid.crs is not None, "scenes without a CRS are refused when they are listed"
    return _rasterio_crs(grid.crs.srs)


@lru_cache(maxsize=128)
def _rasterio_crs(crs: str) -> RasterioCRS:
    return RasterioCRS.from_user_input(crs)
