"""Specification of ``alidade.imagery.raster``: pixels with declared meaning."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyproj import CRS

from alidade.errors import GridError, RasterError, SensorError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window

# slow, busy machines are no failure, and every run draws the same cases
PROPERTY = settings(deadline=None, derandomize=True)


def band(name: str, common_name: str | None) -> Band:
    return Band(
        name=name,
        common_name=common_name,
        wavelength_um=0.6,
        bandwidth_um=0.03,
        gsd_m=10.0,
        mean=0.1,
        std=0.05,
        source="test",
        statistics_source="test",
    )


REFLECTANCE = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=-0.1, nodata=0)
BANDS = (band("B04", "red"), band("B05", "rededge"), band("B06", "rededge"), band("B08", "nir"))
SENSOR = Sensor(id="test-2", title="Test", kind="optical", unit=Unit.REFLECTANCE, native=REFLECTANCE, bands=BANDS)


def scene(pixels: np.ndarray, encoding: Encoding = REFLECTANCE, **changes: object) -> Raster:
    count, height, width = pixels.shape
    parts: dict[str, object] = {
        "pixels": pixels,
        "bands": BANDS[:count],
        "encodings": (encoding,) * count,
        "valid": np.ones((height, width), dtype=bool),
        "grid": Grid(crs=CRS("EPSG:32633"), transform=Affine(10, 0, 5e5, 0, -10, 5e6), width=width, height=height),
        "sensor": SENSOR,
        "time": datetime(2024, 5, 1, tzinfo=UTC),
        "source": "scene.tif",
    }
    return Raster(**(parts | changes))


def counted(count: int = 4, height: int = 5, width: int = 7) -> Raster:
    """Every number occurs once."""
    return scene(np.arange(1, count * height * width + 1, dtype=np.uint16).reshape(count, height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((5, 7), np.uint16)}, r"shape of pixels: got \(5, 7\)"),
        ({"pixels": np.zeros((4, 0, 7), np.uint16)}, "shape of pixels"),
        ({"pixels": np.zeros((4, 5, 7), np.complex64)}, "type of pixels: got complex64"),
        ({"pixels": np.zeros((4, 5, 7), bool)}, "type of pixels: got bool"),
        ({"bands": BANDS[:3]}, "got 3 bands and 4 encodings, expected 4 of each"),
        ({"encodings": (REFLECTANCE,) * 5}, "got 4 bands and 5 encodings"),
        ({"valid": np.ones((7, 5), bool)}, r"valid mask: got bool \(7, 5\), expected bool \(5, 7\)"),
        ({"valid": np.ones((5, 7), np.uint8)}, "valid mask: got uint8"),
        ({"grid": Grid(crs=None, transform=Affine.identity(), width=7, height=6)}, "grid size"),
        ({"time": datetime(2024, 5, 1)}, "expected a time in UTC"),
        ({"time": datetime(2024, 5, 1, tzinfo=timezone(timedelta(hours=2)))}, "expected a time in UTC"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(RasterError, match=r"^scene\.tif: .*" + message):
        replace(counted(), **changes)


def test_a_time_may_be_unknown():
    assert replace(counted(), time=None).time is None


def test_bands_are_found_by_name_common_name_and_in_the_order_asked():
    raster = counted()
    chosen = raster.select(["nir", "b05", "B04"])
    assert [b.name for b in chosen.bands] == ["B08", "B05", "B04"]
    np.testing.assert_array_equal(chosen.pixels, raster.pixels[[3, 1, 0]])
    assert chosen.pixels.dtype == np.uint16
    assert chosen.grid == raster.grid


def test_encodings_follow_their_bands():
    shifted = tuple(Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=float(i)) for i in range(4))
    chosen = replace(counted(), encodings=shifted).select(["B08", "red"])
    assert [e.offset for e in chosen.encodings] == [3.0, 0.0]


@PROPERTY
@given(st.permutations(range(4)))
def test_selecting_back_restores_the_order(order):
    raster = counted()
    back = raster.select([BANDS[i].name for i in order]).select([b.name for b in BANDS])
    np.testing.assert_array_equal(back.pixels, raster.pixels)
    assert back.bands == raster.bands


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (["B8A"], "got 'B8A', expected"),
        (["rededge"], "got 'rededge', shared by B05, B06"),
        ([], "got nothing"),
    ],
)
def test_a_band_that_is_not_there_is_refused_with_those_that_are(names, got):
    with pytest.raises(SensorError) as caught:
        counted().select(names)
    assert got in str(caught.value)
    assert "one of B04 (red), B05 (rededge), B06 (rededge), B08 (nir)" in str(caught.value)
    assert "--bands" in str(caught.value)


WINDOWS = st.builds(
    Window,
    row=st.integers(-9, 9),
    col=st.integers(-9, 9),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)


@PROPERTY
@given(WINDOWS, hnp.arrays(bool, (5, 7)))
def test_a_crop_is_the_padded_scene_at_the_same_place(window, valid):
    raster = replace(counted(), valid=valid)
    part = raster.crop(window)
    around = 32
    padded = np.pad(raster.pixels, ((0, 0), (around, around), (around, around)))
    padded_valid = np.pad(valid, around)
    rows = slice(window.row + around, window.row + around + window.height)
    cols = slice(window.col + around, window.col + around + window.width)
    np.testing.assert_array_equal(part.pixels, padded[:, rows, cols])
    np.testing.assert_array_equal(part.valid, padded_valid[rows, cols])
    assert part.pixels.dtype == raster.pixels.dtype
    assert part.grid == raster.grid.window(window.row, window.col, window.height, window.width)


def test_a_crop_shares_no_memory_with_the_scene():
    raster = counted()
    part = raster.crop(Window(row=0, col=0, height=5, width=7))
    assert not np.shares_memory(part.pixels, raster.pixels)
    assert not np.shares_memory(part.valid, raster.valid)


def test_stored_numbers_become_reflectance_with_dark_pixels_at_zero():
    pixels = np.array([[[1000, 1001, 2500, 11_000, 1, 999]]], dtype=np.uint16)
    values = scene(pixels).physical()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0, 0], [0.0, 1e-4, 0.15, 1.0, 0.0, 0.0], atol=1e-7)


def test_dark_pixels_stay_valid_and_invalid_ones_become_nan_in_every_band():
    raster = scene(np.array([[[0, 500, 2000]], [[3000, 3000, 3000]]], dtype=np.uint16))
    values = replace(raster, valid=np.array([[False, True, True]])).physical()
    np.testing.assert_array_equal(np.isnan(values), [[[True, False, False]], [[True, False, False]]])
    assert values[0, 0, 1] == 0.0


def test_only_reflectance_with_a_negative_offset_is_clamped():
    pixels = np.array([[[-20.0, -3.0, 5.0]]], dtype=np.float32)
    decibel = scene(pixels, Encoding(unit=Unit.DB, scale=1.0, offset=-1.0))
    np.testing.assert_array_equal(decibel.physical()[0, 0], [-21.0, -4.0, 4.0])
    unshifted = scene(pixels, Encoding(unit=Unit.REFLECTANCE))
    np.testing.assert_array_equal(unshifted.physical(), pixels)


def test_class_numbers_are_returned_as_they_are():
    pixels = np.array([[[0, 4, 11]]], dtype=np.uint8)
    classes = scene(pixels, Encoding(unit=Unit.CLASS, scale=0.5, offset=None))
    np.testing.assert_array_equal(classes.physical()[0, 0], [0.0, 4.0, 11.0])


def test_an_unknown_offset_is_refused_only_where_it_is_used():
    unknown = replace(REFLECTANCE, offset=None)
    raster = replace(counted(), encodings=(REFLECTANCE, unknown, REFLECTANCE, REFLECTANCE))
    with pytest.raises(SensorError, match=r"scene\.tif: offset of band B05: .* --offset"):
        raster.physical()
    assert raster.select(["B04", "B08"]).physical().shape == (2, 5, 7)


@PROPERTY
@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.int16, np.int32]), (2, 3, 4)),
    hnp.arrays(bool, (3, 4)),
    st.floats(1e-5, 10),
    st.floats(-1, 1),
)
def test_physical_values_follow_the_formula(pixels, valid, scale, offset):
    encoding = Encoding(unit=Unit.POWER, scale=scale, offset=offset)
    raster = scene(pixels, encoding, valid=valid)
    expected = np.where(valid, pixels.astype(np.float64) * scale + offset, np.nan)
    np.testing.assert_allclose(raster.physical(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(raster.pixels, pixels)


def test_extreme_nodata_numbers_do_no_harm():
    pixels = np.array([[[-1.7976931348623157e308, 0.5, np.inf]]])
    raster = scene(pixels, Encoding(unit=Unit.POWER), valid=np.array([[False, True, False]]))
    np.testing.assert_array_equal(raster.physical()[0, 0], np.array([np.nan, 0.5, np.nan], np.float32))


def test_valid_share_and_gsd():
    raster = replace(counted(), valid=np.arange(35).reshape(5, 7) < 7)
    assert raster.valid_share == pytest.approx(0.2)
    assert raster.gsd_m == pytest.approx(10.0, rel=5e-4)
    placeless = replace(raster, grid=Grid(crs=None, transform=Affine.identity(), width=7, height=5))
    with pytest.raises(GridError, match=r"--gsd"):
        _ = placeless.gsd_m
