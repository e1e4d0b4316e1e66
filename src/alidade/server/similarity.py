"""The map of one query: every row's footprint coloured by its score, painted into map tiles on the server.

Rows are sorted once, when an archive is opened; a query then costs one pass over its scores, and a tile only what
lies in it. However many rows there are, the browser gets pictures of 256 x 256 pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from alidade.search.picture import ramp
from alidade.server.mercator import EDGE_LAT, SIDE, from_degrees

_BITS = 26
"""Of a centre's place along each side of the map: 0.6 m at the equator."""
_FINER = 3
"""Zooms below a tile's own at which its surroundings are looked through: an eighth of a tile on every side."""
_LARGE = 64
"""Pixels of a footprint that is painted by itself, not together with others."""
_FEW = 40
_FAINT, _STRONG = 70, 225

Shades = npt.NDArray[np.uint8]
"""0: not shown; 1 to 255: from the lowest to the highest score."""
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One query on the map: ``shades`` ``[G]`` of a mosaic's groups, and the scores at the ends of the ramp."""

    shades: Shades
    low: float
    high: float
    shown: int


class Mosaic:
    """The footprints of N rows on the web map, sorted so that those of a map tile lie together.

    Rows of the same place and size, as of many dates, form one of G groups. Groups are ordered by size class
    (a footprint of class c is at most 2^-c of the map wide and high), then along a Z-order curve of their centres,
    on which every map tile of every zoom is one stretch.

    Args:
        boxes: ``[4, N]`` west, south, east, north in degrees; NaN where a row has no place; west > east crosses
            the antimeridian. About 50 bytes a row are kept.
    """

    def __init__(self, boxes: npt.NDArray[np.float64]) -> None:
        rows, x0, y0, x1, y1 = _on_map(boxes)
        level = np.clip(np.floor(-np.log2(np.maximum(np.maximum(x1 - x0, y1 - y0), 2.0**-_BITS))), 0, _BITS)
        most = 2**_BITS - 1
        column, row = (np.clip((a + b) * 2 ** (_BITS - 1), 0, most).astype(np.uint64) for a, b in ((x0, x1), (y0, y1)))
        keys = (level.astype(np.uint64) << np.uint64(2 * _BITS)) | _interleaved(column, row)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self._rows = rows[order]
        self._starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        self._keys: Keys = keys[self._starts]
        self._boxes = np.stack([x0, y0, x1, y1])[:, order[self._starts]]
        self._levels = [int(c) for c in np.unique(self._keys >> np.uint64(2 * _BITS))]

    def layer(self, scores: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> Layer:
        """A query's shades.

        The ramp goes from the 5th to the 99.5th percentile of the scores that are shown, so that a few strangers at
        either end do not use up its colours; of under 40 rows it spans all.

        Args:
            scores: ``[N]``.
            mask: ``[N]`` which rows are shown; all without one.
        """
        counted = scores if mask is None else scores[mask]
        low, high = _limits(counted)
        shades = (1.5 + 254.0 * np.clip((scores - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
        if mask is not None:
            shades[~mask] = 0
        grouped = np.maximum.reduceat(shades[self._rows], self._starts) if self._starts.size else shades[:0]
        return Layer(shades=grouped, low=low, high=high, shown=counted.size)

    def paint(self, shades: Shades, z: int, x: int, y: int) -> Shades:
        """One map tile ``[256, 256]``; where footprints overlap, the highest shade is seen."""
        canvas = np.zeros((SIDE, SIDE), np.uint8)
        for level in self._levels:
            # a footprint of at most one pixel is the pixel of its centre
            if level >= z + 8:
                self._paint_points(canvas, shades, level, z, x, y)
            else:
                self._paint_boxes(canvas, shades, level, z, x, y)
        return _thickened(canvas)

    def _stretches(
        self, level: int, z: int, columns: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.intp]:
        """Where the groups of one class with centres in cells of zoom ``z`` begin and end: ``[2, cells]``."""
        shift = np.uint64(2 * (_BITS - z))
        cell = _interleaved(columns.astype(np.uint64), rows.astype(np.uint64))
        first = (np.uint64(level) << np.uint64(2 * _BITS)) | (cell << shift)
        return np.asarray(np.searchsorted(self._keys, np.stack([first, first + (np.uint64(1) << shift)])))

    def _paint_points(self, canvas: Shades, shades: Shades, level: int, z: int, x: int, y: int) -> None:
        start, stop = self._stretches(level, z, np.array([x]), np.array([y]))[:, 0]
        if start == stop:
            return
        pixels = (self._keys[start:stop] >> np.uint64(2 * (_BITS - z - 8))).astype(np.uint16)
        begins = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
        flat = canvas.reshape(-1)
        at = _PLACES[pixels[begins]]
        flat[at] = np.maximum(flat[at], np.maximum.reduceat(shades[start:stop], begins))

    def _paint_boxes(self, canvas: Shades, shades: Shades, level: int, z: int, x: int, y: int) -> None:
        # cells of at least the footprints' size: what reaches into the tile has its centre in it or in the next cell
        zoom = min(level, z + _FINER)
        columns, rows = (_cells(n, z, zoom) for n in (x, y))
        columns, rows = (part.ravel() for part in np.meshgrid(columns, rows))
        stretches = self._stretches(level, zoom, columns, rows).T
        near = np.concatenate([np.arange(start, stop) for start, stop in stretches])
        near = near[shades[near] > 0]
        x0, y0, x1, y1 = self._boxes[:, near]
        scale = SIDE * 2.0**z
        left, top = np.rint(x0 * scale) - x * SIDE, np.rint(y0 * scale) - y * SIDE
        right = np.maximum(np.rint(x1 * scale) - x * SIDE, left + 1)
        bottom = np.maximum(np.rint(y1 * scale) - y * SIDE, top + 1)
        seen = (right > 0) & (bottom > 0) & (left < SIDE) & (top < SIDE)
        edges = np.stack([left, top, right, bottom])[:, seen].clip(0, SIDE).astype(np.int64)
        _fill(canvas, edges, shades[near][seen])


def _cells(number: int, z: int, zoom: int) -> npt.NDArray[np.int64]:
    """The cells of ``zoom`` in which tile ``number`` of zoom ``z`` lies, along one side, and one more at either end."""
    finer = max(zoom - z, 0)
    first, last = (number << finer) >> max(z - zoom, 0), ((number + 1 << finer) - 1) >> max(z - zoom, 0)
    return np.arange(max(first - 1, 0), min(last + 2, 2**zoom))


def png(canvas: Shades) -> bytes:
    """A painted tile as a PNG of few kilobytes: the ramp's colours, fainter where scores are low, nothing where 0."""
    image = Image.fromarray(canvas)
    image.putpalette(_PALETTE)
    out = io.BytesIO()
    image.save(out, format="PNG", transparency=_ALPHA, compress_level=1)
    return out.getvalue()


def legend_colours() -> list[str]:
    """Eleven colours from the lowest score to the highest, as ``#rrggbb``."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in ramp(np.linspace(0.0, 1.0, 11)).tolist()]


def _fill(canvas: Shades, edges: npt.NDArray[np.int64], shades: Shades) -> None:
    """Paint boxes (left, top, right, bottom) ``[4, M]`` in pixels."""
    left, top, right, bottom = edges
    widths, areas = right - left, (right - left) * (bottom - top)
    for i in np.flatnonzero(areas >= _LARGE).tolist():
        part = canvas[top[i] : bottom[i], left[i] : right[i]]
        np.maximum(part, shades[i], out=part)
    small = np.flatnonzero(areas < _LARGE)
    of = np.repeat(small, areas[small])
    within = np.arange(of.size) - np.repeat(np.cumsum(areas[small]) - areas[small], areas[small])
    down, across = np.divmod(within, widths[of])
    np.maximum.at(canvas.reshape(-1), (top[of] + down) * SIDE + left[of] + across, shades[of])


def _thickened(canvas: Shades) -> Shades:
    """Each mark one pixel wider on every side where nothing else is: a lone dot could not be seen."""
    padded = np.pad(canvas, 1)
    around = [padded[down : down + SIDE, across : across + SIDE] for down in range(3) for across in range(3)]
    return np.where(canvas > 0, canvas, np.maximum.reduce(around))


def _on_map(
    boxes: npt.NDArray[np.float64],
) -> tuple[
    npt.NDArray[np.intp],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
]:
    """Numbers of the rows that have a place, and their boxes on the map; one over the antimeridian twice."""
    west, south, east, north = boxes
    # the map ends at 85 degrees: what lies beyond must not gather along its rim
    placed = ~np.isnan(west) & (south < EDGE_LAT) & (north > -EDGE_LAT)
    whole, crossing = np.flatnonzero(placed & (west <= east)), np.flatnonzero(placed & (west > east))
    rows = np.concatenate([whole, crossing, crossing])
    at_west = np.concatenate([west[whole], west[crossing], np.full(crossing.size, -180.0)])
    at_east = np.concatenate([east[whole], np.full(crossing.size, 180.0), east[crossing]])
    x0, y0 = from_degrees(at_west, north[rows])
    x1, y1 = from_degrees(at_east, south[rows])
    return rows, x0, y0, x1, y1


def _limits(scores: npt.NDArray[np.float32]) -> tuple[float, float]:
    if not scores.size:
        return 0.0, 1.0
    ends = np.percentile(scores, (5.0, 99.5)) if scores.size >= _FEW else (scores.min(), scores.max())
    low, high = float(ends[0]), float(ends[1])
    return (low, high) if high - low >= 1e-3 else (low - 5e-4, high + 5e-4)


def _interleaved(columns: Keys, rows: Keys) -> Keys:
    """Z-order (Morton 1966): the bits of both in turn, those of the column lowest."""
    return _spread(columns) | (_spread(rows) << np.uint64(1))


def _spread(values: Keys) -> Keys:
    """The lower 32 bits with a zero before each."""
    spread = values
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333), (1, 0x5555555555555555),
    ):  # fmt: skip
        spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
    return spread


def _places() -> npt.NDArray[np.intp]:
    """Place in a tile, row by row, of each pixel along the curve: ``[65536]``."""
    rows, columns = np.divmod(np.arange(SIDE * SIDE, dtype=np.uint64), np.uint64(SIDE))
    return np.argsort(_interleaved(columns, rows))


_PLACES = _places()
_PALETTE = np.concatenate([np.zeros((1, 3), np.uint8), ramp(np.linspace(0.0, 1.0, 255))]).tobytes()
_ALPHA = bytes([0, *np.linspace(_FAINT, _STRONG, 255).round().astype(np.uint8).tolist()])
