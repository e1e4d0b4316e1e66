"""Specification of ``alidade.imagery.windows``: tiles and how often a file's blocks are decoded for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS

from alidade.errors import GridError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.files import open_raster, write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import MAX_PIXELS, TileSource, Window, panels, read_tiles, tile_windows

# slow, busy machines are no failure, and every run draws the same cases
PROPERTY = settings(deadline=None, derandomize=True)

SIZES = st.integers(1, 90)
TILES = st.integers(1, 40)
BLOCKS = st.tuples(st.integers(1, 50), st.integers(1, 50))
LIMITS = st.integers(1, 6000)


def band(name: str) -> Band:
    return Band(
        name=name,
        common_name=None,
        wavelength_um=0.6,
        bandwidth_um=0.03,
        gsd_m=10.0,
        mean=0.1,
        std=0.05,
        source="test",
        statistics_source="test",
    )


class ArraySource:
    """A scene in memory that counts which blocks a file of this layout would have had to decode."""

    def __init__(self, height: int, width: int, block_shape: tuple[int, int], bands: int = 1) -> None:
        pixels = np.arange(1, bands * height * width + 1, dtype=np.int32).reshape(bands, height, width)
        encoding = Encoding(unit=Unit.DISPLAY)
        named = tuple(band(f"W{i}") for i in range(bands))
        self.scene = Raster(
            pixels=pixels,
            bands=named,
            encodings=(encoding,) * bands,
            valid=pixels[0] % 7 != 0,
            grid=Grid(crs=CRS("EPSG:32633"), transform=Affine(10, 0, 5e5, 0, -10, 5e6), width=width, height=height),
            sensor=Sensor(id="test", title="Test", kind="optical", unit=Unit.DISPLAY, native=encoding, bands=named),
            time=datetime(2024, 5, 1, tzinfo=UTC),
            source="scene.tif",
        )
        self.grid = self.scene.grid
        self.block_shape = block_shape
        self.decoded: Counter[tuple[int, int]] = Counter()
        self.largest_read = 0

    def read(self, window: Window | None = None, bands: Sequence[str] | None = None) -> Raster:
        assert window is not None
        assert window.row >= 0
        assert window.col >= 0
        assert window.row + window.height <= self.grid.height
        assert window.col + window.width <= self.grid.width
        rows, cols = self.block_shape
        for r in range(window.row // rows, (window.row + window.height - 1) // rows + 1):
            for c in range(window.col // cols, (window.col + window.width - 1) // cols + 1):
                self.decoded[r, c] += 1
        self.largest_read = max(self.largest_read, window.height * window.width)
        part = self.scene.crop(window)
        return part if bands is None else part.select(bands)

    def decodes_per_block(self) -> float:
        blocks = -(-self.grid.height // self.block_shape[0]) * -(-self.grid.width // self.block_shape[1])
        return sum(self.decoded.values()) / blocks


@PROPERTY
@given(SIZES, SIZES, TILES)
def test_tiles_hold_every_pixel_once(height, width, tile):
    seen = np.zeros((height, width), dtype=int)
    for w in tile_windows(height, width, tile):
        assert 1 <= w.height <= tile
        assert 1 <= w.width <= tile
        seen[w.row : w.row + w.height, w.col : w.col + w.width] += 1
    assert (seen == 1).all()


@PROPERTY
@given(SIZES, SIZES, TILES)
def test_tiles_are_in_row_order_on_a_regular_grid(height, width, tile):
    tiles = tile_windows(height, width, tile)
    assert tiles == sorted(tiles)
    assert all(w.row % tile == 0 and w.col % tile == 0 for w in tiles)
    assert len(tiles) == -(-height // tile) * -(-width // tile)


@PROPERTY
@given(SIZES, SIZES, TILES)
def test_the_ground_of_the_tiles_is_the_ground_of_the_scene(height, width, tile):
    grid = Grid(crs=CRS("EPSG:32633"), transform=Affine(10, 0, 5e5, 0, -10, 5e6), width=width, height=height)
    boxes = [
        (part.transform.c, part.transform.f, part.width * 10, part.height * 10)
        for w in tile_windows(height, width, tile)
        for part in [grid.window(w.row, w.col, w.height, w.width)]
    ]
    assert min(x for x, _, _, _ in boxes) == 5e5
    assert max(y for _, y, _, _ in boxes) == 5e6
    assert max(x + w for x, _, w, _ in boxes) == 5e5 + 10 * width
    assert min(y - h for _, y, _, h in boxes) == 5e6 - 10 * height
    assert sum(w * h for _, _, w, h in boxes) == 100 * width * height


@PROPERTY
@given(SIZES, SIZES, TILES, BLOCKS, LIMITS)
def test_panels_hold_every_tile_once_and_cover_it(height, width, tile, block, limit):
    found = panels(height, width, tile, block, limit)
    tiles = [w for panel in found for w in panel.tiles]
    assert sorted(tiles) == tile_windows(height, width, tile)
    for panel in found:
        p = panel.window
        assert p.row >= 0
        assert p.col >= 0
        assert p.row + p.height <= height
        assert p.col + p.width <= width
        for w in panel.tiles:
            assert p.row <= w.row
            assert w.row + w.height <= p.row + p.height
            assert p.col <= w.col
            assert w.col + w.width <= p.col + p.width


@PROPERTY
@given(SIZES, SIZES, TILES, BLOCKS, LIMITS)
def test_panels_keep_the_memory_limit_unless_one_tile_breaks_it(height, width, tile, block, limit):
    for panel in panels(height, width, tile, block, limit):
        size = panel.window.height * panel.window.width
        assert size <= limit or (panel.window,) == panel.tiles


@settings(PROPERTY, max_examples=60)
@given(SIZES, SIZES, TILES, BLOCKS, LIMITS)
def test_every_tile_is_read_with_the_pixels_of_a_direct_crop(height, width, tile, block, limit):
    source = ArraySource(height, width, block, bands=2)
    expected = tile_windows(height, width, tile)
    results = list(read_tiles(source, tile, max_pixels=limit))
    assert sorted(index for index, _, _ in results) == list(range(len(expected)))
    for index, window, raster in results:
        assert window == expected[index]
        direct = source.scene.crop(replace(window, height=tile, width=tile))
        np.testing.assert_array_equal(raster.pixels, direct.pixels)
        np.testing.assert_array_equal(raster.valid, direct.valid)
        assert raster.pixels.shape == (2, tile, tile)
        assert raster.grid == direct.grid
        assert raster.time == source.scene.time


@settings(PROPERTY, max_examples=60)
@given(SIZES, SIZES, TILES, BLOCKS, LIMITS, st.sets(st.integers(0, 200)))
def test_a_resumed_run_gives_what_the_full_run_gives_for_the_rest(height, width, tile, block, limit, only):
    full = list(read_tiles(ArraySource(height, width, block), tile, max_pixels=limit))
    rest = list(read_tiles(ArraySource(height, width, block), tile, max_pixels=limit, only=only))
    wanted = [item for item in full if item[0] in only]
    assert [(index, window) for index, window, _ in rest] == [(index, window) for index, window, _ in wanted]
    for (_, _, ours), (_, _, theirs) in zip(rest, wanted, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.valid, theirs.valid)


@pytest.mark.parametrize(
    ("height", "width", "tile", "block", "most"),
    [
        (2745, 2745, 120, (256, 256), 1.0),
        (10_980, 10_980, 120, (256, 256), 1.0),
        (10_980, 10_980, 120, (512, 512), 1.05),
        (10_980, 10_980, 256, (1024, 1024), 1.1),
        (10_980, 10_980, 224, (1, 10_980), 1.0),
        (7000, 30_000, 120, (256, 256), 1.05),
        (4000, 20_000, 96, (512, 512), 1.1),
        (4000, 20_000, 112, (256, 256), 1.0),
        (3000, 3000, 256, (256, 256), 1.0),
    ],
)
def test_every_block_is_decoded_about_once(height, width, tile, block, most):
    source = CountingSource(height, width, block)
    for panel_tile in read_tiles(source, tile):
        assert panel_tile[2].grid.height == tile
    assert source.decodes_per_block() <= most
    assert source.largest_read <= MAX_PIXELS


class CountingSource(ArraySource):
    """The same scene with pixels that take no memory, so that a large one can be walked through."""

    def __init__(self, height: int, width: int, block_shape: tuple[int, int]) -> None:
        super().__init__(1, 1, block_shape)
        self.grid = self.grid.window(0, 0, height, width)
        self.scene = replace(
            self.scene,
            pixels=np.broadcast_to(np.uint8(1), (1, height, width)),
            valid=np.broadcast_to(np.True_, (height, width)),
            grid=self.grid,
        )


@pytest.mark.parametrize(("tile", "limit"), [(24, 20_000), (100, 20_000), (64, 1_000_000)])
def test_tiles_of_a_real_file_are_crops_of_it(tmp_path, tile, limit):
    written = ArraySource(300, 200, (256, 256), bands=2).scene
    # 8-bit red, green and blue are what a file can tell of itself
    rgb = sensor("generic-rgb")
    pixels = np.random.default_rng(7).integers(1, 256, (3, 300, 200), dtype=np.uint8)
    written = replace(written, pixels=pixels, bands=rgb.bands, encodings=(rgb.native,) * 3, sensor=rgb)
    write_geotiff(tmp_path / "scene.tif", written)
    with open_raster(tmp_path / "scene.tif") as file:
        source: TileSource = file
        found = {index: raster for index, _, raster in read_tiles(source, tile, max_pixels=limit)}
    expected = tile_windows(300, 200, tile)
    assert sorted(found) == list(range(len(expected)))
    for index, window in enumerate(expected):
        direct = written.crop(replace(window, height=tile, width=tile))
        np.testing.assert_array_equal(found[index].pixels, direct.pixels)
        np.testing.assert_array_equal(found[index].valid, direct.valid)
        assert found[index].grid == direct.grid


def test_a_resumed_run_decodes_only_what_the_rest_needs():
    source = ArraySource(2000, 600, (100, 100))
    results = read_tiles(source, 100, only={0, 100}, max_pixels=600 * 200)
    assert [index for index, _, _ in results] == [0, 100]
    assert set(source.decoded) == {(r, c) for r in (0, 1, 16, 17) for c in range(6)}


def test_nothing_is_read_when_nothing_is_wanted():
    source = ArraySource(64, 64, (16, 16))
    assert list(read_tiles(source, 10, only=())) == []
    assert not source.decoded


def test_only_the_asked_bands_are_read():
    source = ArraySource(300, 40, (16, 16), bands=3)
    for _, window, raster in read_tiles(source, 24, bands=["W2", "W0"], max_pixels=40 * 64):
        direct = source.scene.crop(replace(window, height=24, width=24)).select(["W2", "W0"])
        assert [b.name for b in raster.bands] == ["W2", "W0"]
        np.testing.assert_array_equal(raster.pixels, direct.pixels)


def test_the_order_is_the_same_in_every_run():
    runs = [[index for index, _, _ in read_tiles(ArraySource(90, 70, (32, 32)), 20)] for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (5, 5, -3)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(GridError, match=r"tiles: got a tile of .* expected sizes of at least one pixel"):
        tile_windows(*sizes)
    with pytest.raises(GridError, match=r"tiles: got"):
        panels(*sizes, (16, 16))


def test_a_tile_below_one_is_refused_before_reading():
    source = ArraySource(5, 5, (5, 5))
    with pytest.raises(GridError, match=r"--tile"):
        next(read_tiles(source, 0))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_window_is_refused(size):
    with pytest.raises(GridError, match=r"window: got .* expected at least one pixel each way"):
        Window(row=0, col=0, height=size[0], width=size[1])


def test_windows_are_ordered_by_row_then_column():
    second = Window(row=0, col=9, height=1, width=1)
    third = Window(row=1, col=0, height=1, width=1)
    first = Window(row=0, col=0, height=9, width=9)
    assert sorted([third, second, first]) == [first, second, third]
