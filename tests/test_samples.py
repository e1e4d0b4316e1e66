"""The sample pack: complete, small, licensed, and saying about itself what index.csv says about it."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio

from alidade.imagery.bands import Unit
from alidade.imagery.files import read

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
LICENCES = {"CC-BY-SA-4.0", "CDLA-Permissive-1.0", "MIT", "US public domain"}
FOLDERS = {"sentinel-1", "sentinel-2", "landsat", "naip", "ucmerced"}
PLACES = ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1", "609U_541L_3_0")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def _rows() -> list[dict[str, str]]:
    with (SAMPLES / "index.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


ROWS = _rows()


def _sums() -> dict[str, str]:
    lines = (SAMPLES / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def test_pack_is_small_enough_to_ship() -> None:
    total = sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    assert 10e6 < total < 20e6


def test_checksums_cover_every_raster_and_match() -> None:
    sums = _sums()
    on_disk = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.tif")}
    assert on_disk == {row["file"] for row in ROWS}
    assert set(sums) == on_disk | {"index.csv"}
    actual = {name: hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() for name in sums}
    assert actual == sums


def test_every_file_has_a_known_licence_and_no_test_split() -> None:
    assert {row["licence"] for row in ROWS} == LICENCES
    assert {row["split"] for row in ROWS} == {"train", "none"}


def test_readme_names_every_folder_and_licence() -> None:
    text = (SAMPLES / "README.md").read_text()
    assert {row["file"].split("/")[0] for row in ROWS} == FOLDERS
    for word in [f"`{folder}/`" for folder in FOLDERS] + sorted(LICENCES):
        assert word in text
    assert "Contains modified Copernicus Sentinel data" in text
    assert f"{len(ROWS)} real satellite" in text


def test_folders_hold_only_rasters_and_the_known_documents() -> None:
    files = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*") if path.is_file()}
    others = {name for name in files if not name.endswith(".tif")}
    assert others == {"README.md", "SHA256SUMS", "index.csv", "licences/eurosat-mit.txt"}


def test_no_captions_in_index_or_tags() -> None:
    """Captions have no known licence. Each tag and cell is checked against the sentences' common openings."""
    openings = ("there is", "there are", "it is a", "here is", "here are", "this is a", "many ", "several ")
    for row in ROWS:
        with rasterio.open(SAMPLES / row["file"]) as source:
            tags = source.tags()
            assert row["licence"] in tags["TIFFTAG_COPYRIGHT"]
            assert tags.get("TIFFTAG_IMAGEDESCRIPTION", "") == row["note"]
            of_bands = [text for i in source.indexes for text in source.tags(i).values()]
        texts = [*tags.values(), *row.values(), *of_bands]
        assert [t for t in texts if t.lower().startswith(openings)] == []
        assert set(tags) <= {
            "ALIDADE_SENSOR", "ALIDADE_TIME", "ALIDADE_UNIT", "ALIDADE_GSD", "AREA_OR_POINT",
            "TIFFTAG_COPYRIGHT", "TIFFTAG_IMAGEDESCRIPTION",
        }  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
def test_file_reads_as_the_index_says(row: dict[str, str]) -> None:
    raster = read(SAMPLES / row["file"])
    bands = tuple(row["bands"].split())
    assert raster.sensor.id == row["sensor"]
    assert tuple(band.name for band in raster.bands) == bands
    assert raster.pixels.shape == (len(bands), int(row["height"]), int(row["width"]))
    assert raster.gsd_m == pytest.approx(float(row["gsd"]), abs=0.002)
    assert (raster.grid.crs is None) == (row["crs"] == "")
    if raster.grid.crs is not None:
        assert ":".join(raster.grid.crs.to_authority()) == row["crs"]
    expected = datetime.fromisoformat(row["time"]) if row["time"] else None
    assert raster.time == expected
    assert raster.valid.all()
    values = raster.physical()
    assert np.isfinite(values).all()
    assert (values.std(axis=(1, 2)) > 0).all(), "a band without any contrast is a broken band"
    ranges = {Unit.DB: (-60, 30), Unit.REFLECTANCE: (-0.1, 2.0), Unit.DISPLAY: (0, 255)}
    low, high = ranges[raster.sensor.unit]
    assert {encoding.unit for encoding in raster.encodings} == {raster.sensor.unit}
    assert low <= values.min() <= values.max() <= high


@pytest.mark.parametrize("place", PLACES)
def test_declared_offsets_agree_between_levels(place: str) -> None:
    """Short-wave infrared is nearly the same at the top and at the bottom of the atmosphere.

    A wrong offset of 0.1 in either file moves these ratios below 0.8 or above 1.7.
    """
    level1 = read(SAMPLES / f"sentinel-2/terramesh-l1c_{place}.tif").select(("B11", "B12"))
    level2 = read(SAMPLES / f"sentinel-2/terramesh-l2a_{place}.tif").select(("B11", "B12"))
    ratios = np.median(level2.physical(), axis=(1, 2)) / np.median(level1.physical(), axis=(1, 2))
    assert ((ratios > 1.0) & (ratios < 1.3)).all()


@pytest.mark.parametrize("row", [r for r in ROWS if r["sensor"] == "sentinel-2-l1c"], ids=lambda r: r["file"])
def test_cirrus_band_is_nearly_dark(row: dict[str, str]) -> None:
    """B10 sees almost nothing below the water vapour: a swapped band order or a wrong offset shows here."""
    cirrus = read(SAMPLES / row["file"]).select(("B10",))
    assert 0.0 <= float(np.median(cirrus.physical())) < 0.02


def test_red_edge_neighbours_agree_so_the_order_is_right() -> None:
    """B8A lies between B07 and B08; a file read in the wrong order would put it at B09's or B12's place."""
    for row in ROWS:
        if row["sensor"].startswith("sentinel-2"):
            narrow, before, wide = read(SAMPLES / row["file"]).select(("B8A", "B07", "B08")).physical()
            between = (np.median(before) + np.median(wide)) / 2
            assert np.median(narrow) == pytest.approx(between, rel=0.25), row["file"]


def test_pairs_share_their_grid() -> None:
    radar = sorted((SAMPLES / "sentinel-1").glob("*.tif"))
    assert len(radar) == 9
    for path in radar:
        names = [path.name] if path.name.startswith("big") else [
            path.name.replace("terramesh", f"terramesh-{level}") for level in ("l1c", "l2a")
        ]  # fmt: skip
        for name in names:
            assert read(path).grid == read(SAMPLES / "sentinel-2" / name).grid


def test_naip_near_infrared_is_not_marked_as_alpha() -> None:
    for path in (SAMPLES / "naip").glob("*.tif"):
        with rasterio.open(path) as source:
            assert [c.name for c in source.colorinterp] == ["red", "green", "blue", "undefined"]


@pytest.fixture
def pack() -> Path:
    folder = os.environ.get("ALIDADE_PACK")
    if not folder:
        pytest.skip("set ALIDADE_PACK to the folder of the full data pack")
    return Path(folder)


@pytest.mark.pack
def test_no_real_caption_occurs_in_any_document(pack: Path) -> None:
    with (pack / "ucm_captions" / "index.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    captions = {row[f"caption_{i}"].strip(" .").lower() for row in rows for i in range(1, 6)}
    assert len(captions) > 1000
    for path in SAMPLES.rglob("*"):
        if path.is_file():
            text = path.read_bytes().lower()
            assert [c for c in captions if c.encode() in text] == [], path.name


@pytest.mark.pack
def test_rebuild_gives_the_same_bytes(pack: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_samples.py"
    command = [sys.executable, str(script), "--data", str(pack), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "SHA256SUMS").read_bytes() == (SAMPLES / "SHA256SUMS").read_bytes()
    for name in _sums():
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes()
