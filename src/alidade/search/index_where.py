"""Conditions as LanceDB's SQL: the same rows as :meth:`alidade.search.filters.Filter.mask` finds, but polygons."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from alidade.imagery.footprint import Box
from alidade.search.filters import Filter

CELL_DEGREES = 4
"""Side of the squares that tiles are sorted into by their south-western corner."""
ANYWHERE = -1
"""Cell of a tile that is larger than a cell or crosses the antimeridian: every box looks at it."""
_COLUMNS, _ROWS = 360 // CELL_DEGREES, 180 // CELL_DEGREES
# a longer list costs more than it saves: so large a box has most rows anyway
_MOST_CELLS = 2000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cells_of(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """The cell ``[N]`` of each box ``[4, N]`` (west, south, east, north in degrees; NaN where there is none)."""
    west, south, east, north = boxes
    narrow = (east >= west) & (east - west <= CELL_DEGREES) & (north - south <= CELL_DEGREES)
    x, y = _column(np.where(narrow, west, 0.0)), _row(np.where(narrow, south, 0.0))
    return np.where(narrow, y * _COLUMNS + x, ANYWHERE).astype(np.int32)


def where(conditions: Filter) -> str | None:
    """The conditions in SQL, ``None`` when there is none. Of a polygon only its box is taken."""
    parts = []
    if conditions.sensor is not None:
        parts.append(f"sensor = {quoted(conditions.sensor)}")
    if conditions.bbox is not None:
        parts.append(_touches(conditions.bbox))
    if conditions.polygon is not None:
        parts.append(_touches(conditions.polygon.bbox()))
    if conditions.time is not None:
        start, end = conditions.time
        parts.append("time_ms IS NOT NULL")
        parts += [] if start is None else [f"time_ms >= {_milliseconds(start)}"]
        parts += [] if end is None else [f"time_ms <= {_milliseconds(end)}"]
    if conditions.gsd is not None:
        low, high = conditions.gsd_limits
        parts.append(f"gsd_m >= {_number(np.float32(low))}")
        parts += [f"gsd_m <= {_number(np.float32(high))}"] if math.isfinite(high) else []
    return " AND ".join(parts) or None


def arcs_of(box: Box) -> list[tuple[float, float]]:
    """The box's longitudes as ranges that do not cross ±180, which is one line with two names."""
    west, _, east, _ = box
    if west > east:
        return [(west, 180.0), (-180.0, east)]
    ends = [(-180.0, -180.0)] if east == 180.0 else []
    starts = [(180.0, 180.0)] if west == -180.0 else []
    return [(west, east), *ends, *starts]


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _touches(box: Box) -> str:
    """Boxes that share a point with ``box``, as :func:`alidade.imagery.footprint.bbox_mask` has it."""
    _, south, _, north = box
    arcs = arcs_of(box)
    across = " OR ".join(
        f"(xmin <= xmax AND xmin <= {_number(right)} AND xmax >= {_number(left)})"
        f" OR (xmin > xmax AND (xmin <= {_number(right)} OR xmax >= {_number(left)}))"
        for left, right in arcs
    )
    touching = f"ymin <= {_number(north)} AND ymax >= {_number(south)} AND ({across})"
    cells = sorted({cell for left, right in arcs for cell in _cells((left, south, right, north))})
    if len(cells) > _MOST_CELLS:
        return touching
    return f"cell IN ({', '.join(map(str, [ANYWHERE, *cells]))}) AND {touching}"


def _cells(box: Box) -> list[int]:
    """The cells in which the tiles that touch a box may begin: tiles reach one cell to the east and north."""
    west, south, east, north = box
    x0, x1 = int(_column(np.float64(west - CELL_DEGREES))), int(_column(np.float64(east)))
    y0, y1 = int(_row(np.float64(south - CELL_DEGREES))), int(_row(np.float64(north)))
    if (x1 - x0 + 1) * (y1 - y0 + 1) > _MOST_CELLS:
        return list(range(_MOST_CELLS + 1))
    return [y * _COLUMNS + x for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)]


def _column(lon: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.clip(np.floor((np.asarray(lon) + 180.0) / CELL_DEGREES), 0, _COLUMNS - 1)


def _row(lat: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.clip(np.floor((np.asarray(lat) + 90.0) / CELL_DEGREES), 0, _ROWS - 1)


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _number(value: float | np.floating) -> str:
    return repr(float(value))
