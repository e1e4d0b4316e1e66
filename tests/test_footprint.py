"""Specification of ``alidade.imagery.footprint``, with shapely as an independent reader."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from alidade.errors import GridError
from alidade.imagery.footprint import Footprint, bbox_mask, boxes_intersect, normalise_lon

# slow, busy machines are no failure, and every run draws the same cases
PROPERTY = settings(deadline=None, derandomize=True)

LON = st.floats(-180, 180)
# steps of a quarter degree make touching boxes likely
STEPPED_LON = st.integers(-720, 720).map(lambda v: v / 4)
STEPPED_LAT = st.integers(-360, 360).map(lambda v: v / 4)
BOXES = st.tuples(STEPPED_LON, STEPPED_LAT, STEPPED_LON, STEPPED_LAT).map(
    lambda b: (b[0], min(b[1], b[3]), b[2], max(b[1], b[3]))
)


@st.composite
def quadrilaterals(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A convex outline of four corners, anywhere, in either sense of rotation."""
    lon, lat = draw(st.floats(-185, 185)), draw(st.floats(-80, 80))
    width, height, turn = draw(st.floats(0.01, 4)), draw(st.floats(0.01, 4)), draw(st.floats(0, 6.3))
    angles = np.radians([45, 135, 225, 315]) * draw(st.sampled_from([1, -1])) + turn
    return lon + width * np.cos(angles), lat + height * np.sin(angles)


@PROPERTY
@given(quadrilaterals())
def test_the_outline_keeps_its_area_and_its_points_also_over_the_antimeridian(corners):
    lon, lat = corners
    outline = Footprint.around(lon, lat)
    unsplit = shapely.Polygon(zip(lon, lat, strict=True))
    ours = shapely.from_wkb(outline.wkb())
    assert ours.is_valid
    assert ours.area == pytest.approx(unsplit.area, rel=1e-6)
    assert max(abs(x) for ring in outline.rings for x, _ in ring) <= 180.0
    middle = lon.mean(), lat.mean()
    assert outline.contains(*middle)
    for x, y in zip(lon, lat, strict=True):
        assert outline.contains(middle[0] + 0.99 * (x - middle[0]), middle[1] + 0.99 * (y - middle[1]))
        assert not outline.contains(middle[0] + 1.01 * (x - middle[0]), middle[1] + 1.01 * (y - middle[1]))


@PROPERTY
@given(quadrilaterals())
def test_rings_are_closed_and_counter_clockwise(corners):
    for ring in Footprint.around(*corners).rings:
        assert ring[0] == ring[-1]
        assert shapely.LinearRing(ring).is_ccw


@PROPERTY
@given(quadrilaterals())
def test_the_centre_is_the_centroid(corners):
    lon, lat = corners
    expected = shapely.Polygon(zip(lon, lat, strict=True)).centroid
    x, y = Footprint.around(lon, lat).centre()
    assert math.remainder(x - expected.x, 360.0) == pytest.approx(0.0, abs=1e-6)
    assert y == pytest.approx(expected.y, abs=1e-6)


@PROPERTY
@given(quadrilaterals())
def test_the_box_is_the_tightest(corners):
    lon, lat = corners
    west, south, east, north = Footprint.around(lon, lat).bbox()
    span = east - west if west <= east else east + 360.0 - west
    assert span == pytest.approx(lon.max() - lon.min(), abs=1e-6)
    assert math.remainder(west - lon.min(), 360.0) == pytest.approx(0.0, abs=1e-6)
    assert (south, north) == pytest.approx((lat.min(), lat.max()))


@PROPERTY
@given(quadrilaterals(), st.floats(-1.2, 1.2), st.floats(-1.2, 1.2))
def test_contains_agrees_with_shapely(corners, dx, dy):
    lon, lat = corners
    x, y = lon.mean() + dx * np.ptp(lon) / 2, lat.mean() + dy * np.ptp(lat) / 2
    polygon = shapely.Polygon(zip(lon, lat, strict=True))
    if polygon.exterior.distance(shapely.Point(x, y)) > 1e-6:
        assert Footprint.around(lon, lat).contains(x, y) == polygon.contains(shapely.Point(x, y))


@PROPERTY
@given(quadrilaterals())
def test_wkb_and_geojson_say_the_same_to_shapely(corners):
    outline = Footprint.around(*corners)
    from_wkb = shapely.from_wkb(outline.wkb())
    from_json = shapely.from_geojson(json.dumps(outline.geojson()))
    kind = "Polygon" if len(outline.rings) == 1 else "MultiPolygon"
    assert from_wkb.geom_type == from_json.geom_type == kind
    assert shapely.get_coordinates(from_wkb).tolist() == [list(p) for r in outline.rings for p in r]
    assert from_wkb.equals_exact(from_json)


def test_wkb_is_byte_for_byte_what_shapely_writes():
    for box in [(10.0, 20.0, 11.0, 21.0), (179.0, -5.0, -178.0, 5.0)]:
        outline = Footprint.box(box)
        assert outline.wkb() == shapely.to_wkb(shapely.from_wkb(outline.wkb()), byte_order=1)


def test_a_split_outline_meets_itself_at_the_antimeridian():
    outline = Footprint.around([179.0, 181.0, 181.0, 179.0], [0.0, 0.0, 2.0, 2.0])
    assert outline == Footprint.around([179.0, -179.0, -179.0, 179.0], [0.0, 0.0, 2.0, 2.0])
    assert outline.bbox() == (179.0, 0.0, -179.0, 2.0)
    assert [(min(x for x, _ in r), max(x for x, _ in r)) for r in outline.rings] == [(179, 180), (-180, -179)]
    assert abs(outline.centre()[0]) == 180.0
    assert outline.contains(180.0, 1.0)
    assert outline.contains(-180.0, 1.0)
    assert outline.contains(540.0, 1.0)
    assert not outline.contains(0.0, 1.0)


def test_an_outline_that_only_touches_the_antimeridian_is_not_split():
    to_the_west = Footprint.around([179.0, 180.0, 180.0, 179.0], [0.0, 0.0, 2.0, 2.0])
    to_the_east = Footprint.around([180.0, 181.0, 181.0, 180.0], [0.0, 0.0, 2.0, 2.0])
    assert to_the_west.bbox() == (179.0, 0.0, 180.0, 2.0)
    assert to_the_east.bbox() == (-180.0, 0.0, -179.0, 2.0)
    assert to_the_west.contains(-180.0, 1.0)
    assert to_the_east.contains(180.0, 1.0)


def test_a_whole_band_and_a_cap():
    band = Footprint.around(np.arange(0, 361, 45.0), [0.0] * 5 + [10.0] * 4)
    assert band.bbox() == (-180.0, 0.0, 180.0, 10.0)
    cap = Footprint.polar_cap(-70.0, -90)
    assert cap.bbox() == (-180.0, -90.0, 180.0, -70.0)
    assert cap.centre() == (0.0, -90.0)
    assert Footprint.box((-180.0, -90.0, 180.0, 90.0)).centre() == (0.0, 0.0)


def test_contains_is_false_for_what_is_no_number():
    outline = Footprint.box((-180.0, -90.0, 180.0, 90.0))
    assert not outline.contains(math.nan, 0.0)
    assert not outline.contains(0.0, math.inf)


@PROPERTY
@given(BOXES, st.integers(-1440, 1440), STEPPED_LAT)
def test_a_box_contains_its_border(box, x, y):
    west, south, east, north = box
    x = float(normalise_lon(x / 4))
    reach = 360.0 if east - west == 360.0 else (east - west) % 360.0
    expected = south <= y <= north and ((x - west) % 360.0 <= reach)
    if south < north and reach > 0:
        assert Footprint.box(box).contains(x, y) == expected


@PROPERTY
@given(st.floats(-1e4, 1e4))
def test_normalised_longitudes_are_the_same_meridian(lon):
    value = float(normalise_lon(lon))
    assert -180.0 <= value <= 180.0
    assert math.remainder(value - lon, 360.0) == pytest.approx(0.0, abs=1e-9)
    assert float(normalise_lon(value)) == value


def spans(box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Longitudes of a box and of its copies one turn away, as intervals without wrapping."""
    west, _, east, _ = box
    east = east if west <= east else east + 360.0
    return [(west + turn, east + turn) for turn in (-360.0, 0.0, 360.0)]


@PROPERTY
@given(BOXES, BOXES)
def test_boxes_meet_when_any_turn_of_their_intervals_meets(a, b):
    lons = any(w1 <= e2 and w2 <= e1 for w1, e1 in spans(a) for w2, e2 in spans(b))
    expected = lons and a[1] <= b[3] and b[1] <= a[3]
    assert boxes_intersect(a, b) == expected
    assert boxes_intersect(b, a) == expected


@PROPERTY
@given(st.lists(BOXES, min_size=1, max_size=20), BOXES)
def test_the_mask_over_columns_is_the_answer_for_each_box(rows, box):
    mask = bbox_mask(*np.array(rows).T, box)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [boxes_intersect(row, box) for row in rows]


@PROPERTY
@given(st.lists(BOXES, max_size=5), LON, st.floats(-90, 90))
def test_a_place_is_a_box_of_no_size(rows, lon, lat):
    columns = np.array(rows).reshape(-1, 4).T
    mask = bbox_mask(*columns, (lon, lat, lon, lat))
    assert mask.shape == (len(rows),)
    for row, hit in zip(rows, mask, strict=True):
        reach = 360.0 if row[2] - row[0] == 360.0 else (row[2] - row[0]) % 360.0
        assert hit == ((lon - row[0]) % 360.0 <= reach and row[1] <= lat <= row[3])


def test_rows_without_numbers_never_match():
    columns = np.array([[np.nan, 0, 1, 1], [0, np.nan, 1, 1], [0, 0, np.nan, 1], [0, 0, 1, np.nan], [0, 0, 1, 1]]).T
    whole = (-180.0, -90.0, 180.0, 90.0)
    assert bbox_mask(*columns, whole).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(
    "box",
    [(0, 0, 1), (0, 0, 1, math.nan), (-181, 0, 1, 1), (0, 0, 200, 1), (0, -91, 1, 1), (0, 2, 1, 1)],
)
def test_what_is_not_a_box_is_refused(box):
    with pytest.raises(GridError, match=r"box: got .* expected west,south,east,north .* --bbox W,S,E,N"):
        boxes_intersect(box, (0, 0, 1, 1))
    with pytest.raises(GridError, match=r"--bbox"):
        boxes_intersect((0, 0, 1, 1), box)


def test_open_or_missing_rings_are_refused():
    with pytest.raises(GridError, match=r"footprint: got 0 rings"):
        Footprint(())
    with pytest.raises(GridError, match=r"closed rings of at least four points"):
        Footprint((((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),))


def test_corners_off_the_earth_are_refused():
    with pytest.raises(GridError, match=r"corners that have no place on the Earth"):
        Footprint.around([0.0, 1.0, math.nan, 0.0], [0.0, 0.0, 1.0, 1.0])
