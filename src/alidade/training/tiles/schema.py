"""What a tile store holds: views, samples, and how both are written down."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alidade.errors import AlidadeError, SensorError
from alidade.imagery.bands import Encoding, Sensor, Unit
from alidade.imagery.sensors import sensor as sensor_of

FORMAT = 1
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Days are counted from here, as the models count them."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DAY = 86_400.0
TIME = pa.timestamp("us", tz="UTC")


class StoreError(AlidadeError):
    """A store of training tiles that is missing, damaged, of other views, or that would leak between splits."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """One sensor's part in every sample of a store.

    Attributes:
        sensor: the sensor's id, see ``alidade.imagery.sensors``.
        bands: names of the ``C`` bands in the order of the pixels.
        side: pixels per side of the square.
        dtype: NumPy's name of the stored type, such as ``"uint16"``.
        encodings: how each band's stored numbers become a unit; offsets are known. ``nodata`` says what files
            used; in a store the valid mask alone tells where there is data.

    Raises:
        StoreError: parts that do not fit together, or an offset that is unknown.
    """

    sensor: str
    bands: tuple[str, ...]
    side: int
    dtype: str
    encodings: tuple[Encoding, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        told = f"view of {self.sensor}"
        if not len(self.bands) == len(self.encodings) > 0 or len(set(self.bands)) != len(self.bands):
            bands = ", ".join(self.bands) or "none"
            raise StoreError(
                f"{told}: bands", got=f"{bands} with {len(self.encodings)} encodings",
                expected="at least one band, each once, and an encoding for each", next_step="Name the bands so.",
            )  # fmt: skip
        if self.side < 1 or np.dtype(self.dtype).kind not in "uif":
            raise StoreError(
                f"{told}: pixels", got=f"{self.side} px of {self.dtype}", expected="at least 1 px of numbers",
                next_step="Pass another side or type.",
            )  # fmt: skip
        if any(e.offset is None for e in self.encodings):
            raise StoreError(
                f"{told}: encodings", got="an offset that is unknown", expected="known offsets",
                next_step="Resolve it first (open_raster does).",
            )  # fmt: skip

    @property
    def measured(self) -> tuple[int, ...]:
        """Places of the bands that measure something; class bands are no input of a model."""
        return tuple(i for i, e in enumerate(self.encodings) if e.unit is not Unit.CLASS)

    def the_sensor(self) -> Sensor:
        """The catalogue's entry.

        Raises:
            SensorError: the sensor is not in the catalogue.
        """
        return sensor_of(self.sensor)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleView:
    """One sensor over one square.

    Attributes:
        pixels: stored numbers ``[C, side, side]`` of the view's dtype.
        valid: ``[side, side]`` bool.
        gsd_m: true ground metres per pixel along a row and down a column.
        time: moment of acquisition in UTC, or ``None``.
        cloud_share: share of the valid pixels under cloud, 0 to 1; ``None`` where it cannot be told.
        source: where the pixels come from.
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    gsd_m: tuple[float, float]
    time: datetime | None
    source: str
    cloud_share: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Every sensor there is over one ground square.

    Attributes:
        sample_id: unique in the store.
        square: the ground's key; two samples with one key lie on the same ground. Squares of the UTM grid have
            ``"EPSG_level_col_row"`` (see ``alidade.training.tiles.grid``); other layouts use keys of their own.
        split: ``"train"``, ``"val"``, ``"test"`` or any other name.
        views: by view name; a view that is missing is left out.
        lon, lat: centre in WGS84 degrees, ``None`` where the place is unknown.
        bbox: (west, south, east, north) in degrees, west > east across the antimeridian (RFC 7946 5.2).
    """

    sample_id: str
    square: str
    split: str
    views: Mapping[str, SampleView]
    lon: float | None = None
    lat: float | None = None
    bbox: tuple[float, float, float, float] | None = None

    @property
    def date_gap_days(self) -> float | None:
        """The largest gap between any two views; 0 with one view, ``None`` when a time is unknown."""
        times = [v.time for v in self.views.values()]
        known = [t for t in times if t is not None]
        if not known or len(known) < len(times):
            return None
        return (max(known) - min(known)).total_seconds() / _DAY

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels and masks that are there."""
        return sum(v.pixels.nbytes + v.valid.nbytes for v in self.views.values())


def check_sample(sample: Sample, views: Mapping[str, ViewSpec]) -> None:
    """Refuse a sample that does not fit the store's views.

    Raises:
        StoreError: no view, an unknown one, or another shape, type, ground resolution or time zone.
    """
    if not sample.views:
        raise _misfit(sample.sample_id, "no view at all", f"at least one of {', '.join(views)}")
    for name, view in sample.views.items():
        told = f"{sample.sample_id}: view {name}"
        if name not in views:
            raise _misfit(told, "a view that the store has not", f"one of {', '.join(views)}")
        spec = views[name]
        shape = (len(spec.bands), spec.side, spec.side)
        if view.pixels.shape != shape or view.pixels.dtype != np.dtype(spec.dtype):
            raise _misfit(told, f"{view.pixels.dtype} {view.pixels.shape}", f"{spec.dtype} {shape}")
        if view.valid.shape != shape[1:] or view.valid.dtype != np.bool_:
            raise _misfit(told, f"a mask of {view.valid.dtype} {view.valid.shape}", f"bool {shape[1:]}")
        if not all(math.isfinite(g) and g > 0 for g in view.gsd_m):
            raise _misfit(told, f"a ground resolution of {view.gsd_m}", "metres above zero")
        if view.time is not None and view.time.tzinfo is None:
            raise _misfit(told, f"the time {view.time} without a zone", "a time in UTC")


def _misfit(what: str, got: str, expected: str) -> StoreError:
    return StoreError(what, got=got, expected=expected, next_step="Make samples that fit the store's views.")


def check_view_names(views: Mapping[str, ViewSpec]) -> None:
    """Names become file names and column names.

    Raises:
        StoreError: no view, or a name that is not made of small letters, digits, ``_`` and ``-``.
    """
    bad = [name for name in views if not _NAME.fullmatch(name)]
    if bad or not views:
        raise StoreError(
            "views", got=", ".join(map(repr, bad)) or "none",
            expected="names of small letters, digits, - and _", next_step="Name the views so.",
        )  # fmt: skip


def index_schema(views: Mapping[str, ViewSpec]) -> pa.Schema:
    """One row per sample; see the attributes of ``Sample`` and ``SampleView``."""
    text, real = pa.string(), pa.float64()
    fields = [("sample_id", text), ("split", text), ("square", text), ("lon", real), ("lat", real)]
    fields += [(side, real) for side in ("xmin", "ymin", "xmax", "ymax")]
    fields += [("date_gap_days", real)]
    for name in views:
        columns = {"present": pa.bool_(), "gsd_x": real, "gsd_y": real, "time": TIME}
        columns |= {"valid_share": real, "cloud_share": real, "source": text}
        fields += [(f"{name}.{column}", kind) for column, kind in columns.items()]
    return pa.schema(fields)


def index_row(sample: Sample, views: Mapping[str, ViewSpec]) -> dict[str, Any]:
    """The sample's row in the index."""
    row: dict[str, Any] = {
        "sample_id": sample.sample_id, "split": sample.split, "square": sample.square,
        "lon": sample.lon, "lat": sample.lat, "date_gap_days": sample.date_gap_days,
    }  # fmt: skip
    row |= dict(zip(("xmin", "ymin", "xmax", "ymax"), sample.bbox or (None,) * 4, strict=True))
    for name in views:
        view = sample.views.get(name)
        row[f"{name}.present"] = view is not None
        if view is not None:
            row |= {
                f"{name}.gsd_x": view.gsd_m[0], f"{name}.gsd_y": view.gsd_m[1], f"{name}.time": view.time,
                f"{name}.valid_share": float(view.valid.mean()), f"{name}.cloud_share": view.cloud_share,
                f"{name}.source": view.source,
            }  # fmt: skip
    return row


@dataclass(frozen=True, kw_only=True)
class Header:
    """What ``store.json`` says: the views, and the side of the ground square in metres where there is one."""

    views: dict[str, ViewSpec]
    ground_m: float | None

    def to_json(self) -> str:
        """JSON text that ``header_from_json`` reads back."""
        views = {
            name: {
                "sensor": v.sensor, "bands": list(v.bands), "side": v.side, "dtype": v.dtype,
                "encodings": [
                    {"unit": e.unit.value, "scale": e.scale, "offset": e.offset, "nodata": _json_number(e.nodata)}
                    for e in v.encodings
                ],
            }
            for name, v in self.views.items()
        }  # fmt: skip
        fields = {"format": FORMAT, "ground_m": self.ground_m, "views": views}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def header_from_json(text: str, told: str) -> Header:
    """The inverse of ``Header.to_json``.

    Args:
        text: the content of ``store.json``.
        told: the file, for messages.

    Raises:
        StoreError: damaged, or of another version.
    """
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise StoreError(
                f"{told}: format", got=fields["format"], expected=str(FORMAT),
                next_step="Use the version of alidade that made the store, or build it again.",
            )  # fmt: skip
        views = {
            str(name): ViewSpec(
                sensor=str(v["sensor"]),
                bands=tuple(map(str, v["bands"])),
                side=int(v["side"]),
                dtype=str(v["dtype"]),
                encodings=tuple(
                    Encoding(
                        unit=Unit(e["unit"]),
                        scale=float(e["scale"]),
                        offset=float(e["offset"]),
                        nodata=None if e["nodata"] is None else float(e["nodata"]),
                    )
                    for e in v["encodings"]
                ),
            )
            for name, v in fields["views"].items()
        }
        check_view_names(views)
        ground = fields["ground_m"]
        return Header(views=views, ground_m=None if ground is None else float(ground))
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, SensorError) as error:
        raise StoreError(
            told, got=f"{type(error).__name__}: {error}", expected="the description of a tile store in JSON",
            next_step="Restore it from a copy, or build the store again.",
        ) from error  # fmt: skip


def _json_number(value: float | None) -> float | str | None:
    # JSON has no name for these; float() reads the text back
    return str(value) if value is not None and not math.isfinite(value) else value
