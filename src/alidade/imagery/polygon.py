"""Areas that a user draws: polygons with holes in degrees, read from GeoJSON, and which footprints they meet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alidade.errors import AlidadeError, GridError
from alidade.imagery.footprint import Box, Ring, bbox_mask, enclosing_box

if TYPE_CHECKING:
    import shapely

MAX_CORNERS = 10_000
"""Corners of one polygon, all rings together: a coastline of that many is drawn to well under a tile."""
_MAX_BYTES = 8 * 2**20
_CELLS = 64
_WORTH_A_GRID = 4_096
# of a cell's side: rounding must not put a box beside the cell that it lies in
_ROUNDING = 1e-9

Part = tuple[Ring, ...]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
WkbOf = Callable[[Rows], npt.NDArray[np.object_]]


@dataclass(frozen=True)
class Polygon:
    """One area, or several, on the globe; edges are straight in longitude and latitude (RFC 7946 section 3.1.1).

    Attributes:
        parts: each an outer ring and then its holes, closed rings of (longitude, latitude) in degrees, WGS84, either
            way round. Parts may overlap. An area over the antimeridian is cut there into two parts (section 3.1.9).

    Raises:
        GridError: no part; more than ``MAX_CORNERS`` corners; a ring that is open, has fewer than four corners, leaves
            ±180 or ±90, or jumps over the antimeridian; rings that cross themselves or each other.
        AlidadeError: the extra ``search``, which brings shapely, is not installed.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Refuse what is no area; see the class."""
        check_shapely("a polygon")
        corners = sum(len(ring) for part in self.parts for ring in part)
        if corners > MAX_CORNERS:
            raise _refused(
                "polygon", f"{corners:,} corners", f"at most {MAX_CORNERS:,}", "Simplify it, or draw it coarser."
            )
        if not self.parts or not all(self.parts):
            raise _refused("polygon", "no ring", "at least one outer ring")
        for number, part in enumerate(self.parts, start=1):
            for index, ring in enumerate(part):
                _check_ring(ring, f"polygon, part {number}, {'outer ring' if index == 0 else f'hole {index}'}")
            _check_crossings(part, f"polygon, part {number}")

    @property
    def corners(self) -> int:
        """Corners of all rings, the closing ones not counted."""
        return sum(len(ring) - 1 for part in self.parts for ring in part)

    def bbox(self) -> Box:
        """The smallest (west, south, east, north) in degrees; west > east over the antimeridian."""
        return enclosing_box(np.array([_bounds(part[0]) for part in self.parts]).T)

    def geojson(self) -> dict[str, object]:
        """The GeoJSON geometry: a Polygon, or a MultiPolygon of several parts."""
        polygons = [[[list(point) for point in ring] for ring in part] for part in self.parts]
        if len(polygons) == 1:
            return {"type": "Polygon", "coordinates": polygons[0]}
        return {"type": "MultiPolygon", "coordinates": polygons}

    def meets(self, boxes: Floats, wkb_of: WkbOf) -> Bools:
        """Which footprints share at least a point with the area; touching counts, also across the antimeridian.

        Boxes settle most of them: only footprints whose box meets the outline are decoded.

        Args:
            boxes: ``[4, N]`` west, south, east, north of the footprints in degrees; west > east crosses the
                antimeridian, NaN where there is no place.
            wkb_of: footprints ``[M]`` as WKB (``None`` where there is none) of these indices ``[M]`` below N.

        Returns:
            ``[N]`` bool.
        """
        found = np.zeros(boxes.shape[1], dtype=bool)
        near = np.flatnonzero(bbox_mask(boxes[0], boxes[1], boxes[2], boxes[3], self.bbox()))
        for sheet in self._sheets:
            found[sheet.meeting(boxes, near[~found[near]], wkb_of)] = True
        return found

    @cached_property
    def _sheets(self) -> tuple[_Sheet, ...]:
        """The area in the plane: in one piece where it can be, and again where its edge on ±180 has its other name."""
        import shapely

        west, _, east, _ = self.bbox()
        sides: list[list[Part]] = [list(self.parts)]
        if west > east:
            beyond = [part for part in self.parts if _bounds(part[0])[0] >= west]
            sides = [beyond, [part for part in self.parts if part not in beyond]]
        shapes = [shapely.union_all([shapely.Polygon(part[0], part[1:]) for part in side]) for side in sides if side]
        turned = [
            (shape, turn) for shape in shapes for edge, turn in ((0, 360.0), (2, -360.0)) if _on_edge(shape, edge)
        ]
        shapes += [shapely.transform(shape, partial(np.add, (turn, 0.0))) for shape, turn in turned]
        return tuple(_Sheet(shape) for shape in shapes)


class _Sheet:
    """A shape in the plane of longitude and latitude, and a grid of cells that lie inside, outside or on its edge."""

    def __init__(self, shape: shapely.Geometry) -> None:
        import shapely

        shapely.prepare(shape)
        self.shape, self.bounds = shape, shape.bounds

    def meeting(self, boxes: Floats, rows: Rows, wkb_of: WkbOf) -> Rows:
        """Those of ``rows`` whose footprints share a point with the shape; see :meth:`Polygon.meets`."""
        import shapely

        west, south, east, north = boxes[:, rows]
        left, bottom, right, top = self.bounds
        crossing = west > east
        rows = rows[crossing | ((west <= right) & (east >= left) & (south <= top) & (north >= bottom))]
        settled = rows[:0]
        if len(rows) > _WORTH_A_GRID:
            crossing = boxes[0, rows] > boxes[2, rows]
            inside, outside = self._by_cells(boxes[:, rows])
            settled, rows = rows[inside & ~crossing], rows[crossing | ~(inside | outside)]
        meet = shapely.intersects(self.shape, shapely.from_wkb(wkb_of(rows)))
        return np.concatenate([settled, rows[meet]])

    def _by_cells(self, boxes: Floats) -> tuple[Bools, Bools]:
        """Which boxes ``[4, N]`` lie in cells that are all inside, and which in cells that are all outside."""
        left, bottom, right, top = self.bounds
        step = (right - left) / _CELLS, (top - bottom) / _CELLS
        columns = [_cell(boxes[i], left, step[0], sign) for i, sign in ((0, -1), (2, 1))]
        rows = [_cell(boxes[i], bottom, step[1], sign) for i, sign in ((1, -1), (3, 1))]
        beyond = (boxes[0] < left) | (boxes[1] < bottom) | (boxes[2] > right) | (boxes[3] > top)
        edge_or_outside, edge_or_inside = (_within(total, columns, rows) for total in self._totals)
        return ~beyond & (edge_or_outside == 0), edge_or_inside == 0

    @cached_property
    def _totals(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells left of and below each corner that are not wholly inside, and that are not wholly outside."""
        import shapely

        left, bottom, right, top = self.bounds
        x, y = np.linspace(left, right, _CELLS + 1), np.linspace(bottom, top, _CELLS + 1)
        cells = shapely.box(x[:-1, None], y[None, :-1], x[1:, None], y[None, 1:])
        marks = ~shapely.covers(self.shape, cells), shapely.intersects(self.shape, cells)
        return _sums(marks[0]), _sums(marks[1])


def parse_geojson(value: object, *, what: str = "polygon") -> Polygon:
    """The area of a GeoJSON value: a Polygon, a MultiPolygon, or features of these, all taken together.

    Args:
        value: parsed JSON. A third coordinate, which is height, is left out.
        what: what errors call it.

    Raises:
        GridError: another type or another CRS than longitude and latitude, coordinates that are not numbers, or
            anything that :class:`Polygon` refuses.
    """
    return Polygon(tuple(_parts(value, what)))


def read_geojson(path: str | os.PathLike[str]) -> Polygon:
    """The area in a GeoJSON file; see :func:`parse_geojson`.

    Raises:
        GridError: the file cannot be read, is larger than 8 MiB or is not JSON; or as :func:`parse_geojson`.
    """
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise _refused(
                str(file), "more than 8 MiB", f"a polygon of at most {MAX_CORNERS:,} corners", "Simplify it."
            )
        value = json.loads(data)
    except OSError as error:
        raise _refused(
            str(file), error.strerror or type(error).__name__, "a readable GeoJSON file", "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, AlidadeError):
            raise
        raise _refused(str(file), f"{type(error).__name__}: {error!s:.80}", "JSON", "Export it as GeoJSON.") from error
    return parse_geojson(value, what=str(file))


def check_shapely(what: str) -> None:
    """See that shapely is installed, without importing it.

    Args:
        what: what needs it, such as ``"a polygon"``.

    Raises:
        AlidadeError: it is not.
    """
    if find_spec("shapely") is None:
        raise AlidadeError(
            what,
            got="an installation without shapely",
            expected="the extra `search`",
            next_step='Install it: pip install "alidade[search]" (in a clone: pip install -e ".[search]").',
        )


def _parts(value: object, what: str) -> Iterator[Part]:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("Polygon", "MultiPolygon", "Feature", "FeatureCollection"):
        raise _refused(what, f"{value!r:.60}" if kind is None else f"type {kind!r:.40}", "a Polygon or MultiPolygon")
    _check_crs(value, what)
    if kind == "Feature":
        yield from _parts(value.get("geometry"), what)
    elif kind == "FeatureCollection":
        for feature in _list(value.get("features"), f"{what}: features"):
            yield from _parts(feature, what)
    else:
        polygons = value.get("coordinates")
        for number, rings in enumerate([polygons] if kind == "Polygon" else _list(polygons, what), start=1):
            which = what if kind == "Polygon" else f"{what}, part {number}"
            yield tuple(tuple(_point(p, which) for p in _list(ring, which)) for ring in _list(rings, which))


def _check_crs(value: dict[str, object], what: str) -> None:
    # GeoJSON of 2008 could name a CRS, and programs still write the member
    crs = value.get("crs")
    if crs is not None and not any(name in json.dumps(crs) for name in ("CRS84", "EPSG::4326", "EPSG:4326")):
        raise _refused(
            f"{what}: crs", f"{crs!r:.80}", "longitude and latitude in degrees, WGS84", "Export it in EPSG:4326."
        )


def _list(value: object, what: str) -> list[object]:
    if isinstance(value, list):
        return value
    raise _refused(f"{what}: coordinates", f"{value!r:.60}", "lists of rings of [longitude, latitude]")


def _point(value: object, what: str) -> tuple[float, float]:
    numbers = _list(value, what)
    # True is an int in Python, and is no longitude
    if len(numbers) < 2 or not all(type(n) in (int, float) for n in numbers):
        raise _refused(f"{what}: corner", f"{value!r:.60}", "[longitude, latitude] in degrees")
    x, y = numbers[:2]
    assert isinstance(x, int | float)
    assert isinstance(y, int | float)
    try:
        return float(x), float(y)
    except OverflowError:
        raise _refused(f"{what}: corner", f"{value!r:.60}", "[longitude, latitude] in degrees") from None


def _check_ring(ring: Ring, what: str) -> None:
    for x, y in ring:
        if not (abs(x) <= 180.0 and abs(y) <= 90.0):
            raise _refused(
                what,
                f"the corner {x:g},{y:g}",
                "longitudes within ±180 and latitudes within ±90",
                "Give degrees of WGS84, longitude first; cut the polygon at the antimeridian (RFC 7946, 3.1.9).",
            )
    if len(ring) < 4 or ring[0] != ring[-1]:
        got = f"{len(ring)} corners" if len(ring) < 4 else f"first corner {ring[0]}, last corner {ring[-1]}"
        raise _refused(what, got, "a closed ring: at least four corners, the last equal to the first", "Close it.")
    for (x0, _), (x1, _) in pairwise(ring):
        # an edge around most of the Earth was meant to go the short way; one from edge to edge of the map was not
        if 180.0 < abs(x1 - x0) < 360.0:
            raise _refused(
                what,
                f"an edge from longitude {x0:g} to {x1:g}",
                "edges of at most 180 degrees",
                "Cut the polygon at the antimeridian (RFC 7946, 3.1.9), or add a corner on the way.",
            )


def _check_crossings(part: Part, what: str) -> None:
    import shapely

    shape = shapely.Polygon(part[0], part[1:])
    if not shape.is_valid:
        raise _refused(
            what, shapely.is_valid_reason(shape), "rings that do not cross", "Draw it again, or repair it in a GIS."
        )


def _on_edge(shape: shapely.Geometry, edge: int) -> bool:
    return abs(float(shape.bounds[edge])) == 180.0


def _bounds(ring: Ring) -> Box:
    x, y = zip(*ring, strict=True)
    return min(x), min(y), max(x), max(y)


def _cell(values: Floats, start: float, step: float, sign: int) -> Rows:
    return np.clip(np.floor((values - start) / step + sign * _ROUNDING), 0, _CELLS - 1).astype(np.intp)


def _sums(marks: Bools) -> npt.NDArray[np.int64]:
    return np.pad(marks.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _within(total: npt.NDArray[np.int64], columns: Sequence[Rows], rows: Sequence[Rows]) -> npt.NDArray[np.int64]:
    """Marked cells in each block of cells, by the four corners of a table of sums (Crow 1984)."""
    (x0, x1), (y0, y1) = columns, rows
    return np.asarray(total[x1 + 1, y1 + 1] - total[x0, y1 + 1] - total[x1 + 1, y0] + total[x0, y0])


def _refused(what: str, got: str, expected: str, next_step: str = "Correct the polygon.") -> GridError:
    return GridError(what, got=got, expected=expected, next_step=next_step)
