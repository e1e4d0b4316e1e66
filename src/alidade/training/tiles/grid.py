"""Ground squares: the UTM grid whose sides are 0.625 m times a power of two.

One Sentinel-2 pixel of 10 m is 16 x 16 pixels of 0.625 m; a square of 1,280 m is 128 pixels of 10 m.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS, Transformer

from alidade.errors import GridError
from alidade.imagery.grid import Grid

BASE_M = 0.625
LAT_RANGE = (-80.0, 84.0)
"""UTM is defined between these latitudes (NGA.SIG.0012, The Universal Grids and the Transverse Mercator)."""

_SOUTH_M = 10_000_000.0
_KEY = re.compile(r"(32[67]\d\d)_(\d+)_(-?\d+)_(-?\d+)")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, order=True)
class Square:
    """One ground square. Columns count eastward from easting 0, rows northward from the equator.

    Rows of southern zones are negative, so that no square of any level straddles the equator and squares of a
    finer level lie wholly in one of a coarser level.

    Attributes:
        epsg: 32601 to 32660 (north) or 32701 to 32760 (south).
        level: the side is 0.625 m times 2 to this power.
        row, col: place in the zone.
    """

    epsg: int
    level: int
    row: int
    col: int

    @property
    def key(self) -> str:
        """``"EPSG_level_col_row"``."""
        return f"{self.epsg}_{self.level}_{self.col}_{self.row}"

    @classmethod
    def from_key(cls, key: str) -> Square | None:
        """The square with this key; ``None`` for keys of other layouts."""
        found = _KEY.fullmatch(key)
        if found is None or not 1 <= int(found[1]) % 100 <= 60:
            return None
        epsg, level, col, row = map(int, found.groups())
        return cls(epsg=epsg, level=level, row=row, col=col)

    @property
    def side_m(self) -> float:
        """Side in metres of the projection."""
        return BASE_M * 2.0**self.level

    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in the zone's own coordinates."""
        side = self.side_m
        south = self.row * side + _false_northing(self.epsg)
        return self.col * side, south, (self.col + 1) * side, south + side

    def grid(self, side_px: int) -> Grid:
        """The square as ``side_px`` x ``side_px`` pixels, north up."""
        west, _, _, north = self.bounds()
        step = self.side_m / side_px
        return Grid(
            crs=_crs(self.epsg), transform=Affine(step, 0.0, west, 0.0, -step, north), width=side_px, height=side_px
        )

    def parent(self, level: int) -> Square:
        """The square of a coarser (or the same) level that holds this one."""
        if level < self.level:
            raise GridError(
                f"square {self.key}", got=f"level {level}", expected=f"level {self.level} or coarser",
                next_step="Ask for a coarser level.",
            )  # fmt: skip
        shift = level - self.level
        return Square(epsg=self.epsg, level=level, row=self.row >> shift, col=self.col >> shift)

    def centre(self) -> tuple[float, float]:
        """Longitude and latitude in degrees."""
        west, south, east, north = self.bounds()
        lon, lat = to_lonlat(self.epsg, np.array([(west + east) / 2]), np.array([(south + north) / 2]))
        return float(lon[0]), float(lat[0])

    def corners(self) -> list[tuple[float, float]]:
        """Longitudes and latitudes of the corners, counter-clockwise from the south-west."""
        west, south, east, north = self.bounds()
        lon, lat = to_lonlat(self.epsg, np.array([west, east, east, west]), np.array([south, south, north, north]))
        return list(zip(lon.tolist(), lat.tolist(), strict=True))

    def bbox(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees around the corners; west > east across the antimeridian."""
        lon, lat = np.array(self.corners()).T
        if np.ptp(lon) > 180.0:
            lon = np.where(lon < 0.0, lon + 360.0, lon)
        west, east = float(lon.min()), float(lon.max())
        return west, float(lat.min()), east - 360.0 if east > 180.0 else east, float(lat.max())


def zone_of(lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """EPSG codes of the UTM zones of places; 0 where UTM is not defined.

    Zones are 6 degrees wide everywhere: the exceptions of military maps for Norway and Svalbard are not made,
    so that one rule holds for all the Earth.
    """
    lons, lats = np.broadcast_arrays(np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64))
    known = np.isfinite(lons) & (lats >= LAT_RANGE[0]) & (lats <= LAT_RANGE[1])
    number = np.floor((np.where(known, lons, 0.0) + 180.0) / 6.0).astype(np.int64) % 60 + 1
    return np.where(known, number + np.where(lats >= 0.0, 32600, 32700), 0)


def square_at(lon: float, lat: float, level: int) -> Square:
    """The square of a level that a place lies in, in the zone of the place.

    Raises:
        GridError: UTM is not defined there.
    """
    epsg = int(zone_of(lon, lat))
    if epsg == 0:
        raise GridError(
            "place", got=f"longitude {lon:g}, latitude {lat:g}",
            expected=f"a latitude from {LAT_RANGE[0]:g} to {LAT_RANGE[1]:g}", next_step="Leave out polar scenes.",
        )  # fmt: skip
    x, y = from_lonlat(epsg, np.array([lon]), np.array([lat]))
    side = BASE_M * 2.0**level
    row = math.floor((float(y[0]) - _false_northing(epsg)) / side)
    # a place on the equator must not round to the other side
    row = max(row, 0) if epsg < 32700 else min(row, -1)
    return Square(epsg=epsg, level=level, row=row, col=math.floor(float(x[0]) / side))


def level_of(side_m: float) -> int:
    """The level of squares with this side.

    Raises:
        GridError: the side is not 0.625 m times a power of two.
    """
    level = round(math.log2(side_m / BASE_M)) if 0 < side_m < math.inf else -1
    if level < 0 or BASE_M * 2.0**level != side_m:
        near = BASE_M * 2.0 ** max(level, 0)
        raise GridError(
            "square", got=f"{side_m:g} m", expected="0.625 m times a power of two, such as 640, 1280 or 2560",
            next_step=f"Pass {near:g} or another of these.",
        )  # fmt: skip
    return level


def nominal_gsd(gsd_m: float) -> float:
    """The step of the grid's ladder (0.625 m times a power of two) that is nearest by ratio, at least 0.625 m."""
    return float(BASE_M * 2.0 ** max(0, round(math.log2(gsd_m / BASE_M))))


def squares_around(epsg: int, level: int, x: Floats, y: Floats) -> Iterator[Square]:
    """All squares that the box around some points, in the zone's coordinates, touches."""
    side = BASE_M * 2.0**level
    rows = (y - _false_northing(epsg)) / side
    for row in range(math.floor(rows.min()), math.ceil(rows.max())):
        for col in range(math.floor(x.min() / side), math.ceil(x.max() / side)):
            yield Square(epsg=epsg, level=level, row=row, col=col)


def to_lonlat(epsg: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates of a zone to degrees; infinite where there is no place."""
    lon, lat = _transformer(epsg).transform(x, y)
    return np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)


def from_lonlat(epsg: int, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Degrees to coordinates of a zone, also beyond its own six degrees."""
    x, y = _transformer(epsg).transform(lon, lat, direction="INVERSE")
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)


def _false_northing(epsg: int) -> float:
    return _SOUTH_M if epsg >= 32700 else 0.0


@lru_cache(maxsize=128)
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)


@lru_cache(maxsize=128)
def _transformer(epsg: int) -> Transformer:
    return Transformer.from_crs(f"EPSG:{epsg}", "EPSG:4326", always_xy=True)
