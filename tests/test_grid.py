"""Specification of ``alidade.imagery.grid``: places and true distances of pixels."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Proj

from alidade.errors import GridError
from alidade.imagery.grid import Grid

# slow, busy machines are no failure, and every run draws the same cases
PROPERTY = settings(deadline=None, derandomize=True)


def north_up(crs: str, gsd: float, x: float, y: float, size: int = 512) -> Grid:
    return Grid(crs=CRS(crs), transform=Affine(gsd, 0, x, 0, -gsd, y), width=size, height=size)


def around(crs: str, gsd: float, lon: float, lat: float, size: int = 512) -> Grid:
    """A north-up grid whose centre lies at a place."""
    x, y = Proj(crs)(lon, lat)
    half = gsd * size / 2
    return north_up(crs, gsd, x - half, y + half, size)


def rotated(grid: Grid, degrees: float) -> Grid:
    """The same pixels turned about the grid's first corner."""
    t, cos, sin = grid.transform, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = Affine(t.a * cos, -t.e * sin, t.c, t.a * sin, t.e * cos, t.f)
    return Grid(crs=grid.crs, transform=turned, width=grid.width, height=grid.height)


PLACES = st.tuples(st.floats(-179.9, 179.9), st.floats(-80, 80))


def utm(lon: float, lat: float) -> str:
    zone = int((lon + 180) // 6) + 1
    return f"EPSG:{32600 + zone if lat >= 0 else 32700 + zone}"


@PROPERTY
@given(PLACES, st.sampled_from([0.3, 10.0, 60.0]))
def test_utm_gsd_is_the_nominal_one_divided_by_the_projection_s_scale(place, gsd):
    grid = around(utm(*place), gsd, *place)
    factors = Proj(utm(*place)).get_factors(*place)
    along, down = grid.gsd_m()
    assert along == pytest.approx(gsd / factors.parallel_scale, rel=2e-6)
    assert down == pytest.approx(gsd / factors.meridional_scale, rel=2e-6)


def test_utm_gsd_near_the_middle_of_a_zone():
    along, down = around("EPSG:32611", 10.0, -117.0, 34.0).gsd_m()
    assert 9.996 <= along <= 10.01
    assert 9.996 <= down <= 10.01


def test_web_mercator_zoom_15_at_40_degrees():
    zoom_15 = 2 * math.pi * 6378137.0 / 256 / 2**15
    along, down = around("EPSG:3857", zoom_15, -105.0, 40.0, size=256).gsd_m()
    assert along == pytest.approx(3.66, abs=0.01)
    # the spherical projection is not conformal on the ellipsoid: 0.4 % between the directions here
    assert down == pytest.approx(3.65, abs=0.01)


@pytest.mark.parametrize("lat", [32.6, 34.0, 35.5])
def test_world_mercator_over_california(lat):
    along, down = around("EPSG:3395", 10.0, -119.0, lat).gsd_m()
    assert along == pytest.approx(down, rel=1e-6)
    assert along == pytest.approx(10.0 * math.cos(math.radians(lat)), rel=4e-3)
    assert 8.1 <= along <= 8.5


def test_degrees_shrink_with_the_latitude_along_a_row_only():
    along, down = around("EPSG:4326", 1e-4, 11.0, 60.0).gsd_m()
    assert along == pytest.approx(5.58, abs=0.01)
    assert down == pytest.approx(11.14, abs=0.01)


def test_feet_are_not_metres():
    grid = around("EPSG:2227", 1.0, -122.0, 37.5)
    assert grid.mean_gsd_m() == pytest.approx(0.3048, rel=1e-3)


@PROPERTY
@given(st.floats(-180, 180))
def test_turning_a_grid_keeps_its_gsd(degrees):
    grid = north_up("EPSG:32633", 10.0, 500_000.0, 5_000_000.0, size=64)
    turned = rotated(grid, degrees)
    assert turned.gsd_m() == pytest.approx(grid.gsd_m(), rel=1e-5)


def test_a_bottom_up_grid_has_the_gsd_of_its_mirror_image():
    top_down = north_up("EPSG:32633", 10.0, 500_000.0, 5_000_000.0)
    mirror = Affine(10.0, 0, 500_000.0, 0, 10.0, 5_000_000.0 - 5120.0)
    bottom_up = Grid(crs=top_down.crs, transform=mirror, width=512, height=512)
    assert bottom_up.gsd_m() == pytest.approx(top_down.gsd_m(), rel=1e-9)
    assert bottom_up.footprint().bbox() == pytest.approx(top_down.footprint().bbox(), abs=1e-9)


def test_pixels_that_are_not_square():
    grid = Grid(crs=CRS("EPSG:32633"), transform=Affine(20, 0, 5e5, 0, -5, 5e6), width=10, height=10)
    along, down = grid.gsd_m()
    assert (along, down) == pytest.approx((20.0, 5.0), rel=5e-4)
    assert grid.mean_gsd_m() == pytest.approx(10.0, rel=5e-4)


@PROPERTY
@given(
    PLACES,
    st.sampled_from(["utm", "EPSG:3857", "EPSG:3395", "EPSG:4326", "EPSG:4269"]),
    st.floats(-180, 180),
    st.lists(st.tuples(st.floats(-50, 600), st.floats(-50, 600)), min_size=1, max_size=8),
)
def test_place_and_pixel_are_inverse_to_each_other(place, crs, turn, pixels):
    crs = utm(*place) if crs == "utm" else crs
    gsd = 1e-4 if CRS(crs).is_geographic else 10.0
    grid = rotated(around(crs, gsd, *place), turn)
    rows, cols = np.array(pixels).T
    lon, lat = grid.to_lonlat(rows, cols)
    assert np.abs(lon).max() <= 180.0
    back_rows, back_cols = grid.from_lonlat(lon, lat)
    assert np.abs(back_rows - rows).max() < 1e-6
    assert np.abs(back_cols - cols).max() < 1e-6


@pytest.mark.parametrize(
    ("crs", "gsd", "x", "y"),
    [
        ("EPSG:4326", 1e-3, 179.9, 10.0),
        ("EPSG:4326", 1e-3, -180.1, 10.0),
        ("EPSG:4326", 1e-3, 190.0, 10.0),
        ("EPSG:3857", 100.0, 20_037_508.34 - 10_000, 5e6),
        ("EPSG:32601", 100.0, 250_000.0, 6_100_000.0),
        ("EPSG:3413", 100.0, -25_600.0, 25_600.0),
    ],
)
def test_round_trip_over_the_antimeridian_and_the_pole(crs, gsd, x, y):
    grid = north_up(crs, gsd, x, y)
    rows, cols = np.meshgrid(np.linspace(0, 512, 9), np.linspace(0, 512, 9))
    lon, lat = grid.to_lonlat(rows, cols)
    assert lon.shape == (9, 9)
    assert np.abs(lon).max() <= 180.0
    back_rows, back_cols = grid.from_lonlat(lon, lat)
    np.testing.assert_allclose(back_rows, rows, atol=1e-6)
    np.testing.assert_allclose(back_cols, cols, atol=1e-6)


def test_places_that_a_projection_does_not_have_are_nan():
    grid = north_up("ESRI:54009", 1000.0, 0.0, 0.0)
    lon, lat = grid.to_lonlat([0.0, -5_000.0], [0.0, 18_000.0])
    assert np.isfinite([lon[0], lat[0]]).all()
    assert np.isnan([lon[1], lat[1]]).all()
    rows, cols = around("EPSG:2227", 1.0, -122.0, 37.5).from_lonlat([-122.0, 0.0], [37.5, -90.0])
    assert (rows[0], cols[0]) == pytest.approx((256.0, 256.0), abs=0.01)
    assert np.isnan([rows[1], cols[1]]).all()


def test_the_first_corner_is_the_origin_of_the_transform():
    grid = north_up("EPSG:4326", 0.5, 10.0, 50.0, size=4)
    lon, lat = grid.to_lonlat([0, 0.5], [0, 0.5])
    assert lon.tolist() == [10.0, 10.25]
    assert lat.tolist() == [50.0, 49.75]


WINDOWS = st.tuples(st.integers(-300, 600), st.integers(-300, 600), st.integers(1, 600), st.integers(1, 600))


@PROPERTY
@given(WINDOWS, st.floats(-180, 180))
def test_a_window_s_pixels_lie_where_they_lay_in_the_whole(window, turn):
    grid = rotated(north_up("EPSG:32633", 10.0, 500_000.0, 5_000_000.0), turn)
    row, col, height, width = window
    part = grid.window(row, col, height, width)
    assert (part.height, part.width) == (height, width)
    for r, c in [(0, 0), (height, width), (0.5, width - 0.5)]:
        assert part.transform @ (c, r) == pytest.approx(grid.transform @ (col + c, row + r), abs=1e-6)
    np.testing.assert_allclose(part.to_lonlat(1, 2), grid.to_lonlat(row + 1, col + 2), atol=1e-11)


@PROPERTY
@given(WINDOWS)
def test_in_utm_a_window_has_the_gsd_of_the_whole(window):
    grid = north_up("EPSG:32633", 10.0, 500_000.0, 5_000_000.0)
    assert grid.window(*window).gsd_m() == pytest.approx(grid.gsd_m(), rel=1e-5)


@PROPERTY
@given(WINDOWS, st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 50), st.integers(1, 50)))
def test_a_window_of_a_window_is_a_window(outer, inner):
    grid = north_up("EPSG:32633", 10.0, 500_000.0, 5_000_000.0)
    twice = grid.window(*outer).window(*inner)
    assert twice == grid.window(outer[0] + inner[0], outer[1] + inner[1], *inner[2:])


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_window_is_refused(size):
    with pytest.raises(GridError, match=r"grid size: got .* expected at least one pixel each way"):
        north_up("EPSG:32633", 10.0, 5e5, 5e6).window(0, 0, *size)


@pytest.mark.parametrize("spelling", ["WKT1_GDAL", "WKT1_ESRI", "WKT2_2015", "WKT2_2019"])
def test_equal_grids_have_equal_hashes_however_their_crs_is_spelled(spelling):
    by_code = north_up("EPSG:32633", 10.0, 5e5, 5e6)
    wkt = CRS("EPSG:32633").to_wkt(spelling)
    by_text = Grid(crs=CRS.from_wkt(wkt), transform=by_code.transform, width=512, height=512)
    assert by_code == by_text
    assert hash(by_code) == hash(by_text)
    assert len({by_code, by_text}) == 1


def test_grids_that_differ_anywhere_are_not_equal():
    grid = north_up("EPSG:32633", 10.0, 5e5, 5e6)
    others = [
        north_up("EPSG:32634", 10.0, 5e5, 5e6),
        north_up("EPSG:32633", 10.0, 5e5, 5e6 + 1e-3),
        north_up("EPSG:32633", 10.0, 5e5, 5e6, size=511),
        Grid(crs=grid.crs, transform=grid.transform, width=512, height=512, gsd_override_m=10.0),
        Grid(crs=None, transform=grid.transform, width=512, height=512),
    ]
    assert all(grid != other for other in others)


def test_without_crs_the_gsd_has_to_be_told():
    grid = Grid(crs=None, transform=Affine.identity(), width=8, height=8)
    with pytest.raises(GridError, match=r"CRS: got none, expected .* Pass the metres per pixel with --gsd"):
        grid.gsd_m()
    assert grid.footprint() is None
    with pytest.raises(GridError, match=r"--gsd"):
        grid.to_lonlat(0, 0)


def test_a_told_gsd_holds_for_every_window_and_goes_before_the_crs():
    grid = Grid(crs=None, transform=Affine.identity(), width=8, height=8, gsd_override_m=0.3)
    assert grid.gsd_m() == (0.3, 0.3)
    assert grid.window(2, 3, 4, 4).mean_gsd_m() == pytest.approx(0.3)
    placed = Grid(
        crs=CRS("EPSG:32633"),
        transform=Affine(10, 0, 5e5, 0, -10, 5e6),
        width=8,
        height=8,
        gsd_override_m=12.0,
    )
    assert placed.gsd_m() == (12.0, 12.0)


@pytest.mark.parametrize("gsd", [0.0, -10.0, 0.005, 20_000.0, math.nan, math.inf])
def test_an_absurd_told_gsd_is_refused(gsd):
    with pytest.raises(GridError, match=r"given ground sample distance: got .* expected 0.01 to 10000 m"):
        Grid(crs=None, transform=Affine.identity(), width=8, height=8, gsd_override_m=gsd)


@pytest.mark.parametrize(("crs", "gsd"), [("EPSG:4326", 0.5), ("EPSG:32633", 0.002), ("EPSG:4326", 1e-8)])
def test_an_absurd_measured_gsd_is_refused(crs, gsd):
    with pytest.raises(GridError, match=r"ground sample distance: got .* pass the right distance with --gsd"):
        around(crs, gsd, 15.0, 45.0).gsd_m()


@pytest.mark.parametrize(
    "coefficients",
    [
        (math.nan, 0, 0, 0, -10, 0),
        (10, 0, math.inf, 0, -10, 0),
        (0, 0, 0, 0, 0, 0),
        (10, 0, 0, 0, 0, 0),
        (10, 20, 0, 5, 10, 0),
    ],
)
def test_a_transform_without_area_or_number_is_refused(coefficients):
    with pytest.raises(GridError, match=r"transform: got .* under which a pixel has an area"):
        Grid(crs=CRS("EPSG:32633"), transform=Affine(*coefficients), width=8, height=8)


def test_a_crs_without_a_place_is_refused():
    with pytest.raises(GridError, match=r"transform: got the identity beside the CRS .*--gsd"):
        Grid(crs=CRS("EPSG:32633"), transform=Affine.identity(), width=8, height=8)


@pytest.mark.parametrize("crs", ['LOCAL_CS["bench",UNIT["metre",1]]', "IAU_2015:49900"])
def test_a_crs_that_is_not_of_this_earth_is_refused(crs):
    grid = north_up(crs, 0.01, 1.0, 1.0)
    with pytest.raises(GridError, match=r"tied to the Earth"):
        grid.gsd_m()


@pytest.mark.parametrize("crs", ["ESRI:54008", "ESRI:54009"])
def test_pixels_off_the_earth_are_refused_though_the_projection_keeps_silent(crs):
    grid = north_up(crs, 1000.0, 17_000_000.0, 5_000_000.0)
    with pytest.raises(GridError, match=r"transform: got pixels off the Earth in the CRS 'World_"):
        grid.gsd_m()
    with pytest.raises(GridError, match=r"pixels off the Earth"):
        grid.footprint()


def test_a_grid_over_the_rim_of_a_world_map_has_no_footprint_and_its_inner_part_has():
    rim = north_up("ESRI:54008", 1000.0, 13_000_000.0, 5_200_000.0, size=1200)
    with pytest.raises(GridError, match=r"pixels off the Earth"):
        rim.footprint()
    assert rim.window(600, 0, 100, 100).footprint().bbox()[0] > 100.0


def test_degrees_beyond_the_pole_are_refused():
    with pytest.raises(GridError, match=r"pixels off the Earth"):
        north_up("EPSG:4326", 1e-3, 10.0, 95.0).footprint()


def test_gsd_is_the_length_a_surveyor_measures_over_many_pixels():
    grid = around("EPSG:32633", 10.0, 15.5, 48.0, size=100)
    lon, lat = grid.to_lonlat([50, 50], [0, 100])
    _, _, length = Geod(ellps="WGS84").inv(lon[0], lat[0], lon[1], lat[1])
    assert grid.gsd_m()[0] == pytest.approx(length / 100, rel=1e-7)


def test_threads_get_the_same_places():
    rows, cols = np.mgrid[0:512:8, 0:512:8]
    grids = [around(crs, 10.0, 15.0, 45.0) for crs in ("EPSG:32633", "EPSG:3857", "EPSG:3035")] * 8
    alone = [grid.to_lonlat(rows, cols) for grid in grids]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda grid: grid.to_lonlat(rows, cols), grids))
    np.testing.assert_array_equal(alone, together)


@settings(PROPERTY, max_examples=30)
@given(st.floats(-179, 179), st.floats(-70, 70), st.floats(-180, 180))
def test_the_footprint_holds_the_pixels_and_nothing_far_outside(lon, lat, turn):
    grid = rotated(around(utm(lon, lat), 10.0, lon, lat), turn)
    outline = grid.footprint()
    inside = grid.to_lonlat([5, 256, 507, 100], [5, 256, 507, 400])
    outside = grid.to_lonlat([-5, 517, 256, 256], [256, 256, -5, 517])
    assert all(outline.contains(x, y) for x, y in zip(*inside, strict=True))
    assert not any(outline.contains(x, y) for x, y in zip(*outside, strict=True))


def test_small_footprints_are_corners_and_large_ones_follow_the_edge():
    small = around("EPSG:32633", 10.0, 15.0, 60.0, size=512).footprint()
    large_grid = around("EPSG:32633", 10.0, 15.0, 60.0, size=30_000)
    large = large_grid.footprint()
    assert len(small.rings[0]) == 5
    assert len(large.rings[0]) == 33
    # the middle of the northern edge lies 2.7 km north of the straight line between its corners
    lon, lat = large_grid.to_lonlat([30], [15_000])
    corners_only = max(y for _, y in (large.rings[0][i] for i in (0, 8, 16, 24)))
    assert lat[0] > corners_only + 0.02
    assert large.contains(lon[0], lat[0])


def test_a_grid_over_the_antimeridian_gives_two_rings():
    grid = around("EPSG:32601", 100.0, -179.9, 65.0, size=1000)
    outline = grid.footprint()
    west, south, east, north = outline.bbox()
    assert len(outline.rings) == 2
    assert 178 < west < 180
    assert -180 < east < -178
    assert south < 65 < north
    rows, cols = np.mgrid[50:1000:100, 50:1000:100]
    lon, lat = grid.to_lonlat(rows.ravel(), cols.ravel())
    assert lon.min() < -179
    assert lon.max() > 179
    assert all(outline.contains(x, y) for x, y in zip(lon, lat, strict=True))
    assert not outline.contains(0.0, 65.0)


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3413", 90.0), ("EPSG:3031", -90.0)])
@pytest.mark.parametrize("corner", [(-25_600.0, 25_600.0), (0.0, 0.0), (-51_200.0, 25_600.0), (-9_000.0, -2.0)])
def test_a_grid_that_holds_or_touches_a_pole_is_covered_by_a_cap(crs, pole, corner):
    grid = north_up(crs, 100.0, *corner)
    outline = grid.footprint()
    west, south, east, north = outline.bbox()
    assert (west, east) == (-180.0, 180.0)
    assert pole in (south, north)
    assert south * north > 0
    assert outline.centre() == (0.0, pole)
    lon, lat = grid.to_lonlat(*np.mgrid[0:513:32, 0:513:32].reshape(2, -1))
    assert all(outline.contains(x, y * (1 + 1e-12)) for x, y in zip(lon, lat, strict=True) if abs(y) < 89.99)


def test_a_grid_over_more_than_a_hemisphere_is_the_cap_of_its_own_pole():
    outline = north_up("EPSG:3413", 14_000.0, -14_336_000.0, 14_336_000.0, size=2048).footprint()
    assert outline.bbox()[3] == 90.0
    assert -30.0 < outline.bbox()[1] < -20.0


def test_a_grid_beside_a_pole_keeps_its_own_shape():
    outline = north_up("EPSG:3413", 100.0, 50_000.0, 0.0).footprint()
    west, south, east, north = outline.bbox()
    # right of the pole lies 45 degrees east here; the corner farthest down is at atan(51.2 / 50)
    assert east == pytest.approx(45.0)
    assert west == pytest.approx(45.0 - math.degrees(math.atan2(51.2, 50.0)))
    assert north == pytest.approx(89.55, abs=0.02)
    assert south == pytest.approx(88.95, abs=0.02)


@pytest.mark.parametrize("west", [-180.0, 0.0, -180.05])
def test_a_grid_around_the_whole_earth_is_one_band(west):
    grid = Grid(crs=CRS("EPSG:4326"), transform=Affine(0.1, 0, west, 0, -0.1, 90), width=3601, height=1800)
    assert grid.footprint().bbox() == (-180.0, -90.0, 180.0, 90.0)
    assert len(grid.footprint().rings) == 1
