"""What a file holds: sensor, bands, unit and time, as the user, the file and its name tell it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from alidade.errors import RasterError, SensorError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.header import Declared, Header, Identity
from alidade.imagery.product_names import NameFacts, facts_from_name
from alidade.imagery.sensors import GENERIC_PREFIX, SENSORS, sensor

ALPHA, SKIP = "alpha", "-"
"""Names a user can give to a band that is the valid mask, and to one that is not to be read."""

SCL = Band(
    name="SCL",
    common_name=None,
    wavelength_um=0.0,
    bandwidth_um=None,
    gsd_m=20.0,
    mean=0.0,
    std=1.0,
    source="esa-s2-msi",
    statistics_source="esa-s2-msi",
)
"""Sentinel-2 L2A's scene classification: class numbers, no measurement, so no statistics (0 and 1 change
nothing)."""

_UNITS = {"db": Unit.DB, "power": Unit.POWER, "linear": Unit.POWER, "linear power": Unit.POWER}
_UNITS |= {unit.value.casefold(): unit for unit in (Unit.REFLECTANCE, Unit.DISPLAY)}
_RADAR_LABEL = re.compile(r"(VV|VH|HH|HV)(?:[ _]*[([]?(dB|power|linear)[)\]]?)?", re.IGNORECASE)
_OPTICAL_LABEL = re.compile(r"B(\d)", re.IGNORECASE)
_GENERIC_LABEL = re.compile(r"W\d\.\d{3}")

_STORED = {1e-4: ("uint16", "int16"), 2.75e-5: ("uint16",)}
"""Pixel types in which providers deliver integers with these scales; anything else was converted by
somebody."""


def identify(header: Header, declared: Declared, is_mask: Callable[[int], bool]) -> Identity:
    """Tell sensor, bands, unit and time; nothing is guessed except that three 8-bit bands are RGB.

    Args:
        header: what the file says.
        declared: what the user says.
        is_mask: whether the sampled values of a band (counted from 1) are only 0 and the type's maximum.

    Raises:
        SensorError: sensor, bands or unit cannot be told, or contradict each other.
        RasterError: an ``ALIDADE_TIME`` tag that is no time.
    """
    name = facts_from_name(header.path)
    labels = tuple(_canonical(text) for text in header.descriptions)
    if not any(_known(label) for label in labels):
        labels = ()
    if header.count == 4 and header.colours[3] == ALPHA and not (declared.sensor or declared.bands):
        labels = _alpha_labels(header, labels, name, is_mask)
    said = tuple(_canonical(n) for n in declared.bands) if declared.bands else labels
    found, how_sensor = _find_sensor(header, declared, said, name)
    names, how_bands = _band_names(header, declared, found, labels, name)
    keep = [i for i, n in enumerate(names) if n not in (ALPHA, SKIP)]
    bands = tuple(_band(header.path, found, names[i]) for i in keep)
    repeated = [n for n, times in Counter([b.name for b in bands]).items() if times > 1]
    if repeated or not bands or names.count(ALPHA) > 1:
        got = f"{', '.join(repeated)} more than once" if repeated else ", ".join(names)
        raise _bands_error(header.path, found, got, "each band once, at least one, and at most one alpha")
    unit, how_unit = _unit(header, declared, found)
    time, how_time = _time(header, declared, name)
    return Identity(
        sensor=found,
        bands=bands,
        encodings=_encodings(header, declared, found, unit, keep, bands),
        indexes=tuple(i + 1 for i in keep),
        alpha=names.index(ALPHA) + 1 if ALPHA in names else None,
        time=time,
        how={"sensor": how_sensor, "bands": how_bands, "unit": how_unit, "time": how_time},
    )


def _canonical(label: str | None) -> str:
    """The provider's spelling of common variants: ``B2`` for ``B02``, ``VV (dB)`` for ``VV``."""
    text = (label or "").strip()
    if found := _RADAR_LABEL.fullmatch(text):
        return found[1].upper()
    if found := _OPTICAL_LABEL.fullmatch(text):
        return f"B0{found[1]}"
    return ALPHA if text.casefold() == ALPHA else text


def _names_of(candidate: Sensor) -> frozenset[str]:
    extra = (SCL.name,) if candidate.id == "sentinel-2-l2a" else ()
    return frozenset(n.casefold() for n in (*candidate.band_names, *extra, ALPHA, SKIP))


def _known(label: str) -> bool:
    """Whether a label is a band of some sensor; other labels ("bands", "Layer_1") are no names."""
    wanted = label.casefold()
    if wanted in ("", ALPHA, SKIP):
        return False
    in_common_use = {b.common_name for s in SENSORS.values() for b in s.bands}
    in_catalogue = any(wanted in _names_of(s) for s in SENSORS.values())
    return in_catalogue or wanted in in_common_use or _GENERIC_LABEL.fullmatch(label) is not None


def _alpha_labels(
    header: Header, labels: tuple[str, ...], name: NameFacts, is_mask: Callable[[int], bool]
) -> tuple[str, ...]:
    """Band names where the fourth of four bands is tagged alpha, which NAIP's near infrared is, too."""
    named = bool(labels) and labels[3] not in ("", ALPHA)
    if "ALIDADE_SENSOR" in header.tags or name.sensor or named or header.dtype not in ("uint8", "uint16"):
        return labels
    if not is_mask(4):
        raise SensorError(
            f"{header.path}: band 4, tagged alpha",
            got="many different values",
            expected="only 0 and the maximum if it is a mask",
            next_step="Pass --sensor naip-rgbn if it is near infrared, --bands R,G,B,alpha if it is a mask.",
        )
    return (*(labels[:3] or ("R", "G", "B")), ALPHA)


def _find_sensor(header: Header, declared: Declared, said: Sequence[str], name: NameFacts) -> tuple[Sensor, str]:
    if declared.sensor is not None:
        return sensor(declared.sensor), "You declared it."
    if "ALIDADE_SENSOR" in header.tags:
        return sensor(header.tags["ALIDADE_SENSOR"]), "The file's ALIDADE_SENSOR tag names it."
    by_name = name.sensor
    if by_name == "naip":
        by_name = "naip-rgbn" if header.count == 4 else "naip-rgb"
    fits = [s for s in SENSORS.values() if said and all(n.casefold() in _names_of(s) for n in said)]
    fits = _plainest_display(fits)
    if by_name is not None:
        if said and fits and by_name not in [s.id for s in fits] and not by_name.startswith("naip"):
            raise SensorError(
                f"{header.path}: sensor",
                got=f"{by_name} by the file name, but bands of {' or '.join(s.id for s in fits)}",
                expected="name and bands that agree",
                next_step="Name the sensor with --sensor (in Python: Declared(sensor=...)).",
            )
        return SENSORS[by_name], "The file name follows the provider's naming."
    if len(fits) == 1:
        return fits[0], "Only this sensor has bands with these names."
    if len(fits) > 1:
        raise SensorError(
            f"{header.path}: sensor",
            got=f"bands {', '.join(said)}, which {', '.join(s.id for s in fits)} have",
            expected="one sensor",
            next_step=f"Name it with --sensor, e.g. --sensor {fits[0].id} (in Python: Declared(sensor=...)).",
        )
    if header.count == 3 and header.dtype == "uint8" and not said:
        return SENSORS["generic-rgb"], "Three 8-bit bands without names are taken for red, green and blue."
    raise SensorError(
        f"{header.path}: sensor",
        got=f"{header.count} band{'s' * (header.count != 1)} of {header.dtype}, named "
        f"{', '.join(said) if said else 'nothing'}",
        expected="a file that says which sensor and bands it holds",
        next_step="Name them, e.g. --sensor sentinel-2-l1c --bands B01,B02,... in file order "
        "(in Python: Declared(sensor=..., bands=...)).",
    )


def _plainest_display(fits: list[Sensor]) -> list[Sensor]:
    """Of display sensors that all have the bands, the one that claims least: R, G, B need not be NAIP."""
    if not fits or any(s.unit is not Unit.DISPLAY for s in fits):
        return fits
    fewest = min(len(s.bands) for s in fits)
    return [s for s in fits if len(s.bands) == fewest][-1:]


def _band_names(
    header: Header, declared: Declared, found: Sensor, labels: tuple[str, ...], name: NameFacts
) -> tuple[tuple[str, ...], str]:
    path, count = header.path, header.count
    if declared.bands is not None:
        names = tuple(_canonical(n) for n in declared.bands)
        if len(names) != count:
            raise _bands_error(path, found, f"{len(names)} names for {count} bands", f"{count} names")
        return names, "You declared them."
    if labels:
        for place, label in enumerate(labels, start=1):
            if not label:
                raise _bands_error(path, found, f"no name for band {place}", "names for all bands or none")
        return labels, "The file's band descriptions name them."
    if count == 1 and name.band is not None:
        return (name.band,), "The file name ends with it."
    # these two kinds have one order by their definition; Sentinel-2 files come in several
    if found.unit is Unit.DISPLAY or found.id.startswith(GENERIC_PREFIX):
        if count == len(found.bands):
            names, how = found.band_names, "Unnamed in the file, so taken in the sensor's order."
            if sorted(header.colours[:3]) == ["blue", "green", "red"] and found.id == "generic-rgb":
                names, how = tuple(c[0].upper() for c in header.colours), "The file's colour tags name them."
            return names, how
        raise _bands_error(path, found, f"{count} bands without names", f"{len(found.bands)} bands, or names")
    raise _bands_error(path, found, f"{count} bands without names", "names (their order varies)")


def _band(path: str, found: Sensor, name: str) -> Band:
    if name.casefold() == SCL.name.casefold() and found.id == "sentinel-2-l2a":
        return SCL
    try:
        return found.band(name)
    except SensorError as error:
        raise _bands_error(path, found, error.got, error.expected) from None


def _bands_error(path: str, found: Sensor, got: object, expected: str) -> SensorError:
    sample = ",".join(found.band_names[:3]) + (",..." if len(found.bands) > 3 else "")
    return SensorError(
        f"{path}: band names ({found.id})",
        got=got,
        expected=expected,
        next_step=f"Name the bands in file order, e.g. --bands {sample}, with - for one to leave out "
        "(in Python: Declared(bands=...)).",
    )


def _unit(header: Header, declared: Declared, found: Sensor) -> tuple[Unit, str]:
    told: Unit | None = None
    how = ""
    if declared.unit is not None:
        told, how = declared.unit, "You declared it."
    elif "ALIDADE_UNIT" in header.tags:
        text = header.tags["ALIDADE_UNIT"]
        told, how = _UNITS.get(text.strip().casefold()), "The file's ALIDADE_UNIT tag names it."
        if told is None:
            raise _unit_error(header.path, found, f"the tag ALIDADE_UNIT={text!r}")
    elif needs_unit(found):
        told, how = _radar_unit(header), "The file's band descriptions or band units name it."
    if needs_unit(found):
        if told not in (Unit.DB, Unit.POWER):
            raise _unit_error(header.path, found, "nothing that tells" if told is None else str(told))
        return told, how
    if told not in (None, found.native.unit):
        raise _unit_error(header.path, found, str(told))
    return found.native.unit, how or "It is the unit of this sensor's files."


def needs_unit(found: Sensor) -> bool:
    """Whether files of this sensor come in several units: radar in dB or power; pictures of it are just pictures."""
    return found.kind == "sar" and found.unit is Unit.DB


def _radar_unit(header: Header) -> Unit | None:
    matches = [_RADAR_LABEL.fullmatch((d or "").strip()) for d in header.descriptions]
    words = [found[2] for found in matches if found and found[2]] + [u for u in header.units if u]
    units = {_UNITS.get(word.strip().casefold()) for word in words}
    return units.pop() if len(units) == 1 else None


def _unit_error(path: str, found: Sensor, got: str) -> SensorError:
    radar = found.kind == "sar"
    return SensorError(
        f"{path}: unit ({found.id})",
        got=got,
        expected="dB or power" if radar else str(found.native.unit),
        next_step="Pass --unit dB or --unit power (in Python: Declared(unit=...))."
        if radar
        else "Leave the unit out, or name another sensor with --sensor.",
    )


def _encodings(
    header: Header, declared: Declared, found: Sensor, unit: Unit, keep: list[int], bands: tuple[Band, ...]
) -> tuple[Encoding, ...]:
    """One encoding per band read; classes are never scaled."""
    native = found.native
    scaled = header.scaled or declared.scale is not None
    measured = [i for i, b in zip(keep, bands, strict=True) if b is not SCL]
    if measured and not scaled and not _stored_as_delivered(header.dtype, found):
        raise _dtype_error(header, found)
    nodata = declared.nodata if declared.nodata is not None else header.nodata
    if nodata is None and "int" in header.dtype:
        nodata = native.nodata
    encodings = []
    for place, band in zip(keep, bands, strict=True):
        if band is SCL:
            encodings.append(Encoding(unit=Unit.CLASS, nodata=nodata))
            continue
        scale = header.scales[place] if header.scaled else native.scale
        offset = header.offsets[place] if header.scaled else native.offset
        scale = declared.scale if declared.scale is not None else scale
        offset = declared.offset if declared.offset is not None else offset
        if not (math.isfinite(scale) and scale != 0 and (offset is None or math.isfinite(offset))):
            raise RasterError(
                f"{header.path}: scale and offset of band {band.name}",
                got=f"{scale} and {offset}",
                expected="finite numbers, the scale not zero",
                next_step="Pass the right ones with --scale and --offset.",
            )
        encodings.append(Encoding(unit=unit, scale=scale, offset=offset, nodata=nodata))
    return tuple(encodings)


def _stored_as_delivered(dtype: str, found: Sensor) -> bool:
    if found.unit is Unit.DISPLAY:
        return dtype == "uint8"
    return dtype in _STORED.get(found.native.scale, ("float32", "float64"))


def _dtype_error(header: Header, found: Sensor) -> SensorError:
    delivered = _STORED.get(found.native.scale, ("float32",))
    usual = "uint8" if found.unit is Unit.DISPLAY else " or ".join(delivered)
    picture = header.dtype == "uint8"
    return SensorError(
        f"{header.path}: pixel type ({found.id})",
        got=f"{header.dtype} without a scale",
        expected=usual,
        next_step="An 8-bit export for display has lost the physical unit: pass --sensor generic-rgb for one."
        if picture
        else "Pass --scale and --offset, with value = stored * scale + offset "
        "(in Python: Declared(scale=..., offset=...)).",
    )


def _time(header: Header, declared: Declared, name: NameFacts) -> tuple[datetime | None, str]:
    if declared.time is not None:
        return _utc(declared.time), "You declared it."
    if "ALIDADE_TIME" in header.tags:
        text = header.tags["ALIDADE_TIME"]
        try:
            return _utc(datetime.fromisoformat(text)), "The file's ALIDADE_TIME tag holds it."
        except (ValueError, OverflowError):
            raise RasterError(
                f"{header.path}: tag ALIDADE_TIME",
                got=repr(text),
                expected="a time as ISO 8601 writes it, e.g. 2024-05-31T10:20:30Z",
                next_step="Repair the tag, or pass --time.",
            ) from None
    # a product's name goes before TIFFTAG_DATETIME, which most software sets to the time of writing
    if name.time is not None:
        return name.time, "The file name holds it."
    try:
        text = header.tags.get("TIFFTAG_DATETIME", "")
        moment = datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        return moment, "The file's TIFFTAG_DATETIME holds it (it may be the time of writing)."
    except ValueError:
        return None, "Nothing tells it."


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
