"""The three answers to what is in a file: the user's, its own, and the one that follows from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from alidade.errors import RasterError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the user says about a file; it goes before what the file says. All optional.

    Attributes:
        sensor: a sensor's id, see ``alidade.imagery.sensors``.
        bands: one name per band in file order; ``"alpha"`` for the valid mask, ``"-"`` for a band not to be
            read.
        unit: what the stored numbers mean after scale and offset; needed for Sentinel-1 (dB or power).
        scale, offset: ``value = stored · scale + offset``, in the unit.
        nodata: the stored number that stands for no data.
        time: moment of acquisition; without a zone it is taken as UTC.
        gsd_m: ground sample distance in metres.
    """

    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    unit: Unit | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    time: datetime | None = None
    gsd_m: float | None = None


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself, before any pixel is read. One entry per band where it is a tuple."""

    path: str
    dtype: str
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    units: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: float | None
    tags: Mapping[str, str]

    @property
    def count(self) -> int:
        """The number of bands in the file."""
        return len(self.descriptions)

    @property
    def scaled(self) -> bool:
        """Whether the file gives scale and offset. GDAL reports 1 and 0 for files that do not."""
        return any(s != 1 for s in self.scales) or any(o != 0 for o in self.offsets)


@dataclass(frozen=True, kw_only=True)
class Catalogued:
    """What a catalogue says about a file; it goes before what the file says, and after what the user says.

    Attributes:
        bands: one name per band in file order.
        tags: as if the file had them, such as ``ALIDADE_SENSOR`` or ``BOA_ADD_OFFSET``.
        scales, offsets: one per band, 1 and 0 where the sensor's usual encoding or a tag holds; ``None`` leaves the
            file's own.
        nodata: the stored number that stands for no data; ``None`` leaves the file's own.
        unit: of all bands, ``None`` leaves the file's own.
    """

    bands: tuple[str, ...]
    tags: Mapping[str, str] = field(hash=False)
    scales: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    nodata: float | None = None
    unit: str | None = None

    def over(self, header: Header) -> Header:
        """The header with the catalogue's words in it.

        Raises:
            RasterError: the file has another number of bands.
        """
        if header.count != len(self.bands):
            raise RasterError(
                f"{header.path}: bands", got=str(header.count), expected=f"{len(self.bands)}, as the catalogue says",
                next_step="Tell the catalogue's owner, or download the file and declare its bands.",
            )  # fmt: skip
        return replace(
            header,
            descriptions=self.bands,
            tags={**header.tags, **self.tags},
            scales=header.scales if self.scales is None else self.scales,
            offsets=header.offsets if self.offsets is None else self.offsets,
            nodata=header.nodata if self.nodata is None else self.nodata,
            units=header.units if self.unit is None else (self.unit,) * header.count,
        )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the bands of a file are.

    Attributes:
        sensor: the sensor.
        bands, encodings: the bands to be read. A Sentinel-2 offset that nobody gives is still ``None``.
        indexes: their places in the file, from 1.
        alpha: place of the band that holds the valid mask, from 1.
        time: moment of acquisition in UTC.
        how: one sentence for each of sensor, bands, unit and time on how it was found.
    """

    sensor: Sensor
    bands: tuple[Band, ...]
    encodings: tuple[Encoding, ...]
    indexes: tuple[int, ...]
    alpha: int | None
    time: datetime | None
    how: dict[str, str] = field(hash=False)
