"""Outlines on the globe in degrees: rings, boxes, WKB, GeoJSON; right at the antimeridian and the poles."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from alidade.errors import GridError

Point = tuple[float, float]
Ring = tuple[Point, ...]
Box = tuple[float, float, float, float]
FloatArray = npt.NDArray[np.float64]

# 1e-9 degrees is 0.1 mm at the equator: below it, a crossing of the antimeridian is rounding, not ground
_TOLERANCE_DEG = 1e-9


def normalise_lon(lon: npt.ArrayLike) -> FloatArray:
    """Longitudes in degrees, brought into [-180, 180]; those already inside, 180 too, are kept."""
    values = np.asarray(lon, dtype=np.float64)
    return np.where(np.abs(values) > 180.0, (values + 180.0) % 360.0 - 180.0, values)


def unwrap_lon(lon: FloatArray) -> FloatArray:
    """A path's longitudes ``[n]`` without jumps: each step goes the short way, so they may leave ±180."""
    return np.asarray(np.unwrap(lon, period=360.0), dtype=np.float64)


@dataclass(frozen=True)
class Footprint:
    """An area on the globe as one polygon, or as two that meet at the antimeridian (RFC 7946 section 3.1.9).

    Attributes:
        rings: closed rings of (longitude, latitude) in degrees, WGS84, counter-clockwise, without holes. One
            ring; or two, the first reaching longitude 180 from the west, the second starting at -180.
    """

    rings: tuple[Ring, ...]

    def __post_init__(self) -> None:
        """Refuse what is not one or two closed rings.

        Raises:
            GridError: another number of rings, or a ring that is open or has fewer than four points.
        """
        closed = all(len(ring) >= 4 and ring[0] == ring[-1] for ring in self.rings)
        if len(self.rings) not in (1, 2) or not closed:
            raise GridError(
                "footprint",
                got=f"{len(self.rings)} rings of {[len(ring) for ring in self.rings]} points",
                expected="one or two closed rings of at least four points",
                next_step="Make footprints with Grid.footprint() or Footprint.around().",
            )

    @classmethod
    def around(cls, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Footprint:
        """The area inside a path of corners, which is closed here and must not run around a pole.

        An outline that spans 360 degrees or more of longitude becomes the whole band between its latitudes.

        Args:
            lon: longitudes in degrees, ``[n]``, any branch; neighbours lie less than 180 degrees apart.
            lat: latitudes in degrees, ``[n]``; clipped to [-90, 90].

        Raises:
            GridError: a corner that is not a number.
        """
        lons = unwrap_lon(np.asarray(lon, dtype=np.float64))
        lats = np.clip(np.asarray(lat, dtype=np.float64), -90.0, 90.0)
        if not (np.isfinite(lons).all() and np.isfinite(lats).all()):
            raise GridError(
                "footprint",
                got="corners that have no place on the Earth",
                expected="a longitude and a latitude for every corner",
                next_step="Check the file's CRS and transform (gdalinfo shows them).",
            )
        if lons.max() - lons.min() >= 360.0 - _TOLERANCE_DEG:
            return cls.box((-180.0, float(lats.min()), 180.0, float(lats.max())))
        lons = lons - 360.0 * math.floor((lons.min() + 180.0) / 360.0)
        path = list(zip(lons.tolist(), lats.tolist(), strict=True))
        if lons.max() <= 180.0 + _TOLERANCE_DEG:
            return cls((_closed([(min(x, 180.0), y) for x, y in path]),))
        west_part = _clip(path, 180.0, keep_below=True)
        east_part = [(x - 360.0, y) for x, y in _clip(path, 180.0, keep_below=False)]
        if len(west_part) < 3 or lons.min() >= 180.0 - _TOLERANCE_DEG:
            return cls((_closed([(max(x, -180.0), y) for x, y in east_part]),))
        return cls((_closed(west_part), _closed(east_part)))

    @classmethod
    def box(cls, box: Box) -> Footprint:
        """The area of a box (west, south, east, north) in degrees; west > east crosses the antimeridian.

        Raises:
            GridError: not a box.
        """
        west, south, east, north = check_box(box)
        if west > east:
            halves = ((west, south, 180.0, north), (-180.0, south, east, north))
            return cls(tuple(_box_ring(half) for half in halves))
        return cls((_box_ring((west, south, east, north)),))

    @classmethod
    def polar_cap(cls, south_or_north: float, pole: int) -> Footprint:
        """Everything between a latitude in degrees and the pole: +90 or -90."""
        return cls.box((-180.0, min(south_or_north, pole), 180.0, max(south_or_north, pole)))

    def bbox(self) -> Box:
        """(west, south, east, north) in degrees; west > east over the antimeridian (RFC 7946, 5.2)."""
        lats = [y for ring in self.rings for _, y in ring]
        west = min(x for x, _ in self.rings[0])
        east = max(x for x, _ in self.rings[-1])
        return west, min(lats), east, max(lats)

    def wkb(self) -> bytes:
        """Well-known binary (OGC 06-103r4, 8.2), little-endian: a Polygon, or a MultiPolygon of two."""
        polygons = [_polygon_wkb(ring) for ring in self.rings]
        if len(polygons) == 1:
            return polygons[0]
        return struct.pack("<BII", 1, 6, len(polygons)) + b"".join(polygons)

    def geojson(self) -> dict[str, object]:
        """The GeoJSON geometry: a Polygon, or a MultiPolygon of two."""
        polygons = [[[list(point) for point in ring]] for ring in self.rings]
        if len(polygons) == 1:
            return {"type": "Polygon", "coordinates": polygons[0]}
        return {"type": "MultiPolygon", "coordinates": polygons}

    def contains(self, lon: float, lat: float) -> bool:
        """Whether the place (degrees) lies inside or on the outline. A place that is no number is outside."""
        if not (math.isfinite(lon) and math.isfinite(lat)):
            return False
        x = float(normalise_lon(lon))
        # the two names of the antimeridian are the same line, and a ring may use either
        candidates = (180.0, -180.0) if abs(x) == 180.0 else (x,)
        return any(_inside(ring, c, lat) for ring in self.rings for c in candidates)

    def centre(self) -> Point:
        """The area's centre of gravity (lon, lat) in degrees; the pole for a cap around a pole."""
        west, south, east, north = self.bbox()
        if east - west == 360.0 and (south == -90.0) != (north == 90.0):
            return 0.0, 90.0 if north == 90.0 else -90.0
        total = x_sum = y_sum = 0.0
        for number, ring in enumerate(self.rings):
            area, x, y = _centroid(ring)
            total += area
            x_sum += area * (x + 360.0 * number)
            y_sum += area * y
        if total == 0.0:
            return (west + east) / 2.0, (south + north) / 2.0
        return float(normalise_lon(x_sum / total)), y_sum / total


def check_box(box: Sequence[float]) -> Box:
    """The box (west, south, east, north) itself, when it is one.

    Raises:
        GridError: not four finite numbers, a longitude outside [-180, 180], a latitude outside [-90, 90], or
            south above north. West may exceed east: such a box crosses the antimeridian.
    """
    if len(box) == 4 and all(math.isfinite(v) for v in box):
        west, south, east, north = (float(v) for v in box)
        if abs(west) <= 180.0 and abs(east) <= 180.0 and -90.0 <= south <= north <= 90.0:
            return west, south, east, north
    raise GridError(
        "box",
        got=",".join(str(v) for v in box),
        expected="west,south,east,north in degrees, longitudes within ±180, -90 <= south <= north <= 90",
        next_step="Write --bbox W,S,E,N (a box over the antimeridian has west > east).",
    )


def bbox_mask(
    west: npt.ArrayLike, south: npt.ArrayLike, east: npt.ArrayLike, north: npt.ArrayLike, box: Sequence[float]
) -> npt.NDArray[np.bool_]:
    """Which of many boxes share at least a point with one box; touching counts, also across the antimeridian.

    Args:
        west: column ``[n]`` in degrees; west > east crosses the antimeridian. A row with a NaN never matches.
        south: column ``[n]`` in degrees.
        east: column ``[n]`` in degrees.
        north: column ``[n]`` in degrees.
        box: (west, south, east, north) in degrees.

    Returns:
        ``[n]`` bool.

    Raises:
        GridError: ``box`` is not a box.
    """
    box_west, box_south, box_east, box_north = check_box(box)
    w, s, e, n = (np.asarray(column, dtype=np.float64) for column in (west, south, east, north))
    # on the circle two arcs meet when one of them begins within the other
    begins_in_row = (box_west - w) % 360.0 <= _arc(w, e)
    begins_in_box = (w - box_west) % 360.0 <= _arc(np.float64(box_west), np.float64(box_east))
    return np.asarray((begins_in_row | begins_in_box) & (s <= box_north) & (n >= box_south) & ~np.isnan(e))


def enclosing_box(boxes: npt.ArrayLike) -> Box:
    """The smallest box that holds many boxes; it crosses the antimeridian where that way round is shorter.

    Args:
        boxes: ``[4, n]`` west, south, east, north in degrees, n at least 1, no NaN; west > east crosses.

    Returns:
        (west, south, east, north) in degrees; -180 to 180 where the boxes leave no longitude free.
    """
    west, south, east, north = np.asarray(boxes, dtype=np.float64)
    order = np.argsort(west, kind="stable")
    starts, count = west[order], west.size
    ends = starts + _arc(starts, east[order])
    # once around before: what reaches over the antimeridian covers the beginning too
    ends = np.concatenate([ends - 360.0, ends])
    gaps = starts - np.maximum.accumulate(ends)[count - 1 : -1]
    first = int(np.argmax(gaps))
    if gaps[first] <= 0.0:
        return -180.0, float(south.min()), 180.0, float(north.max())
    last = int(np.argmax(ends[: count + first])) % count
    return float(starts[first]), float(south.min()), float(east[order][last]), float(north.max())


def boxes_intersect(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes (west, south, east, north) in degrees share at least a point; see ``bbox_mask``.

    Raises:
        GridError: one of them is not a box.
    """
    west, south, east, north = check_box(a)
    return bool(bbox_mask(west, south, east, north, b))


def _arc(west: npt.ArrayLike, east: npt.ArrayLike) -> FloatArray:
    """How many degrees a box reaches eastward from its west side: 0 to 360."""
    span = np.asarray(east, dtype=np.float64) - np.asarray(west, dtype=np.float64)
    return np.where(span == 360.0, 360.0, span % 360.0)


def _box_ring(box: Box) -> Ring:
    west, south, east, north = box
    return ((west, south), (east, south), (east, north), (west, north), (west, south))


def _polygon_wkb(ring: Ring) -> bytes:
    flat = [value for point in ring for value in point]
    return struct.pack(f"<BIII{len(flat)}d", 1, 3, 1, len(ring), *flat)


def _clip(path: Sequence[Point], limit: float, *, keep_below: bool) -> list[Point]:
    """The part of a closed path on one side of a meridian (Sutherland and Hodgman 1974, one edge)."""
    kept: list[Point] = []
    for (x0, y0), (x1, y1) in zip(path, [*path[1:], path[0]], strict=True):
        inside0, inside1 = ((x <= limit) if keep_below else (x >= limit) for x in (x0, x1))
        if inside0:
            kept.append((x0, y0))
        if inside0 != inside1 and limit not in (x0, x1):
            kept.append((limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)))
    return kept


def _closed(path: Sequence[Point]) -> Ring:
    """The path as a closed counter-clockwise ring."""
    ring = (*path, path[0])
    return ring if _centroid(ring)[0] >= 0.0 else ring[::-1]


def _centroid(ring: Ring) -> tuple[float, float, float]:
    """Signed area (degrees², positive when counter-clockwise) and centre of gravity of a closed ring."""
    # measured from the first corner, because the products of small rings far from zero cancel
    x, y = (np.array(ring) - ring[0]).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = float(cross.sum() / 2.0)
    if area == 0.0:
        middle = np.mean(ring[:-1], axis=0)
        return 0.0, float(middle[0]), float(middle[1])
    cx = float(((x[:-1] + x[1:]) * cross).sum() / (6.0 * area))
    cy = float(((y[:-1] + y[1:]) * cross).sum() / (6.0 * area))
    return area, cx + ring[0][0], cy + ring[0][1]


def _inside(ring: Ring, x: float, y: float) -> bool:
    """Even-odd rule by a ray to the east; the outline itself counts as inside."""
    crossings = 0
    for (x0, y0), (x1, y1) in pairwise(ring):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        within = min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
        if side == 0.0 and within:
            return True
        if (y0 > y) != (y1 > y):
            crossings += (side > 0.0) == (y1 > y0)
    return crossings % 2 == 1
