"""Conditions as SQL: the same rows as :meth:`alidade.search.filters.Filter.mask` finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np
from psycopg import sql

from alidade.imagery.footprint import Box
from alidade.imagery.polygon import Polygon
from alidade.search.filters import Filter


@dataclass(frozen=True, eq=False)
class Where:
    """A condition with its values; no condition at all is met by every row."""

    text: sql.SQL | sql.Composed = field(default_factory=lambda: sql.SQL("true"))
    values: tuple[object, ...] = ()

    def __and__(self, other: Where) -> Where:
        if not other.narrows:
            return self
        if not self.narrows:
            return other
        return Where(sql.SQL("{} AND {}").format(self.text, other.text), (*self.values, *other.values))

    @property
    def narrows(self) -> bool:
        """Whether there is any condition."""
        return self.text != sql.SQL("true")


def where(conditions: Filter) -> Where:
    """All conditions but ``polygon``, of which only the box is taken."""
    found = Where()
    if conditions.sensor is not None:
        found &= Where(sql.SQL("sensor = %s"), (conditions.sensor,))
    if conditions.bbox is not None:
        found &= _touches(conditions.bbox)
    if conditions.polygon is not None:
        found &= _touches(conditions.polygon.bbox())
    if conditions.time is not None:
        start, end = conditions.time
        found &= Where(sql.SQL("time IS NOT NULL"))
        if start is not None:
            found &= Where(sql.SQL("time >= %s"), (_whole_ms(start),))
        if end is not None:
            found &= Where(sql.SQL("time <= %s"), (_whole_ms(end),))
    if conditions.gsd is not None:
        low, high = (float(np.float32(limit)) for limit in conditions.gsd_limits)
        found &= Where(sql.SQL("gsd_m BETWEEN %s::real AND %s::real"), (low, high))
    return found


def outline_meets(polygon: Polygon) -> Where:
    """Rows whose ``outline`` (PostGIS) shares a point with the area, as :meth:`Polygon.meets` has it."""
    import shapely

    shape = shapely.union_all([shapely.Polygon(part[0], part[1:]) for part in polygon.parts])
    west, _, east, _ = shape.bounds
    turns = [0.0, *([360.0] if west == -180.0 else []), *([-360.0] if east == 180.0 else [])]
    shapes = [shapely.transform(shape, partial(np.add, (turn, 0.0))) for turn in turns]
    meets = sql.SQL(" OR ").join([sql.SQL("ST_Intersects(outline, ST_GeomFromWKB(%s, 4326))")] * len(shapes))
    return Where(sql.SQL("({})").format(meets), tuple(shapely.to_wkb(shape, byte_order=1) for shape in shapes))


def numbered(numbers: list[int]) -> Where:
    """The rows with these numbers."""
    return Where(sql.SQL("number = ANY(%s)"), (numbers,))


def _touches(box: Box) -> Where:
    """Boxes that share a point with ``box``, as :func:`alidade.imagery.footprint.bbox_mask` has it.

    ``place && ...`` is for the index: the type ``box`` compares with a tolerance, and tiles across the antimeridian
    have all longitudes there. The four numbers decide.
    """
    _, south, _, north = box
    pieces = [
        Where(
            sql.SQL(
                "(place && box(point(%s, %s), point(%s, %s)) AND"
                " CASE WHEN west <= east THEN west <= %s AND east >= %s ELSE west <= %s OR east >= %s END)"
            ),
            (left, south, right, north, right, left, right, left),
        )
        for left, right in _arcs(box)
    ]
    either = sql.SQL(" OR ").join([piece.text for piece in pieces])
    values = tuple(value for piece in pieces for value in piece.values)
    return Where(sql.SQL("({}) AND south <= %s AND north >= %s").format(either), (*values, north, south))


def _arcs(box: Box) -> list[tuple[float, float]]:
    """The longitudes of a box as ranges within ±180; the antimeridian has two names, and a tile may use either."""
    west, _, east, _ = box
    arcs = [(west, 180.0), (-180.0, east)] if west > east else [(west, east)]
    if west <= east == 180.0:
        arcs.append((-180.0, -180.0))
    if -180.0 == west <= east:
        arcs.append((180.0, 180.0))
    return arcs


def _whole_ms(moment: datetime) -> datetime:
    """Archives count in milliseconds, and what is asked is cut to them."""
    utc = moment.astimezone(UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)
