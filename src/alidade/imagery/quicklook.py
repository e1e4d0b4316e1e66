"""Rasters as colours for the eye: which bands to show, how to stretch them, what a whole scene looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alidade.imagery.bands import Band, Sensor, Unit
from alidade.imagery.files import RasterFile
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window, panels

NO_DATA_COLOUR = (229, 231, 235)
_COMPOSITES = (("red", "green", "blue"), ("nir", "red", "green"), ("swir16", "nir", "red"))
_MIN_SPAN = {Unit.REFLECTANCE: 0.05}
# both polarisations and their ratio, in dB: speckle alone spreads the ratio over ten, and must stay a tint
_RADAR_SPAN = np.array([18.0, 18.0, 30.0])
_SAMPLE_SIDE = 256
_FLOOR_POWER = 1e-5

Colours = npt.NDArray[np.uint8]
Channels = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Which value is dark and which is bright, per channel; made once per scene so that its chips compare."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    gamma: float

    def colours(self, channels: Channels) -> Colours:
        """``[3, H, W]`` values to ``[H, W, 3]`` colours; NaN becomes ``NO_DATA_COLOUR``."""
        low, high = (np.array(side, dtype=np.float32)[:, None, None] for side in (self.low, self.high))
        invalid = np.isnan(channels).any(axis=0)
        share = np.clip((np.nan_to_num(channels) - low) / (high - low), 0.0, 1.0) ** self.gamma
        out = np.moveaxis(np.round(share * 255.0), 0, -1).astype(np.uint8)
        out[invalid] = NO_DATA_COLOUR
        return out


def shown_bands(sensor: Sensor, bands: Sequence[Band]) -> tuple[str, ...]:
    """The names of the one, two or three bands to show: true colour, else false colour, else the first band.

    Radar shows both polarisations where it has two; their ratio is the third channel.
    """
    if sensor.kind == "sar":
        names = [b.name for b in bands]
        pairs = (("VV", "VH"), ("HH", "HV"))
        return next((p for p in pairs if set(p) <= set(names)), (names[0],))
    by_common = {b.common_name: b.name for b in bands if b.common_name}
    for composite in _COMPOSITES:
        if set(composite) <= set(by_common):
            return tuple(by_common[c] for c in composite)
    return (bands[0].name,)


def channels(raster: Raster) -> Channels:
    """``[3, H, W]`` float32 of a raster that holds just the bands of :func:`shown_bands`; NaN where invalid.

    Radar is shown in dB: first polarisation, second, and the first minus the second.
    """
    values = raster.physical()
    if raster.encodings[0].unit is Unit.POWER:
        values = np.float32(10.0) * np.log10(np.maximum(values, np.float32(_FLOOR_POWER)))
    if len(values) == 2:
        values = np.stack([values[0], values[1], values[0] - values[1]])
    return np.asarray(np.broadcast_to(values, (3, *values.shape[1:])), dtype=np.float32)


def stretch_of(file: RasterFile) -> Stretch:
    """A stretch for the whole scene, from at most nine samples of 256 x 256 pixels spread over it.

    8-bit display values are shown as they are. Elsewhere 2 % of the sampled pixels are darker than black in
    each channel; colour channels share one span, so that hues stay true, and it never falls below a unit's
    least span, so that the noise of an even surface does not fill the picture.
    """
    names = shown_bands(file.sensor, file.bands)
    unit = next(e.unit for b, e in zip(file.bands, file.encodings, strict=True) if b.name == names[0])
    windows = _samples(file.grid.height, file.grid.width)
    parts = [channels(file.read(w, names)).reshape(3, -1) for w in windows]
    return _stretch(np.concatenate(parts, axis=1), unit, file.sensor)


def of_raster(raster: Raster) -> Colours:
    """A raster in memory as colours ``[H, W, 3]``, stretched by itself."""
    shown = raster.select(shown_bands(raster.sensor, raster.bands))
    values = channels(shown)
    return _stretch(values.reshape(3, -1), shown.encodings[0].unit, raster.sensor).colours(values)


def _stretch(values: npt.NDArray[np.float32], unit: Unit, sensor: Sensor) -> Stretch:
    values = values[:, ~np.isnan(values).any(axis=0)]
    if unit is Unit.DISPLAY or not values.size:
        return Stretch(low=(0.0, 0.0, 0.0), high=(255.0, 255.0, 255.0), gamma=1.0)
    low, high = np.percentile(values, (2, 98), axis=1)
    if sensor.kind == "sar":
        return Stretch(low=_triple(low), high=_triple(low + np.maximum(high - low, _RADAR_SPAN)), gamma=1.0)
    span = max(float((high - low).max()), _MIN_SPAN.get(unit, 1e-6))
    return Stretch(low=_triple(low), high=_triple(low + span), gamma=0.8)


def chip(file: RasterFile, stretch: Stretch, window: Window | None = None) -> Colours:
    """A part of a scene as colours ``[H, W, 3]``."""
    raster = file.read(window, shown_bands(file.sensor, file.bands))
    return stretch.colours(channels(raster))


def overview(file: RasterFile, stretch: Stretch, max_side: int) -> Colours:
    """The whole scene as colours, reduced by averaging to at most ``max_side`` pixels; read in strips."""
    height, width = file.grid.height, file.grid.width
    step = max(1, -(-max(height, width) // max_side))
    out = np.full((-(-height // step), -(-width // step), 3), NO_DATA_COLOUR, dtype=np.uint8)
    # tiles of whole steps, so that no averaged pixel straddles two panels
    side = step * max(1, 512 // step)
    for panel in panels(height, width, side, file.block_shape):
        last = panel.tiles[-1]
        window = Window(
            row=panel.window.row,
            col=panel.window.col,
            height=last.row + last.height - panel.window.row,
            width=last.col + last.width - panel.window.col,
        )
        colours = _reduce(chip(file, stretch, window), step)
        top, left = window.row // step, window.col // step
        out[top : top + colours.shape[0], left : left + colours.shape[1]] = colours
    return out


def _reduce(colours: Colours, step: int) -> Colours:
    """Means of ``step`` x ``step`` pixels; the last row and column may have fewer."""
    if step == 1:
        return colours
    sums: npt.NDArray[np.floating] = colours.astype(np.float32)
    for axis in (0, 1):
        starts = np.arange(0, colours.shape[axis], step)
        counts = np.diff(np.append(starts, colours.shape[axis])).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(starts)
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape)
    return np.round(sums).astype(np.uint8)


def _samples(height: int, width: int) -> Iterator[Window]:
    rows, cols = (sorted({_start(size, part) for part in range(3)}) for size in (height, width))
    for row in rows:
        for col in cols:
            yield Window(row=row, col=col, height=min(_SAMPLE_SIDE, height - row), width=min(_SAMPLE_SIDE, width - col))


def _start(size: int, part: int) -> int:
    return part * max(0, size - _SAMPLE_SIDE) // 2


def _triple(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third
