"""Where, when and from which sensor: what narrows a search, and how a user writes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt

from alidade.errors import ArchiveError, GridError
from alidade.imagery.footprint import Box, bbox_mask, check_box

TimeRange = tuple[datetime | None, datetime | None]
"""Start and end, both included and both with a time zone; ``None`` leaves a side open."""
_LONGEST_K = 1_000_000
_POINT = "longitude,latitude in degrees, such as 8.55,47.37"


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that a row must all meet. A row without a place or a time never meets a condition on it.

    Attributes:
        bbox: (west, south, east, north) in degrees, WGS84; west > east crosses the antimeridian. A tile
            matches when its box touches this one.
        time: see :data:`TimeRange`.
        sensor: a sensor id.

    Raises:
        GridError: ``bbox`` is not a box.
        ArchiveError: a time without a zone, or a start after the end.
    """

    bbox: Box | None = None
    time: TimeRange | None = None
    sensor: str | None = None

    def __post_init__(self) -> None:
        """Check the conditions; see the class for what is refused."""
        if self.bbox is not None:
            object.__setattr__(self, "bbox", check_box(self.bbox))
        if self.time is not None:
            _check_time(self.time)

    def mask(
        self,
        boxes: npt.NDArray[np.float64],
        times_ms: npt.NDArray[np.int64],
        has_time: npt.NDArray[np.bool_],
        sensor_codes: npt.NDArray[np.int32],
        sensor_names: list[str],
    ) -> npt.NDArray[np.bool_] | None:
        """Which rows meet the conditions; ``None`` when there is no condition.

        Args:
            boxes: ``[4, N]`` west, south, east, north; NaN where a row has no place.
            times_ms: ``[N]`` milliseconds since 1970-01-01 UTC.
            has_time: ``[N]``.
            sensor_codes: ``[N]`` indices into ``sensor_names``.
            sensor_names: the sensor ids in the archive.

        Returns:
            ``[N]`` bool, or ``None``.

        Raises:
            ArchiveError: no row of the archive has the sensor asked for.
        """
        masks = []
        if self.sensor is not None:
            if self.sensor not in sensor_names:
                raise ArchiveError(
                    "sensor",
                    got=repr(self.sensor),
                    expected=f"one in this archive: {', '.join(sorted(sensor_names)) or 'it is empty'}",
                    next_step="Choose one of them, or leave the condition out.",
                )
            masks.append(sensor_codes == sensor_names.index(self.sensor))
        if self.bbox is not None:
            masks.append(bbox_mask(boxes[0], boxes[1], boxes[2], boxes[3], self.bbox))
        if self.time is not None:
            start, end = self.time
            masks.append(has_time)
            if start is not None:
                masks.append(times_ms >= _milliseconds(start))
            if end is not None:
                masks.append(times_ms <= _milliseconds(end))
        return np.logical_and.reduce(masks) if masks else None

    def describe(self) -> dict[str, object]:
        """The conditions as plain values for an export; those that are not set are left out."""
        described: dict[str, object] = {}
        if self.bbox is not None:
            described["bbox"] = list(self.bbox)
        if self.time is not None:
            described["time"] = [None if t is None else t.isoformat() for t in self.time]
        if self.sensor is not None:
            described["sensor"] = self.sensor
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
