"""The sensor catalogue: every band with wavelength, ground sample distance, statistics and their sources.

Sentinel-1 statistics are in dB. Its files hold dB or linear power and have to say which: the ``native``
encoding of a SAR sensor names the unit of the statistics and is no licence to assume it of a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from alidade.errors import SensorError
from alidade.imagery import sensor_tables as tables
from alidade.imagery.bands import Band, Encoding, Sensor, Unit

SOURCES: dict[str, str] = tables.SOURCES
GENERIC_PREFIX = "generic:"

_SOLAR_UM = (0.35, 2.5)
_GSD_M = (0.01, 10_000.0)


def nearest_band(bands: Iterable[Band], wavelength_um: float) -> Band:
    """The band centred nearest to ``wavelength_um`` (micrometres); the shorter of two equally near."""
    return min(bands, key=lambda b: (abs(b.wavelength_um - wavelength_um), b.wavelength_um))


def _sentinel_1(
    identifier: str, title: str, measured: dict[str, tuple[float, float]], source: str, statistics: str
) -> Sensor:
    analogous = {name: measured[like] for name, like in tables.S1_ANALOGUE.items() if like in measured}
    bands = tuple(
        Band(
            name=name,
            common_name=None,
            wavelength_um=tables.S1_WAVELENGTH_UM,
            bandwidth_um=None,
            gsd_m=10.0,
            mean=mean,
            std=std,
            source=source,
            statistics_source=statistics if name in measured else f"{statistics}-by-analogy",
        )
        for name, (mean, std) in {**measured, **analogous}.items()
    )
    return Sensor(id=identifier, title=title, kind="sar", unit=Unit.DB, native=Encoding(unit=Unit.DB), bands=bands)


def _sentinel_2(identifier: str, title: str, statistics: dict[str, tuple[float, float]]) -> Sensor:
    bands = tuple(
        Band(
            name=name,
            common_name=common,
            wavelength_um=centre / 1000,
            bandwidth_um=width / 1000,
            gsd_m=float(gsd),
            mean=statistics[name][0] / 10_000,
            std=statistics[name][1] / 10_000,
            source="esa-s2-msi",
            statistics_source="ssl4eo-s12",
        )
        for name, common, centre, width, gsd in tables.S2_BANDS
        if name in statistics
    )
    return Sensor(
        id=identifier,
        title=title,
        kind="optical",
        unit=Unit.REFLECTANCE,
        native=Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=None, nodata=0),
        bands=bands,
    )


def _radar_picture(identifier: str, title: str, rows: dict[str, tuple[float, float]], statistics: str) -> Sensor:
    radar = _sentinel_1(identifier, title, rows, "esa-s1-grd", statistics)
    bands = tuple(b for b in radar.bands if b.name in rows)
    return replace(radar, unit=Unit.DISPLAY, native=Encoding(unit=Unit.DISPLAY), bands=bands)


_S2_L2A = _sentinel_2("sentinel-2-l2a", "Sentinel-2 MSI Level-2A (surface reflectance)", tables.S2_L2A)


def _landsat(number: int, instrument: str, rows: tables.Limits, source: str) -> Sensor:
    bands = []
    for name, common, low, high in rows:
        centre = (low + high) / 2000
        like = nearest_band(_S2_L2A.bands, centre)
        bands.append(
            Band(
                name=name,
                common_name=common,
                wavelength_um=centre,
                bandwidth_um=(high - low) / 1000,
                gsd_m=30.0,
                mean=like.mean,
                std=like.std,
                source=source,
                statistics_source="nearest-s2-l2a",
            )
        )
    return Sensor(
        id=f"landsat-{number}",
        title=f"Landsat {number} {instrument} Collection 2 Level-2 (surface reflectance)",
        kind="optical",
        unit=Unit.REFLECTANCE,
        native=Encoding(unit=Unit.REFLECTANCE, scale=2.75e-5, offset=-0.2, nodata=0),
        bands=tuple(bands),
    )


def _display(
    identifier: str,
    title: str,
    rows: tables.DisplayRows,
    gsd_m: float,
    source: str,
    statistics: str,
) -> Sensor:
    bands = tuple(
        Band(
            name=name,
            common_name=common,
            wavelength_um=(low + high) / 2000,
            bandwidth_um=(high - low) / 1000,
            gsd_m=gsd_m,
            mean=mean,
            std=std,
            source=source,
            statistics_source=statistics,
        )
        for name, common, low, high, mean, std in rows
    )
    return Sensor(
        id=identifier,
        title=title,
        kind="optical",
        unit=Unit.DISPLAY,
        native=Encoding(unit=Unit.DISPLAY),
        bands=bands,
    )


SENSORS: dict[str, Sensor] = {
    s.id: s
    for s in (
        _sentinel_1("sentinel-1-grd", "Sentinel-1 C-SAR IW GRD", tables.S1_GRD, "esa-s1-grd", "ssl4eo-s12"),
        _sentinel_1("sentinel-1-rtc", "Sentinel-1 C-SAR IW RTC", tables.S1_RTC, "s1-rtc", "terramesh"),
        _sentinel_2("sentinel-2-l1c", "Sentinel-2 MSI Level-1C (top of atmosphere)", tables.S2_L1C),
        _S2_L2A,
        _landsat(5, "TM", tables.LANDSAT_TM, "usgs-tm"),
        _landsat(7, "ETM+", tables.LANDSAT_ETM, "usgs-etm"),
        _landsat(8, "OLI", tables.LANDSAT_OLI, "usgs-oli"),
        _landsat(9, "OLI-2", tables.LANDSAT_OLI, "usgs-oli"),
        _display("naip-rgb", "USDA NAIP, natural colour", tables.NAIP[:3], 0.6, "naip-ads100", "clay-naip"),
        _display("naip-rgbn", "USDA NAIP, four bands", tables.NAIP, 0.6, "naip-ads100", "clay-naip"),
        _display("generic-rgb", "8-bit RGB", tables.GENERIC_RGB, 0.3, "stac-eo-rgb", "ucmerced-train"),
        _radar_picture("display-vh", "Sentinel-1 VH, 8-bit picture", tables.DISPLAY_VH, "s1s2-ca-train"),
        _radar_picture("display-sar", "Sentinel-1 VV and VH, 8-bit picture", tables.DISPLAY_SAR, "not-measured-8-bit"),
    )
}


def sensor(identifier: str) -> Sensor:
    """The sensor called ``identifier`` (case-insensitive).

    ``"generic:0.490,0.560,0.665@10"`` describes a multispectral sensor by its centre wavelengths in
    micrometres and its GSD in metres; it is what :func:`generic_multispectral` puts into ``Sensor.id``.

    Raises:
        SensorError: no such sensor, or a ``generic:`` description that cannot be read.
    """
    wanted = identifier.strip().casefold()
    if wanted.startswith(GENERIC_PREFIX):
        return _parse_generic(wanted)
    if wanted in SENSORS:
        return SENSORS[wanted]
    near = difflib.get_close_matches(wanted, SENSORS, n=1, cutoff=0.4)
    raise SensorError(
        "sensor",
        got=repr(identifier),
        expected=f"one of {', '.join(SENSORS)}, or {GENERIC_PREFIX}WAVELENGTHS@GSD",
        next_step=(f"Did you mean {near[0]!r}? " if near else "") + "Name it with --sensor.",
    )


def generic_multispectral(wavelengths_um: Sequence[float], gsd_m: float) -> Sensor:
    """A sensor known only by its wavelengths; files hold reflectance from 0 to about 1.

    Args:
        wavelengths_um: centre wavelengths in file order, in micrometres, 0.35 to 2.5, rounded here to 1 nm.
        gsd_m: ground sample distance in metres, 0.01 to 10,000.

    Returns:
        Bands named after their wavelength (``"W0.665"``), with the STAC common name where the wavelength
        settles one. Mean and deviation are those of the Sentinel-2 L2A band with the nearest centre
        wavelength, which ``statistics_source`` says.

    Raises:
        SensorError: no wavelengths, one out of range (nanometres, most often), two equal ones, or an absurd
            GSD.
    """
    rounded = [round(float(w), 3) for w in wavelengths_um]
    low, high = _SOLAR_UM
    outside = [w for w in rounded if not low <= w <= high]
    if not rounded or outside or len(set(rounded)) != len(rounded):
        raise SensorError(
            "generic multispectral sensor: wavelengths",
            got=", ".join(f"{w:g}" for w in rounded) or "none",
            expected=f"different centre wavelengths in micrometres, {low} to {high}, at least 1 nm apart",
            next_step="Give one wavelength per band in file order; divide nanometres by 1000.",
        )
    if not _GSD_M[0] <= gsd_m <= _GSD_M[1]:
        raise SensorError(
            "generic multispectral sensor: ground sample distance",
            got=f"{gsd_m:g} m",
            expected=f"{_GSD_M[0]:g} to {_GSD_M[1]:g} m",
            next_step="Give the size of a pixel on the ground in metres.",
        )
    likes = [nearest_band(_S2_L2A.bands, w) for w in rounded]
    bands = tuple(
        Band(
            name=f"W{w:.3f}",
            common_name=stac_common_name(w),
            wavelength_um=w,
            bandwidth_um=None,
            gsd_m=float(gsd_m),
            mean=like.mean,
            std=like.std,
            source="user-wavelength",
            statistics_source="nearest-s2-l2a",
        )
        for w, like in zip(rounded, likes, strict=True)
    )
    return Sensor(
        id=f"{GENERIC_PREFIX}{','.join(f'{w:.3f}' for w in rounded)}@{float(gsd_m)!r}",
        title=f"Multispectral sensor with {len(bands)} bands",
        kind="optical",
        unit=Unit.REFLECTANCE,
        native=Encoding(unit=Unit.REFLECTANCE),
        bands=bands,
    )


def stac_common_name(wavelength_um: float) -> str | None:
    """The STAC eo v1.1 common name for a centre wavelength, or ``None`` between the named ranges.

    Where two ranges overlap (blue and green at 0.51-0.53 µm) the one with the nearer middle is taken.
    """
    fits = [
        (abs(wavelength_um - (low + high) / 2), name)
        for name, low, high in tables.STAC_RANGES_UM
        if low <= wavelength_um <= high
    ]
    return min(fits)[1] if fits else None


def _parse_generic(text: str) -> Sensor:
    listed, _, gsd = text.removeprefix(GENERIC_PREFIX).partition("@")
    try:
        wavelengths = [float(w) for w in listed.split(",")]
        gsd_m = float(gsd)
    except ValueError as error:
        raise SensorError(
            "sensor",
            got=repr(text),
            expected=f"{GENERIC_PREFIX}WAVELENGTHS@GSD, such as {GENERIC_PREFIX}0.490,0.560,0.665@10",
            next_step="Give wavelengths in micrometres, separated by commas, then @ and the GSD in metres.",
        ) from error
    return generic_multispectral(wavelengths, gsd_m)
