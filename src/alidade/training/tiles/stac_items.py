"""What a STAC item's metadata mean: sensor, bands, encodings, grid. Nothing is fetched here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from alidade.errors import AlidadeError, RasterError, SensorError
from alidade.imagery.bands import Band, Sensor
from alidade.imagery.grid import Grid
from alidade.imagery.header import Catalogued
from alidade.imagery.identify import SCL
from alidade.imagery.sensors import SENSORS, nearest_band, sensor

Json = Mapping[str, Any]

_TIFF = ("image/tiff", "image/vnd.stac.geotiff")
_NO_DATA_ROLES = {"thumbnail", "overview", "visual", "metadata"}
_SENTINEL_2 = re.compile(r"sentinel-?2[a-d]?")
_SENTINEL_1 = re.compile(r"sentinel-?1[a-d]?")
_LANDSAT = re.compile(r"landsat-?([5789])")
_LANDSAT_BAND = re.compile(r"(?:OLI|TM|ETM)_B(\d+)", re.IGNORECASE)
_SHORT_BAND = re.compile(r"B(\d)", re.IGNORECASE)
_NEAR_UM = 0.012
"""The measured centres of each Sentinel-2 lie so near to the nominal ones."""


@dataclass(frozen=True, kw_only=True)
class AssetFacts:
    """One asset that holds bands of the item's sensor.

    Attributes:
        href: as the item gives it.
        bands: the sensor's names in file order, ``"-"`` for a band that is not the sensor's.
        said: what the item says about the file.
        dtype: type of the stored numbers, ``None`` where the item does not say.
        grid: where its pixels lie, ``None`` where the item does not say.
    """

    href: str
    bands: tuple[str, ...]
    said: Catalogued
    dtype: str | None
    grid: Grid | None


def time_of(properties: Json, told: str) -> datetime | None:
    """The moment of acquisition; the middle of an interval of at most a day, ``None`` for longer ones.

    Raises:
        RasterError: neither a moment nor an interval, or one that cannot be read.
    """
    moments = []
    wanted = ("datetime",) if properties.get("datetime") else ("start_datetime", "end_datetime")
    for name in wanted:
        try:
            moment = datetime.fromisoformat(str(properties.get(name)))
        except ValueError:
            raise RasterError(
                f"{told}: {name}", got=repr(properties.get(name)),
                expected="a time as ISO 8601 writes it; an item needs datetime, or start_datetime and end_datetime",
                next_step="Tell the catalogue's owner; the other items go on.",
            ) from None  # fmt: skip
        moments.append(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))
    begin, end = moments[0], moments[-1]
    return begin + (end - begin) / 2 if abs(end - begin) <= timedelta(days=1) else None


def sensor_of_item(properties: Json, collection: str, band_count: int, told: str) -> Sensor:
    """The sensor by platform, constellation and product level.

    Args:
        properties: of the item.
        collection: its collection's id, ``""`` without one.
        band_count: the most bands that one asset has; NAIP comes with three or four.
        told: the item, for messages.

    Raises:
        SensorError: it cannot be told.
    """
    platform = f"{properties.get('platform') or ''} {properties.get('constellation') or ''} {collection}".casefold()
    keys = ("s2:product_type", "processing:level", "product:type", "landsat:correction", "sar:product_type")
    level = " ".join(str(properties.get(key) or "") for key in keys).casefold()
    found: str | None = None
    if _SENTINEL_2.search(platform):
        words = f"{level} {collection.casefold()}"
        levels = [name for name, hint in (("l2a", "2a"), ("l1c", "1c")) if hint in words]
        found = f"sentinel-2-{levels[0]}" if len(levels) == 1 else None
    elif _SENTINEL_1.search(platform):
        words = f"{level} {collection.casefold()}"
        found = next((f"sentinel-1-{kind}" for kind in ("rtc", "grd") if kind in words), None)
    elif landsat := _LANDSAT.search(platform):
        second = any(word in f"{level} {collection.casefold()}" for word in ("l2", "c2-sr"))
        found = f"landsat-{landsat[1]}" if second else None
    elif "naip" in platform:
        found = "naip-rgbn" if band_count >= 4 else "naip-rgb"
    tagged = properties.get("alidade:sensor")
    if tagged is not None or found is not None:
        return sensor(str(tagged) if tagged is not None else str(found))
    raise SensorError(
        f"{told}: sensor", got=f"platform {properties.get('platform')!r}, level {level.strip() or 'not given'!r}",
        expected=f"one of {', '.join(SENSORS)}", next_step="Name it with --sensor, the same for all items.",
    )  # fmt: skip


def raster_assets(assets: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """The assets that are GeoTIFFs with data, by their media type, name and roles."""
    for key, asset in assets.items():
        if not isinstance(asset, Mapping) or not isinstance(asset.get("href"), str):
            continue
        kind = str(asset.get("type") or "").partition(";")[0].strip().casefold()
        name = asset["href"].partition("?")[0].casefold()
        roles = set(asset.get("roles") or ())
        if (kind in _TIFF or (not kind and name.endswith((".tif", ".tiff")))) and not roles & _NO_DATA_ROLES:
            yield key, asset


def bands_of_asset(asset: Json) -> list[Json]:
    """An asset's bands with all that is said of each: STAC 1.1's ``bands``, or ``eo:bands`` and ``raster:bands``."""
    lists = [list(asset.get(name) or ()) for name in ("bands", "eo:bands", "raster:bands")]
    count = max(map(len, lists))
    merged: list[Json] = []
    for place in range(max(count, 1)):
        words: dict[str, Any] = {k: asset[k] for k in _BAND_FIELDS if k in asset}
        for some in lists:
            if place < len(some) and isinstance(some[place], Mapping):
                words |= some[place]
        merged.append(words)
    return merged


_BAND_FIELDS = ("data_type", "nodata", "unit", "raster:scale", "raster:offset")


def facts_of(key: str, asset: Json, found: Sensor, item: Json, time: datetime | None, told: str) -> AssetFacts | None:
    """What an asset holds of the sensor's bands; ``None`` when nothing.

    Raises:
        AlidadeError: projection or scale that cannot be read.
    """
    properties = item["properties"]
    listed = bands_of_asset(asset)
    names = [_band_name(words, key if len(listed) == 1 else "", found) for words in listed]
    kinds = {str(words["data_type"]) for words in listed if words.get("data_type")}
    if not any(names) or (found.id.startswith("sentinel-2-") and kinds == {"uint8"} and names != [SCL.name]):
        # a picture for the eye names the same bands
        return None
    bands = tuple(name or "-" for name in names)
    return AssetFacts(
        href=str(asset["href"]),
        bands=bands,
        said=_said(bands, listed, found, properties, time, told),
        dtype=kinds.pop() if len(kinds) == 1 else None,
        grid=_grid(asset, properties, told),
    )


def choose_assets(
    facts: Sequence[AssetFacts], wanted: frozenset[str] | None
) -> list[tuple[AssetFacts, tuple[str, ...]]]:
    """For each band the asset with the fewest bands that has it, in the assets' order.

    Args:
        facts: of an item's assets.
        wanted: the only bands to take; ``None`` for all.
    """
    taken: dict[str, AssetFacts] = {}
    for one in sorted(facts, key=lambda f: len(f.bands)):
        for name in one.bands:
            if name != "-" and (wanted is None or name in wanted):
                taken.setdefault(name, one)
    chosen = []
    for one in facts:
        mine = tuple(name for name in one.bands if taken.get(name) is one)
        if mine:
            chosen.append((one, mine))
    return chosen


def _band_name(words: Json, key: str, found: Sensor) -> str | None:
    """The sensor's band: by name, by the asset's key, by common name, or by wavelength."""
    known: dict[str, str] = {
        b.name.casefold(): b.name for b in (*found.bands, *((SCL,) if found.id == "sentinel-2-l2a" else ()))
    }
    for text in (str(words.get("name") or ""), key):
        text = _LANDSAT_BAND.sub(r"SR_B\1", text.strip())
        text = _SHORT_BAND.sub(r"B0\1", text) if _SHORT_BAND.fullmatch(text) else text
        if text.casefold() in known:
            return known[text.casefold()]
    common = str(words.get("common_name") or words.get("eo:common_name") or words.get("name") or key).casefold()
    same: list[str] = [b.name for b in found.bands if b.common_name == common]
    if len(same) == 1:
        return same[0]
    return _by_wavelength(words.get("center_wavelength") or words.get("eo:center_wavelength"), found.bands)


def _by_wavelength(wavelength: object, bands: tuple[Band, ...]) -> str | None:
    if not isinstance(wavelength, int | float) or not 0.3 < wavelength < 3.0:
        return None
    nearest = nearest_band(bands, float(wavelength))
    return nearest.name if abs(nearest.wavelength_um - wavelength) <= _NEAR_UM else None


def _said(
    bands: tuple[str, ...], listed: Sequence[Json], found: Sensor, properties: Json, time: datetime | None, told: str
) -> Catalogued:
    tags = {"ALIDADE_SENSOR": found.id}
    if time is not None:
        tags["ALIDADE_TIME"] = time.isoformat()
    scales = [_number(w.get("scale", w.get("raster:scale")), told) for w in listed]
    offsets = [_number(w.get("offset", w.get("raster:offset")), told) for w in listed]
    nodatas = {_number(w.get("nodata"), told) for w in listed}
    units = {str(w["unit"]) for w in listed if w.get("unit")}
    told_scales: tuple[float, ...] | None = None
    told_offsets: tuple[float, ...] | None = None
    if found.id.startswith("sentinel-2-"):
        added = _added(properties, offsets)
        if added is not None:
            tags["BOA_ADD_OFFSET" if found.id.endswith("l2a") else "RADIO_ADD_OFFSET"] = f"{added:.0f}"
            # the pixels are asked whether it is true: the file's own account must not hide the question
            told_scales, told_offsets = (1.0,) * len(bands), (0.0,) * len(bands)
    elif any(s is not None for s in scales):
        told_scales = tuple(1.0 if s is None else s for s in scales)
        told_offsets = tuple(0.0 if o is None else o for o in offsets)
    return Catalogued(
        bands=bands, tags=tags, scales=told_scales, offsets=told_offsets,
        nodata=nodatas.pop() if len(nodatas) == 1 else None, unit=units.pop() if len(units) == 1 else None,
    )  # fmt: skip


def _added(properties: Json, offsets: Sequence[float | None]) -> float | None:
    """What is to be added to Sentinel-2's stored numbers, 0 or -1000; ``None`` where the item does not tell.

    A catalogue that has taken the 1000 away says so in a flag of its own, and may still list the offset with the bands:
    the flag goes first, then the baseline, then the bands.
    """
    applied = properties.get("earthsearch:boa_offset_applied")
    if applied is True:
        return 0.0
    baseline = properties.get("s2:processing_baseline", properties.get("processing:version"))
    if baseline is not None and re.fullmatch(r"\d{1,2}\.\d{1,2}", str(baseline)):
        return -1000.0 if float(str(baseline)) >= 4.0 else 0.0
    known = {o for o in offsets if o is not None}
    return round(known.pop() * 1e4) if len(known) == 1 else None


def _number(value: object, told: str) -> float | None:
    if value is None:
        return None
    try:
        return float(str(value))
    except ValueError:
        raise RasterError(
            f"{told}: scale, offset or nodata", got=repr(value), expected="a number",
            next_step="Tell the catalogue's owner; the other items go on.",
        ) from None  # fmt: skip


def _grid(asset: Json, properties: Json, told: str) -> Grid | None:
    """Where an asset's pixels lie, if it says so itself; an item's own fields may belong to another asset."""
    transform, shape = asset.get("proj:transform"), asset.get("proj:shape")
    code = next((p[k] for p in (asset, properties) for k in ("proj:code", "proj:epsg") if p.get(k) is not None), None)
    if transform is None or shape is None or code is None:
        return None
    try:
        a, b, c, d, e, f = map(float, transform[:6])
        rows, cols = map(int, shape)
        crs = CRS.from_user_input(f"EPSG:{code}" if str(code).isdigit() else str(code))
        if e > 0:
            return None
        return Grid(crs=crs, transform=Affine(a, b, c, d, e, f), width=cols, height=rows)
    except (CRSError, TypeError, ValueError) as error:
        got = error.got if isinstance(error, AlidadeError) else f"{transform}, {shape}, {code}"
        raise RasterError(
            f"{told}: projection", got=got, expected="proj:code, proj:transform and proj:shape that fit together",
            next_step="Tell the catalogue's owner; the other items go on.",
        ) from None  # fmt: skip
