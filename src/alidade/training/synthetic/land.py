"""What covers the ground of a made-up world: water, forest, fields in parcels, towns with roads, bare ground."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from alidade.training.synthetic.noise import Floats, Ints, key, smooth, uniform

CELL_M = 2.5
"""The ground is known in cells of this size; coarser sensors see means of them."""

_BLOCK_M = 850.0
_REACH = 2.05
"""A site jittered within the middle of its cell: the second nearest one is never so many cells away."""


class Cover(IntEnum):
    """Classes of land cover."""

    WATER = 0
    FOREST = 1
    CROPS = 2
    URBAN = 3
    BARE = 4


class Material(IntEnum):
    """What a cell is made of; tables in ``render`` are in this order."""

    WATER = 0
    BROADLEAF = 1
    CONIFER = 2
    GREEN_CROP = 3
    RIPE_CROP = 4
    SOIL = 5
    GRASS = 6
    RED_ROOF = 7
    GREY_ROOF = 8
    BRIGHT_ROOF = 9
    ASPHALT = 10
    ROCK = 11


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A window of the world in whole cells: columns count eastward, rows northward."""

    col: int
    row: int
    width: int
    height: int

    @property
    def columns(self) -> Ints:
        """``[1, width]``."""
        return np.arange(self.col, self.col + self.width)[None, :]

    @property
    def rows(self) -> Ints:
        """``[height, 1]``."""
        return np.arange(self.row, self.row + self.height)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Land:
    """The ground of a window, each ``[height, width]``, rows northward.

    Attributes:
        cover: the class (``Cover``).
        first, second: the two materials (``Material``) of a cell.
        mix: share of the second one, 0 to 1.
        shade: brightness in the light, about 1.
        rough_db: backscatter beside that of the materials, dB.
    """

    cover: npt.NDArray[np.int8]
    first: npt.NDArray[np.int8]
    second: npt.NDArray[np.int8]
    mix: npt.NDArray[np.float32]
    shade: npt.NDArray[np.float32]
    rough_db: npt.NDArray[np.float32]


def land_of(seed: int, cells: Cells) -> Land:
    """The ground of a window of the world ``seed``; any two windows agree where they overlap."""
    return _Painter(seed, cells).paint()


def is_water(seed: int, xs: Floats, ys: Floats) -> npt.NDArray[np.bool_]:
    """Where the world ``seed`` is under water, ``[len(ys), len(xs)]``, at places in metres; ``land_of`` agrees."""
    return _is_water(seed, xs, ys, _edge(seed, xs, ys))


def _edge(seed: int, xs: Floats, ys: Floats) -> Floats:
    """What frays the outlines of all that nature drew."""
    return 0.12 * smooth(key(seed, "edge"), xs, ys, 90.0, 2)


def _is_water(seed: int, xs: Floats, ys: Floats, edge: Floats) -> npt.NDArray[np.bool_]:
    height = smooth(key(seed, "height"), xs, ys, 5120.0, 6) + 0.3 * edge
    river = np.abs(smooth(key(seed, "river"), xs, ys, 4200.0, 4)) < 0.035 - 0.012 * height
    return np.asarray((height + edge < -1.2) | (river & (height < 1.2)))


class _Painter:
    """Paints a window layer over layer; each layer is a function of place alone."""

    def __init__(self, seed: int, cells: Cells) -> None:
        self.seed, self.cells = seed, cells
        self.xs: Floats = np.asarray((cells.columns[0] + 0.5) * CELL_M, dtype=np.float64)
        self.ys: Floats = np.asarray((cells.rows[:, 0] + 0.5) * CELL_M, dtype=np.float64)
        shape = (cells.height, cells.width)
        self.cover = np.full(shape, Cover.CROPS, dtype=np.int8)
        self.first = np.full(shape, Material.GRASS, dtype=np.int8)
        self.second = np.full(shape, Material.SOIL, dtype=np.int8)
        self.mix = np.zeros(shape, dtype=np.float32)
        self.rough = np.zeros(shape, dtype=np.float32)

    def field(self, name: str, length_m: float, octaves: int = 1) -> Floats:
        return smooth(key(self.seed, name), self.xs, self.ys, length_m, octaves)

    def chance(self, name: str, ix: Ints | None = None, iy: Ints | None = None) -> Floats:
        """Of every cell by itself, or of the things with these numbers."""
        here = self.cells
        return uniform(key(self.seed, name), here.columns if ix is None else ix, here.rows if iy is None else iy)

    def paint(self) -> Land:
        fine = self.field("fine", 15.0, 2)
        edge = _edge(self.seed, self.xs, self.ys)
        self._blocks()
        self._fields(fine)
        self._town(self.field("town", 3600.0, 3) + 0.5 * edge > 1.0, fine)
        self._ground(self.field("bare", 2600.0, 4) + edge > 1.45, fine)
        self._forest(self.field("moist", 3000.0, 5) + edge > 0.35, fine)
        self._roads()
        self._water(_is_water(self.seed, self.xs, self.ys, edge))
        texture = {Cover.WATER: 0.02, Cover.FOREST: 0.2, Cover.CROPS: 0.03, Cover.URBAN: 0.05, Cover.BARE: 0.08}
        grain = np.array([texture[c] for c in Cover])[self.cover]
        shade = 1.0 + grain * fine + 0.05 * self.field("haze", 400.0, 2)
        return Land(
            cover=self.cover, first=self.first, second=self.second, mix=self.mix,
            shade=np.clip(shade, 0.4, 1.8).astype(np.float32), rough_db=self.rough,
        )  # fmt: skip

    def _set(self, where: npt.NDArray[np.bool_], first: Material, second: Material, mix: Floats | float) -> None:
        self.first[where], self.second[where] = first, second
        self.mix[where] = np.clip(mix[where] if isinstance(mix, np.ndarray) else mix, 0.0, 1.0)

    def _blocks(self) -> None:
        """Blocks of land around scattered sites: which one, how far from its border, and its own axes."""
        middle = [(self.xs[0] + self.xs[-1]) / 2, (self.ys[0] + self.ys[-1]) / 2]
        reach = [int(np.ceil(np.ptp(v) / 2 / _BLOCK_M)) + 3 for v in (self.xs, self.ys)]
        near = [int(np.floor(m / _BLOCK_M)) for m in middle]
        shape = self.cover.shape
        first, second = np.full(shape, np.inf), np.full(shape, np.inf)
        self.block_x, self.block_y = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for bx in range(near[0] - reach[0], near[0] + reach[0] + 1):
            for by in range(near[1] - reach[1], near[1] + reach[1] + 1):
                place = np.array([bx]), np.array([by])
                x = (bx + 0.15 + 0.7 * self.chance("site x", *place)[0]) * _BLOCK_M
                y = (by + 0.15 + 0.7 * self.chance("site y", *place)[0]) * _BLOCK_M
                beyond = [max(v[0] - p, p - v[-1], 0.0) for v, p in ((self.xs, x), (self.ys, y))]
                if max(beyond) > _REACH * _BLOCK_M:
                    continue
                away = (self.xs[None, :] - x) ** 2 + (self.ys[:, None] - y) ** 2
                closer = away < first
                np.minimum(second, np.where(closer, first, away), out=second)
                first[closer] = away[closer]
                self.block_x[closer], self.block_y[closer] = bx, by
        self.to_border = (np.sqrt(second) - np.sqrt(first)) / 2.0
        turn = np.pi * self.chance("turn", self.block_x, self.block_y)
        self.u = np.cos(turn) * self.xs[None, :] + np.sin(turn) * self.ys[:, None]
        self.v = np.cos(turn) * self.ys[:, None] - np.sin(turn) * self.xs[None, :]

    def _of_block(self, name: str) -> Floats:
        return self.chance(name, self.block_x, self.block_y)

    def _lots(self, name: str, width: Floats | float, depth: Floats | float) -> tuple[Ints, Ints, Floats]:
        """Rectangles along the block's axes: two numbers that name each, and the metres to its border."""
        iu, iv = np.floor(self.u / width).astype(np.int64), np.floor(self.v / depth).astype(np.int64)
        in_u, in_v = self.u - iu * width, self.v - iv * depth
        border = np.minimum(np.minimum(in_u, width - in_u), np.minimum(in_v, depth - in_v))
        spread = key(self.seed, name) % 7919
        return iu + 1009 * self.block_x + spread, iv + 1013 * self.block_y, border

    def _fields(self, fine: Floats) -> None:
        width, depth = 60.0 + 150.0 * self._of_block("width"), 120.0 + 260.0 * self._of_block("depth")
        iu, iv, border = self._lots("field", width, depth)
        kind, growth = self.chance("crop", iu, iv), self.chance("growth", iu, iv)
        grown = 0.25 + 0.75 * growth + 0.04 * fine
        everywhere = np.ones(kind.shape, dtype=np.bool_)
        self._set(everywhere, Material.SOIL, Material.GREEN_CROP, grown)
        self._set(kind > 0.5, Material.RIPE_CROP, Material.GREEN_CROP, 0.35 * growth + 0.04 * fine)
        self._set(kind > 0.68, Material.SOIL, Material.GREEN_CROP, 0.12 * growth + 0.02 * fine)
        self._set(kind > 0.84, Material.GRASS, Material.SOIL, 0.25 * growth + 0.05 * fine)
        self.rough += (2.5 * (self.chance("rows", iu, iv) - 0.5)).astype(np.float32)
        hedged = self._of_block("hedge") > 0.6
        self._set((border < 2.6) & ~hedged, Material.GRASS, Material.SOIL, 0.6)
        self._set((border < 4.0) & hedged & (fine > -0.8), Material.BROADLEAF, Material.GRASS, 0.2)

    def _town(self, where: npt.NDArray[np.bool_], fine: Floats) -> None:
        self.cover[where] = Cover.URBAN
        works = self._of_block("works") > 0.8
        self._set(where, Material.GRASS, Material.BROADLEAF, 0.5 + 0.4 * fine)
        self._set(where & works, Material.ASPHALT, Material.SOIL, 0.2)
        width, depth = 90.0 + 70.0 * self._of_block("street"), 54.0 + 30.0 * self._of_block("side street")
        _, _, street = self._lots("street", width, depth)
        for homes, side, inset in ((True, 22.0, 4.0), (False, 75.0, 9.0)):
            here = where & (works != homes)
            iu, iv, border = self._lots("house" if homes else "hall", side, side)
            built = here & (border > inset) & (street > 9.0) & (self.chance("built", iu, iv) < 0.75)
            roof = self.chance("roof", iu, iv)
            self._set(built, Material.RED_ROOF if homes else Material.BRIGHT_ROOF, Material.GREY_ROOF, roof)
            # a wall that faces the radar shines, others do not
            self.rough[built] = (12.0 * (self.chance("wall", iu, iv) - 0.5))[built]
        self._set(where & (street < 4.5), Material.ASPHALT, Material.GREY_ROOF, 0.1)

    def _ground(self, where: npt.NDArray[np.bool_], fine: Floats) -> None:
        self.cover[where] = Cover.BARE
        self.rough[where] = 0.0
        self._set(where, Material.ROCK, Material.SOIL, 0.45 + 0.25 * self.field("layers", 120.0, 3) + 0.1 * fine)

    def _forest(self, where: npt.NDArray[np.bool_], fine: Floats) -> None:
        free = where & (self.cover == Cover.CROPS)
        self.cover[free] = Cover.FOREST
        self.rough[free] = 0.0
        self._set(free, Material.BROADLEAF, Material.CONIFER, 0.5 + 0.6 * self.field("stand", 500.0, 3) + 0.1 * fine)

    def _roads(self) -> None:
        half = 3.0 + 3.0 * (self.cover == Cover.URBAN)
        self._set(self.to_border < half, Material.ASPHALT, Material.GREY_ROOF, 0.15)
        verge = (self.to_border >= half) & (self.to_border < half + 3.0) & (self.cover != Cover.FOREST)
        self._set(verge, Material.GRASS, Material.SOIL, 0.2)
        self.rough[self.to_border < half + 3.0] = 0.0

    def _water(self, where: npt.NDArray[np.bool_]) -> None:
        self.cover[where] = Cover.WATER
        self._set(where, Material.WATER, Material.SOIL, 0.02 + 0.02 * self.field("silt", 900.0, 3))
        self.rough[where] = (1.5 * self.field("wind", 1500.0, 3))[where]
