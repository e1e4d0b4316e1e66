"""Data sets in the layouts that people have: what is imported is what they hold, and every fault is told."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import typer
import zarr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from numpy.typing import NDArray
from PIL import Image
from pmtiles.reader import MmapSource, all_tiles
from pmtiles.tile import Compression, Entry, TileType, serialize_directory, zxy_to_tileid
from pmtiles.writer import Writer
from pyproj import CRS, Transformer
from typer.testing import CliRunner

from alidade.cli import main, tiles, tiles_import
from alidade.errors import AlidadeError, GridError, RasterError
from alidade.imagery.bands import Unit
from alidade.imagery.grid import Grid
from alidade.training.tiles import importing, layout_pmtiles
from alidade.training.tiles.grid import LAT_RANGE, square_at
from alidade.training.tiles.importing import OWN, ImportSummary, import_tiles
from alidade.training.tiles.layouts import DISPLAY_SAR, Options, check_same_ground, place_of
from alidade.training.tiles.plan import split_of
from alidade.training.tiles.scenes import View
from alidade.training.tiles.schema import StoreError
from alidade.training.tiles.store import TileStore, normalise
from make_fixtures import L1C, L2A, UTM, meadow, write_tif

DAY = datetime(2020, 5, 3, 2, 7, 17, tzinfo=UTC)


def rows_of(store: Path) -> dict[str, dict[str, Any]]:
    """The index by sample id."""
    return {row["sample_id"]: row for row in TileStore.open(store).index.to_pylist()}


def pixels_of(store: Path, sample: str, view: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    opened = TileStore.open(store)
    place = opened.index["sample_id"].to_pylist().index(sample)
    batch = opened[place].views[view]
    return batch.pixels[0], batch.valid[0]


def corner(col: int, row: int = 0, *, step: float = 10.0, side: int = 32) -> Affine:
    """The transform of a patch in a row of patches that touch."""
    return Affine(step, 0.0, 500_000.0 + col * side * 10.0, 0.0, -step, 5_300_000.0 - row * side * 10.0)


# --- pairs


SAR, RGB = {"ALIDADE_SENSOR": "sentinel-1-rtc", "ALIDADE_UNIT": "dB"}, {"ALIDADE_SENSOR": "generic-rgb"}


def decibels(side: int = 32, seed: int = 0, count: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(-12, 3, (count, side, side)).astype(np.float32)


def pair(folder: Path, key: str, col: int, *, row: int = 0, sar: bool = True, side: int = 32) -> None:
    """A radar image of 10 m and a picture of 5 m over the same ground."""
    where = {"s1": (corner(col, row, side=side), side), "rgb": (corner(col, row, step=5.0, side=side), 2 * side)}
    seed = abs(hash((key, col, row))) % 2**32
    for view, (transform, size) in where.items():
        if view == "s1" and not sar:
            continue
        (folder / view).mkdir(parents=True, exist_ok=True)
        if view == "s1":
            pixels: NDArray[Any] = decibels(size, seed)
            names, tags = ("VV", "VH"), SAR | {"ALIDADE_TIME": DAY.isoformat()}
        else:
            pixels = np.random.default_rng(seed).integers(1, 255, (3, size, size)).astype(np.uint8)
            names, tags = ("R", "G", "B"), RGB
        write_tif(folder / view / f"{key}.tif", pixels, transform=transform, names=names, tags=tags)


def test_pairs_by_folder_hold_what_the_files_hold(tmp_path: Path) -> None:
    for i in range(3):
        pair(tmp_path / "data", f"a{i}", 10 * i)
    summary = import_tiles("pairs", tmp_path / "data", tmp_path / "store")
    assert (summary.written, summary.failures, summary.views) == (3, (), {"rgb": 3, "s1": 3})
    store = TileStore.open(tmp_path / "store")
    assert {n: (v.sensor, v.bands, v.side, v.dtype) for n, v in store.views.items()} == {
        "rgb": ("generic-rgb", ("R", "G", "B"), 64, "uint8"),
        "s1": ("sentinel-1-rtc", ("VV", "VH"), 32, "float32"),
    }
    for key, row in rows_of(tmp_path / "store").items():
        for view in ("s1", "rgb"):
            path = tmp_path / "data" / view / f"{key.removeprefix('data/')}.tif"
            with rasterio.open(path) as file:
                pixels, valid = pixels_of(tmp_path / "store", key, view)
                assert np.array_equal(pixels, file.read())
                assert valid.all()
            assert row[f"{view}.source"] == str(path)
        # 10 m of UTM at its central meridian are 10 / 0.9996 m on the ground
        assert row["s1.gsd_x"] == pytest.approx(10 / 0.9996, rel=1e-4)
        assert row["rgb.gsd_x"] == pytest.approx(5 / 0.9996, rel=1e-4)
        assert (row["s1.time"], row["rgb.time"], row["split"]) == (DAY, None, "train")
        lon, lat = Transformer.from_crs(UTM, 4326, always_xy=True).transform(500_160 + 3200 * int(key[-1]), 5_299_840)
        assert (row["lon"], row["lat"]) == (pytest.approx(lon, abs=1e-7), pytest.approx(lat, abs=1e-7))
        assert row["xmin"] < row["lon"] < row["xmax"]
    again = import_tiles("pairs", tmp_path / "data", tmp_path / "store")
    assert (again.written, again.present, again.samples) == (0, 3, 3)


def test_pairs_by_name_by_pattern_and_by_split_folder(tmp_path: Path) -> None:
    pair(tmp_path / "made", "x", 0)
    (tmp_path / "flat").mkdir()
    for view in ("s1", "rgb"):
        shutil.copy(tmp_path / "made" / view / "x.tif", tmp_path / "flat" / f"north_east_{view}.tif")
        for split in ("Train", "validation"):
            (tmp_path / "split" / split / view).mkdir(parents=True)
        shutil.copy(tmp_path / "made" / view / "x.tif", tmp_path / "split" / "Train" / view / "x.tif")
        shutil.copy(tmp_path / "made" / view / "x.tif", tmp_path / "flat" / f"IMG-{view}@20200504T1020.tiff")
    assert import_tiles("pairs", tmp_path / "flat", tmp_path / "1").written == 1
    assert list(rows_of(tmp_path / "1")) == ["flat/north_east"]
    pattern = r"(?P<key>IMG)-(?P<view>\w+)@(?P<date>\w+)[.]tiff"
    assert import_tiles("pairs", tmp_path / "flat", tmp_path / "2", Options(pattern=pattern, name="n")).written == 1
    row = rows_of(tmp_path / "2")["n/IMG"]
    assert row["rgb.time"] == row["s1.time"] == datetime(2020, 5, 4, 10, 20, tzinfo=UTC)
    by_key = Options(pattern=r"(s1|rgb)/(?P<key>.+)[.]tif")
    assert import_tiles("pairs", tmp_path / "made", tmp_path / "5", by_key).views == {"rgb": 1, "s1": 1}
    pair(tmp_path / "split" / "validation", "x", 40)
    assert import_tiles("pairs", tmp_path / "split", tmp_path / "3").written == 2
    assert {k: r["split"] for k, r in rows_of(tmp_path / "3").items()} == {
        "split/train/x": "train",
        "split/val/x": "val",
    }
    for bad, got in (("(", "unterminated"), ("(?P<view>.*)", "groups view"), (r"(?P<key>x)(?P<view>y)", "none")):
        with pytest.raises(StoreError, match=got):
            import_tiles("pairs", tmp_path / "flat", tmp_path / "4", Options(pattern=bad))
    shutil.copy(tmp_path / "flat" / "IMG-s1@20200504T1020.tiff", tmp_path / "flat" / "IMG-s1@20200505.tiff")
    with pytest.raises(StoreError, match="both s1 of 'IMG'"):
        import_tiles("pairs", tmp_path / "flat", tmp_path / "4", Options(pattern=pattern))


def test_equal_names_of_two_folders_are_two_samples(tmp_path: Path) -> None:
    pair(tmp_path / "one" / "data", "x", 0)
    pair(tmp_path / "two" / "data", "x", 40)
    import_tiles("pairs", tmp_path / "one" / "data", tmp_path / "store")
    import_tiles("pairs", tmp_path / "two" / "data", tmp_path / "store", Options(name="other"))
    assert list(rows_of(tmp_path / "store")) == ["data/x", "other/x"]


def test_files_are_cut_into_pieces_that_show_their_own_ground(tmp_path: Path) -> None:
    pair(tmp_path / "data", "x", 0)
    summary = import_tiles("pairs", tmp_path / "data", tmp_path / "store", Options(cut=2))
    assert summary.written == 4
    with rasterio.open(tmp_path / "data/s1/x.tif") as low, rasterio.open(tmp_path / "data/rgb/x.tif") as high:
        for row in range(2):
            for col in range(2):
                s1, _ = pixels_of(tmp_path / "store", f"data/x#{row}-{col}", "s1")
                rgb, _ = pixels_of(tmp_path / "store", f"data/x#{row}-{col}", "rgb")
                assert np.array_equal(s1, low.read()[:, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16])
                assert np.array_equal(rgb, high.read()[:, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32])
    rows = rows_of(tmp_path / "store")
    assert rows["data/x#0-0"]["lon"] < rows["data/x#0-1"]["lon"]
    assert rows["data/x#0-0"]["lat"] > rows["data/x#1-0"]["lat"]
    with pytest.raises(StoreError, match="a square that 3 pieces of at least 8 px fill"):
        import_tiles("pairs", tmp_path / "data", tmp_path / "other", Options(cut=3))


def test_sentinel_2_of_both_baselines_gets_one_encoding(tmp_path: Path) -> None:
    for folder in ("s1", "s2"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i, added in enumerate((0, 1000)):
        at = corner(40 * i)
        pixels = meadow(L1C, added=added, side=32)
        write_tif(tmp_path / f"data/s2/{i}.tif", pixels, transform=at, names=L1C)
        write_tif(tmp_path / f"data/s1/{i}.tif", decibels(), transform=at, names=("VV", "VH"), tags=SAR)
    options = Options(views=(View(name="s2", sensor="sentinel-2-l1c"), View(name="s1", sensor="")))
    assert import_tiles("pairs", tmp_path / "data", tmp_path / "store", options).written == 2
    one, other = (pixels_of(tmp_path / "store", f"data/{i}", "s2")[0] for i in (0, 1))
    assert np.array_equal(one, other)
    assert [e.offset for e in TileStore.open(tmp_path / "store").views["s2"].encodings] == [0.0] * 13


def test_pictures_of_radar_stay_pictures(tmp_path: Path) -> None:
    for folder in ("sar", "opt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (1, 32, 32)).astype(np.uint8)
    write_tif(tmp_path / "data/sar/1.tif", picture)
    write_tif(tmp_path / "data/opt/1.tif", np.repeat(picture, 3, axis=0))
    with pytest.raises(StoreError, match=r"view sar: got no file that can be used \(.*1 band of uint8"):
        import_tiles("pairs", tmp_path / "data", tmp_path / "store")
    views = (View(name="sar", sensor="display-vh", bands=("VH",)), View(name="opt", sensor=""))
    assert import_tiles("pairs", tmp_path / "data", tmp_path / "store", Options(views=views)).written == 1
    spec = TileStore.open(tmp_path / "store").views["sar"]
    assert (spec.sensor, spec.bands, spec.dtype, spec.encodings[0].unit) == (
        "display-vh", ("VH",), "uint8", Unit.DISPLAY,
    )  # fmt: skip
    assert np.array_equal(pixels_of(tmp_path / "store", "data/1", "sar")[0], picture)
    store = TileStore.open(tmp_path / "store")
    batch = store[0].views["sar"]
    values, good = normalise(store.views["sar"], batch.pixels, batch.valid)
    assert good.all()
    assert abs(values.mean()) < 1


def test_every_fault_of_a_pair_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i, key in enumerate(("good", "half", "crs", "shifted", "short", "small", "unit", "empty", "also-good")):
        pair(data, key, 10 * i, sar=key != "half")
    moved = Transformer.from_crs(UTM, 32632, always_xy=True).transform(500_640.0, 5_300_000.0)
    write_tif(data / "s1/crs.tif", decibels(), crs="EPSG:32632", names=("VV", "VH"), tags=SAR,
              transform=Affine(10, 0, moved[0], 0, -10, moved[1]))  # fmt: skip
    write_tif(data / "s1/shifted.tif", decibels(), names=("VV", "VH"), tags=SAR, transform=corner(30, 1))
    content = (data / "s1/short.tif").read_bytes()
    (data / "s1/short.tif").write_bytes(content[: len(content) // 2])
    write_tif(data / "s1/small.tif", decibels(16), names=("VV", "VH"), tags=SAR, transform=corner(50))
    write_tif(data / "s1/unit.tif", 10 ** (decibels() / 10), names=("VV", "VH"), transform=corner(60),
              tags=SAR | {"ALIDADE_UNIT": "power"})  # fmt: skip
    write_tif(data / "s1/empty.tif", np.full((2, 32, 32), np.nan, np.float32), names=("VV", "VH"), tags=SAR,
              transform=corner(70))  # fmt: skip
    summary = import_tiles("pairs", data, tmp_path / "store")
    assert sorted(rows_of(tmp_path / "store")) == ["data/also-good", "data/good"]
    assert summary.incomplete == 2, "the half, and the pair whose radar image is empty"
    told = {f.source.removeprefix("data/"): f.message for f in summary.failures}
    assert set(told) == {"crs", "shifted", "short", "small", "unit"}
    for key, words in {
        "crs": "expected all views over the same ground", "shifted": r"corners up to 320\.\d m away, at most 5.0 m",
        "short": "damaged or cut short", "small": "got 16 x 16 px, expected 32 x 32 px",
        "unit": "got power, expected dB",
    }.items():  # fmt: skip
        assert len(told[key].splitlines()) == 1
        assert re.search(words, told[key]), told[key]
    # what is repaired is taken in by the same call
    pair(data, "short", 40)
    again = import_tiles("pairs", data, tmp_path / "store", min_views=2)
    assert (again.written, again.present) == (1, 2)
    assert import_tiles("pairs", data, tmp_path / "store", min_views=1).written == 2


def test_views_over_one_ground_may_differ_in_crs_and_none_has_to_have_one(tmp_path: Path) -> None:
    lonlat = Transformer.from_crs(UTM, 4326, always_xy=True)
    west, north = lonlat.transform(500_000.0, 5_300_000.0)
    east, south = lonlat.transform(500_320.0, 5_299_680.0)
    utm = Grid(crs=CRS.from_user_input(UTM), transform=corner(0), width=32, height=32)
    degrees = Affine((east - west) / 32, 0, west, 0, (south - north) / 32, north)
    check_same_ground(utm, Grid(crs=CRS.from_epsg(4326), transform=degrees, width=32, height=32), "x")
    bare = Grid(crs=None, transform=Affine.identity(), width=32, height=32, gsd_override_m=10.0)
    finer = Grid(crs=None, transform=Affine.identity(), width=128, height=128, gsd_override_m=2.5)
    check_same_ground(bare, finer, "x")
    wrong = Grid(crs=None, transform=Affine.identity(), width=128, height=128, gsd_override_m=5.0)
    for first, other in ((bare, wrong), (bare, utm), (utm, bare)):
        with pytest.raises(GridError, match="another extent, or only one of the views with a CRS"):
            check_same_ground(first, other, "x")
    assert place_of(bare) is None


# --- splits and leakage


@given(st.floats(-180, 180), st.floats(*LAT_RANGE))
def test_places_and_draws_are_those_of_build(lon: float, lat: float) -> None:
    square = square_at(lon, lat, 11)
    place = place_of(square.grid(8))
    assert place is not None
    assert place[:2] == pytest.approx(square.centre())
    assert place[2] == pytest.approx(square.bbox())
    shares = {"train": 0.6, "val": 0.1, "test": 0.3}
    assert importing._draw(square.parent(importing.SPLIT_CELL_LEVEL).key, shares) == split_of(square, shares)


def test_the_same_ground_in_two_splits_is_refused(tmp_path: Path) -> None:
    pair(tmp_path / "one", "x", 0)
    pair(tmp_path / "two", "first", 40)
    pair(tmp_path / "two", "y", 0)
    import_tiles("pairs", tmp_path / "one", tmp_path / "store", split="train")
    with pytest.raises(StoreError, match="got 'test' for .* two/y, whose ground overlaps one/x, which is in 'train'"):
        import_tiles("pairs", tmp_path / "two", tmp_path / "store", split="test")
    assert sorted(rows_of(tmp_path / "store")) == ["one/x", "two/first"], "what came before it is kept"
    with pytest.raises(StoreError, match="'val' now, but the store has it in 'train'"):
        import_tiles("pairs", tmp_path / "one", tmp_path / "store", split="val")
    assert import_tiles("pairs", tmp_path / "two", tmp_path / "store2", split={"a": 0.5, "b": 0.5}).leaking == 0


def test_own_splits_that_leak_are_told_one_by_one(tmp_path: Path) -> None:
    pair(tmp_path / "data" / "train", "x", 0)
    pair(tmp_path / "data" / "test", "y", 0)
    pair(tmp_path / "data" / "test", "z", 40)
    summary = import_tiles("pairs", tmp_path / "data", tmp_path / "store")
    assert (summary.written, summary.leaking, len(summary.failures)) == (2, 1, 1)
    assert "no ground in two splits" in summary.failures[0].message
    assert summary.failures[0].source == "data/train/x", "in order of the splits' names"
    with pytest.raises(StoreError, match="none of the data set's own"):
        import_tiles("pairs", tmp_path / "data" / "train", tmp_path / "other", split=OWN)


# --- stopping and going on

KILLED = """
import sys
from pathlib import Path
import alidade.training.tiles.importing as importing
importing.SHARD_SECONDS = 0.01
importing.import_tiles("pairs", Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    for i in range(60):
        pair(tmp_path / "data", f"{i:02}", i % 10 * 10, row=i // 10 * 10)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "data")]
    began = time.monotonic()
    subprocess.run([*arguments, str(tmp_path / "whole")], check=True, timeout=300)
    seconds = time.monotonic() - began
    chance, kills, killed, seen = random.Random(5), 0, tmp_path / "killed", b""
    while True:
        with subprocess.Popen([*arguments, str(killed)]) as child:
            try:
                code = child.wait((chance.uniform(0.5, 1.0) if kills else 0.7) * seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                kills += 1
                code = child.wait()
        log = killed / "manifest.jsonl"
        now = log.read_bytes() if log.exists() else b""
        assert now.startswith(seen), "nothing acknowledged is lost"
        seen = now[: now.rfind(b"\n") + 1]
        assert code in (0, -9)
        if code == 0:
            break
        assert kills < 40
    assert kills >= 1
    ended, whole = TileStore.open(killed), TileStore.open(tmp_path / "whole")
    ended.verify()
    assert ended.index.equals(whole.index)
    for name, batch in whole.__getitems__(range(60)).views.items():
        assert np.array_equal(ended.__getitems__(range(60)).views[name].pixels, batch.pixels)


# --- BigEarthNet

PATCH_BANDS = {120: ("B02", "B03", "B04", "B08"), 60: ("B05", "B06", "B07", "B8A", "B11", "B12"), 20: ("B01", "B09")}


def shaded(names: Sequence[str], *, side: int, seed: int = 0, added: int = 0, dtype: str = "int16") -> NDArray[Any]:
    """A meadow so dark that its pixels tell in every band whether 1000 was added."""
    return (meadow(names, side=side, seed=seed, dtype=dtype) // 5 + added).astype(dtype)


def s2_patch(folder: Path, name: str, col: int, *, added: int = 0, json_time: str | None = None) -> Path:
    (folder / name).mkdir(parents=True)
    for side, bands in PATCH_BANDS.items():
        at = Affine(1200 / side, 0, 500_000 + 1200 * col, 0, -1200 / side, 5_300_000)
        for band in bands:
            pixels = shaded([band], side=side, added=added, dtype="uint16")
            write_tif(folder / name / f"{name}_{band}.tif", pixels, transform=at)
    if json_time is not None:
        facts = {"labels": ["Pastures"], "acquisition_date": json_time}
        (folder / name / f"{name}_labels_metadata.json").write_text(json.dumps(facts))
    return folder / name


def s1_patch(folder: Path, name: str, col: int, partner: str | None) -> Path:
    (folder / name).mkdir(parents=True)
    for band in ("VV", "VH"):
        at = Affine(10, 0, 500_000 + 1200 * col, 0, -10, 5_300_000)
        write_tif(folder / name / f"{name}_{band}.tif", decibels(120, col, 1), transform=at)
    if partner is not None:
        facts = {"corresponding_s2_patch": partner, "acquisition_time": "2017-06-13T16:50:43"}
        (folder / name / f"{name}_labels_metadata.json").write_text(json.dumps(facts))
    return folder / name


def test_bigearthnet_1_keeps_its_three_resolutions_pairs_and_times(tmp_path: Path) -> None:
    data = tmp_path / "data"
    two = [f"S2A_MSIL2A_20170613T93020_{i}_48" for i in range(4)]
    one = [f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{i}_48" for i in range(4)]
    for i, name in enumerate(two):
        s2_patch(data / "BigEarthNet-v1.0", name, 20 * i, json_time="2017-06-13 09:30:20" if i else None)
    for i in (0, 1, 2):
        s1_patch(data / "BigEarthNet-S1-v1.0", one[i], 20 * i, two[i] if i != 2 else None)
    (data / "train.csv").write_text(f"{two[0]},{one[0]}\n{two[3]}\n")
    (data / "test.csv").write_text(f"{two[1]},{one[1]}\n")
    summary = import_tiles("bigearthnet-mm", data, tmp_path / "store")
    assert (summary.written, summary.incomplete, summary.unlisted) == (2, 1, 1)
    assert len(summary.failures) == 1
    assert "no corresponding_s2_patch" in summary.failures[0].message
    rows = rows_of(tmp_path / "store")
    assert {k: r["split"] for k, r in rows.items()} == {two[0]: "train", two[1]: "test"}
    for row in rows.values():
        assert row["s2.time"] == row["s2-60m.time"] == datetime(2017, 6, 13, 9, 30, 20, tzinfo=UTC)
        assert row["s1.time"] == datetime(2017, 6, 13, 16, 50, 43, tzinfo=UTC)
        assert [round(row[f"{v}.gsd_x"]) for v in ("s1", "s2", "s2-20m", "s2-60m")] == [10, 10, 20, 60]
    for view, side in (("s2", 120), ("s2-20m", 60), ("s2-60m", 20)):
        pixels, _ = pixels_of(tmp_path / "store", two[1], view)
        assert np.array_equal(pixels, np.concatenate([shaded([b], side=side) for b in PATCH_BANDS[side]]))
    alone = import_tiles("bigearthnet-mm", data, tmp_path / "optical", views=["s2"], split="train")
    assert alone.written == 4


def test_bigearthnet_2_takes_pairs_and_splits_from_its_table(tmp_path: Path) -> None:
    data, tile = tmp_path / "data", "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    two = [f"{tile}_26_{i}" for i in range(3)]
    one = [f"S1A_IW_GRDH_1SDV_20170612T165809_33UUP_26_{i}" for i in range(3)]
    for i in range(3):
        s2_patch(data / "BigEarthNet-S2" / tile, two[i], 20 * i)
        s1_patch(data / "BigEarthNet-S1" / "S1A_IW_GRDH_1SDV_20170612T165809", one[i], 20 * i, None)
    table = {"patch_id": two, "s1_name": one, "split": ["train", "validation", "test"], "country": ["Austria"] * 3}
    pq.write_table(pa.table(table), data / "metadata.parquet")
    assert import_tiles("bigearthnet-mm", data, tmp_path / "store").written == 3
    rows = rows_of(tmp_path / "store")
    assert [rows[n]["split"] for n in two] == ["train", "val", "test"]
    assert rows[two[0]]["s2.time"] == datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
    assert rows[two[0]]["s1.time"] == datetime(2017, 6, 12, 16, 58, 9, tzinfo=UTC)
    (data / "metadata.parquet").write_bytes(b"no table")
    with pytest.raises(StoreError, match="the columns patch_id, s1_name and split"):
        import_tiles("bigearthnet-mm", data, tmp_path / "other")


def test_faults_of_bigearthnet_patches(tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = [f"S2A_MSIL2A_20170613T101031_{i}_1" for i in range(4)]
    folders = [s2_patch(data, n, 20 * i, added=1000 * (i == 2)) for i, n in enumerate(names)]
    (folders[0] / f"{names[0]}_B11.tif").unlink()
    write_tif(folders[1] / f"{names[1]}_B03.tif", meadow(["B03"], side=120), transform=corner(999))
    summary = import_tiles("bigearthnet-mm", data, tmp_path / "store")
    told = {f.source: f.message for f in summary.failures}
    assert summary.written == 1
    assert "B11.tif: got no such file" in told[names[0]]
    assert "B03.tif: grid: got another CRS, place or size" in told[names[1]]
    assert "stored numbers with 1000 added" in told[names[2]]


# --- SEN12MS


def scene(folder: Path, season: str, number: int, row: int, patches: int = 3) -> None:
    """Patches of 256 px, each half over the one before."""
    for kind in ("s1", "s2"):
        (folder / season / f"{kind}_{number}").mkdir(parents=True)
        for p in range(patches):
            at = Affine(10, 0, 500_000 + 1280 * p, 0, -10, 5_300_000 - 20_000 * row)
            name = f"{season}_{kind}_{number}_p{30 + p}.tif"
            pixels = decibels(256, p) if kind == "s1" else meadow(L1C, side=256, seed=p)
            write_tif(folder / season / f"{kind}_{number}" / name, pixels, transform=at)


def test_sen12ms_never_parts_a_scene(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(5):
        scene(data, "ROIs1158_spring", number, number)
    (data / "ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p31.tif").unlink()
    (data / "ROIs1158_spring/lc_0").mkdir()
    write_tif(data / "ROIs1158_spring/lc_0/ROIs1158_spring_lc_0_p30.tif", np.ones((4, 256, 256), np.uint16))
    shares = {"train": 0.5, "test": 0.5}
    summary = import_tiles("sen12ms", data, tmp_path / "store", split=shares)
    assert (summary.written, summary.incomplete, summary.leaking, summary.failures) == (14, 1, 0, ())
    rows = rows_of(tmp_path / "store")
    by_scene = {n: {r["split"] for k, r in rows.items() if k.startswith(f"ROIs1158_spring_{n}_")} for n in range(5)}
    assert all(len(splits) == 1 for splits in by_scene.values())
    assert {s for splits in by_scene.values() for s in splits} == {"train", "test"}
    pixels, valid = pixels_of(tmp_path / "store", "ROIs1158_spring_2_p31", "s2")
    assert np.array_equal(pixels, meadow(L1C, side=256, seed=1))
    assert valid.all()
    assert {r["date_gap_days"] for r in rows.values()} == {None}, "the data set names no dates"
    store = TileStore.open(tmp_path / "store")
    assert (store.views["s1"].encodings[0].unit, store.views["s2"].encodings[0].offset) == (Unit.DB, 0.0)


def test_patches_that_overlap_across_scenes_do_not_reach_two_splits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scene(data, "ROIs1158_spring", 1, 0)
    scene(data, "ROIs1868_summer", 2, 0)
    (data / "splits").mkdir()
    (data / "splits/SEN12MS_holdOutScenes.txt").write_text("ROIs1868_summer/s1_2\n")
    summary = import_tiles("sen12ms", data, tmp_path / "store")
    assert (summary.written, summary.leaking) == (3, 3)
    assert {r["split"] for r in rows_of(tmp_path / "store").values()} == {"train"}
    assert len(summary.failures) == 3


# --- TerraMesh

BAND_NAMES = {"S1RTC": ("vv", "vh"), "S1GRD": ("vv", "vh"), "S2L1C": L1C, "S2L2A": L2A, "S2RGB": ("B04", "B03", "B02")}


def zipped_zarr(
    path: Path, pixels: NDArray[Any], names: Sequence[str], *, col: int = 0, compressor: Any = None, epsg: int = 32633
) -> bytes:
    """A patch as the public files hold it: Zarr 2 in a zip, Blosc, dimensions (time, band, y, x)."""
    side = pixels.shape[-1]
    target = path / "patch.zarr.zip"
    target.unlink(missing_ok=True)
    arrays = {
        "bands": pixels[None], "band": np.array(names), "crs": np.array(epsg),
        "x": 500_005.0 + 3000 * col + 10.0 * np.arange(side), "y": 5_299_995.0 - 10.0 * np.arange(side),
        "time": np.array([int(DAY.timestamp()) * 10**9]), "center_lon": np.array(15.0),
    }  # fmt: skip
    with zarr.storage.ZipStore(target, mode="w") as store:
        group = zarr.group(store, zarr_format=2)
        for name, values in arrays.items():
            made = group.create_array(
                name, shape=values.shape, chunks=values.shape, dtype=values.dtype,
                compressors=compressor or Blosc(cname="lz4"),
                attributes={"units": "nanoseconds since 1970-01-01"} if name == "time" else None,
            )  # fmt: skip
            made[...] = values
    return target.read_bytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def terramesh(
    tmp_path: Path, patches: dict[str, dict[str, bytes]], split: str = "val", shard: str = "majortom_shard_000001"
) -> Path:
    for modality, members in patches.items():
        write_tar(tmp_path / "TerraMesh" / split / modality / f"{shard}.tar", members)
    return tmp_path / "TerraMesh"


def patch(tmp_path: Path, modality: str, col: int = 0, *, added: int = 0, pixels: Any = None) -> bytes:
    if pixels is None and modality.startswith("S1"):
        pixels = decibels(264, col).astype(np.float16)
    elif pixels is None and modality == "S2RGB":
        pixels = np.random.default_rng(col).integers(1, 255, (3, 264, 264)).astype(np.uint8)
    elif pixels is None:
        pixels = shaded(BAND_NAMES[modality], side=264, seed=col, added=added)
    return zipped_zarr(tmp_path, pixels, BAND_NAMES[modality], col=col)


def test_terramesh_holds_what_zarr_holds_with_the_added_1000_taken_off(tmp_path: Path) -> None:
    keys = ["majortom_1", "majortom_2"]
    root = terramesh(
        tmp_path,
        {
            m: {f"{k}.zarr.zip": patch(tmp_path, m, i, added=1000 * i) for i, k in enumerate(keys)}
            for m in ("S1RTC", "S2L1C", "S2L2A", "S2RGB")
        },
    )
    terramesh(tmp_path, {"DEM": {"majortom_1.zarr.zip": b"not read"}})
    terramesh(tmp_path, {m: {"t.zarr.zip": patch(tmp_path, m, 9)} for m in ("S1RTC", "S2L2A")}, "train")
    summary = import_tiles("terramesh", root, tmp_path / "store")
    assert (summary.written, summary.failures) == (3, ())
    assert {k: r["split"] for k, r in rows_of(tmp_path / "store").items()} == {"t": "train"} | dict.fromkeys(
        keys, "val"
    )
    for i, key in enumerate(keys):
        for view, modality in (("s2l1c", "S2L1C"), ("s2l2a", "S2L2A")):
            pixels, valid = pixels_of(tmp_path / "store", key, view)
            assert np.array_equal(pixels, shaded(BAND_NAMES[modality], side=264, seed=i))
            assert valid.all()
        sar, _ = pixels_of(tmp_path / "store", key, "s1rtc")
        assert np.array_equal(sar, decibels(264, i).astype(np.float16).astype(np.float32))
        row = rows_of(tmp_path / "store")[key]
        assert row["s1rtc.time"] == row["s2l2a.time"] == DAY
        assert row["s2l2a.gsd_x"] == pytest.approx(10 / 0.9996, rel=1e-4)
        lon, lat = Transformer.from_crs(UTM, 4326, always_xy=True).transform(501_320 + 3000 * i, 5_298_680)
        assert (row["lon"], row["lat"]) == (pytest.approx(lon, abs=1e-7), pytest.approx(lat, abs=1e-7))


def test_terramesh_bands_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    names = [n.replace("B0", "B") for n in reversed(L2A)]
    content = zipped_zarr(tmp_path, meadow(list(reversed(L2A)), side=264, dtype="int16"), names)
    root = terramesh(tmp_path, {"S2L2A": {"k.zarr.zip": content}})
    assert import_tiles("terramesh", root, tmp_path / "store").written == 1
    pixels, _ = pixels_of(tmp_path / "store", "k", "s2l2a")
    assert np.array_equal(pixels, meadow(list(reversed(L2A)), side=264, dtype="int16")[::-1])


def test_an_offset_that_the_pixels_do_not_tell_has_to_be_declared(tmp_path: Path) -> None:
    cloud = np.full((12, 264, 264), 6000, np.int16)
    content = {"S1GRD": patch(tmp_path, "S1GRD"), "S2L2A": patch(tmp_path, "S2L2A", pixels=cloud)}
    root = terramesh(tmp_path, {modality: {"k.zarr.zip": c} for modality, c in content.items()})
    summary = import_tiles("terramesh", root, tmp_path / "store")
    assert summary.written == 0
    assert "--offset s2l2a=0 or -0.1" in summary.failures[0].message
    assert import_tiles("terramesh", root, tmp_path / "store", Options(offsets={"s2l2a": -0.1})).written == 1
    assert (pixels_of(tmp_path / "store", "k", "s2l2a")[0] == 5000).all()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickle-was-loaded",)


def rezipped(content: bytes, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with other content under its names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    change(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def described(name: str, **facts: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[f"{name}/.zarray"] = json.dumps(json.loads(files[f"{name}/.zarray"]) | facts).encode()

    return change


def pickled(files: dict[str, bytes]) -> None:
    described("bands", dtype="|O", filters=[{"id": "pickle", "protocol": 5}], compressor=None)(files)
    files["bands/0.0.0.0"] = pickle.dumps(np.array([Evil()], dtype=object))


def bomb(files: dict[str, bytes]) -> None:
    head = bytearray(files["bands/0.0.0.0"])
    head[4:8] = struct.pack("<I", 2**31 - 17)
    files["bands/0.0.0.0"] = bytes(head)


def torn(files: dict[str, bytes]) -> None:
    files["bands/0.0.0.0"] = files["bands/0.0.0.0"][:4000]


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "pickle": (pickled, "filters .*pickle.*, expected numbers or text"),
    "object": (described("bands", dtype="|O", fill_value=None), r"type '\|O'"),
    "blosc-bomb": (bomb, "a chunk that unpacks to 2,147,483,631 bytes"),
    "torn": (torn, "expected an array that decodes"),
    "zip-bomb": (lambda f: f.update({"more": b"\0" * 2**27}), "files of 13.,...,... bytes, expected a patch"),
    "huge": (described("bands", shape=[1, 2, 10**6, 10**6], chunks=[1, 2, 10**6, 10**6]), "array of a patch's size"),
    "many": (described("x", chunks=[1], shape=[10**6]), "an array of a patch's size"),
    "shape": (described("bands", shape=[1, 2, 264]), "an array of a patch's size"),
    "zlib": (described("bands", compressor={"id": "zlib", "level": 1}), "compressor 'zlib'"),
    "no-crs": (lambda f: f.pop("crs/.zarray"), "crs/.zarray: got no such file") ,
    "no-json": (lambda f: f.update({"y/.zarray": b"[" * 10**6}), "y/.zarray"),
    "no-place": (lambda f: f.pop("x/0"), "not evenly spaced"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_and_damaged_patches_are_refused(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, words = HOSTILE[fault]
    good = patch(tmp_path, "S1RTC")
    content = rezipped(good, change, zipfile.ZIP_DEFLATED)
    root = terramesh(tmp_path, {"S1RTC": {"bad.zarr.zip": content, "good.zarr.zip": patch(tmp_path, "S1RTC", 7)}})
    summary = import_tiles("terramesh", root, tmp_path / "store")
    assert summary.written == 1
    assert [f.source for f in summary.failures] == ["bad"]
    assert re.search(words, summary.failures[0].message), summary.failures[0].message
    assert not (tmp_path / "pickle-was-loaded").exists()


def test_a_tar_that_ends_too_early_gives_what_it_has(tmp_path: Path) -> None:
    members = {f"k{i}.zarr.zip": patch(tmp_path, "S1RTC", 9 * i) for i in range(3)}
    root = terramesh(tmp_path, {"S1RTC": members})
    path = root / "val/S1RTC/majortom_shard_000001.tar"
    whole = path.read_bytes()
    for cut in (len(members["k0.zarr.zip"]) + 2000, 2 * len(members["k0.zarr.zip"]) + 2500):
        path.write_bytes(whole[:cut])
        summary = import_tiles("terramesh", root, tmp_path / f"store{cut}")
        assert summary.written == cut // len(members["k0.zarr.zip"])
        assert summary.failures
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(StoreError, match="the first of 1 faults: .*a whole tar file"):
        import_tiles("terramesh", root, tmp_path / "other")


# --- PMTiles


def png(pixels: NDArray[Any], form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(out, form)
    return out.getvalue()


def picture(seed: int, count: int = 3, low: int = 1, side: int = 256) -> NDArray[np.uint8]:
    pixels = np.kron(
        np.random.default_rng(seed).integers(low, 255, (count, 16, 16)), np.ones((1, side // 16, side // 16))
    )
    if count == 4:
        pixels[3] = 255
    return pixels.astype(np.uint8)


def write_pmtiles(path: Path, tiles: dict[tuple[int, int, int], bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = Writer(file)
        for (z, x, y), content in sorted(tiles.items(), key=lambda item: zxy_to_tileid(*item[0])):
            writer.write_tile(zxy_to_tileid(z, x, y), content)
        writer.finalize({"tile_type": TileType.PNG, "tile_compression": Compression.NONE}, {})
    return path


X, Y = 8654, 13124  # in Georgia, 34 degrees north


def archives(folder: Path, places: Sequence[tuple[int, int]] = ((X, Y), (X + 1, Y))) -> Path:
    radar, low, high = {}, {}, {}
    for number, (x, y) in enumerate(places):
        radar[15, x, y] = png(picture(number, 4))
        low[15, x, y] = png(picture(100 + number, 4))
        high[15, x, y] = png(picture(200 + number))
        for j in (0, 1):
            for i in (0, 1):
                high[16, 2 * x + i, 2 * y + j] = png(picture(1000 + 4 * number + 2 * j + i))
    write_pmtiles(folder / "sar.pmtile", radar)
    write_pmtiles(folder / "visual.pmtile", low)
    write_pmtiles(folder / "hires.pmtile", high)
    return folder


def test_pmtiles_are_stitched_and_know_the_ground(tmp_path: Path) -> None:
    summary = import_tiles("pmtiles", archives(tmp_path / "data"), tmp_path / "store")
    assert (summary.written, summary.failures) == (2, ())
    store = TileStore.open(tmp_path / "store")
    assert {n: (v.sensor, v.side) for n, v in store.views.items()} == {
        "s1": (DISPLAY_SAR, 256), "s2": ("generic-rgb", 256), "naip": ("naip-rgb", 512),
    }  # fmt: skip
    assert {e.unit for v in store.views.values() for e in v.encodings} == {Unit.DISPLAY}
    for number, x in enumerate((X, X + 1)):
        key = f"xyz_15_{x}_{Y}"
        assert np.array_equal(pixels_of(tmp_path / "store", key, "s1")[0], picture(number, 4)[1:3])
        assert np.array_equal(pixels_of(tmp_path / "store", key, "s2")[0], picture(100 + number, 4)[:3])
        high, _ = pixels_of(tmp_path / "store", key, "naip")
        for j in (0, 1):
            for i in (0, 1):
                quarter = high[:, 256 * j : 256 * j + 256, 256 * i : 256 * i + 256]
                assert np.array_equal(quarter, picture(1000 + 4 * number + 2 * j + i)), "north-west first"
        row = rows_of(tmp_path / "store")[key]
        # the inverse of the spherical Mercator projection, written out
        lat = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * (Y + 0.5) / 2**15))))
        assert row["lat"] == pytest.approx(lat, abs=1e-4)
        assert row["lon"] == pytest.approx((x + 0.5) / 2**15 * 360 - 180, abs=1e-9)
        for axis in "xy":
            assert row[f"s1.gsd_{axis}"] == pytest.approx(4.777 * math.cos(math.radians(lat)), rel=7e-3)
            assert row[f"naip.gsd_{axis}"] == pytest.approx(row[f"s1.gsd_{axis}"] / 2, rel=1e-6)
        assert row["xmax"] - row["xmin"] == pytest.approx(360 / 2**15)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=400), st.booleans())
def test_directories_are_read_as_the_reference_reads_them(
    tmp_path_factory: pytest.TempPathFactory, places: set[tuple[int, int]], same: bool
) -> None:
    tiles = {(15, 100 + x, 200 + y): b"same" if same else f"{x} {y}".encode() for x, y in places}
    path = write_pmtiles(tmp_path_factory.mktemp("archive") / "s1.pmtiles", tiles)
    read = layout_pmtiles.read_archive(str(path))
    content = path.read_bytes()
    with path.open("rb") as file:
        reference = dict(all_tiles(MmapSource(file)))
    assert reference == tiles
    assert {k: content[a : a + n] for k, (a, n) in read.tiles.items()} == tiles


def test_a_large_archive_has_leaves(tmp_path: Path) -> None:
    chance = random.Random(1)
    places = {(chance.randrange(2**15), chance.randrange(2**15)) for _ in range(8000)}
    tiles = {(15, x, y): chance.randbytes(chance.randrange(1, 99)) for x, y in places}
    path = write_pmtiles(tmp_path / "s1.pmtiles", tiles)
    content = path.read_bytes()
    assert int.from_bytes(content[48:56], "little") > 0, "leaf directories"
    assert {k: content[a : a + n] for k, (a, n) in layout_pmtiles.read_archive(str(path)).tiles.items()} == tiles


def test_missing_and_black_children_give_no_black_image(tmp_path: Path) -> None:
    data = archives(tmp_path / "data", [(X, Y), (X + 1, Y), (X + 2, Y)])
    children = {(16, 2 * (X + k) + i, 2 * Y + j): png(picture(k)) for k in range(3) for i in (0, 1) for j in (0, 1)}
    del children[16, 2 * X + 1, 2 * Y]
    children[16, 2 * (X + 1), 2 * Y + 1] = png(np.zeros((3, 256, 256), np.uint8))
    write_pmtiles(data / "hires.pmtile", children)
    summary = import_tiles("pmtiles", data, tmp_path / "store")
    assert (summary.written, summary.views, summary.failures) == (3, {"s1": 3, "s2": 3, "naip": 1}, ())
    rows = rows_of(tmp_path / "store")
    assert [rows[f"xyz_15_{X + k}_{Y}"]["naip.present"] for k in range(3)] == [False, False, True]


def test_radar_bytes_of_0_are_not_data_and_masks_are_kept(tmp_path: Path) -> None:
    data = archives(tmp_path / "data", [(X, Y)])
    radar = picture(0, 4)
    radar[1, :10, :10] = 0  # VV was saturated, and wrapped
    radar[3, 100:] = 0
    write_pmtiles(data / "sar.pmtile", {(15, X, Y): png(radar)})
    import_tiles("pmtiles", data, tmp_path / "store")
    pixels, valid = pixels_of(tmp_path / "store", f"xyz_15_{X}_{Y}", "s1")
    assert not valid[:10, :10].any()
    assert not valid[100:].any()
    assert valid[10:100].all()
    assert not pixels[:, ~valid].any()


def test_samples_of_one_tile_of_10_km_share_a_split(tmp_path: Path) -> None:
    places = [(8 * a + i, 8 * b + i) for a in range(1000, 1006) for b in range(1600, 1603) for i in (0, 7)]
    tile = png(picture(0, 4))
    for name in ("sar", "visual"):
        write_pmtiles(tmp_path / "data" / f"{name}.pmtiles", {(15, x, y): tile for x, y in places})
    import_tiles("pmtiles", tmp_path / "data", tmp_path / "store", split={"train": 0.5, "test": 0.5})
    found: dict[tuple[int, int], set[str]] = {}
    for key, row in rows_of(tmp_path / "store").items():
        _, _, x, y = key.split("_")
        found.setdefault((int(x) // 8, int(y) // 8), set()).add(row["split"])
    assert len(found) == 18
    assert all(len(splits) == 1 for splits in found.values())
    assert {s for splits in found.values() for s in splits} == {"train", "test"}


def raw_archive(
    directory: bytes, *, size: int = 64, compression: int = 2, root: tuple[int, int] | None = None
) -> bytes:
    """A header with one directory behind it, then ``size`` bytes of tiles."""
    start, length = root or (127, len(directory))
    head = b"PMTiles\x03" + struct.pack("<11Q", start, length, 127, 0, 127, 0, 127 + len(directory), size, 1, 1, 1)
    head += (
        bytes([1, compression, 1, 2, 15, 16]) + struct.pack("<4i", 0, 0, 0, 0) + bytes([0]) + struct.pack("<2i", 0, 0)
    )
    return head + directory + b"\0" * size


def entry(run: int = 1, length: int = 4, offset: int = 0, tile: int | None = None) -> bytes:
    return serialize_directory([Entry(zxy_to_tileid(15, X, Y) if tile is None else tile, offset, length, run)])


BROKEN = {
    "no-archive": (b"GIF89a" + b"\0" * 200, "PMTiles of version 3"),
    "version-2": (b"PMTiles\x02" + b"\0" * 200, "PMTiles of version 3"),
    "short": (raw_archive(entry())[:100], "PMTiles of version 3"),
    "unknown-kind": (raw_archive(entry())[:99] + b"\x63" + raw_archive(entry())[100:], "a header of PMTiles"),
    "vector": (raw_archive(entry())[:99] + b"\x01" + raw_archive(entry())[100:], "got MVT tiles"),
    "brotli": (raw_archive(entry(), compression=3), "directories compressed by BROTLI"),
    "no-gzip": (raw_archive(b"no gzip at all"), "does not decompress"),
    "cut-gzip": (raw_archive(entry()[:-9]), "cut short or too large"),
    "bomb": (raw_archive(gzip.compress(b"\0" * 2**27)), "cut short or too large"),
    "outside": (raw_archive(entry(), root=(127, 10**9)), "a directory of 1,000,000,000 bytes"),
    "far": (raw_archive(entry(), root=(2**63, 100)), "expected one in the file"),
    "endless": (raw_archive(gzip.compress(b"\xff" * 2**20)), "numbers that do not end"),
    "wide": (raw_archive(gzip.compress(b"\x01" + b"\xff" * 11 + b"\x01" * 9)), "numbers of at most 63 bits"),
    "promise": (raw_archive(gzip.compress(b"\xff\xff\xff\xff\x7f" + b"\x01" * 8)), "four for each entry"),
    "empty": (raw_archive(gzip.compress(b"")), "numbers that do not end"),
    "no-entry": (raw_archive(gzip.compress(b"\0")), "a directory of 1 numbers for 0 entries"),
    "run": (raw_archive(entry(run=2**40)), "more tiles than a data set has"),
    "loop": (raw_archive(entry(run=0, length=len(entry(run=0)))), "4 deep"),
    "tile-outside": (raw_archive(entry(offset=10**6)), "a tile of 4 bytes at"),
    "tile-large": (raw_archive(entry(length=10**9)), "a tile of 1,000,000,000 bytes"),
    "deep-zoom": (raw_archive(entry(tile=2**63 - 1)), "tiles down to zoom 31"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_damaged_and_hostile_archives_are_refused(tmp_path: Path, fault: str) -> None:
    content, words = BROKEN[fault]
    (tmp_path / "s1.pmtiles").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(RasterError, match=words):
        import_tiles("pmtiles", tmp_path, tmp_path / "store")
    assert time.monotonic() - began < 20
    assert not (tmp_path / "store").exists()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_an_archive_with_wrong_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("archive") / "s1.pmtiles"
    write_pmtiles(path, {(15, X + k, Y): bytes(9) for k in range(9)})
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content)
    try:
        read = layout_pmtiles.read_archive(str(path))
    except RasterError:
        return
    assert all(start + size <= len(content) for start, size in read.tiles.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_patch_with_wrong_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("patch")
    content = bytearray(patch(folder, "S1RTC"))
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    root = terramesh(folder, {"S1RTC": {"k.zarr.zip": bytes(content)}})
    summary = import_tiles("terramesh", root, folder / "store")
    assert summary.written + len(summary.failures) == 1


def test_damaged_tiles_fail_alone(tmp_path: Path) -> None:
    data = archives(tmp_path / "data", [(X + k, Y) for k in range(6)])
    whole = png(picture(0, 4))
    tiles = {
        0: whole, 1: whole[: len(whole) // 2], 2: png(picture(0, 3)), 3: png(picture(0, 4, side=512)),
        4: png(picture(0, 3), "GIF"), 5: b"",
    }  # fmt: skip
    write_pmtiles(data / "sar.pmtile", {(15, X + k, Y): content or b"?" for k, content in tiles.items()})
    summary = import_tiles("pmtiles", data, tmp_path / "store")
    assert summary.written == 1
    told = {int(f.source.split("_")[2]) - X: f.message for f in summary.failures}
    assert set(told) == {1, 2, 3, 4, 5}
    assert "got 3 channels, expected four: empty, VV, VH, mask" in told[2]
    assert "512 x 512 px of RGBA" in told[3]
    for k in (1, 4, 5):
        assert "expected a PNG or a JPEG" in told[k]
    (data / "sar2.pmtile").write_bytes(b"")
    with pytest.raises(StoreError, match="no sensor, expected one of these words in it"):
        import_tiles("pmtiles", data, tmp_path / "other")
    shutil.move(data / "sar2.pmtile", data / "s1.pmtile")
    with pytest.raises((StoreError, RasterError)):
        import_tiles("pmtiles", data, tmp_path / "other")


# --- the driver and the command line


def test_layouts_and_options_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path / "data", "x", 0)
    with pytest.raises(StoreError, match="one of pairs, bigearthnet-mm, sen12ms, terramesh, pmtiles"):
        import_tiles("bigearthnet", tmp_path / "data", tmp_path / "store")
    for layout in ("bigearthnet-mm", "sen12ms", "terramesh", "pmtiles"):
        with pytest.raises(StoreError, match=rf"samples: got none.*layout {layout}"):
            import_tiles(layout, tmp_path / "data", tmp_path / "store")
        with pytest.raises(StoreError, match="options: got cut"):
            import_tiles(layout, tmp_path / "data", tmp_path / "store", Options(cut=2))
        with pytest.raises(StoreError, match="got no such folder"):
            import_tiles(layout, tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(StoreError, match="views: got s9, expected some of rgb, s1"):
        import_tiles("pairs", tmp_path / "data", tmp_path / "store", views=["s9"])
    with pytest.raises(StoreError, match="3 needed of 2"):
        import_tiles("pairs", tmp_path / "data", tmp_path / "store", min_views=3)
    assert not (tmp_path / "store").exists()
    for package, layout in (("zarr", "terramesh"), ("pmtiles.tile", "pmtiles")):
        archives(tmp_path / "archives", [(X, Y)])
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(StoreError, match=r"pip install 'alidade\[import\]'"):
            import_tiles(layout, tmp_path / "archives", tmp_path / "store")


def invoke(*arguments: object) -> tuple[int, str, str]:
    app = typer.Typer()
    tiles_import.register_import(tiles.register(app))
    result = CliRunner().invoke(app, ["tiles", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"^    (alidade (?:[^\n]*\\\n)*[^\n]*)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A command as guides print it, or a piece of Python."""


def what_the_guides_take_for_granted(folder: Path) -> None:
    """The clone's samples, and data sets like those that people have: files that say nothing of themselves."""
    (folder / "samples").symlink_to(ROOT / "samples")
    for name in ("data/s1", "data/s2", "pictures/sar", "pictures/opt"):
        (folder / name).mkdir(parents=True)
    for i in (1, 2):
        write_tif(folder / f"data/s1/000{i}.tif", decibels(seed=i), transform=corner(40 * i))
        write_tif(folder / f"data/s2/000{i}.tif", meadow(L1C[1:5], side=32, seed=i), transform=corner(40 * i))
        colours = np.random.default_rng(i).integers(1, 255, (3, 64, 64)).astype(np.uint8)
        write_tif(folder / f"pictures/sar/{i}.tif", colours[:1], transform=corner(80 * i))
        write_tif(folder / f"pictures/opt/{i}.tif", colours, transform=corner(80 * i))
    two, one = "S2A_MSIL2A_20170613T93020_0_48", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_48"
    s2_patch(folder / "BigEarthNet", two, 0, json_time="2017-06-13 09:30:20")
    s1_patch(folder / "BigEarthNet", one, 0, two)


@pytest.mark.parametrize(("guide", "steps", "stores"), [
    ("tiles", 8, {"tiles": 39, "chosen": 5, "world": 8}),
    ("stac", 6, {"pairs": 5, "optical": 1}),
    ("import", 13, {"tiles": 1, "sample-pairs": 5, "told": 2, "picture-pairs": 32, "from-python": 32}),
])  # fmt: skip
def test_the_guides_run_as_printed(
    guide: str, steps: int, stores: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    what_the_guides_take_for_granted(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = STEP.findall((ROOT / "docs" / "guides" / f"{guide}.md").read_text())
    assert len(found) == steps
    for command, code in found:
        if code:
            exec(compile(code, f"{guide}.md", "exec"), {})
            continue
        words = shlex.split(command.replace("\\\n", " "))
        if any(word.startswith("https://") for word in words):
            continue  # the one command that asks the open internet
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        if words[1] == "inspect":
            assert (stop.value.code, "error: " in told.err, "sensor" in told.err) == (2, True, True), command
        else:
            assert not stop.value.code, (command, told.err)
    assert {name: len(TileStore.open(name)) for name in stores} == stores


def test_the_command(tmp_path: Path) -> None:
    for folder in ("sar", "opt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(23):
        write_tif(tmp_path / f"data/sar/{i}.tif", decibels(seed=i), transform=corner(40 * i))
        picture_ = np.random.default_rng(i).integers(1, 255, (3, 32, 32)).astype(np.uint8)
        write_tif(tmp_path / f"data/opt/{i}.tif", picture_, transform=corner(40 * i))
    declared = ["--view", "sar=sentinel-1-grd:VV,VH", "--view", "opt", "--unit", "sar=dB"]
    code, out, _ = invoke("import", "pairs", tmp_path / "data", "--out", tmp_path / "store", *declared)
    assert code == 0
    assert "23 samples taken in" in out
    assert [v.sensor for v in TileStore.open(tmp_path / "store").views.values()] == ["sentinel-1-grd", "generic-rgb"]
    code, out, _ = invoke("import", "pairs", tmp_path / "data", "--out", tmp_path / "store", *declared, "--json")
    assert (code, json.loads(out)["present"]) == (0, 23)
    assert set(json.loads(out)) == set(ImportSummary.__dataclass_fields__)
    assert invoke("info", tmp_path / "store", "--verify")[0] == 0
    for i in range(1, 23):
        (tmp_path / f"data/sar/{i}.tif").write_bytes(b"II*\0damaged")
    code, out, err = invoke("import", "pairs", tmp_path / "data", "--out", tmp_path / "new", *declared)
    assert code == 2
    assert "1 samples taken in" in out
    assert "22 failed" in out
    assert err.count("failed: ") == 21
    assert "2 more (--json lists all)" in err
    for option in (["--unit", "sar"], ["--unit", "sar=parsec"], ["--offset", "s2=none"], ["--view", "=x"]):
        with pytest.raises(AlidadeError, match=option[0]):
            invoke("import", "pairs", tmp_path / "data", "--out", tmp_path / "new", *option)


# --- real data


def pack() -> Path:
    return Path(os.environ.get("ALIDADE_PACK", ""))


needs_pack = pytest.mark.skipif("ALIDADE_PACK" not in os.environ, reason="ALIDADE_PACK is not set")


@pytest.mark.pack
@needs_pack
def test_real_bigearthnet_patches(tmp_path: Path) -> None:
    data = pack() / "s1s2" / "bigearthnet"
    summary = import_tiles("bigearthnet-mm", data, tmp_path / "store")
    assert (summary.written, summary.failures) == (5, ())
    store = TileStore.open(tmp_path / "store")
    for name, row in rows_of(tmp_path / "store").items():
        assert row["date_gap_days"] < 1
        for view in ("s2", "s2-20m", "s2-60m"):
            pixels, valid = pixels_of(tmp_path / "store", name, view)
            assert valid.all()
            for band, stored in zip(store.views[view].bands, pixels, strict=True):
                with rasterio.open(data / "S2" / name / f"{name}_{band}.tif") as file:
                    assert np.array_equal(stored, file.read(1))
    for view, batch in store.__getitems__(range(5)).views.items():
        values, _ = normalise(store.views[view], batch.pixels, batch.valid)
        assert abs(values.mean()) < 2


@pytest.mark.pack
@needs_pack
def test_real_terramesh_patches_as_pairs_and_in_their_own_layout(tmp_path: Path) -> None:
    data = pack() / "s1s2" / "terramesh"
    views = (
        View(name="s1rtc", sensor="sentinel-1-rtc", bands=("VV", "VH")),
        View(name="s2l1c", sensor="sentinel-2-l1c", bands=L1C),
        View(name="s2l2a", sensor="sentinel-2-l2a", bands=L2A),
        View(name="s2rgb", sensor=""),
    )
    summary = import_tiles("pairs", data, tmp_path / "store", Options(views=views, units={"s1rtc": Unit.DB}))
    assert (summary.written, summary.failures) == (4, ())
    rows = rows_of(tmp_path / "store")
    # three of four patches carry the +1000 at the top of the atmosphere, and one of them also at the bottom
    added = {("s2l1c", "282D"), ("s2l1c", "433D"), ("s2l1c", "609U"), ("s2l2a", "433D")}
    store = TileStore.open(tmp_path / "store")
    for key in rows:
        for view, folder in (("s2l1c", "S2L1C"), ("s2l2a", "S2L2A")):
            with rasterio.open(data / folder / f"{key.removeprefix('terramesh/')}.tif") as file:
                there = file.read().astype(np.int64) - 1000 * (
                    (view, key[10:14]) in added or (view, key[10:13]) in added
                )
            encoding = store.views[view].encodings[0]
            assert encoding.offset is not None
            stored = pixels_of(tmp_path / "store", key, view)[0].astype(np.int64) + round(encoding.offset / 1e-4)
            assert np.array_equal(stored, there)


@pytest.mark.pack
@needs_pack
def test_real_pairs_of_california_and_texas(tmp_path: Path) -> None:
    views = (View(name="sar", sensor="display-vh", bands=("VH",)), View(name="opt", sensor=""))
    summary = import_tiles("pairs", pack() / "s1s2_ca_tx", tmp_path / "store", Options(views=views, cut=4))
    assert (summary.written, summary.failures) == (89 * 16, ())
    for row in rows_of(tmp_path / "store").values():
        assert 8.2 < row["opt.gsd_x"] < 8.8, "World Mercator: 10 projected metres are less on the ground"
        assert row["opt.gsd_x"] == row["sar.gsd_x"]


@pytest.mark.pack
@needs_pack
def test_real_sen12ms_cr_patch(tmp_path: Path) -> None:
    data = pack() / "s1s2" / "sen12mscr"
    assert import_tiles("sen12ms", data, tmp_path / "store").written == 1
    pixels, _ = pixels_of(tmp_path / "store", "ROIs1868_summer_19_p30", "s2-cloudy")
    with rasterio.open(data / "S2L1C_cloudy/ROIs1868_summer_s2_cloudy_19_p30.tif") as file:
        assert np.array_equal(pixels, file.read())
