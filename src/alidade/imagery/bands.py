"""What a pixel value means: units, encodings, bands and sensors. The catalogue itself is in ``sensors``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from alidade.errors import SensorError


class Unit(StrEnum):
    """The physical meaning of a value after its encoding's scale and offset are applied."""

    REFLECTANCE = "reflectance"
    """Fraction of the incoming light, 0 to about 1 (clouds and snow exceed 1)."""
    DB = "dB"
    """Backscatter as 10·log10(power)."""
    POWER = "power"
    """Backscatter in linear power, not amplitude."""
    DISPLAY = "display"
    """8-bit values 0–255 made for the eye, without a physical unit."""
    CLASS = "class"
    """A category number (scene classification, quality flags); never normalised, never interpolated."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How stored numbers become a unit: ``value = stored · scale + offset``.

    ``offset`` is ``None`` when the file does not tell it and it has to be resolved before use (Sentinel-2, where
    processing baselines from 04.00 on add 1000 to the stored numbers).
    """

    unit: Unit
    scale: float = 1.0
    offset: float | None = 0.0
    nodata: float | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band of one sensor.

    Attributes:
        name: the provider's name (``"B8A"``, ``"VV"``, ``"SR_B5"``).
        common_name: the STAC electro-optical common name (``"red"``, ``"nir08"``), or ``None``.
        wavelength_um: centre wavelength in micrometres (radar: the wavelength of the carrier).
        bandwidth_um: full width at half maximum in micrometres, or ``None`` where it has no meaning.
        gsd_m: native ground sample distance in metres.
        mean, std: fixed statistics in the sensor's unit, used by the normalisation.
        source: key into ``sensors.SOURCES`` for wavelength, width and GSD.
        statistics_source: key into ``sensors.SOURCES`` for mean and std.
    """

    name: str
    common_name: str | None
    wavelength_um: float
    bandwidth_um: float | None
    gsd_m: float
    mean: float
    std: float
    source: str
    statistics_source: str


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """One kind of imagery: its bands, and how its files usually store them.

    Attributes:
        id: the name used on the command line and in archives, e.g. ``"sentinel-2-l2a"``.
        title: the name a person reads.
        kind: ``"optical"`` or ``"sar"``.
        unit: the unit that the bands' statistics are given in.
        native: how files of this sensor store their numbers unless the file says otherwise.
        bands: in the provider's order. Files may hold any subset in any order; bands are found by name.
    """

    id: str
    title: str
    kind: str
    unit: Unit
    native: Encoding
    bands: tuple[Band, ...]

    def band(self, name: str) -> Band:
        """The band called ``name`` (provider's name or common name, case-insensitive).

        Raises:
            SensorError: no such band, or a common name that two bands share.
        """
        wanted = name.casefold()
        exact = [b for b in self.bands if b.name.casefold() == wanted]
        found = exact or [b for b in self.bands if (b.common_name or "").casefold() == wanted]
        if len(found) == 1:
            return found[0]
        raise SensorError(
            f"{self.id}: band name",
            got=repr(name) if not found else f"{name!r}, shared by {', '.join(b.name for b in found)}",
            expected=f"one of {', '.join(b.name for b in self.bands)}",
            next_step="Name the bands in file order with --bands (in Python: bands=[...]).",
        )

    @property
    def band_names(self) -> tuple[str, ...]:
        """The provider's names in the provider's order."""
        return tuple(b.name for b in self.bands)

    def with_gsd(self, gsd_m: float) -> Sensor:
        """The same sensor with every band's native GSD replaced (aerial imagery varies by flight)."""
        return replace(self, bands=tuple(replace(b, gsd_m=gsd_m) for b in self.bands))
