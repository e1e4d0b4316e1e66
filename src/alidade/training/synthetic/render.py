"""What three sensors see of the made-up ground: radar at 10 m, twelve optical bands at 10 m, and pictures at 2.5 m.

Reflectance and backscatter of the materials are round figures of the usual size, chosen for this world; they are
measurements of nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alidade.imagery.sensors import SENSORS
from alidade.training.synthetic.land import CELL_M, Cells, Land, land_of
from alidade.training.synthetic.noise import key, normal, speckle

LOOKS = 5
"""Looks of the radar's speckle; Sentinel-1 IW GRD has about as many."""

RADAR, OPTICAL, PICTURE = "sentinel-1-grd", "sentinel-2-l2a", "naip-rgbn"
PIXEL_M = {RADAR: 10.0, OPTICAL: 10.0, PICTURE: 2.5}

# rows are bands, columns the materials: water, broadleaf, conifer, green crop, ripe crop, soil, grass, red roof, grey
# roof, bright roof, asphalt, rock
_REFLECTANCE = {
    "B01": (0.040, 0.015, 0.012, 0.025, 0.060, 0.070, 0.030, 0.070, 0.130, 0.280, 0.070, 0.140),
    "B02": (0.046, 0.022, 0.018, 0.035, 0.080, 0.090, 0.040, 0.075, 0.140, 0.310, 0.080, 0.170),
    "B03": (0.044, 0.045, 0.032, 0.075, 0.120, 0.130, 0.080, 0.090, 0.160, 0.340, 0.090, 0.220),
    "B04": (0.028, 0.024, 0.020, 0.035, 0.150, 0.180, 0.055, 0.190, 0.170, 0.360, 0.100, 0.280),
    "B05": (0.025, 0.075, 0.050, 0.110, 0.190, 0.210, 0.120, 0.210, 0.180, 0.370, 0.105, 0.310),
    "B06": (0.018, 0.240, 0.150, 0.330, 0.240, 0.230, 0.260, 0.220, 0.190, 0.375, 0.110, 0.330),
    "B07": (0.016, 0.300, 0.190, 0.420, 0.270, 0.250, 0.310, 0.230, 0.190, 0.380, 0.115, 0.340),
    "B08": (0.012, 0.320, 0.210, 0.450, 0.300, 0.270, 0.340, 0.240, 0.200, 0.385, 0.120, 0.360),
    "B8A": (0.011, 0.340, 0.220, 0.460, 0.320, 0.290, 0.350, 0.250, 0.210, 0.390, 0.125, 0.370),
    "B09": (0.010, 0.340, 0.220, 0.460, 0.320, 0.290, 0.350, 0.250, 0.210, 0.390, 0.125, 0.370),
    "B11": (0.005, 0.165, 0.100, 0.220, 0.360, 0.370, 0.250, 0.300, 0.230, 0.400, 0.150, 0.440),
    "B12": (0.003, 0.075, 0.045, 0.110, 0.240, 0.320, 0.140, 0.300, 0.220, 0.380, 0.140, 0.400),
}
_BACKSCATTER_DB = {
    "VV": (-21.0, -8.5, -9.5, -11.0, -13.0, -13.5, -13.0, -3.0, -4.0, -1.0, -17.0, -12.0),
    "VH": (-28.0, -14.0, -15.0, -17.0, -20.5, -23.0, -20.0, -12.0, -13.0, -10.0, -26.0, -21.0),
}
_PICTURE_OF = {"R": ("B04", 2.3), "G": ("B03", 2.6), "B": ("B02", 2.9), "N": ("B08", 1.7)}
"""The band that each colour shows, and how much it is brightened."""

_GAMMA = 1.8
_ALIGN = 24
"""Cells of 2.5 m in the coarsest pixel, 60 m: windows are widened to whole ones of these."""

BANDS = {RADAR: ("VV", "VH"), OPTICAL: tuple(_REFLECTANCE), PICTURE: tuple(_PICTURE_OF)}
DTYPES = {RADAR: "float32", OPTICAL: "uint16", PICTURE: "uint8"}

Reals = npt.NDArray[np.float32]


class Scene:
    """A window of the world ``seed``, in whole pixels of 10 m, as the sensors see it.

    Every image is north up, and is cut from what any other window shows.

    Args:
        seed: of the world.
        cells: the window, in cells of 2.5 m; its edges are multiples of 4.
    """

    def __init__(self, seed: int, cells: Cells) -> None:
        self.seed, self.cells = seed, cells
        low = [v // _ALIGN * _ALIGN for v in (cells.col, cells.row)]
        high = [-(-v // _ALIGN) * _ALIGN for v in (cells.col + cells.width, cells.row + cells.height)]
        self._wide = Cells(col=low[0], row=low[1], width=high[0] - low[0], height=high[1] - low[1])
        self._land = land_of(seed, self._wide)
        self._fine: dict[str, Reals] = {}

    def land(self) -> Land:
        """The ground of the window, ``[height, width]`` each, north up."""
        whole = self._land
        return Land(
            cover=self._cut(whole.cover, 1), first=self._cut(whole.first, 1), second=self._cut(whole.second, 1),
            mix=self._cut(whole.mix, 1), shade=self._cut(whole.shade, 1), rough_db=self._cut(whole.rough_db, 1),
        )  # fmt: skip

    def see(self, sensor: str, looks: int = LOOKS) -> npt.NDArray[np.generic]:
        """What a sensor delivers: dB as float32, reflectance x 10,000 as uint16, or 8-bit colours, ``[C, H, W]``."""
        if sensor == RADAR:
            return np.stack([self._radar(band, looks) for band in BANDS[RADAR]])
        if sensor == OPTICAL:
            return np.stack([self._optical(band) for band in BANDS[OPTICAL]])
        return np.stack([self._picture(band) for band in BANDS[PICTURE]])

    def _radar(self, band: str, looks: int) -> Reals:
        table = np.array(_BACKSCATTER_DB[band], dtype=np.float32)
        land = self._land
        mixed_db = table[land.first] * (1.0 - land.mix) + table[land.second] * land.mix + land.rough_db
        power = _means(10.0 ** (mixed_db / 10.0), 4)
        ix, iy = self._pixels(4)
        power = power * speckle(key(self.seed, f"speckle {band}"), ix, iy, looks)
        return self._cut((10.0 * np.log10(power)).astype(np.float32), 4)

    def _optical(self, band: str) -> npt.NDArray[np.uint16]:
        """A pixel of 20 or 60 m is the mean over it, repeated at 10 m; its noise is that of the coarse pixel."""
        factor = round(SENSORS[OPTICAL].band(band).gsd_m / CELL_M)
        ix, iy = self._pixels(factor)
        mean = _means(self._reflectance(band), factor)
        noisy = mean + (0.0012 + 0.008 * mean) * normal(key(self.seed, f"noise {band}"), ix, iy)
        stored = np.clip(np.round(noisy * 1e4), 1, 65535).astype(np.uint16)
        return self._cut(np.kron(stored, np.ones((factor // 4, factor // 4), dtype=np.uint16)), 4)

    def _picture(self, colour: str) -> npt.NDArray[np.uint8]:
        band, gain = _PICTURE_OF[colour]
        ix, iy = self._pixels(1)
        light = np.clip(self._reflectance(band) * gain, 0.0, 1.0) ** (1.0 / _GAMMA)
        noisy = 255.0 * light + 3.0 * normal(key(self.seed, f"grain {colour}"), ix, iy)
        return self._cut(np.clip(np.round(noisy), 0, 255).astype(np.uint8), 1)

    def _reflectance(self, band: str) -> Reals:
        if band not in self._fine:
            table = np.array(_REFLECTANCE[band], dtype=np.float32)
            land = self._land
            self._fine[band] = (table[land.first] * (1.0 - land.mix) + table[land.second] * land.mix) * land.shade
        return self._fine[band]

    def _pixels(self, factor: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the pixels of ``factor`` cells, counted over the whole world."""
        wide = self._wide
        return wide.columns[:, ::factor] // factor, wide.rows[::factor] // factor

    def _cut(self, wide: npt.NDArray[np.generic], factor: int) -> npt.NDArray:  # type: ignore[type-arg]
        """The window, north up, of an image of pixels of ``factor`` cells."""
        row, col = (self.cells.row - self._wide.row) // factor, (self.cells.col - self._wide.col) // factor
        part = wide[row : row + self.cells.height // factor, col : col + self.cells.width // factor]
        return np.ascontiguousarray(part[::-1])


def _means(fine: Reals, factor: int) -> npt.NDArray[np.float64]:
    """Means over squares of ``factor`` cells, added cell by cell: the order is that of every window."""
    total = np.zeros((fine.shape[0] // factor, fine.shape[1] // factor))
    for row in range(factor):
        for col in range(factor):
            total += fine[row::factor, col::factor]
    return total / factor**2
