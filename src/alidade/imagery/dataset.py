"""Facts of an open dataset: its header, its grid, where it holds data, where to sample it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio.io import DatasetReader

from alidade.errors import GridError, RasterError
from alidade.imagery.bands import Encoding
from alidade.imagery.grid import Grid
from alidade.imagery.header import Declared, Header
from alidade.imagery.windows import Window

_SAMPLE_SIDE = 256


def header_of(dataset: DatasetReader, told: str) -> Header:
    """What an open dataset says about itself.

    Raises:
        RasterError: bands of different types.
    """
    if len(set(dataset.dtypes)) != 1:
        raise RasterError(
            f"{told}: pixel types",
            got=", ".join(sorted(set(dataset.dtypes))),
            expected="one type for all bands",
            next_step="Convert it: gdal_translate -ot Float32 IN OUT.tif.",
        )
    return Header(
        path=told,
        dtype=dataset.dtypes[0],
        descriptions=dataset.descriptions,
        colours=tuple(c.name for c in dataset.colorinterp),
        units=dataset.units,
        scales=dataset.scales,
        offsets=dataset.offsets,
        nodata=dataset.nodata,
        tags={**dataset.tags(1), **dataset.tags()},
    )


def grid_of(dataset: DatasetReader, header: Header, declared: Declared) -> tuple[Grid, bool, str]:
    """The grid, north-up; whether the file is bottom-up; and how the ground sample distance was found.

    Raises:
        GridError: no CRS and no ground sample distance, or one that cannot be right.
    """
    told, height = header.path, dataset.height
    crs = None
    try:
        crs = pyproj.CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else None
    except CRSError as error:
        raise GridError(
            f"{told}: CRS", got=" ".join(str(error).split())[:200], expected="a known one",
            next_step="Repair it with gdal_edit.py -a_srs.",
        ) from None  # fmt: skip
    gsd, how = declared.gsd_m, "You declared it."
    if gsd is None and crs is not None:
        how = "It follows from CRS and transform, measured on the ellipsoid at the centre."
    elif gsd is None and "ALIDADE_GSD" in header.tags:
        gsd, how = _tagged_gsd(header), "The file's ALIDADE_GSD tag holds it."
    if crs is None and gsd is None and dataset.gcps[0]:
        raise GridError(
            f"{told}: CRS", got="ground control points instead of a grid", expected="a CRS and a transform",
            next_step="Warp it to a map first: gdalwarp IN OUT.tif.",
        )  # fmt: skip
    a, b, c, d, e, f = dataset.transform[:6]
    bottom_up = crs is not None and b == d == 0 and e > 0 and dataset.transform != Affine.identity()
    transform = Affine(a, 0.0, c, 0.0, -e, f + e * height) if bottom_up else Affine(a, b, c, d, e, f)
    try:
        grid = Grid(crs=crs, transform=transform, width=dataset.width, height=height, gsd_override_m=gsd)
        grid.gsd_m()
    except GridError as error:
        raise GridError(
            f"{told}: {error.what}", got=error.got, expected=error.expected, next_step=error.next_step
        ) from None
    return grid, bottom_up, how


def _tagged_gsd(header: Header) -> float:
    try:
        return float(header.tags["ALIDADE_GSD"])
    except ValueError:
        raise GridError(
            f"{header.path}: tag ALIDADE_GSD",
            got=repr(header.tags["ALIDADE_GSD"]),
            expected="a number of metres",
            next_step="Repair the tag, or pass --gsd.",
        ) from None


def has_data(stored: NDArray[Any], encodings: Sequence[Encoding]) -> NDArray[np.bool_]:
    """Where there is data, ``[H, W]``, by the rule for nodata in ``RasterFile.read``.

    Args:
        stored: pixels ``[C, H, W]`` as they are stored.
        encodings: one per band.
    """
    whole = stored.dtype.kind in "ui"
    empty = [
        None if e.nodata is None or np.isnan(e.nodata) else band == _as_stored(e.nodata, stored.dtype)
        for band, e in zip(stored, encodings, strict=True)
    ]
    shape = stored.shape[1:]
    in_any, in_all = np.zeros(shape, dtype=np.bool_), np.ones(shape, dtype=np.bool_)
    for hit, encoding in zip(empty, encodings, strict=True):
        if hit is None:
            in_all[:] = False
        elif whole and encoding.nodata is not None and encoding.nodata >= 0:
            in_all &= hit
        else:
            in_any |= hit
            in_all &= hit
    return ~(in_any | in_all)


def _as_stored(nodata: float, dtype: np.dtype[Any]) -> float | np.generic:
    """Nodata as the pixels hold it: comparing then neither converts them nor misses a rounded value."""
    if dtype.kind in "ui":
        return int(nodata) if float(nodata).is_integer() else nodata
    with np.errstate(over="ignore"):
        stored: np.generic = dtype.type(nodata)
        return stored


def sample_windows(height: int, width: int, block_shape: tuple[int, int]) -> list[Window]:
    """Up to 80 small windows at the corners of blocks, the first 16 spread evenly over the scene."""
    rows, cols = (min(max(side, 16), _SAMPLE_SIDE) for side in block_shape)
    found: dict[Window, None] = {}
    for parts in (4, 8):
        for i in range(parts):
            for j in range(parts):
                row = (2 * i + 1) * height // (2 * parts) // block_shape[0] * block_shape[0]
                col = (2 * j + 1) * width // (2 * parts) // block_shape[1] * block_shape[1]
                size = min(rows, height - row), min(cols, width - col)
                found[Window(row=row, col=col, height=size[0], width=size[1])] = None
    return list(found)
