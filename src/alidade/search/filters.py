"""Where, when, from which sensor and how fine: what narrows a search, and how a user writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alidade.errors import ArchiveError, GridError
from alidade.imagery.footprint import Box, bbox_mask, check_box
from alidade.imagery.polygon import Polygon

TimeRange = tuple[datetime | None, datetime | None]
"""Start and end, both included and both with a time zone; ``None`` leaves a side open."""
GsdRange = tuple[float | None, float | None]
"""Finest and coarsest ground metres per pixel, both included; ``None`` leaves a side open."""
_LONGEST_K = 1_000_000
# true ground resolution differs by parts in a thousand from tile to tile of one scene
_GSD_TOLERANCE = 0.005
_POINT = "longitude,latitude in degrees, such as 8.55,47.37"


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What conditions look at, of N rows.

    Attributes:
        boxes: ``[4, N]`` west, south, east, north in degrees; NaN where a row has no place.
        times_ms: ``[N]`` milliseconds since 1970-01-01 UTC; of any value where a row has no time.
        has_time: ``[N]``.
        sensor_codes: ``[N]`` indices into ``sensor_names``.
        sensor_names: sensor ids.
        gsd_m: ``[N]`` ground metres per pixel.
        geometry: ``[N]`` footprints as WKB, null where a row has no place.
    """

    boxes: npt.NDArray[np.float64]
    times_ms: npt.NDArray[np.int64]
    has_time: npt.NDArray[np.bool_]
    sensor_codes: npt.NDArray[np.int32]
    sensor_names: list[str]
    gsd_m: npt.NDArray[np.float32]
    geometry: pa.Array | pa.ChunkedArray

    @classmethod
    def of(cls, table: pa.Table) -> Columns:
        """The columns of a table that has those of an archive; ``embedding`` is not looked at."""
        times = table["time"].combine_chunks()
        sensors = table["sensor"].combine_chunks()
        sensors = sensors if pa.types.is_dictionary(sensors.type) else sensors.dictionary_encode()
        return cls(
            boxes=_box_columns(table),
            times_ms=times.cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).fill_null(0).to_numpy(),
            has_time=times.is_valid().to_numpy(zero_copy_only=False),
            sensor_codes=sensors.indices.to_numpy(),
            sensor_names=sensors.dictionary.to_pylist(),
            gsd_m=table["gsd_m"].to_numpy(),
            geometry=table["geometry"],
        )

    def wkb(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.object_]:
        """Footprints ``[M]`` of rows ``[M]`` as ``bytes`` or ``None``."""
        return np.asarray(self.geometry.take(pa.array(rows)).to_numpy(zero_copy_only=False), dtype=np.object_)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that a row must all meet. A row without a place or a time never meets a condition on it.

    Attributes:
        bbox: (west, south, east, north) in degrees, WGS84; west > east crosses the antimeridian. A tile
            matches when its box touches this one.
        time: see :data:`TimeRange`.
        sensor: a sensor id.
        polygon: an area; a tile matches when its footprint touches it.
        gsd: see :data:`GsdRange`; compared to half a percent, see :attr:`gsd_limits`.

    Raises:
        GridError: ``bbox`` is not a box, or ``gsd`` no range of positive metres.
        ArchiveError: a time without a zone, or a start after the end.
    """

    bbox: Box | None = None
    time: TimeRange | None = None
    sensor: str | None = None
    polygon: Polygon | None = None
    gsd: GsdRange | None = None

    def __post_init__(self) -> None:
        """Check the conditions; see the class for what is refused."""
        if self.bbox is not None:
            object.__setattr__(self, "bbox", check_box(self.bbox))
        if self.time is not None:
            _check_time(self.time)
        if self.gsd is not None:
            _check_gsd(self.gsd)

    @property
    def gsd_limits(self) -> tuple[float, float]:
        """Least and most ``gsd_m``, both included, of a row that meets ``gsd``.

        They lie half a percent outside the numbers asked for: "10 m" means tiles whose true ground resolution is
        10.004 m, too, as every table shows it.
        """
        low, high = self.gsd or (None, None)
        return (
            0.0 if low is None else low * (1.0 - _GSD_TOLERANCE),
            math.inf if high is None else high * (1.0 + _GSD_TOLERANCE),
        )

    def mask(self, columns: Columns) -> npt.NDArray[np.bool_] | None:
        """Which rows ``[N]`` meet the conditions; ``None`` when there is no condition.

        Raises:
            ArchiveError: no row has the sensor asked for.
        """
        masks = []
        if self.sensor is not None:
            if self.sensor not in columns.sensor_names:
                raise ArchiveError(
                    "sensor",
                    got=repr(self.sensor),
                    expected=f"one in this archive: {', '.join(sorted(columns.sensor_names)) or 'it is empty'}",
                    next_step="Choose one of them, or leave the condition out.",
                )
            masks.append(columns.sensor_codes == columns.sensor_names.index(self.sensor))
        if self.bbox is not None:
            west, south, east, north = columns.boxes
            masks.append(bbox_mask(west, south, east, north, self.bbox))
        if self.time is not None:
            start, end = self.time
            masks.append(columns.has_time)
            if start is not None:
                masks.append(columns.times_ms >= _milliseconds(start))
            if end is not None:
                masks.append(columns.times_ms <= _milliseconds(end))
        if self.gsd is not None:
            low, high = self.gsd_limits
            masks.append((columns.gsd_m >= np.float32(low)) & (columns.gsd_m <= np.float32(high)))
        mask = np.logical_and.reduce(masks) if masks else None
        return mask if self.polygon is None else _touching(self.polygon, columns, mask)

    def describe(self) -> dict[str, object]:
        """The conditions as plain values for an export; those that are not set are left out."""
        described: dict[str, object] = {}
        if self.bbox is not None:
            described["bbox"] = list(self.bbox)
        if self.time is not None:
            described["time"] = [None if t is None else t.isoformat() for t in self.time]
        if self.sensor is not None:
            described["sensor"] = self.sensor
        if self.polygon is not None:
            described["polygon"] = self.polygon.geojson()
        if self.gsd is not None:
            described["gsd"] = list(self.gsd)
        return described


def check_k(k: int) -> int:
    """``k`` itself, when so many results can be asked for.

    Raises:
        ArchiveError: below 1 or above one million.
    """
    if 1 <= k <= _LONGEST_K:
        return k
    raise ArchiveError(
        "number of results",
        got=k,
        expected=f"1 to {_LONGEST_K:,}",
        next_step="Pass another -k; for all rows, read the shards themselves (they are GeoParquet).",
    )


def parse_bbox(text: str) -> Box:
    """``"west,south,east,north"`` in degrees.

    Raises:
        GridError: anything else.
    """
    return check_box(_numbers(text, "box", "west,south,east,north in degrees, such as -5.2,47.1,8.3,55.0"))


def check_point(lon: float, lat: float) -> tuple[float, float]:
    """A longitude and a latitude in degrees, when they are that.

    Raises:
        GridError: a longitude outside ±180, a latitude outside ±90, or not numbers.
    """
    if abs(lon) <= 180.0 and abs(lat) <= 90.0:
        return lon, lat
    raise _bad_place("point", f"{lon:g},{lat:g}", _POINT)


def parse_point(text: str) -> tuple[float, float]:
    """``"longitude,latitude"`` in degrees.

    Raises:
        GridError: anything else.
    """
    numbers = _numbers(text, "point", _POINT)
    if len(numbers) != 2:
        raise _bad_place("point", repr(text), _POINT)
    return check_point(*numbers)


def parse_time(text: str) -> TimeRange:
    """``"START/END"`` as ISO 8601 dates or times; ``..`` or nothing leaves a side open, one date is that day.

    Times without a zone are UTC. A date as END includes that whole day.

    Raises:
        ArchiveError: anything else.
    """
    first, slash, last = text.partition("/")
    if not slash:
        last = first
    try:
        start, end = (None if t in ("", "..") else _moment(t, late) for t, late in ((first, False), (last, True)))
    except ValueError:
        start = end = None
    if start is None and end is None:
        raise _bad_time(repr(text), "START/END in ISO 8601, such as 2020-06-01/2020-08-31 or 2020-06-01/..")
    return _check_time((start, end))


def parse_gsd(text: str) -> GsdRange:
    """``"MIN,MAX"`` in ground metres per pixel; ``..`` or nothing leaves a side open, one number is both.

    Raises:
        GridError: anything else.
    """
    first, comma, last = text.partition(",")
    if not comma:
        last = first
    try:
        low, high = (None if t.strip() in ("", "..") else float(t) for t in (first, last))
    except ValueError:
        raise _bad_gsd(repr(text)) from None
    return _check_gsd((low, high))


def _touching(polygon: Polygon, columns: Columns, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """``mask`` without the rows whose footprint does not touch the polygon."""
    if mask is None:
        return polygon.meets(columns.boxes, columns.wkb)
    rows = np.flatnonzero(mask)
    meeting = polygon.meets(columns.boxes[:, rows], lambda some: columns.wkb(rows[some]))
    mask[rows[~meeting]] = False
    return mask


def _box_columns(table: pa.Table) -> npt.NDArray[np.float64]:
    boxes = table["bbox"].combine_chunks()
    absent = boxes.is_null().to_numpy(zero_copy_only=False)
    columns = [boxes.field(side).to_numpy(zero_copy_only=False) for side in ("xmin", "ymin", "xmax", "ymax")]
    return np.where(absent, np.nan, np.stack([np.asarray(c, dtype=np.float64) for c in columns]))


def _check_gsd(gsd: GsdRange) -> GsdRange:
    given = [value for value in gsd if value is not None]
    if given and all(0.0 < value < math.inf for value in given) and given[0] <= given[-1]:
        return gsd
    raise _bad_gsd(" to ".join("open" if value is None else f"{value:g}" for value in gsd))


def _bad_gsd(got: str) -> GridError:
    return GridError(
        "ground resolution",
        got=got,
        expected="MIN,MAX in metres per pixel, such as 0.3,1; either may be left out",
        next_step="Correct --only-gsd (in Python: gsd=(min, max)).",
    )


def _check_time(time: TimeRange) -> TimeRange:
    start, end = time
    for moment in time:
        if moment is not None and moment.tzinfo is None:
            raise _bad_time(moment.isoformat(), "a time with its zone, such as 2020-06-01T10:30:00+00:00")
    if start is not None and end is not None and start > end:
        raise _bad_time(f"{start.isoformat()} to {end.isoformat()}", "a start that is not after the end")
    return time


def _moment(text: str, late: bool) -> datetime:
    text = text.strip()
    if len(text) <= 10:
        day = datetime.combine(date.fromisoformat(text), datetime.min.time(), tzinfo=UTC)
        return day + timedelta(days=1, milliseconds=-1) if late else day
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _numbers(text: str, what: str, expected: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise _bad_place(what, repr(text), expected) from None


def _bad_place(what: str, got: str, expected: str) -> GridError:
    return GridError(what, got=got, expected=expected, next_step="Write it with commas and without spaces.")


def _bad_time(got: str, expected: str) -> ArchiveError:
    return ArchiveError("time", got=got, expected=expected, next_step="Correct --time (in Python: time=(start, end)).")
