"""Reading and writing GeoTIFFs: pixels untouched, the valid mask's rule, north-up, and exact round trips."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.enums import ColorInterp

sys.path.insert(0, str(Path(__file__).parent))
from alidade.errors import GridError, RasterError, SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, open_raster, read, write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.identify import SCL
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import generic_multispectral, sensor
from alidade.imagery.windows import Window, read_tiles
from make_fixtures import L1C, PLACE, display, meadow, write_tif

REFLECTANCE = Declared(sensor="generic:0.490,0.842@10")
FLOATS = np.random.default_rng(1).uniform(0, 1, (2, 8, 8)).astype(np.float32)


def block(top: int, left: int, height: int, width: int) -> Window:
    return Window(row=top, col=left, height=height, width=width)


# Reading


def test_pixels_are_read_as_stored(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", meadow(added=1000), names=L1C, scale_offset=(1e-4, -0.1), nodata=0)
    raster = read(path)
    assert raster.pixels.dtype == np.uint16
    np.testing.assert_array_equal(raster.pixels, meadow(added=1000))
    np.testing.assert_allclose(raster.physical(), meadow(added=1000) * 1e-4 - 0.1, atol=1e-6)
    assert raster.source == str(path)


def test_path_may_be_text_or_path_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tif(tmp_path / "a.tif", display(3))
    monkeypatch.chdir(tmp_path)
    with open_raster("a.tif") as file:
        assert file.path == tmp_path / "a.tif"
        assert file.read().source == "a.tif"


@pytest.mark.parametrize("tiled", [True, False])
def test_windows_and_bands(tmp_path: Path, tiled: bool) -> None:
    pixels = meadow(side=80)
    options = {"tiled": True, "blockxsize": 32, "blockysize": 16} if tiled else {"blockysize": 8}
    path = write_tif(tmp_path / "a.tif", pixels, names=L1C, options=options)
    with open_raster(path) as file:
        assert file.block_shape == ((16, 32) if tiled else (8, 80))
        part = file.read(block(10, 20, 30, 40), ["B8A", "red"])
        np.testing.assert_array_equal(part.pixels, pixels[[8, 3], 10:40, 20:60])
        assert [b.name for b in part.bands] == ["B8A", "B04"]
        assert part.grid == file.grid.window(10, 20, 30, 40)
        with pytest.raises(SensorError, match="got 'B99', expected one of B01"):
            file.read(bands=["B99"])


def test_common_name_of_two_bands(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", FLOATS)
    with open_raster(path, Declared(sensor="generic:0.650,0.660@10")) as file:
        with pytest.raises(SensorError, match=r"got 'red' \(several bands\), expected one of W0.650, W0.660"):
            file.read(bands=["red"])
        np.testing.assert_array_equal(file.read(bands=["w0.660"]).pixels, FLOATS[1:])


def test_windows_beyond_the_edge_are_padded(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(3, side=20))
    with open_raster(path) as file:
        part = file.read(block(-5, 10, 10, 20))
        assert part.pixels.shape == (3, 10, 20)
        np.testing.assert_array_equal(part.pixels[:, 5:, :10], display(3, side=20)[:, :5, 10:])
        assert part.valid[5:, :10].all()
        assert part.valid.sum() == 50
        assert not part.pixels[:, ~part.valid].any()
        assert part.grid == file.grid.window(-5, 10, 10, 20)
        for outside in (block(20, 0, 1, 1), block(0, -3, 5, 3)):
            with pytest.raises(GridError, match="expected a part of 20 rows x 20 columns"):
                file.read(outside)


def test_bottom_up_files_come_north_up(tmp_path: Path) -> None:
    pixels = display(3, side=40)
    upward = Affine(10.0, 0.0, 500_000.0, 0.0, 10.0, 5_299_600.0)
    mirrored = write_tif(tmp_path / "a.tif", pixels[:, ::-1], transform=upward)
    straight = write_tif(tmp_path / "b.tif", pixels)
    with rasterio.open(mirrored) as dataset:
        assert dataset.transform.e > 0
    with open_raster(mirrored) as file, open_raster(straight) as other:
        assert file.grid == other.grid
        np.testing.assert_array_equal(file.read().pixels, pixels)
        part = file.read(block(3, 5, 7, 11))
        np.testing.assert_array_equal(part.pixels, pixels[:, 3:10, 5:16])
        assert part.grid == other.grid.window(3, 5, 7, 11)
        for _, window, tile in read_tiles(file, 16):
            height, width = window.height, window.width
            expected = pixels[:, window.row : window.row + height, window.col : window.col + width]
            np.testing.assert_array_equal(tile.pixels[:, :height, :width], expected)


def test_bottom_up_masks_are_turned_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    upward = Affine(10.0, 0.0, 500_000.0, 0.0, 10.0, 5_299_600.0)
    write_tif(path, display(3), transform=upward)
    mask = np.zeros((48, 48), np.uint8)
    mask[:10] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    np.testing.assert_array_equal(read(path).valid, mask[::-1] == 255)


def test_rotated_files_keep_their_transform(tmp_path: Path) -> None:
    rotated = Affine(8.0, 6.0, 500_000.0, 6.0, -8.0, 5_300_000.0)
    raster = read(write_tif(tmp_path / "a.tif", display(3), transform=rotated))
    assert raster.grid.transform == rotated
    assert raster.gsd_m == pytest.approx(10.0, rel=1e-3)


def test_ground_sample_distance_without_crs(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(3), crs=None, transform=None)
    with pytest.raises(GridError, match=r"a\.tif: CRS: got none.*--gsd"):
        read(path)
    with open_raster(path, Declared(gsd_m=0.3)) as file:
        assert (file.grid.mean_gsd_m(), file.how["gsd"]) == (0.3, "You declared it.")
    for absurd in (0.0, -1.0, 1e6, float("nan")):
        with pytest.raises(GridError, match=r"a\.tif: .*ground sample distance.*expected 0.01 to 10000 m"):
            read(path, Declared(gsd_m=absurd))
    tagged = {"ALIDADE_GSD": "0.6"}
    raster = read(write_tif(tmp_path / "b.tif", display(3), crs=None, transform=None, tags=tagged))
    assert raster.gsd_m == 0.6
    np.testing.assert_array_equal(raster.pixels, display(3))
    with pytest.raises(GridError, match="tag ALIDADE_GSD: got 'wide'"):
        read(write_tif(tmp_path / "c.tif", display(3), crs=None, transform=None, tags={"ALIDADE_GSD": "wide"}))


def test_crs_goes_before_a_tag_that_resampling_leaves_behind(tmp_path: Path) -> None:
    raster = read(write_tif(tmp_path / "a.tif", display(3), tags={"ALIDADE_GSD": "0.6"}))
    assert raster.gsd_m == pytest.approx(10.0, rel=0.01)


def test_places_that_cannot_be(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(3), transform=Affine.scale(90_000.0, -90_000.0))
    with pytest.raises(GridError, match=r"a\.tif: "):
        read(path)
    path = write_tif(tmp_path / "b.tif", display(3), transform=None)
    with pytest.raises(GridError, match=r"b\.tif: transform: got the identity"):
        read(path)
    path = write_tif(tmp_path / "c.tif", display(3), crs=None, transform=None)
    with rasterio.open(path, "r+") as dataset:
        points = [rasterio.control.GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 1), (1, 0))]
        dataset.gcps = points, "EPSG:4326"
    with pytest.raises(GridError, match="ground control points instead of a grid.*gdalwarp"):
        read(path)


def test_background_thread(tmp_path: Path) -> None:
    pixels = meadow(side=64)
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    good = write_tif(tmp_path / "a.tif", pixels, names=L1C, options=options)
    bad = write_tif(tmp_path / "b.tif", display(3, side=64), options=options)
    data = bytearray(bad.read_bytes())
    start, end = len(data) // 4, 3 * len(data) // 4
    data[start:end] = bytes(end - start)
    bad.write_bytes(data)
    got: list[object] = []

    def work() -> None:
        got.extend(tile.pixels.sum() for _, _, tile in read_tiles(file, 16))
        try:
            damaged.read()
        except RasterError as error:
            got.append(str(error))

    with open_raster(good) as file, open_raster(bad) as damaged:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert sum(got[:-1]) == pixels.sum()  # type: ignore[arg-type]
    assert len(got) == 17
    assert "rows 0 to 63" in str(got[-1])


# The valid mask


def test_zero_in_one_band_is_dark_and_in_all_is_empty(tmp_path: Path) -> None:
    pixels = display(3)
    pixels[0, :5] = 0
    pixels[:, 5:8] = 0
    raster = read(write_tif(tmp_path / "a.tif", pixels, nodata=0))
    assert raster.valid[:5].all()
    assert not raster.valid[5:8].any()
    assert read(write_tif(tmp_path / "b.tif", pixels)).valid.all(), "8-bit images without nodata have none"


def test_255_in_one_band_is_bright(tmp_path: Path) -> None:
    pixels = display(3)
    pixels[1, 0], pixels[:, 1] = 255, 255
    valid = read(write_tif(tmp_path / "a.tif", pixels, nodata=255)).valid
    assert valid[0].all()
    assert not valid[1].any()


def test_negative_nodata_in_any_band_is_empty(tmp_path: Path) -> None:
    pixels = display(3, dtype="int16")
    pixels[1, 0] = -999
    path = write_tif(tmp_path / "a.tif", pixels, nodata=-999)
    declared = Declared(sensor="generic-rgb", bands=("R", "G", "B"), scale=1.0)
    np.testing.assert_array_equal(~read(path, declared).valid, np.arange(48)[:, None] == np.zeros(48))
    with open_raster(path, declared) as file:
        assert file.read(bands=["R"]).valid.all(), "the rule looks at the bands read"


@pytest.mark.parametrize("nodata", [0.0, -9999.0, float("nan"), -3.4028234663852886e38, 0.1])
def test_real_numbers_that_stand_for_nothing(tmp_path: Path, nodata: float) -> None:
    pixels = FLOATS + np.float32(0.2)
    pixels[0, 0], pixels[1, 1, 1], pixels[0, 2, 2] = nodata, np.nan, np.inf
    raster = read(write_tif(tmp_path / "a.tif", pixels, nodata=nodata), REFLECTANCE)
    expected = np.ones((8, 8), bool)
    expected[0], expected[1, 1], expected[2, 2] = False, False, False
    np.testing.assert_array_equal(raster.valid, expected)


def test_declared_nodata_goes_before_the_file(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.full((1, 4, 4), 7, np.uint8), nodata=0)
    declared = Declared(sensor="generic-rgb", bands=("R",), nodata=7)
    assert not read(path, declared).valid.any()


def test_sentinel_2_zero_is_nodata_though_the_file_does_not_say(tmp_path: Path) -> None:
    pixels = meadow()
    pixels[:, 0], pixels[10, 1] = 0, 0
    raster = read(write_tif(tmp_path / "a.tif", pixels, names=L1C))
    assert not raster.valid[0].any()
    assert raster.valid[1:].all()
    assert raster.encodings[0].nodata == 0


def test_mask_of_the_file_goes_before_nodata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = display(3)
    pixels[:, 0] = 0
    write_tif(path, pixels, nodata=0)
    mask = np.full((48, 48), 255, np.uint8)
    mask[:, 0] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    np.testing.assert_array_equal(read(path).valid, mask == 255)


# Writing


def make(pixels: np.ndarray, identifier: str, encoding: Encoding, bands: tuple[str, ...]) -> Raster:
    kind = sensor(identifier)
    return Raster(
        pixels=pixels,
        bands=tuple(kind.band(name) for name in bands),
        encodings=(encoding,) * len(bands),
        valid=np.ones(pixels.shape[1:], bool),
        grid=Grid(crs=CRS.from_epsg(32633), transform=PLACE, width=pixels.shape[2], height=pixels.shape[1]),
        sensor=kind,
        time=datetime(2024, 5, 31, 10, 20, 30, 123456, tzinfo=UTC),
        source="made here",
    )


def scene() -> Raster:
    encoding = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=-0.1, nodata=0)
    return make(meadow(added=1000), "sentinel-2-l1c", encoding, L1C)


def radar() -> Raster:
    pixels = np.random.default_rng(0).uniform(-25, -5, (2, 40, 70)).astype(np.float32)
    pixels[0, 0, 0] = np.nan
    made = make(pixels, "sentinel-1-rtc", Encoding(unit=Unit.DB), ("VV", "VH"))
    return replace(made, valid=np.isfinite(pixels).all(0))


def classes() -> Raster:
    encoding = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=0.0, nodata=0)
    made = make(meadow(("B04", "B08", "B11")), "sentinel-2-l2a", encoding, ("B04", "B08", "B11"))
    encodings = (encoding, encoding, Encoding(unit=Unit.CLASS, nodata=0))
    return replace(made, bands=(*made.bands[:2], SCL), encodings=encodings)


def aerial() -> Raster:
    made = make(display(4, side=300), "naip-rgbn", Encoding(unit=Unit.DISPLAY), ("R", "G", "B", "N"))
    return replace(made, time=None)


def unplaced() -> Raster:
    made = make(display(3), "generic-rgb", Encoding(unit=Unit.DISPLAY), ("R", "G", "B"))
    grid = Grid(crs=None, transform=Affine.identity(), width=48, height=48, gsd_override_m=0.123)
    return replace(made, grid=grid)


def generic() -> Raster:
    kind = generic_multispectral([0.49, 0.842, 1.61], 7.5)
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 17, 33))
    made = make(pixels, kind.id, Encoding(unit=Unit.REFLECTANCE), ("W1.610", "W0.490"))
    return replace(made, grid=replace(made.grid, crs=CRS.from_epsg(4326), transform=PLACE_IN_DEGREES))


PLACE_IN_DEGREES = Affine(1e-4, 0.0, 13.0, 0.0, -1e-4, 48.0)


def padded() -> Raster:
    return scene().crop(block(-8, -8, 40, 40))


def holed() -> Raster:
    """A mask that no nodata value tells: valid zeros, and invalid numbers."""
    made = unplaced()
    pixels, valid = made.pixels.copy(), made.valid.copy()
    pixels[:, 0], valid[5] = 0, False
    return replace(made, pixels=pixels, valid=valid)


def zeros_that_are_data() -> Raster:
    made = scene()
    pixels = made.pixels.copy()
    pixels[:, 3] = 0
    return replace(made, pixels=pixels)


MADE = [scene, radar, classes, aerial, unplaced, generic, padded, holed, zeros_that_are_data]


@pytest.mark.parametrize("build", MADE)
def test_round_trip_is_exact(tmp_path: Path, build: object) -> None:
    raster: Raster = build()  # type: ignore[operator]
    path = tmp_path / "a.tif"
    write_geotiff(path, raster)
    back = read(path)
    np.testing.assert_array_equal(back.pixels, raster.pixels)
    assert back.pixels.dtype == raster.pixels.dtype
    np.testing.assert_array_equal(back.valid, raster.valid)
    assert (back.bands, back.encodings) == (raster.bands, raster.encodings)
    assert (back.grid, back.sensor, back.time) == (raster.grid, raster.sensor, raster.time)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_written_files_are_plain_tiled_geotiffs(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", aerial())
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.block_shapes[0] == (256, 256)
        assert dataset.compression.name == "deflate"
        assert dataset.descriptions == ("R", "G", "B", "N")
        assert dataset.colorinterp[3] is ColorInterp.undefined
        assert dataset.tags()["ALIDADE_SENSOR"] == "naip-rgbn"
    write_geotiff(tmp_path / "b.tif", radar())
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.block_shapes[0] == (80, 80)
        assert dataset.tags()["ALIDADE_UNIT"] == "dB"
        assert dataset.tags()["ALIDADE_TIME"] == "2024-05-31T10:20:30.123456+00:00"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    unresolved = make(meadow(), "sentinel-2-l1c", Encoding(unit=Unit.REFLECTANCE, offset=None), L1C)
    with pytest.raises(SensorError, match="offsets None, expected one unit, one nodata value and known offsets"):
        write_geotiff(path, unresolved)
    mixed = radar()
    mixed = replace(mixed, encodings=(Encoding(unit=Unit.DB), Encoding(unit=Unit.POWER)))
    with pytest.raises(SensorError, match="units dB, power"):
        write_geotiff(path, mixed)
    half = radar()
    with pytest.raises(RasterError, match="pixels of type float16"):
        write_geotiff(path, replace(half, pixels=half.pixels.astype(np.float16)))
    with pytest.raises(RasterError, match="No such file or directory, expected a folder that exists"):
        write_geotiff(tmp_path / "nowhere" / "a.tif", radar())
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(RasterError, match=r"folder\.tif: writing: got Is a directory"):
        write_geotiff(tmp_path / "folder.tif", radar())
    assert [p.name for p in tmp_path.iterdir()] == ["folder.tif"]


def test_writing_over_a_file_replaces_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, aerial())
    with open_raster(path) as before:
        write_geotiff(path, scene())
        np.testing.assert_array_equal(before.read().pixels, aerial().pixels)
    np.testing.assert_array_equal(read(path).pixels, scene().pixels)
