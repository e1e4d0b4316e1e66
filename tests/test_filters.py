"""Conditions on columns: ground resolution, polygons beside the others, and how a user writes and reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from alidade.errors import AlidadeError, ArchiveError, GridError
from alidade.imagery.footprint import Footprint
from alidade.imagery.polygon import parse_geojson
from alidade.search.filters import Columns, Filter, parse_gsd
from alidade.search.schema import TileRow, rows_to_table

START = datetime(2020, 1, 1, tzinfo=UTC)
GSDS = (0.3, 0.6, 9.996, 10.004, 10.06, 30.0)
TRIANGLE = {"type": "Polygon", "coordinates": [[[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [0.0, 0.0]]]}


def rows(count: int = 600) -> list[TileRow]:
    """Slanted tiles on a lattice of degrees, of several sensors, days and resolutions; some without place or time."""
    made = []
    for i in range(count):
        x, y = -10 + i % 30, -5 + i // 30
        made.append(
            TileRow(
                id=f"row-{i:04d}",
                footprint=None
                if i == 7
                else Footprint.around([x, x + 0.5, x + 0.6, x + 0.1], [y, y, y + 0.5, y + 0.5]),
                time=None if i == 8 else START + timedelta(days=i),
                sensor=("naip-rgb", "sentinel-1-rtc", "sentinel-2-l2a")[i % 3],
                gsd_m=GSDS[i % len(GSDS)],
                valid_share=1.0,
                cloud_share=None,
                source="s",
                source_id="s",
                row=0,
                col=i,
                height=1,
                width=1,
                embedding=np.array([1.0, i]),
            )
        )
    return made


@pytest.fixture(scope="module")
def columns() -> Columns:
    table = rows_to_table(rows(), model="tiny-01", dim=2)
    # as an archive has it: in pieces, sensors as numbers of a dictionary
    pieces = [table.slice(0, 250), table.slice(250, 1), table.slice(251)]
    encoded = [p.set_column(4, "sensor", p["sensor"].combine_chunks().dictionary_encode()) for p in pieces]
    return Columns.of(pa.concat_tables(encoded).unify_dictionaries())


def met(conditions: Filter, columns: Columns) -> set[int]:
    mask = conditions.mask(columns)
    assert mask is not None
    return set(np.flatnonzero(mask).tolist())


def test_columns_are_what_the_rows_say(columns: Columns) -> None:
    told = rows()
    assert np.isnan(columns.boxes[:, 7]).all()
    assert columns.boxes[:, 8].tolist() == pytest.approx(list(told[8].footprint.bbox()))  # type: ignore[union-attr]
    assert [columns.sensor_names[code] for code in columns.sensor_codes] == [r.sensor for r in told]
    assert np.flatnonzero(~columns.has_time).tolist() == [8]
    assert columns.times_ms[9] == (told[9].time - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)  # type: ignore[operator]
    np.testing.assert_array_equal(columns.gsd_m, np.array([r.gsd_m for r in told], np.float32))
    footprints = columns.wkb(np.array([599, 7, 250]))
    assert footprints[0] == told[599].footprint.wkb()  # type: ignore[union-attr]
    assert footprints[1] is None
    assert len(columns.wkb(np.array([], dtype=np.intp))) == 0


def test_columns_of_a_plain_and_of_an_empty_table() -> None:
    table = rows_to_table(rows(9), model="tiny-01", dim=2)
    assert met(Filter(sensor="naip-rgb"), Columns.of(table.drop_columns(["embedding"]))) == {0, 3, 6}
    nothing = Columns.of(table.slice(0, 0))
    polygon = parse_geojson(TRIANGLE)
    assert met(Filter(polygon=polygon, gsd=(1, 2)), nothing) == set()
    assert Filter().mask(nothing) is None


def test_no_condition_is_no_mask(columns: Columns) -> None:
    assert Filter().mask(columns) is None


@pytest.mark.parametrize(
    ("gsd", "found"),
    [
        ((0.3, 0.6), {0.3, 0.6}),
        ((None, 0.6), {0.3, 0.6}),
        ((0.6, None), {0.6, 9.996, 10.004, 10.06, 30.0}),
        ((10, 10), {9.996, 10.004}),
        ((0.31, 9.9), {0.6}),
        ((31, 500), set()),
    ],
)
def test_ground_resolution_as_every_table_shows_it(
    columns: Columns, gsd: tuple[float | None, float | None], found: set[float]
) -> None:
    expected = {i for i in range(600) if GSDS[i % len(GSDS)] in found}
    assert met(Filter(gsd=gsd), columns) == expected


def test_limits_are_numbers_that_a_database_can_use() -> None:
    assert Filter().gsd_limits == (0.0, math.inf)
    assert Filter(gsd=(None, 10)).gsd_limits == (0.0, pytest.approx(10.05))
    assert Filter(gsd=(10, None)).gsd_limits == (pytest.approx(9.95), math.inf)


def test_all_conditions_together_are_the_rows_that_meet_each(columns: Columns) -> None:
    parts = {
        "bbox": (-5.0, 0.0, 15.0, 9.0),
        "time": (START + timedelta(days=100), START + timedelta(days=500)),
        "sensor": "sentinel-2-l2a",
        "polygon": parse_geojson(TRIANGLE),
        "gsd": (0.5, 12.0),
    }
    alone = [met(Filter(**{name: value}), columns) for name, value in parts.items()]  # type: ignore[arg-type]
    together = met(Filter(**parts), columns)  # type: ignore[arg-type]
    assert together == set.intersection(*alone)
    assert 5 < len(together) < min(map(len, alone))


def test_a_polygon_looks_at_the_footprint_and_not_at_its_box(columns: Columns) -> None:
    # below and left of the diagonal; boxes of rows on it touch, their lower left corners are what decides
    inside = met(Filter(polygon=parse_geojson(TRIANGLE)), columns)
    expected = set()
    for i, row in enumerate(rows()):
        if row.footprint is None:
            continue
        corners = row.footprint.rings[0]
        nearest = min(x + y for x, y in corners)
        right, top = max(x for x, _ in corners), max(y for _, y in corners)
        if right >= 0 and top >= 0 and nearest <= 20:
            expected.add(i)
    assert inside == expected


def test_a_sensor_that_no_row_has_is_named(columns: Columns) -> None:
    with pytest.raises(ArchiveError, match="sensor: got 'spot-7', expected one in this archive: naip-rgb, sentinel-1"):
        Filter(sensor="spot-7").mask(columns)


def test_conditions_as_plain_values() -> None:
    polygon = parse_geojson(TRIANGLE)
    described = Filter(polygon=polygon, gsd=(None, 10.0), sensor="naip-rgb").describe()
    assert described == {"sensor": "naip-rgb", "polygon": TRIANGLE, "gsd": [None, 10.0]}
    assert parse_geojson(described["polygon"]) == polygon
    assert Filter(polygon=polygon) == Filter(polygon=parse_geojson(TRIANGLE))
    assert hash(Filter(polygon=polygon)) == hash(Filter(polygon=parse_geojson(TRIANGLE)))
    assert Filter().describe() == {}


def test_how_a_user_writes_a_resolution() -> None:
    assert parse_gsd("0.3,1") == (0.3, 1.0)
    assert parse_gsd(" 0.3 , 1 ") == (0.3, 1.0)
    assert parse_gsd("10") == (10.0, 10.0)
    assert parse_gsd("10,") == (10.0, None)
    assert parse_gsd("..,10") == (None, 10.0)


@pytest.mark.parametrize("text", ["", ",", "..,..", "fine", "1,2,3", "3,1", "0,1", "-1,", "nan", "1,inf", "1;2"])
def test_what_is_no_resolution(text: str) -> None:
    with pytest.raises(GridError, match="ground resolution: got .*expected MIN,MAX in metres") as caught:
        parse_gsd(text)
    assert isinstance(caught.value, AlidadeError)


@pytest.mark.parametrize("gsd", [(None, None), (2.0, 1.0), (0.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_range_that_is_none(gsd: tuple[float | None, float | None]) -> None:
    with pytest.raises(GridError, match="ground resolution: got"):
        Filter(gsd=gsd)
