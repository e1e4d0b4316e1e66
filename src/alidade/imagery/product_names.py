"""What the file names of well-known products tell: sensor, band, time, processing baseline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath

_SENTINEL_2 = re.compile(r"S2[A-D]_MSI(L1C|L2A)_(\d{8}T\d{5,6})(?:_N(\d{4}))?(?!\d)", re.IGNORECASE)
_SENTINEL_1 = re.compile(r"S1[A-D]_IW_GRDH_1S(?:SH|SV|DH|DV)_(\d{8}T\d{6})", re.IGNORECASE)
_LANDSAT = re.compile(r"(LC09|LC08|LE07|LT05)_L2SP_\d{6}_(\d{8})_", re.IGNORECASE)
_NAIP = re.compile(r"(?:\bm_\d{7}_(?:ne|nw|se|sw)_\d{1,2}_(?:[a-z\d]{1,3}_)?|\bnaip_)(\d{8})(?!\d)", re.IGNORECASE)

_SENTINEL_2_BAND = re.compile(r"_(B\d\d|B8A|SCL)(?:_\d\dm)?$", re.IGNORECASE)
_SENTINEL_1_BAND = re.compile(r"[_-](VV|VH|HH|HV)$", re.IGNORECASE)
_LANDSAT_BAND = re.compile(r"_(SR_B\d)$", re.IGNORECASE)
_LANDSATS = {"LC09": "landsat-9", "LC08": "landsat-8", "LE07": "landsat-7", "LT05": "landsat-5"}


@dataclass(frozen=True, kw_only=True)
class NameFacts:
    """What a file name tells; ``None`` where it is silent.

    Attributes:
        sensor: the sensor's id. NAIP names do not tell whether there is a near-infrared band: ``"naip"``.
        band: the provider's name of the only band, for products with one file per band.
        time: acquisition in UTC; midnight where the name holds only the day.
        baseline: Sentinel-2 processing baseline times 100 (``400`` for 04.00).
    """

    sensor: str | None = None
    band: str | None = None
    time: datetime | None = None
    baseline: int | None = None


def facts_from_name(path: str) -> NameFacts:
    """Read the name of ``path`` (its last part only; folders are not looked at)."""
    stem = PurePath(path).stem
    if found := _SENTINEL_2.search(stem):
        return NameFacts(
            sensor=f"sentinel-2-{found[1].lower()}",
            band=_band(_SENTINEL_2_BAND, stem),
            time=_moment(found[2]),
            baseline=int(found[3]) if found[3] else None,
        )
    if found := _SENTINEL_1.search(stem):
        # providers keep the name of the GRD product that a terrain-corrected one was made from
        level = "rtc" if "rtc" in stem.casefold() else "grd"
        return NameFacts(sensor=f"sentinel-1-{level}", band=_band(_SENTINEL_1_BAND, stem), time=_moment(found[1]))
    if found := _LANDSAT.search(stem):
        return NameFacts(sensor=_LANDSATS[found[1].upper()], band=_band(_LANDSAT_BAND, stem), time=_moment(found[2]))
    if found := _NAIP.search(stem):
        return NameFacts(sensor="naip", time=_moment(found[1]))
    return NameFacts()


def _band(pattern: re.Pattern[str], stem: str) -> str | None:
    found = pattern.search(stem)
    return found[1].upper() if found else None


def _moment(text: str) -> datetime | None:
    day, _, clock = text.upper().partition("T")
    try:
        # BigEarthNet drops the leading zero of the hour
        return datetime.strptime(day + clock.zfill(6), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
