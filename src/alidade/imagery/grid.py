"""Where pixels lie on the ground: CRS, transform, size, and true distances measured on the ellipsoid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError

from alidade.errors import GridError
from alidade.imagery.footprint import FloatArray, Footprint, normalise_lon, unwrap_lon

GSD_RANGE_M = (0.01, 10_000.0)
"""Ground sample distances outside this range are errors of the file or of the user."""

_WGS84 = Geod(ellps="WGS84")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular grid of pixels on the ground.

    Pixel coordinates are continuous: (row, col) = (0, 0) is the outer corner of the first pixel and
    (0.5, 0.5) its centre. Grids are equal when all fields are; transforms are compared exactly.

    Attributes:
        crs: the coordinate reference system, or ``None`` when the file has none.
        transform: pixel (col, row) to CRS coordinates (x, y), x being easting or longitude. May be rotated or
            bottom-up.
        width, height: size in pixels.
        gsd_override_m: ground sample distance told by the user, in metres. Needed where the CRS is missing;
            where it is given, it goes before what the CRS says.

    Raises:
        GridError: a transform with a value that is no number or without area, a CRS with the identity
            transform (the file lacks its place), a size below one pixel, or an absurd override.
    """

    # left out of the hash: CRS.__eq__ holds for spellings whose hashes differ
    crs: CRS | None = field(hash=False)
    transform: Affine
    width: int
    height: int
    gsd_override_m: float | None = None

    def __post_init__(self) -> None:
        """Check every field; see the class for what is refused."""
        if self.width < 1 or self.height < 1:
            raise GridError(
                "grid size",
                got=f"{self.height} rows x {self.width} columns",
                expected="at least one pixel each way",
                next_step="Check the window or the file.",
            )
        a, b, c, d, e, f = self.transform[:6]
        has_area = abs(a * e - b * d) > 1e-9 * math.hypot(a, d) * math.hypot(b, e)
        if not (has_area and all(map(math.isfinite, (a, b, c, d, e, f)))):
            raise GridError(
                "transform",
                got=f"{(a, b, c, d, e, f)}",
                expected="six finite numbers under which a pixel has an area",
                next_step="Repair the georeference (gdal_edit.py -a_ullr), or remove it and pass --gsd.",
            )
        if self.crs is not None and self.transform == Affine.identity():
            raise GridError(
                "transform",
                got=f"the identity beside the CRS {self.crs.name!r}",
                expected="the place of the pixels in that CRS",
                next_step="Repair the georeference (gdal_edit.py -a_ullr), or drop the CRS and pass --gsd.",
            )
        if self.gsd_override_m is not None:
            _check_gsd(self.gsd_override_m, "given ground sample distance")

    def gsd_m(self) -> tuple[float, float]:
        """True ground metres per pixel at the grid's centre: along a row, and down a column.

        The length of the geodesic on the WGS84 ellipsoid (Karney 2013) across one pixel, so it does not carry
        the scale error of the projection. Where that differs over a scene, ask the grid of a window.

        Raises:
            GridError: neither CRS nor override, a CRS that is not tied to the Earth, or a distance outside
                0.01 m to 10 km.
        """
        if self.gsd_override_m is not None:
            return self.gsd_override_m, self.gsd_override_m
        row, col = self.height / 2.0, self.width / 2.0
        rows, cols = np.array([row, row, row - 0.5, row + 0.5]), np.array([col - 0.5, col + 0.5, col, col])
        lon, lat = self._earthly_lonlat(rows, cols)
        _, _, lengths = _WGS84.inv(lon[0::2], lat[0::2], lon[1::2], lat[1::2])
        along, down = (_check_gsd(float(length), "ground sample distance") for length in lengths)
        return along, down

    def mean_gsd_m(self) -> float:
        """The side in metres of a square as large as the pixel: the geometric mean of both distances.

        Raises:
            GridError: as ``gsd_m``.
        """
        along, down = self.gsd_m()
        return math.sqrt(along * down)

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """The grid of a part of this one, in pixels. It may reach beyond the edges, as padded tiles do.

        Raises:
            GridError: a zero or negative size.
        """
        a, b, c, d, e, f = self.transform[:6]
        # written out, because composing by operator is spelled differently in affine 2 and 3
        moved = Affine(a, b, a * col + b * row + c, d, e, d * col + e * row + f)
        return Grid(crs=self.crs, transform=moved, width=width, height=height, gsd_override_m=self.gsd_override_m)

    def to_lonlat(self, rows: npt.ArrayLike, cols: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Longitudes in [-180, 180] and latitudes, WGS84 degrees, of continuous pixel coordinates.

        Args:
            rows: whole numbers are pixel corners.
            cols: likewise; both broadcast to one shape.

        Returns:
            Two float64 arrays of that shape; NaN where the projection knows no place.

        Raises:
            GridError: no CRS, or one that is not tied to the Earth.
        """
        lon, lat = self._raw_lonlat(rows, cols)
        return normalise_lon(lon), lat

    def from_lonlat(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Continuous pixel coordinates (rows, cols) of WGS84 degrees; the inverse of ``to_lonlat``.

        Args:
            lon: degrees, any branch.
            lat: degrees; both broadcast to one shape.

        Returns:
            Two float64 arrays of that shape, also outside the grid; NaN where the projection has no place.

        Raises:
            GridError: no CRS, or one that is not tied to the Earth.
        """
        middle, _ = self._raw_lonlat(self.height / 2.0, self.width / 2.0)
        lons, lats = np.broadcast_arrays(np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64))
        # a grid over the antimeridian counts on beyond 180; take the branch nearest to it
        if np.isfinite(middle):
            lons = lons - 360.0 * np.round((lons - middle) / 360.0)
        return self._pixels(lons, lats)

    def _pixels(self, lons: FloatArray, lats: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Like ``from_lonlat``, with longitudes on the branch that the CRS itself uses."""
        x, y = self._transformer().transform(lons, lats, direction="INVERSE")
        x, y = np.where(np.isfinite(x), x, np.nan), np.where(np.isfinite(y), y, np.nan)
        a, b, c, d, e, f = self.transform[:6]
        determinant = a * e - b * d
        x, y = x - c, y - f
        return (a * y - d * x) / determinant, (e * x - b * y) / determinant

    def footprint(self) -> Footprint | None:
        """The outline on the globe, or ``None`` without a CRS.

        Up to one degree across, the four corners tell the outline. Larger ones get eight points an edge, or
        more where longitudes change fast. A grid that holds a pole, or has one on its edge, gives the
        latitude cap that covers it: larger than the grid, never smaller.

        Raises:
            GridError: a CRS that is not tied to the Earth, or a border part of which lies off the Earth.
        """
        if self.crs is None:
            return None
        for segments in (2, 8, 64, 512):
            lon, lat = self._border(segments)
            path = unwrap_lon(np.append(lon, lon[0]))
            if np.abs(np.diff(path)).max() > 20.0:
                continue
            if abs(path[-1] - path[0]) > 180.0:
                break
            if np.ptp(path) <= 1.0 and np.ptp(lat) <= 1.0:
                return Footprint.around(lon[::segments], lat[::segments])
            if segments > 2:
                return Footprint.around(lon, lat)
        # the border turns around a pole, or so fast that a pole lies on it
        lon, lat = self._border(64)
        pole = self._pole() or (90 if lat.mean() > 0 else -90)
        return Footprint.polar_cap(float(lat.min() if pole > 0 else lat.max()), pole)

    def _border(self, segments: int) -> tuple[FloatArray, FloatArray]:
        """Longitudes and latitudes ``[4·segments]`` along the border, from the first corner, not closed."""
        step = np.arange(segments) / segments
        zero, one = np.zeros(segments), np.ones(segments)
        rows = np.concatenate([step, one, 1.0 - step, zero]) * self.height
        cols = np.concatenate([zero, step, one, 1.0 - step]) * self.width
        return self._earthly_lonlat(rows, cols)

    def _earthly_lonlat(self, rows: FloatArray, cols: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Like ``to_lonlat``, for places that must exist.

        Raises:
            GridError: one of them lies off the Earth.
        """
        lon, lat = self._raw_lonlat(rows, cols)
        # beyond their rim some projections go on around the Earth instead of saying so: the way back tells
        back_rows, back_cols = self._pixels(lon, lat)
        returns = max(np.abs(back_rows - rows).max(), np.abs(back_cols - cols).max()) <= 1e-2
        # global grids registered at pixel centres reach over a pole by half a pixel
        if not returns or np.abs(lat).max() > 91.0:
            raise GridError(
                "transform",
                got=f"pixels off the Earth in the CRS {self.crs.name if self.crs else None!r}",
                expected="pixels with a longitude and a latitude",
                next_step="Check CRS and transform (gdalinfo shows them), or cut off what has no place.",
            )
        return normalise_lon(lon), lat

    def _pole(self) -> int:
        """+90 or -90 when that pole is one point inside the grid or on its edge, else 0."""
        for pole in (90, -90):
            rows, cols = self.from_lonlat(np.array([0.0, 120.0, -120.0]), np.full(3, float(pole)))
            # a projection that stretches the pole to a line has no such point
            one_point = np.ptp(rows) < 1e-3 and np.ptp(cols) < 1e-3
            row, col = rows[0], cols[0]
            if one_point and -1e-3 <= row <= self.height + 1e-3 and -1e-3 <= col <= self.width + 1e-3:
                return pole
        return 0

    def _raw_lonlat(self, rows: npt.ArrayLike, cols: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Like ``to_lonlat``, on the branch of longitude that the CRS itself uses."""
        r, q = np.broadcast_arrays(np.asarray(rows, dtype=np.float64), np.asarray(cols, dtype=np.float64))
        a, b, c, d, e, f = self.transform[:6]
        lon, lat = self._transformer().transform(a * q + b * r + c, d * q + e * r + f)
        return np.where(np.isfinite(lon), lon, np.nan), np.where(np.isfinite(lat), lat, np.nan)

    def _transformer(self) -> Transformer:
        if self.crs is None:
            raise GridError(
                "CRS",
                got="none",
                expected="a coordinate reference system, or a given ground sample distance",
                next_step="Pass the metres per pixel with --gsd (in Python: Declared(gsd_m=...)).",
            )
        return _to_wgs84(self.crs.srs)


@lru_cache(maxsize=128)
def _to_wgs84(crs: str) -> Transformer:
    """CRS (x, y) to WGS84 (lon, lat), built once per CRS; pyproj keeps one copy for each thread inside.

    PROJ reaches for no datum grids over the network unless the user has switched that on for PROJ.
    """
    try:
        plain = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        x, _ = plain.transform([50.0, 50.0, 100.0, 100.0], [0.0, 60.0, 0.0, 60.0], direction="INVERSE")
        cylindrical = bool(np.isfinite(x).all()) and np.allclose(x[0::2], x[1::2], rtol=1e-9)
        if not cylindrical:
            return plain
        # where meridians are parallel lines, a grid can go on beyond the antimeridian in one piece
        return Transformer.from_crs(crs, "EPSG:4326", always_xy=True, force_over=True)
    except ProjError:
        raise GridError(
            "CRS",
            got=crs,
            expected="a coordinate reference system that is tied to the Earth",
            next_step="Reproject the file (gdalwarp -t_srs), or drop its CRS and pass --gsd.",
        ) from None


def _check_gsd(gsd: float, what: str) -> float:
    low, high = GSD_RANGE_M
    if not low <= gsd <= high:
        raise GridError(
            what,
            got=f"{gsd:g} m per pixel",
            expected=f"{low:g} to {high:g} m",
            next_step="Check CRS and transform (gdalinfo shows them), or pass the right distance with --gsd.",
        )
    return gsd
