"""The one sealed place where stored numbers become model inputs, from declared units by fixed statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.errors import SensorError, WeightsError
from alidade.imagery.bands import Encoding, Sensor, Unit
from alidade.imagery.raster import Raster

METHODS = ("standard", "two-sigma")

DB_FLOOR = -50.0
"""Backscatter below this is raised to it, whether the file held dB or power.

Sentinel-1's noise-equivalent sigma nought is specified as -22 dB or better (ESA, Sentinel-1 SAR Technical
Guide, Performance), so 28 dB further down nothing is left but the remainder of a noise subtraction, and its
logarithm runs off to minus infinity.
"""

REFLECTANCE_FLOOR = 0.0
"""Reflectance below zero is raised to zero.

Before processing baseline 04.00 Sentinel-2 products cut negative values off; since then the offset keeps
them, and Landsat keeps them too. The statistics are from the older products: with this floor the same dark
water has the same normalised value in all of them. There is no ceiling: clouds and snow do exceed 1.
"""

_FLOORS = {Unit.DB: DB_FLOOR, Unit.REFLECTANCE: REFLECTANCE_FLOOR, Unit.DISPLAY: 0.0}
_ACCEPTED = {
    Unit.DB: (Unit.DB, Unit.POWER),
    Unit.REFLECTANCE: (Unit.REFLECTANCE,),
    Unit.DISPLAY: (Unit.DISPLAY,),
}


_BLOCK = 2**18
"""Bytes of decoded values that all passes go over before the next are read: they stay in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Fixed statistics that turn a raster into a model's input; saved as JSON beside the weights.

    Attributes:
        bands: the bands read, by name, in the order of the output's channels.
        unit: what mean and std are in: reflectance, dB or display (0-255).
        mean, std: one of each per band.
        method: ``"standard"`` gives ``(x - mean) / std``; ``"two-sigma"`` gives
            ``clip((x - (mean - 2·std)) / (4·std), 0, 1)``.

    Raises:
        SensorError: counts that differ, a band named twice, a deviation that is not positive, an unknown
            method, or a unit that statistics cannot be in.
    """

    bands: tuple[str, ...]
    unit: Unit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str = "standard"

    def __post_init__(self) -> None:
        if not (len(self.bands) == len(self.mean) == len(self.std) > 0):
            raise _refuse(
                f"{len(self.bands)} bands, {len(self.mean)} means, {len(self.std)} deviations",
                "at least one band, and one mean and one deviation for each",
            )
        if len({b.casefold() for b in self.bands}) != len(self.bands):
            raise _refuse(f"bands {', '.join(self.bands)}", "each band once")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise _refuse(f"mean {self.mean}, std {self.std}", "finite means and finite, positive deviations")
        if self.method not in METHODS:
            raise _refuse(f"method {self.method!r}", f"one of {', '.join(METHODS)}")
        if self.unit not in _ACCEPTED:
            raise _refuse(f"unit {self.unit}", f"one of {', '.join(_ACCEPTED)}")

    @classmethod
    def for_sensor(cls, sensor: Sensor, bands: Sequence[str], method: str = "standard") -> Normalization:
        """The catalogue's statistics for bands of a sensor, named by the provider's or common name, in order.

        Raises:
            SensorError: the sensor has no such band, or one is named twice.
        """
        chosen = [sensor.band(name) for name in bands]
        return cls(
            bands=tuple(b.name for b in chosen),
            unit=sensor.unit,
            mean=tuple(b.mean for b in chosen),
            std=tuple(b.std for b in chosen),
            method=method,
        )

    def apply(self, raster: Raster) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Normalises the raster's bands, found by name, from the units its encodings declare.

        Args:
            raster: pixels ``[C', H, W]`` holding at least this normalisation's bands, in any order.

        Returns:
            Values ``[C, H, W]`` and the pixels ``[H, W]`` they are good for. A pixel is good when the
            raster says so and every band read is finite and, in linear power, above zero. All others are
            exactly 0 in every band and have touched neither a logarithm nor a statistic.

        Raises:
            SensorError: a band is missing, its unit cannot become ``unit`` (display values are no
                reflectance), or its offset has not been resolved.
        """
        chosen = raster.select(self.bands)
        values, good = self.apply_batch(chosen.pixels[None], chosen.valid[None], chosen.encodings, source=raster.source)
        return values[0], good[0]

    def apply_batch(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_],
        encodings: Sequence[Encoding],
        *,
        source: str = "batch",
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Like :meth:`apply`, for many images of one kind at once.

        Args:
            pixels: stored numbers ``[B, C, H, W]``; the channels are this normalisation's bands, in its order.
            valid: ``[B, H, W]``, False where there is no data.
            encodings: one per channel.
            source: what the images are, for messages.

        Returns:
            Values ``[B, C, H, W]`` and the pixels ``[B, H, W]`` they are good for; all others are exactly 0.

        Raises:
            SensorError: another number of channels, a unit that cannot become ``unit``, or an offset that has
                not been resolved.
        """
        if not len(encodings) == pixels.shape[1] == len(self.bands):
            raise _refuse(f"{pixels.shape[1]} channels and {len(encodings)} encodings", f"{len(self.bands)} of each")
        self._check_units(encodings, source)
        values = np.empty(pixels.shape, dtype=np.float32)
        good = np.empty(valid.shape, dtype=np.bool_)
        rows = max(1, _BLOCK // max(1, values[:1, :, :1].nbytes))
        # overflow of nodata such as -1.8e308 is no harm, as such a pixel is not good
        with np.errstate(over="ignore", invalid="ignore"):
            for image in range(len(pixels)):
                for top in range(0, pixels.shape[2], rows):
                    part = np.s_[image, ..., top : top + rows, :]
                    self._apply_block(pixels[part], valid[part], encodings, source, values[part], good[part])
        return values, good

    def _apply_block(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_],
        encodings: Sequence[Encoding],
        source: str,
        values: NDArray[np.float32],
        good: NDArray[np.bool_],
    ) -> None:
        """``[C, R, W]`` stored numbers into ``values`` and ``good`` ``[R, W]``, all passes while they are in cache."""
        self._decode(pixels, encodings, source, values)
        np.copyto(good, valid)
        if not _surely_finite(pixels.dtype, encodings):
            np.logical_and(good, np.isfinite(values).all(axis=0), out=good)
        power = [channel for channel, e in enumerate(encodings) if e.unit is Unit.POWER]
        for channel in power:
            np.logical_and(good, values[channel] > 0, out=good)
        bad = None if good.all() else ~good
        if bad is not None:
            np.copyto(values, np.float32(0.0), where=bad)
        for channel in power:
            np.log10(values[channel], out=values[channel], where=good)
            values[channel] *= 10.0
        np.maximum(values, np.float32(_FLOORS[self.unit]), out=values)
        shift, scale = self._shift_and_scale()
        values -= shift
        values /= scale
        if self.method == "two-sigma":
            np.clip(values, 0.0, 1.0, out=values)
        if bad is not None:
            np.copyto(values, np.float32(0.0), where=bad)

    def undo(self, normalized: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Values ``[C, H, W]`` in ``unit`` for normalised ones; what a floor or a clip cut off stays lost."""
        shift, scale = self._shift_and_scale()
        return np.asarray(normalized * scale + shift, dtype=np.float32)

    def to_json(self) -> str:
        """JSON with exactly the fields of this class."""
        return json.dumps(
            {
                "bands": list(self.bands),
                "unit": self.unit.value,
                "mean": list(self.mean),
                "std": list(self.std),
                "method": self.method,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Normalization:
        """Reads what :meth:`to_json` wrote.

        Raises:
            WeightsError: not JSON, a key missing or unknown, or a value of another type.
            SensorError: well-formed, but no usable statistics.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise _damaged(f"text that is no JSON ({error})") from error
        keys = sorted(fields) if isinstance(fields, dict) else []
        if keys != ["bands", "mean", "method", "std", "unit"]:
            raise _damaged(f"keys {', '.join(keys) or 'none'}")
        if not isinstance(fields["method"], str) or fields["unit"] not in list(Unit):
            raise _damaged(f"method {fields['method']!r}, unit {fields['unit']!r}")
        return cls(
            bands=_strings(fields["bands"]),
            unit=Unit(fields["unit"]),
            mean=_numbers("mean", fields["mean"]),
            std=_numbers("std", fields["std"]),
            method=fields["method"],
        )

    def _shift_and_scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mean = np.array(self.mean).reshape(-1, 1, 1)
        std = np.array(self.std).reshape(-1, 1, 1)
        if self.method == "two-sigma":
            mean, std = mean - 2 * std, 4 * std
        return mean.astype(np.float32), std.astype(np.float32)

    def _check_units(self, encodings: Sequence[Encoding], source: str) -> None:
        accepted = _ACCEPTED[self.unit]
        for band, encoding in zip(self.bands, encodings, strict=True):
            if encoding.unit not in accepted:
                raise _wrong_unit(source, band, encoding, accepted)

    def _decode(
        self, pixels: NDArray[Any], encodings: Sequence[Encoding], source: str, values: NDArray[np.float32]
    ) -> None:
        """``stored · scale + offset`` of ``[C, R, W]`` into ``values``, as ``Raster.physical`` has it."""
        np.copyto(values, pixels, casting="unsafe")
        for channel, (band, encoding) in enumerate(zip(self.bands, encodings, strict=True)):
            if encoding.offset is None:
                raise SensorError(
                    f"{source}: offset of band {band}",
                    got="none in the file",
                    expected="the number to add after scaling (Sentinel-2: 0 before baseline 04.00, -0.1 since)",
                    next_step="Pass it with --offset (in Python: Declared(offset=...)).",
                )
            if encoding.scale != 1.0:
                values[channel] *= np.float32(encoding.scale)
            if encoding.offset != 0.0:
                values[channel] += np.float32(encoding.offset)


def _surely_finite(dtype: np.dtype[Any], encodings: Sequence[Encoding]) -> bool:
    """Whether no stored number of this type can decode to an infinity or NaN, so that none needs to be looked for."""
    if dtype.kind not in "iub":
        return False
    most = 1.0 if dtype.kind == "b" else float(max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)))
    return all(most * abs(e.scale) + abs(e.offset or 0.0) < np.finfo(np.float32).max / 2 for e in encodings)


def _wrong_unit(source: str, band: str, encoding: Encoding, accepted: tuple[Unit, ...]) -> SensorError:
    return SensorError(
        f"{source}: unit of band {band}",
        got=encoding.unit.value,
        expected=" or ".join(accepted),
        next_step="Units are never guessed or mixed: declare another with --unit if this one is wrong; "
        "if it is right, use a model made for it.",
    )


def _refuse(got: str, expected: str) -> SensorError:
    return SensorError("normalisation", got=got, expected=expected, next_step="Build it with Normalization.for_sensor.")


def _damaged(got: str) -> WeightsError:
    return WeightsError(
        "normalisation saved with the weights",
        got=got,
        expected="JSON with exactly bands, unit, mean, std and method",
        next_step="Save the weights again with the version of alidade that made them.",
    )


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _damaged(f"bands {value!r}")
    return tuple(value)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
        raise _damaged(f"{key} {value!r}")
    return tuple(float(v) for v in value)
