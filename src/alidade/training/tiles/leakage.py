"""The guard against leakage: the same ground must not lie in two splits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alidade.training.tiles.grid import Square
from alidade.training.tiles.schema import Sample, StoreError

SHARED = 0.1
"""Boxes of other layouts than the UTM grid share ground when they share more than this of the smaller one.

Boxes in degrees around neighbouring squares of a UTM zone overlap although the squares do not: meridians
converge by up to 3 degrees at a zone's edge, which makes the strip two times a twentieth of a side wide.
"""

_CELL_DEG = 0.02
_COLUMNS = round(360.0 / _CELL_DEG)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A sample's place: its key, its split and, where known, its box in degrees (see ``Sample``)."""

    key: str
    split: str
    bbox: Box | None

    @classmethod
    def of(cls, sample: Sample) -> Ground:
        """The ground of a sample."""
        return cls(key=sample.square, split=sample.split, bbox=sample.bbox)


class Guard:
    """Knows all grounds of a store, and tells which of them a new one would leak to."""

    def __init__(self) -> None:
        self._split_of: dict[str, str] = {}
        self._cells: dict[tuple[int, int], list[Ground]] = {}

    def add(self, ground: Ground) -> None:
        """Take a ground in."""
        if ground.key not in self._split_of:
            self._split_of[ground.key] = ground.split
            for cell in _cells(ground.bbox):
                self._cells.setdefault(cell, []).append(ground)

    def conflict(self, ground: Ground) -> Ground | None:
        """A ground known already that lies in another split and shares ground with this one."""
        same = self._split_of.get(ground.key)
        if same is not None and same != ground.split:
            return Ground(key=ground.key, split=same, bbox=ground.bbox)
        for cell in _cells(ground.bbox):
            for other in self._cells.get(cell, ()):
                if other.split != ground.split and _overlap(ground, other):
                    return other
        return None

    def check(self, ground: Ground, told: str) -> None:
        """Refuse a ground that would leak.

        Args:
            ground: the new one.
            told: what it belongs to, for the message.

        Raises:
            StoreError: it shares ground with another split.
        """
        other = self.conflict(ground)
        if other is not None:
            which = "which" if other.key == ground.key else f"whose ground overlaps {other.key}, which"
            raise StoreError(
                f"{told}: split", got=f"{ground.split!r} for the square {ground.key}, {which} is in {other.split!r}",
                expected="no ground in two splits (the model would be tested on what it was trained on)",
                next_step="Give all samples of one place one split, or leave these out.",
            )  # fmt: skip


def _overlap(a: Ground, b: Ground) -> bool:
    one, two = Square.from_key(a.key), Square.from_key(b.key)
    if one is not None and two is not None:
        if one.epsg != two.epsg:
            return _quads_overlap(one.corners(), two.corners())
        level = max(one.level, two.level)
        return one.parent(level) == two.parent(level)
    if a.bbox is None or b.bbox is None:
        return False
    return _shared(a.bbox, b.bbox) > SHARED


def _shared(a: Box, b: Box) -> float:
    """The share of the smaller box that lies in the other."""
    (aw, as_, ae, an), (bw, bs, be, bn) = a, b
    ae, be = ae + 360.0 * (ae < aw), be + 360.0 * (be < bw)
    turn = 360.0 * round((aw - bw) / 360.0)
    width = min(ae, be + turn) - max(aw, bw + turn)
    height = min(an, bn) - max(as_, bs)
    smaller = min((ae - aw) * (an - as_), (be - bw) * (bn - bs))
    if width <= 0.0 or height <= 0.0:
        return 0.0
    return width * height / smaller if smaller > 0.0 else 1.0


def _quads_overlap(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> bool:
    """Whether two convex outlines share area: no edge of either separates them."""
    first, second = np.array(a), np.array(b)
    # on one branch of longitude, near the first corner
    origin = first[0, 0]
    for outline in (first, second):
        outline[:, 0] -= 360.0 * np.round((outline[:, 0] - origin) / 360.0)
    tolerance = 1e-9
    for outline, other in ((first, second), (second, first)):
        for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            normal = np.array([end[1] - start[1], start[0] - end[0]])
            if ((other - start) @ normal).min() > -tolerance * np.abs(normal).sum():
                return False
    return True


def _cells(bbox: Box | None) -> Iterator[tuple[int, int]]:
    if bbox is None:
        return
    west, south, east, north = bbox
    east += 360.0 * (east < west)
    for row in range(math.floor(south / _CELL_DEG), math.floor(north / _CELL_DEG) + 1):
        for col in range(math.floor(west / _CELL_DEG), math.floor(east / _CELL_DEG) + 1):
            yield row, col % _COLUMNS
