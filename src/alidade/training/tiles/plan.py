"""Where samples can be made: the squares that enough views cover, and the split of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alidade.errors import GridError
from alidade.training.tiles.choose import Candidate
from alidade.training.tiles.grid import (
    BASE_M,
    Square,
    from_lonlat,
    squares_around,
    to_lonlat,
    zone_of,
)
from alidade.training.tiles.scenes import Scene
from alidade.training.tiles.schema import StoreError

SPLIT_CELL_LEVEL = 14
"""Splits are drawn by cells of 0.625 m x 2^14 = 10,240 m, so that neighbours mostly stay together."""

MAX_SQUARES = 20_000_000
_LATTICE = 8
_CHUNK = 2048

Split = str | Mapping[str, float]
Floats = npt.NDArray[np.float64]


def covered(scene: Scene, level: int, least: float) -> Iterator[tuple[Square, float]]:
    """The squares that a scene's frame covers, nodata or not, and about how much of each.

    A square is one of the zone that its centre lies in.

    Args:
        scene: has a CRS.
        level: of the squares.
        least: smaller shares, 0 to 1, are left out.

    Raises:
        GridError: the scene holds too many squares of this size.
    """
    rows, cols = (np.linspace(0.0, size, 33) for size in (scene.grid.height, scene.grid.width))
    lon, lat = (a.ravel() for a in scene.grid.to_lonlat(*np.meshgrid(rows, cols)))
    zones = zone_of(lon, lat)
    side = BASE_M * 2.0**level
    spacing = scene.gsd_m * max(scene.grid.height, scene.grid.width) / 32.0
    for zone in sorted(set(zones.tolist()) - {0}):
        inside = zones == zone
        x, y = from_lonlat(zone, lon[inside], lat[inside])
        # the lattice misses what lies between its last point and the zone's edge
        rim = 2.0 * spacing + side
        box_x, box_y = np.array([x.min() - rim, x.max() + rim]), np.array([y.min() - rim, y.max() + rim])
        if np.ptp(box_x) * np.ptp(box_y) > MAX_SQUARES * side**2:
            raise GridError(
                f"{scene.source}: squares", got=f"more than {MAX_SQUARES:,} of {side:g} m",
                expected="fewer", next_step="Pass larger squares, or cut the scene.",
            )  # fmt: skip
        batch: list[Square] = []
        for square in squares_around(zone, level, box_x, box_y):
            batch.append(square)
            if len(batch) == _CHUNK:
                yield from _shares(scene, zone, batch, least)
                batch = []
        yield from _shares(scene, zone, batch, least)


def _shares(scene: Scene, zone: int, squares: Sequence[Square], least: float) -> Iterator[tuple[Square, float]]:
    if not squares:
        return
    bounds = np.array([s.bounds() for s in squares])
    side = squares[0].side_m
    lon, lat = to_lonlat(zone, bounds[:, 0] + side / 2, bounds[:, 1] + side / 2)
    own = zone_of(lon, lat) == zone
    steps = (np.arange(_LATTICE) + 0.5) / _LATTICE * side
    dx, dy = (a.ravel() for a in np.meshgrid(steps, steps))
    lons, lats = to_lonlat(zone, bounds[own, 0, None] + dx, bounds[own, 1, None] + dy)
    rows, cols = scene.grid.from_lonlat(lons, lats)
    inside = (rows >= 0) & (rows <= scene.grid.height) & (cols >= 0) & (cols <= scene.grid.width)
    for place, share in zip(np.flatnonzero(own).tolist(), inside.mean(axis=1).tolist(), strict=True):
        if share > 0.0 and share >= least:
            yield squares[place], share


def candidates_of(
    scenes: Sequence[Scene], feeds: Sequence[Sequence[str]], level: int, least: float
) -> dict[Square, list[Candidate]]:
    """All that shows each square, in the squares' order.

    Args:
        scenes: the scenes.
        feeds: for each scene, the names of the views that it can fill.
        level: of the squares.
        least: see ``covered``.
    """
    found: dict[Square, list[Candidate]] = {}
    for number, (scene, views) in enumerate(zip(scenes, feeds, strict=True)):
        if not views:
            continue
        for square, share in covered(scene, level, least):
            found.setdefault(square, []).extend(
                Candidate(view=view, scene=number, share=share, time=scene.time) for view in views
            )
    return dict(sorted(found.items()))


def check_split(split: Split) -> None:
    """Refuse splits without a name, or shares that are not parts of one.

    Raises:
        StoreError: see above.
    """
    shares = {split: 1.0} if isinstance(split, str) else dict(split)
    good = bool(shares) and all(n and math.isfinite(s) and s >= 0.0 for n, s in shares.items())
    if not good or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise StoreError(
            "split", got=", ".join(f"{n!r}={s:g}" for n, s in shares.items()) or "none",
            expected="a name, or names with shares that add up to 1",
            next_step="Pass --split train, or --split train=0.8,val=0.1,test=0.1.",
        )  # fmt: skip


def split_of(square: Square, split: Split) -> str:
    """The split of a square: the one named, or the one that its cell of about 10 km draws by hash.

    The draw depends on nothing but the place and the shares, so that runs months apart agree.
    """
    if isinstance(split, str):
        return split
    cell = square.parent(max(square.level, SPLIT_CELL_LEVEL))
    draw = int.from_bytes(hashlib.sha256(cell.key.encode()).digest()[:8]) / 2.0**64
    reached = 0.0
    for name, share in split.items():
        reached += share
        if draw < reached:
            return name
    return [name for name, share in split.items() if share > 0.0][-1]
