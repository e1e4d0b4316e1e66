"""Tiles from rasters: every view's pixel shows its own ground, and what cannot be aligned is told."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyproj import CRS, Transformer
from typer.testing import CliRunner

from alidade.cli import tiles as cli
from alidade.errors import AlidadeError, GridError, RasterError
from alidade.imagery.files import read
from alidade.training.tiles.build import BuildSummary, build_tiles
from alidade.training.tiles.choose import Candidate, choose
from alidade.training.tiles.grid import (
    BASE_M,
    LAT_RANGE,
    Square,
    level_of,
    nominal_gsd,
    square_at,
    to_lonlat,
    zone_of,
)
from alidade.training.tiles.plan import split_of
from alidade.training.tiles.scenes import View
from alidade.training.tiles.schema import StoreError
from alidade.training.tiles.store import TileStore
from make_fixtures import write_tif

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
DAY = datetime(2024, 6, 1, 10, tzinfo=UTC)
WEST, NORTH = 480_000.0, 5_299_200.0
"""A corner of the 640 m grid in zone 33 (480,000 = 750 x 640; 5,299,200 = 8,280 x 640)."""

PLACES = st.tuples(st.floats(-180, 180), st.floats(*LAT_RANGE))
LEVELS = st.integers(9, 14)


# --- the grid


@given(PLACES, LEVELS)
def test_a_place_lies_in_its_square_and_in_no_other_of_its_zone(place: tuple[float, float], level: int) -> None:
    square = square_at(*place, level)
    assert square.epsg == zone_of(*place)
    rows, cols = square.grid(1).from_lonlat(*place)
    assert -1e-6 <= float(rows) <= 1 + 1e-6
    assert -1e-6 <= float(cols) <= 1 + 1e-6
    west, south, east, north = square.bounds()
    beside = Square(epsg=square.epsg, level=level, row=square.row + 1, col=square.col + 1)
    assert beside.bounds()[:2] == (east, north), "squares tile the zone: no gap, no overlap"
    assert (east - west, north - south) == (square.side_m, square.side_m)
    assert Square.from_key(square.key) == square


@given(PLACES, LEVELS, st.integers(0, 4))
def test_levels_nest(place: tuple[float, float], level: int, coarser: int) -> None:
    square, parent = square_at(*place, level), square_at(*place, level + coarser)
    assert square.parent(level + coarser) == parent
    inner, outer = square.bounds(), parent.bounds()
    assert outer[0] <= inner[0] < inner[2] <= outer[2]
    assert outer[1] <= inner[1] < inner[3] <= outer[3]
    assert outer[2] - outer[0] == 2**coarser * (inner[2] - inner[0])


@given(PLACES, LEVELS)
def test_no_square_straddles_the_equator_and_the_centre_comes_back(place: tuple[float, float], level: int) -> None:
    square = square_at(*place, level)
    assert (square.row >= 0) == (square.epsg < 32700)
    lon, lat = square.centre()
    if zone_of(lon, lat) == square.epsg:
        assert square_at(lon, lat, level) == square
    west, south, east, north = square.bbox()
    assert south < lat < north
    assert (lon - west) % 360 < (east - west) % 360 < 180


def test_the_equator_belongs_to_the_north() -> None:
    assert square_at(15.0, 0.0, 11).row == 0
    assert square_at(15.0, -1e-12, 11).row == -1
    assert square_at(180.0, 10.0, 11).epsg == square_at(-180.0, 10.0, 11).epsg == 32601


def test_sides_off_the_ladder_and_poles_are_refused() -> None:
    assert (level_of(1280.0), level_of(0.625)) == (11, 0)
    for bad in (1000.0, 0.0, -640.0, float("nan"), float("inf")):
        with pytest.raises(GridError, match="times a power of two"):
            level_of(bad)
    with pytest.raises(GridError, match="a latitude from -80 to 84"):
        square_at(0.0, 85.0, 11)
    with pytest.raises(GridError, match="level 12 or coarser"):
        square_at(0.0, 5.0, 12).parent(11)
    assert [nominal_gsd(g) for g in (0.3, 0.6, 1.0, 5.0, 10.0, 30.0)] == [0.625, 0.625, 1.25, 5.0, 10.0, 40.0]
    assert Square.from_key("3857_15_8654_13124") is None


# --- alignment


def eastings_northings(crs: str, transform: Affine, width: int, height: int, zone: int = 32633) -> NDArray[np.float64]:
    """Of every pixel's centre, in a UTM zone: ``[2, H, W]``."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = transform[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    return np.stack(Transformer.from_crs(crs, zone, always_xy=True).transform(x, y))


def coordinate_scene(
    path: Path,
    *,
    sensor: str,
    names: Sequence[str],
    crs: str,
    transform: Affine,
    side: int,
    when: datetime | None = DAY,
    hole: tuple[slice, slice] | None = None,
) -> Path:
    """A scene whose two bands hold easting and northing of each pixel's centre, metres from a corner."""
    pixels = eastings_northings(crs, transform, side, side) - np.array([WEST, NORTH])[:, None, None]
    pixels = pixels.astype(np.float32)
    if hole is not None:
        pixels[:, hole[0], hole[1]] = np.nan
    tags = {"ALIDADE_SENSOR": sensor, "ALIDADE_UNIT": "dB" if "-1-" in sensor else "reflectance"}
    if when is not None:
        tags["ALIDADE_TIME"] = when.isoformat()
    scale = None if "-1-" in sensor else (1.0, 1e-9)
    return write_tif(
        path, pixels, crs=crs, transform=transform, names=names, tags=tags, nodata=float("nan"), scale_offset=scale
    )


def turned(step: float, degrees: float) -> Affine:
    """A rotated grid around the corner, its centre inside the square to be filled."""
    angle = math.radians(degrees)
    c, s = step * math.cos(angle), step * math.sin(angle)
    return Affine(c, s, WEST - 700.0, s, -c, NORTH + 700.0)


GRIDS = {
    "the very grid": ("EPSG:32633", Affine(10, 0, WEST - 640, 0, -10, NORTH + 640), 400),
    "shifted by 3.7 m": ("EPSG:32633", Affine(10, 0, WEST - 643.7, 0, -10, NORTH + 643.7), 400),
    "finer": ("EPSG:32633", Affine(2.5, 0, WEST - 640, 0, -2.5, NORTH + 640), 1400),
    "finer, odd step": ("EPSG:32633", Affine(3.3, 0, WEST - 640, 0, -3.3, NORTH + 640), 1100),
    # a rim of one pixel: at a scene's very edge there is nothing to interpolate with
    "coarser": ("EPSG:32633", Affine(23, 0, WEST - 663, 0, -23, NORTH + 663), 160),
    "the neighbouring zone": ("EPSG:32632", None, 400),
    "degrees": ("EPSG:4326", None, 400),
    "web mercator": ("EPSG:3857", None, 500),
    "rotated": ("EPSG:32633", turned(10.0, 20.0), 500),
}


def placed(crs: str, transform: Affine | None, side: int) -> Affine:
    """A north-up grid of ``side`` pixels around the squares to be filled, in any CRS."""
    if transform is not None:
        return transform
    to = Transformer.from_crs(32633, crs, always_xy=True)
    x, y = to.transform([WEST - 700, WEST + 2000], [NORTH + 700, NORTH - 2000])
    return Affine((x[1] - x[0]) / side, 0, x[0], 0, (y[1] - y[0]) / side, y[0])


@pytest.mark.parametrize("name", GRIDS)
def test_every_pixel_shows_the_ground_of_its_own_centre(tmp_path: Path, name: str) -> None:
    crs, transform, side = GRIDS[name]
    known = Affine(10, 0, WEST - 640, 0, -10, NORTH + 640)
    there = placed(crs, transform, side)
    sar, optical = ("VV", "VH"), ("B03", "B04")
    coordinate_scene(
        tmp_path / "a.tif", sensor="sentinel-1-rtc", names=sar, crs="EPSG:32633", transform=known, side=400
    )
    coordinate_scene(tmp_path / "b.tif", sensor="sentinel-2-l2a", names=optical, crs=crs, transform=there, side=side)
    views = [
        View(name="s1", sensor="sentinel-1-rtc", gsd_m=10.0),
        View(name="s2", sensor="sentinel-2-l2a", gsd_m=10.0),
    ]
    summary = build_tiles([tmp_path], tmp_path / "s", views, square_m=640.0, min_valid=1.0)
    assert summary.written >= 4, summary.failures
    store = TileStore.open(tmp_path / "s")
    batch = store.__getitems__(range(len(store)))
    for number, row in enumerate(store.index.to_pylist()):
        square = Square.from_key(row["square"])
        assert square is not None
        grid = square.grid(64)
        middle = eastings_northings("EPSG:32633", grid.transform, 64, 64) - np.array([WEST, NORTH])[:, None, None]
        assert np.abs(batch.views["s1"].pixels[number] - middle).max() < 0.01, "the very grid comes back as it is"
        # half a pixel is asked for; a tenth of one is kept, and no bias
        error = batch.views["s2"].pixels[number] - middle
        assert np.abs(error).max() < 1.0, name
        assert np.abs(error.mean(axis=(1, 2))).max() < 0.15, name
        assert row["s2.gsd_x"] == pytest.approx(grid.gsd_m()[0])
        assert 9.9 < row["s2.gsd_x"] < 10.1


def test_views_keep_their_own_resolution_over_the_same_ground(tmp_path: Path) -> None:
    coarse, fine = Affine(10, 0, WEST, 0, -10, NORTH), Affine(0.625, 0, WEST, 0, -0.625, NORTH)
    coordinate_scene(
        tmp_path / "s1.tif", sensor="sentinel-1-rtc", names=("VV", "VH"), crs="EPSG:32633", transform=coarse, side=64
    )
    rng = np.random.default_rng(5)
    fine_pixels = rng.integers(1, 255, (3, 1024, 1024), dtype=np.uint8)
    tags = {"ALIDADE_SENSOR": "naip-rgb", "ALIDADE_TIME": (DAY + timedelta(days=9, hours=12)).isoformat()}
    write_tif(tmp_path / "n.tif", fine_pixels, transform=fine, names=("R", "G", "B"), tags=tags)
    summary = build_tiles([tmp_path], tmp_path / "s", square_m=640.0)
    assert summary.views == {"naip-rgb": 1, "sentinel-1-rtc": 1}
    store = TileStore.open(tmp_path / "s")
    batch = store[0]
    assert np.array_equal(batch.views["naip-rgb"].pixels[0], fine_pixels), "bit for bit"
    assert batch.views["sentinel-1-rtc"].pixels.shape == (1, 2, 64, 64)
    extents = [store.views[n].side * batch.views[n].gsd_m[0] for n in store.views]
    np.testing.assert_allclose(extents[0], extents[1], rtol=1e-5)
    assert store.index["date_gap_days"].to_pylist() == [9.5]


def flat(
    path: Path, value: float, *, sensor: str = "sentinel-2-l2a", days: float | None = 0.0, side: int = 64,
    at: tuple[float, float] = (WEST, NORTH), offset: float = 0.0, crs: str = "EPSG:32633", dtype: str = "uint16",
    valid: NDArray[np.bool_] | None = None,
) -> Path:  # fmt: skip
    """A scene of one value; stored numbers, nodata 0."""
    radar = "-1-" in sensor
    names = ("VV", "VH") if radar else ("B03", "B04")
    pixels = np.full((2, side, side), value, dtype="float32" if radar else dtype)
    if valid is not None:
        pixels[:, ~valid] = 0
    tags = {"ALIDADE_SENSOR": sensor, "ALIDADE_UNIT": "dB" if radar else "reflectance"}
    if days is not None:
        tags["ALIDADE_TIME"] = (DAY + timedelta(days=days)).isoformat()
    return write_tif(
        path, pixels, crs=crs, transform=Affine(10, 0, at[0], 0, -10, at[1]), names=names, tags=tags, nodata=0,
        scale_offset=None if radar else (1e-4, offset or 1e-12),
    )  # fmt: skip


def build(folder: Path, *, store: str = "store", **options: Any) -> BuildSummary:
    return build_tiles([folder], folder.parent / store, square_m=640.0, **options)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    return folder


def test_scenes_of_both_baselines_share_one_encoding(scenes: Path) -> None:
    flat(scenes / "old.tif", 2000)
    flat(scenes / "new.tif", 3000, offset=-0.1, at=(WEST + 640, NORTH))
    build(scenes, min_views=1)
    store = TileStore.open(scenes.parent / "store")
    spec = store.views["sentinel-2-l2a"]
    pixels = store.__getitems__(range(2)).views["sentinel-2-l2a"].pixels
    assert [e.offset for e in spec.encodings] == [-0.1, -0.1], "the lowest offset can hold the others"
    assert np.unique(pixels).tolist() == [3000]
    assert pixels.dtype == np.uint16


def test_nodata_takes_no_part_in_any_value(scenes: Path) -> None:
    valid = np.ones((128, 128), dtype=np.bool_)
    valid[40:90, 40:90] = False
    flat(scenes / "a.tif", 1234, side=128, valid=valid)
    view = View(name="s2", sensor="sentinel-2-l2a", gsd_m=20.0)
    build_tiles([scenes], scenes.parent / "store", [view], square_m=1280.0, min_valid=0.1)
    store = TileStore.open(scenes.parent / "store")
    batches = [store[i].views["s2"] for i in range(len(store))]
    assert batches
    for batch in batches:
        assert np.unique(batch.pixels[0][:, batch.valid[0]]).tolist() == [1234]
        assert not batch.pixels[0][:, ~batch.valid[0]].any()
    shares = store.index["s2.valid_share"].to_pylist()
    assert all(0.1 <= s < 1.0 for s in shares)


def test_class_bands_are_never_mixed(scenes: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = np.stack([np.full((256, 256), 900), np.full((256, 256), 800), rng.choice([4, 6, 11], (256, 256))])
    tags = {"ALIDADE_SENSOR": "sentinel-2-l2a", "ALIDADE_BASELINE": "02.12", "ALIDADE_TIME": DAY.isoformat()}
    shifted = Affine(5, 0, WEST - 202.3, 0, -5, NORTH + 201.1)
    write_tif(
        scenes / "a.tif", pixels.astype(np.uint16), transform=shifted, names=("B03", "B04", "SCL"), tags=tags, nodata=0
    )
    view = View(name="s2", sensor="sentinel-2-l2a", bands=("B04", "SCL"), gsd_m=10.0)
    build_tiles([scenes], scenes.parent / "store", [view], square_m=640.0)
    batch = TileStore.open(scenes.parent / "store")[0].views["s2"]
    assert np.unique(batch.pixels[0, 0]).tolist() == [800]
    assert np.unique(batch.pixels[0, 1]).tolist() == [4, 6, 11]


# --- which scenes


def test_the_dates_that_lie_closest_together_are_taken(scenes: Path) -> None:
    for day in (0, 10, 31):
        flat(scenes / f"sar{day}.tif", -10.0 - day, sensor="sentinel-1-rtc", days=day)
    for day in (4, 30, 60):
        flat(scenes / f"opt{day}.tif", 1000 + day, days=day)
    build(scenes)
    row = TileStore.open(scenes.parent / "store").index.to_pylist()[0]
    assert (row["date_gap_days"], Path(row["sentinel-1-rtc.source"]).name) == (1.0, "sar31.tif")
    assert Path(row["sentinel-2-l2a.source"]).name == "opt30.tif"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=9),
    st.one_of(st.none(), st.integers(0, 20)),
)
def test_choice_is_the_best_of_all(scenes: list[tuple[str, int]], limit: int | None) -> None:
    candidates = [
        Candidate(view=v, scene=i, share=1.0, time=DAY + timedelta(days=d)) for i, (v, d) in enumerate(scenes)
    ]

    def score(chosen: Sequence[int]) -> tuple[int, int] | None:
        days = [scenes[i][1] for i in chosen]
        gap = max(days) - min(days)
        return None if limit is not None and gap > limit else (-len(chosen), gap)

    subsets = [[i for i in range(len(scenes)) if mask >> i & 1] for mask in range(1, 2 ** len(scenes))]
    one_each = [s for s in subsets if len({scenes[i][0] for i in s}) == len(s)]
    best = min(found for s in one_each if (found := score(s)) is not None)
    chosen = choose(candidates, limit)
    assert all(name == c.view for name, c in chosen.items())
    assert score([c.scene for c in chosen.values()]) == best


def test_a_date_gap_that_is_too_wide_is_no_sample_and_unknown_dates_do_not_pass(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", days=0)
    flat(scenes / "opt.tif", 1000, days=6)
    assert build(scenes, store="a", max_date_gap_days=5.0).written == 0
    assert build(scenes, store="b", max_date_gap_days=6.0).written == 1
    flat(scenes / "opt.tif", 1000, days=None)
    assert build(scenes, store="c", max_date_gap_days=6.0).written == 0
    assert build(scenes, store="d").written == 1
    assert TileStore.open(scenes.parent / "d").index["date_gap_days"].to_pylist() == [None]


def test_a_cloudy_or_empty_scene_gives_way_to_the_next(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc")
    flat(scenes / "cloudy.tif", 8000, days=1)
    flat(scenes / "empty.tif", 900, days=2, valid=np.zeros((64, 64), dtype=np.bool_))
    flat(scenes / "clear.tif", 700, days=9)
    build(scenes, store="a")
    build(scenes, store="b", max_cloud=0.2)
    first, second = (TileStore.open(scenes.parent / name).index.to_pylist()[0] for name in "ab")
    assert Path(first["sentinel-2-l2a.source"]).name == "cloudy.tif"
    assert first["sentinel-2-l2a.cloud_share"] == 1.0
    assert Path(second["sentinel-2-l2a.source"]).name == "clear.tif"
    assert (second["sentinel-2-l2a.cloud_share"], second["date_gap_days"]) == (0.0, 9.0)


def test_a_missing_or_all_nodata_view_is_marked_missing(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", side=128)
    flat(scenes / "opt.tif", 1000, at=(WEST, NORTH))
    nothing = np.zeros((64, 64), dtype=np.bool_)
    flat(scenes / "empty.tif", 1000, at=(WEST + 640, NORTH - 640), valid=nothing)
    summary = build(scenes, min_views=1)
    assert summary.views == {"sentinel-1-rtc": 4, "sentinel-2-l2a": 1}
    store = TileStore.open(scenes.parent / "store")
    assert len(store.select(require=["sentinel-2-l2a"])) == 1
    batch = store.__getitems__(range(4)).views["sentinel-2-l2a"]
    assert batch.present.sum() == 1
    assert not batch.pixels[~batch.present].any()
    assert build(scenes, store="both").written == 1


# --- what is refused, and what goes on


def test_scenes_that_show_other_ground_are_one_clear_error(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc")
    flat(scenes / "opt.tif", 1000, at=(WEST + 64_000, NORTH))
    with pytest.raises(StoreError, match=r"overlap: got 2 squares that a scene covers, and none that 2 views cover"):
        build(scenes)
    assert not (scenes.parent / "store").exists(), "nothing is made for nothing"


def test_scenes_that_cannot_be_aligned_are_listed_and_the_others_go_on(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc")
    flat(scenes / "opt.tif", 1000)
    tags = {"ALIDADE_SENSOR": "sentinel-2-l2a", "ALIDADE_BASELINE": "02.12", "ALIDADE_GSD": "10"}
    pixels = np.full((2, 64, 64), 900, np.uint16)
    write_tif(scenes / "nowhere.tif", pixels, crs=None, transform=None, names=("B03", "B04"), tags=tags)
    (scenes / "text.tif").write_text("no raster")
    power = {"ALIDADE_SENSOR": "sentinel-1-rtc", "ALIDADE_UNIT": "power"}
    for name in ("VV", "HH"):
        write_tif(
            scenes / f"z{name}.tif", np.full((2, 64, 64), 0.1, np.float32), names=(name, "VH"), tags=power,
            transform=Affine(10, 0, WEST, 0, -10, NORTH),
        )  # fmt: skip
    views = [
        View(name="s1", sensor="sentinel-1-rtc", bands=("VV", "VH")),
        View(name="s2", sensor="sentinel-2-l2a"),
    ]
    summary = build_tiles([scenes, scenes / "gone.tif"], scenes.parent / "store", views, square_m=640.0)
    assert summary.written == 1
    messages = {Path(f.source).name: f.message for f in summary.failures}
    assert set(messages) == {"nowhere.tif", "text.tif", "gone.tif", "zVV.tif", "zHH.tif"}
    assert "CRS: got none, expected a place on the ground" in messages["nowhere.tif"]
    assert "band VV for view s1: got unit power, expected unit dB" in messages["zVV.tif"]
    assert "band VV for view s1: got none" in messages["zHH.tif"]
    assert "5 scenes failed" in summary.sentence()


def test_a_scene_that_breaks_while_it_is_read_is_one_failure(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", side=640)
    rng = np.random.default_rng(2)
    noise = rng.integers(500, 3000, (2, 640, 640), dtype=np.uint16)
    tags = {"ALIDADE_SENSOR": "sentinel-2-l2a", "ALIDADE_BASELINE": "02.12"}
    path = write_tif(
        scenes / "opt.tif", noise, transform=Affine(10, 0, WEST, 0, -10, NORTH), names=("B03", "B04"), tags=tags,
        options={"tiled": True, "blockxsize": 64, "blockysize": 64},
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 9000] = rng.bytes(9000)
    path.write_bytes(content)
    summary = build(scenes)
    assert len(summary.failures) == 1
    assert "opt.tif" in summary.failures[0].message
    assert summary.written + summary.rejected == 100
    assert summary.rejected > 0


def test_nothing_usable_is_an_error(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(RasterError, match="paths to make tiles of"):
        build(scenes)
    (scenes / "text.tif").write_text("no raster")
    with pytest.raises(StoreError, match="scenes: got none that can be used; the first of 1 says"):
        build(scenes)


def test_wrong_wishes_are_refused(scenes: Path) -> None:
    flat(scenes / "opt.tif", 1000)
    s2 = View(name="s2", sensor="sentinel-2-l2a")
    for views, options, message in (
        ([s2, s2], {}, "each name once"),
        ([View(name="s1", sensor="sentinel-1-rtc")], {}, "no usable scene of sentinel-1-rtc"),
        ([View(name="s2", sensor="sentinel-2-l2a", bands=("B12",))], {}, "bands that a scene has, such as B03, B04"),
        ([View(name="s2", sensor="sentinel-2-l2a", gsd_m=9.0)], {}, "a whole number, at least 8"),
        ([View(name="s2", sensor="sentinel-2-l2a", gsd_m=320.0)], {}, "a whole number, at least 8"),
        ([View(name="S 2", sensor="sentinel-2-l2a")], {}, "names of small letters"),
        ([s2], {"min_views": 2}, "2 needed of 1"),
        ([s2], {"split": {"train": 0.7, "val": 0.2}}, "shares that add up to 1"),
    ):
        with pytest.raises(StoreError, match=message):
            build_tiles([scenes], scenes.parent / "store", views, square_m=640.0, **options)  # type: ignore[arg-type]
    with pytest.raises(AlidadeError, match="sentinel-9"):
        build_tiles([scenes], scenes.parent / "store", [View(name="x", sensor="sentinel-9")], square_m=640.0)


# --- splits


def test_ground_of_another_split_is_refused_before_anything_is_read(scenes: Path) -> None:
    flat(scenes / "opt.tif", 1000, side=128)
    assert build(scenes, split="train").written == 4
    flat(scenes / "opt.tif", 1000, side=192)
    with pytest.raises(StoreError, match=r"got 'test' for the square 32633_10_750_8278, which is in 'train'"):
        build(scenes, split="test")
    assert len(TileStore.open(scenes.parent / "store")) == 4
    assert build(scenes, split="train").written == 5, "what was refused has changed nothing"


def test_splits_by_hash_keep_cells_together_and_meet_their_shares() -> None:
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    squares = [Square(epsg=32633, level=11, row=row, col=col) for row in range(0, 800, 2) for col in range(0, 800, 8)]
    drawn: dict[Square, set[str]] = {}
    for square in squares:
        drawn.setdefault(square.parent(14), set()).add(split_of(square, shares))
    assert all(len(found) == 1 for found in drawn.values())
    for name, share in shares.items():
        mean = sum(found == {name} for found in drawn.values()) / len(drawn)
        assert mean == pytest.approx(share, abs=0.015)
    assert split_of(squares[0], {"only": 1.0, "none": 0.0}) == "only"


def test_across_a_zone_seam_no_ground_is_in_two_splits(scenes: Path) -> None:
    # a scene over the meridian of 18 degrees, where zone 33 ends
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(18.0, 47.9)
    flat(scenes / "opt.tif", 1000, side=800, at=(round(x, -1) - 4000, round(y, -1) + 4000))
    summary = build(scenes, split={"train": 0.5, "test": 0.5})
    store = TileStore.open(scenes.parent / "store")
    rows = store.index.to_pylist()
    assert {int(r["square"][:5]) for r in rows} == {32633, 32634}
    assert summary.at_seams > 0
    for row in rows:
        square = Square.from_key(row["square"])
        assert square is not None
        assert zone_of(*square.centre()) == square.epsg, "a square is of its centre's zone"
    west = [r for r in rows if r["square"].startswith("32633") and r["lon"] > 17.98]
    east = [r for r in rows if r["square"].startswith("32634") and r["lon"] < 18.02]
    clashes = 0
    for ours in west:
        square = Square.from_key(ours["square"])
        assert square is not None
        for theirs in (r for r in east if r["split"] != ours["split"]):
            other = Square.from_key(theirs["square"])
            assert other is not None
            lon, lat = other.grid(10).to_lonlat(*np.meshgrid(np.arange(11.0), np.arange(11.0)))
            back = np.stack(square.grid(1).from_lonlat(lon, lat))
            clashes += bool(((back > 0.001) & (back < 0.999)).all(axis=0).any())
    assert clashes == 0


# --- going on


def test_a_second_run_adds_nothing_and_a_new_scene_adds_its_own(scenes: Path) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", side=192)
    flat(scenes / "opt.tif", 1000, side=64)
    dark = np.zeros((64, 64), dtype=np.bool_)
    flat(scenes / "dark.tif", 1000, at=(WEST + 640, NORTH), valid=dark)
    first = build(scenes)
    log = (scenes.parent / "store" / "manifest.jsonl").read_bytes()
    second = build(scenes)
    assert (first.written, first.rejected) == (1, 1)
    assert (second.written, second.present, second.rejected) == (0, 1, 1)
    assert (scenes.parent / "store" / "manifest.jsonl").read_bytes() == log
    flat(scenes / "later.tif", 1100, at=(WEST + 640, NORTH))
    third = build(scenes)
    assert (third.written, third.present, third.samples) == (1, 1, 2)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import alidade.training.tiles.run as run
from alidade.training.tiles.build import build_tiles
run.SHARD_SECONDS = 0.02
build_tiles([Path(sys.argv[2])], Path(sys.argv[3]), square_m=640.0, min_valid=0.5)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_the_same(scenes: Path) -> None:
    rng = np.random.default_rng(9)
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", side=640)
    flat(scenes / "opt.tif", 1000, side=640, valid=np.kron(rng.random((10, 10)) < 0.8, np.ones((64, 64))) > 0)
    arguments = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(scenes)]
    whole, killed = scenes.parent / "whole", scenes.parent / "killed"
    began = time.monotonic()
    subprocess.run([*arguments, str(whole)], check=True, timeout=120)
    seconds = time.monotonic() - began
    chance, kills = random.Random(4), 0
    while True:
        with subprocess.Popen([*arguments, str(killed)]) as child:
            try:
                code = child.wait((chance.uniform(0.6, 1.0) if kills else 0.55) * seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                kills += 1
                code = child.wait()
        log = killed / "manifest.jsonl"
        assert code in (0, -9)
        if code == 0:
            break
        before = log.read_bytes() if log.exists() else b""
        assert kills < 40
        acknowledged = before[: before.rfind(b"\n") + 1]
    assert kills >= 1
    assert log.read_bytes().startswith(acknowledged)
    ended, expected = TileStore.open(killed), TileStore.open(whole)
    ended.verify()
    assert ended.index.equals(expected.index)
    every = range(len(expected))
    for name, batch in expected.__getitems__(every).views.items():
        assert np.array_equal(ended.__getitems__(every).views[name].pixels, batch.pixels)


# --- real data and the command line


def test_real_pairs_align_to_the_pixel(tmp_path: Path) -> None:
    paths = [SAMPLES / s / "bigearthnet_33UUP_87_48.tif" for s in ("sentinel-1", "sentinel-2")]
    summary = build_tiles(paths, tmp_path / "s", square_m=640.0)
    assert summary.written >= 1
    store = TileStore.open(tmp_path / "s")
    square = Square.from_key(store.index["square"][0].as_py())
    assert square is not None
    for path, name in zip(paths, ("sentinel-1-grd", "sentinel-2-l2a"), strict=True):
        raster = read(path)
        assert raster.grid.crs == CRS.from_epsg(square.epsg)
        west, _, _, north = square.bounds()
        col, row = (west - raster.grid.transform.c) / 10.0, (raster.grid.transform.f - north) / 10.0
        rows, cols = slice(round(row), round(row) + 64), slice(round(col), round(col) + 64)
        batch = store[0].views[name]
        expected = raster.select(store.views[name].bands).pixels[:, rows, cols]
        assert np.array_equal(batch.pixels[0], expected), "on its own grid nothing is resampled"


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.callback()
    def main() -> None:
        """Make ``tiles`` one of several commands, as it is in the real application."""

    cli.register(made)
    return made


def test_the_commands(scenes: Path, app: typer.Typer) -> None:
    flat(scenes / "sar.tif", -10.0, sensor="sentinel-1-rtc", side=128)
    flat(scenes / "opt.tif", 1000, side=128)
    (scenes / "text.tif").write_text("no raster")
    store, run = str(scenes.parent / "store"), CliRunner()
    views = ["--view", "s2=sentinel-2-l2a:B04,B03@20", "--view", "s1=sentinel-1-rtc"]
    made = run.invoke(app, ["tiles", "build", str(scenes), "--out", store, "--square", "640", *views, "--json"])
    assert made.exit_code == 2, "a scene failed"
    told = json.loads(made.stdout)
    assert (told["written"], told["views"], len(told["failures"])) == (4, {"s2": 4, "s1": 4}, 1)
    again = run.invoke(app, ["tiles", "build", str(scenes), "--out", store, "--square", "640"])
    assert "4 squares already there; 1 scene failed; the store holds 4 samples" in again.stdout
    assert "text.tif" in again.stderr
    info = json.loads(run.invoke(app, ["tiles", "info", store, "--verify", "--json"]).stdout)
    assert (info["samples"], info["splits"], info["verified"]) == (4, {"train": 4}, True)
    assert (info["views"]["s2"]["bands"], info["views"]["s2"]["side"]) == (["B04", "B03"], 32)
    shown = run.invoke(app, ["tiles", "info", store])
    assert "4 samples of 640 m in 1 shard, " in shown.stdout
    picture = scenes.parent / "p.png"
    drawn = run.invoke(app, ["tiles", "show", store, "--out", str(picture), "-n", "2", "--json"])
    assert len(json.loads(drawn.stdout)["ids"]) == 2
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 5
    empty = run.invoke(app, ["tiles", "show", store, "--out", str(picture), "--split", "test"])
    assert isinstance(empty.exception, StoreError)
    assert "samples to draw: got 0" in str(empty.exception)


def test_options_that_cannot_be_read_are_told() -> None:
    assert cli.parse_view("a=naip-rgb") == View(name="a", sensor="naip-rgb")
    assert cli.parse_view("a=naip-rgb:R,G@2.5") == View(name="a", sensor="naip-rgb", bands=("R", "G"), gsd_m=2.5)
    for bad in ("naip-rgb", "a=", "a=b@x", "a=b@-1", "a=b:@3"):
        with pytest.raises(AlidadeError, match="--view"):
            cli.parse_view(bad)
    assert cli.parse_split("train") == "train"
    assert cli.parse_split("train=0.9, val=0.1") == {"train": 0.9, "val": 0.1}
    for bad in ("train=x", "a=0.5,a=0.5", "a=1,b"):
        with pytest.raises(AlidadeError, match="--split"):
            cli.parse_split(bad)


def test_corners_are_where_the_projection_says() -> None:
    square = square_at(15.3, 47.9, 11)
    west, south, _, _ = square.bounds()
    lon, lat = to_lonlat(square.epsg, np.array([west]), np.array([south]))
    assert square.corners()[0] == (float(lon[0]), float(lat[0]))
    assert square.side_m == BASE_M * 2048
