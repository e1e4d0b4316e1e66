"""The currency of imagery: pixels in their stored type, with all that tells what they mean and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alidade.errors import RasterError, SensorError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.grid import Grid

if TYPE_CHECKING:
    from alidade.imagery.windows import Window


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """An image with declared meaning. Compared by identity: equality of arrays has no single answer.

    Attributes:
        pixels: stored numbers ``[C, H, W]`` in their native dtype (integer or real).
        bands: the ``C`` bands, in the order of the pixels.
        encodings: how each band's stored numbers become a unit.
        valid: ``[H, W]`` bool, False where there is no data.
        grid: where the pixels lie.
        sensor: what took the image.
        time: moment of acquisition in UTC, or ``None`` when unknown.
        source: where it came from, for messages and tables (a file name or an address).

    Raises:
        RasterError: shapes, types or the time do not fit together.
    """

    pixels: npt.NDArray[Any]
    bands: tuple[Band, ...]
    encodings: tuple[Encoding, ...]
    valid: npt.NDArray[np.bool_]
    grid: Grid
    sensor: Sensor
    time: datetime | None
    source: str

    def __post_init__(self) -> None:
        """Check that the parts fit together; see the class for what is refused."""
        shape = self.pixels.shape
        if self.pixels.ndim != 3 or 0 in shape:
            self._refuse("shape of pixels", shape, "[bands, rows, columns], none of them zero")
        if self.pixels.dtype.kind not in "uif":
            self._refuse("type of pixels", self.pixels.dtype, "integers or real numbers")
        if not len(self.bands) == len(self.encodings) == shape[0]:
            told = f"{len(self.bands)} bands and {len(self.encodings)} encodings"
            self._refuse("bands", told, f"{shape[0]} of each, as the pixels have")
        if self.valid.shape != shape[1:] or self.valid.dtype != np.bool_:
            got = f"{self.valid.dtype} {self.valid.shape}"
            self._refuse("valid mask", got, f"bool {shape[1:]}")
        if (self.grid.height, self.grid.width) != shape[1:]:
            got = f"{(self.grid.height, self.grid.width)}"
            self._refuse("grid size", got, f"{shape[1:]}, as the pixels have")
        if self.time is not None and self.time.utcoffset() != timedelta(0):
            self._refuse("time", self.time.isoformat(), "a time in UTC with its zone (+00:00)")

    def _refuse(self, what: str, got: object, expected: str) -> None:
        raise RasterError(
            f"{self.source}: {what}",
            got=got,
            expected=expected,
            next_step="Make the Raster from parts that fit.",
        )

    def select(self, names: Sequence[str]) -> Raster:
        """The bands with these names, in the order asked for.

        Args:
            names: band names or common names, case-insensitive; at least one.

        Raises:
            SensorError: a band that is not there, a common name that several bands share, or no name at all.
        """
        order = [self._position(name) for name in names]
        if not order:
            raise self._no_band("nothing")
        return replace(
            self,
            pixels=self.pixels[order],
            bands=tuple(self.bands[i] for i in order),
            encodings=tuple(self.encodings[i] for i in order),
        )

    def _position(self, name: str) -> int:
        wanted = name.casefold()
        found = [i for i, band in enumerate(self.bands) if band.name.casefold() == wanted]
        if not found:
            found = [i for i, b in enumerate(self.bands) if (b.common_name or "").casefold() == wanted]
        if len(found) != 1:
            shared = f", shared by {', '.join(self.bands[i].name for i in found)}" if found else ""
            raise self._no_band(repr(name) + shared)
        return found[0]

    def _no_band(self, got: str) -> SensorError:
        present = [f"{b.name} ({b.common_name})" if b.common_name else b.name for b in self.bands]
        return SensorError(
            f"{self.source}: band",
            got=got,
            expected=f"one of {', '.join(present)}",
            next_step="Name bands that the file has, or declare its bands with --bands.",
        )

    def crop(self, window: Window) -> Raster:
        """A copy of a part. Where the window reaches over the edge, pixels are 0 and not valid."""
        top, left = max(window.row, 0), max(window.col, 0)
        bottom = min(window.row + window.height, self.grid.height)
        right = min(window.col + window.width, self.grid.width)
        pixels = np.zeros((len(self.bands), window.height, window.width), dtype=self.pixels.dtype)
        valid = np.zeros((window.height, window.width), dtype=np.bool_)
        if top < bottom and left < right:
            rows = slice(top - window.row, bottom - window.row)
            cols = slice(left - window.col, right - window.col)
            pixels[:, rows, cols] = self.pixels[:, top:bottom, left:right]
            valid[rows, cols] = self.valid[top:bottom, left:right]
        grid = self.grid.window(window.row, window.col, window.height, window.width)
        return replace(self, pixels=pixels, valid=valid, grid=grid)

    def physical(self) -> npt.NDArray[np.float32]:
        """Values in each encoding's unit: ``stored · scale + offset``.

        Reflectance that an encoding's negative offset would bring below 0 becomes 0: those are dark pixels,
        not missing ones. Class numbers are returned as they are.

        Returns:
            float32 ``[C, H, W]``; invalid pixels are NaN in every band.

        Raises:
            SensorError: a band whose offset has not been resolved.
        """
        out = np.empty(self.pixels.shape, dtype=np.float32)
        # nodata such as -1.8e308 overflows float32, which is no harm as these pixels become NaN below
        with np.errstate(over="ignore", invalid="ignore"):
            for band, encoding, stored, values in zip(self.bands, self.encodings, self.pixels, out, strict=True):
                values[:] = stored
                if encoding.unit is Unit.CLASS:
                    continue
                if encoding.offset is None:
                    raise self._unknown_offset(band)
                values *= np.float32(encoding.scale)
                values += np.float32(encoding.offset)
                if encoding.unit is Unit.REFLECTANCE and encoding.offset < 0:
                    np.maximum(values, 0.0, out=values)
        out[:, ~self.valid] = np.nan
        return out

    def _unknown_offset(self, band: Band) -> SensorError:
        return SensorError(
            f"{self.source}: offset of band {band.name}",
            got="none in the file",
            expected="the number to add after scaling (Sentinel-2: 0 before baseline 04.00, -0.1 since)",
            next_step="Pass it with --offset (in Python: Declared(offset=...)).",
        )

    @property
    def valid_share(self) -> float:
        """The share of pixels with data, 0 to 1."""
        return float(self.valid.mean())

    @property
    def gsd_m(self) -> float:
        """Mean true ground sample distance in metres.

        Raises:
            GridError: it cannot be told; see ``Grid.gsd_m``.
        """
        return self.grid.mean_gsd_m()
