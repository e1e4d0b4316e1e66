"""Build ``samples/``, the small pack of real imagery that the demo and the tests run on.

Only data whose licence lets it be passed on, never a test split, never the UC Merced captions. The same input
and the same GDAL give the same bytes. ``samples/README.md`` tells what was taken and what was changed.

    python scripts/make_samples.py --data PATH --out samples
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import math
import random
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from pyproj import CRS, Geod, Transformer
from rasterio.errors import NotGeoreferencedWarning

SEED = 20261121
S2_L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
S2_L2A = tuple(name for name in S2_L1C if name != "B10")
EUROSAT_ORDER = (*(name for name in S2_L1C if name != "B8A"), "B8A")
RGB = ("R", "G", "B")
REFLECTANCE_SCALE = 1e-4
OFFSET_BASELINE_4 = -0.1  # 1000 stored counts, added by Sentinel-2 processing baselines from 04.00 on
# Which TerraMesh files carry the 1000 counts; the evidence is in samples/README.md ("Offsets of TerraMesh").
TERRAMESH_SHIFTED = {
    "S2L1C": {"282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0"},
    "S2L2A": {"433D_629L_3_1"},
}
UCM_TWIN = "airplane02.jpg"  # the same picture as airplane01
INDEX_COLUMNS = (
    "file", "sensor", "bands", "width", "height", "crs", "gsd", "time", "split", "source", "licence", "note",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file of the pack.

    Attributes:
        file: path below the pack's root.
        pixels: ``[C,H,W]`` in the source's dtype.
        bands: the provider's band names, written as band descriptions.
        crs, transform: ``None`` for pictures without georeference.
        credit: who made it and under which licence, written into the file itself.
        note: what a reader has to know beyond the tags.
        time: ISO 8601, or ``None`` where the source does not tell it.
        gsd_m: written as a tag; only for files without CRS.
        scale_offset: GDAL per-band scale and offset.
        jpeg: compress with loss (pictures that were JPEG already).
    """

    file: str
    pixels: np.ndarray
    bands: tuple[str, ...]
    crs: CRS | None
    transform: Affine | None
    sensor: str
    split: str
    source: str
    licence: str
    credit: str
    note: str = ""
    time: str | None = None
    unit: str | None = None
    gsd_m: float | None = None
    nodata: float | None = None
    scale_offset: tuple[float, float] | None = None
    jpeg: bool = False


def terramesh(data: Path) -> Iterator[Sample]:
    root = data / "s1s2" / "terramesh"
    for modality, sensor, stem, bands in (
        ("S1RTC", "sentinel-1-rtc", "sentinel-1/terramesh", ("VV", "VH")),
        ("S2L1C", "sentinel-2-l1c", "sentinel-2/terramesh-l1c", S2_L1C),
        ("S2L2A", "sentinel-2-l2a", "sentinel-2/terramesh-l2a", S2_L2A),
    ):
        for path in sorted((root / modality).glob("*.tif")):
            pixels, crs, transform = read_source(path)
            optical = modality != "S1RTC"
            shifted = optical and path.stem in TERRAMESH_SHIFTED[modality]
            yield Sample(
                file=f"{stem}_{path.stem}.tif", pixels=pixels, bands=bands, crs=crs, transform=transform,
                sensor=sensor, split="train", source=f"TerraMesh {path.stem} {modality}",
                licence="CC-BY-SA-4.0",
                credit="TerraMesh (Blumenstiel et al. 2025, arXiv:2504.11172), CC-BY-SA-4.0. Re-encoded. "
                "Contains modified Copernicus Sentinel data.",
                note=("stored counts include 1000 (offset -0.1 declared)" if shifted else ""),
                unit=None if optical else "dB",
                nodata=0 if optical else None,
                scale_offset=(REFLECTANCE_SCALE, OFFSET_BASELINE_4 if shifted else 0.0) if optical else None,
            )  # fmt: skip


def bigearthnet(data: Path) -> Iterator[Sample]:
    root = data / "s1s2" / "bigearthnet"
    credit = (
        "BigEarthNet-MM (Sumbul et al. 2021), CDLA-Permissive-1.0, https://cdla.dev/permissive-1-0/. "
        "{changed} Contains modified Copernicus Sentinel data {year}."
    )
    for folder in sorted((root / "S1").iterdir()):
        facts = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        place = "_".join(folder.name.split("_")[5:])
        pixels, crs, transform = stack(folder, ("VV", "VH"), 120)
        time = facts["acquisition_time"] + "Z"
        yield Sample(
            file=f"sentinel-1/bigearthnet_{place}.tif", pixels=pixels, bands=("VV", "VH"), crs=crs,
            transform=transform, sensor="sentinel-1-grd", split="train", source=folder.name,
            licence="CDLA-Permissive-1.0", time=time, unit="dB",
            credit=credit.format(changed="Two files stacked into one.", year=time[:4]),
        )  # fmt: skip
        optical = root / "S2" / facts["corresponding_s2_patch"]
        facts = json.loads((optical / f"{optical.name}_labels_metadata.json").read_text())
        pixels, crs, transform = stack(optical, S2_L2A, 120)
        time = facts["acquisition_date"].replace(" ", "T") + "Z"
        yield Sample(
            file=f"sentinel-2/bigearthnet_{place}.tif", pixels=pixels, bands=S2_L2A, crs=crs,
            transform=transform, sensor="sentinel-2-l2a", split="train", source=optical.name,
            licence="CDLA-Permissive-1.0", time=time,
            credit=credit.format(changed="Bands resampled to 10 m (nearest) and stacked.", year=time[:4]),
            note="20 m and 60 m bands repeated to the 10 m grid (nearest)",
            nodata=0, scale_offset=(REFLECTANCE_SCALE, 0.0),
        )  # fmt: skip


def eurosat(data: Path) -> Iterator[Sample]:
    root = data / "eurosat_ms"
    with (root / "index.csv").open(newline="") as handle:
        train = [row for row in csv.DictReader(handle) if row["split"] == "train"]
    for row in choose(train, "label", 2):
        pixels, crs, transform = read_source(root / row["file"])
        yield Sample(
            file=f"sentinel-2/eurosat_{row['id']}.tif", pixels=pixels, bands=EUROSAT_ORDER, crs=crs,
            transform=transform, sensor="sentinel-2-l1c", split="train", source=f"EuroSAT100 {row['id']}",
            licence="MIT",
            credit="EuroSAT (Helber et al. 2019), MIT, Copyright (c) 2023 Patrick Helber. Re-encoded. "
            "Contains modified Copernicus Sentinel data 2015-2017.",
            note="B8A is the last band", nodata=0, scale_offset=(REFLECTANCE_SCALE, 0.0),
        )  # fmt: skip


def landsat(data: Path) -> Iterator[Sample]:
    for path in sorted((data / "scenes").glob("landsat_*.tif")):
        year = path.stem.split("_")[1]
        pixels, crs, transform = read_source(path)
        yield Sample(
            file=f"landsat/pucallpa_{year}.tif", pixels=pixels[:3], bands=RGB, crs=crs, transform=transform,
            sensor="generic-rgb", split="none", source=f"opengeos/data landsat/{year}.tif",
            licence="US public domain", time=f"{year}-07-01T00:00:00Z",
            credit="Landsat annual composite (USGS/NASA), US public domain. Green band left out, re-encoded.",
            note="false colour for display: R shows SWIR1, G shows near infrared, B shows red; "
            "annual composite, time set to the middle of the year",
        )  # fmt: skip


def naip(data: Path) -> Iterator[Sample]:
    for path in sorted((data / "scenes").glob("naip_*.tif")):
        day = path.stem.split("_")[1]
        pixels, crs, transform = read_source(path)
        yield Sample(
            file=f"naip/m_4709963_se_14_{day}.tif", pixels=pixels, bands=("R", "G", "B", "N"), crs=crs,
            transform=transform, sensor="naip-rgbn", split="none",
            source=f"opengeos/data naip/m_4709963_se_14_1_{day}.tif", licence="US public domain",
            time=f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00Z",
            credit="NAIP (USDA), US public domain. Re-encoded, overview left out.",
            note="resampled to 5 m by the source repository; the day is known, the hour is not", nodata=0,
        )  # fmt: skip


def ucmerced(data: Path) -> Iterator[Sample]:
    root = data / "ucm_captions"
    with (root / "index.csv").open(newline="") as handle:
        # read only these columns: the file also holds captions, which must not reach the pack
        rows = [{key: row[key] for key in ("file", "label", "split")} for row in csv.DictReader(handle)]
    train = [row for row in rows if row["split"] == "train" and row["file"] != UCM_TWIN]
    with zipfile.ZipFile(root / "images_train.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for row in choose(train, "label", 2):
            picture = Image.open(io.BytesIO(archive.read(members[row["file"]]))).convert("RGB")
            yield Sample(
                file=f"ucmerced/{Path(row['file']).stem}.tif", pixels=np.asarray(picture).transpose(2, 0, 1),
                bands=RGB, crs=None, transform=None, sensor="generic-rgb", split="train",
                source=f"UC Merced Land Use {row['file']}", licence="US public domain", gsd_m=0.3,
                jpeg=True,
                credit="UC Merced Land Use images (Yang and Newsam 2010), cut from USGS National Map Urban "
                "Area Imagery, US public domain. Re-encoded as JPEG.",
                note="no georeference; JPEG in the source, compressed once more here",
            )  # fmt: skip


def choose(rows: list[dict[str, str]], key: str, count: int) -> list[dict[str, str]]:
    """``count`` rows of each value of ``key``, by the fixed seed, in the order of the input."""
    generator = random.Random(SEED)
    kept = []
    for value in sorted({row[key] for row in rows}):
        group = [row for row in rows if row[key] == value]
        kept += [group[i] for i in sorted(generator.sample(range(len(group)), count))]
    return kept


def read_source(path: Path) -> tuple[np.ndarray, CRS, Affine]:
    with rasterio.open(path) as source:
        return source.read(), CRS.from_user_input(source.crs.to_wkt()), source.transform


def stack(folder: Path, bands: tuple[str, ...], side: int) -> tuple[np.ndarray, CRS, Affine]:
    """One band per file into ``[C,side,side]``; coarse bands are repeated (nearest, on nested grids)."""
    planes, places = [], []
    for band in bands:
        pixels, crs, transform = read_source(folder / f"{folder.name}_{band}.tif")
        factor = side // pixels.shape[1]
        planes.append(np.kron(pixels[0], np.ones((factor, factor), dtype=pixels.dtype)))
        places.append((crs, transform * Affine.scale(1 / factor)))
    if len({place[0].to_authority() for place in places}) != 1:
        raise ValueError(f"{folder.name}: bands lie in different coordinate systems")
    if not all(place[1].almost_equals(places[0][1]) for place in places):
        raise ValueError(f"{folder.name}: bands do not share their upper left corner")
    return np.stack(planes), *places[0]


def ground_gsd(sample: Sample) -> float:
    """Geometric mean of the true ground metres per pixel along a row and down a column, at the centre."""
    if sample.crs is None or sample.transform is None:
        assert sample.gsd_m is not None
        return sample.gsd_m
    _, height, width = sample.pixels.shape
    to_lonlat = Transformer.from_crs(sample.crs, 4326, always_xy=True)
    geod = Geod(ellps="WGS84")
    lengths = []
    for dx, dy in ((0.5, 0.0), (0.0, 0.5)):
        ends = [sample.transform @ (width / 2 + s * dx, height / 2 + s * dy) for s in (-1, 1)]
        (lon1, lat1), (lon2, lat2) = (to_lonlat.transform(*end) for end in ends)
        lengths.append(geod.inv(lon1, lat1, lon2, lat2)[2])
    return math.sqrt(lengths[0] * lengths[1])


def write(sample: Sample, out: Path) -> None:
    """Write one tiled GeoTIFF that says everything about itself."""
    count, height, width = sample.pixels.shape
    if sample.nodata is not None and (sample.pixels == sample.nodata).any():
        raise ValueError(f"{sample.file}: holds its own nodata value {sample.nodata}")
    block = min(256, 16 * math.ceil(max(height, width) / 16))
    options: dict[str, Any] = {"compress": "deflate", "zlevel": 9, "interleave": "band"}
    options["predictor"] = 3 if sample.pixels.dtype.kind == "f" else 2
    if sample.jpeg:
        options = {"compress": "jpeg", "jpeg_quality": 90, "photometric": "ycbcr", "interleave": "pixel"}
    elif sample.bands[:3] == RGB:
        # GDAL would mark the fourth band of an 8-bit file as alpha
        options |= {"photometric": "rgb", "alpha": "no"}
    path = out / sample.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=sample.pixels.dtype,
        crs=None if sample.crs is None else sample.crs.to_wkt(), transform=sample.transform,
        nodata=sample.nodata, tiled=True, blockxsize=block, blockysize=block, **options,
    ) as target:  # fmt: skip
        target.descriptions = sample.bands
        tags = {"ALIDADE_SENSOR": sample.sensor, "TIFFTAG_COPYRIGHT": sample.credit}
        told = {"ALIDADE_TIME": sample.time, "ALIDADE_UNIT": sample.unit, "ALIDADE_GSD": sample.gsd_m}
        tags |= {key: str(value) for key, value in told.items() if value is not None}
        if sample.note:
            tags["TIFFTAG_IMAGEDESCRIPTION"] = sample.note
        target.update_tags(**tags)
        if sample.scale_offset is not None:
            target.scales = [sample.scale_offset[0]] * count
            target.offsets = [sample.scale_offset[1]] * count
        target.write(sample.pixels)


def index_row(sample: Sample) -> dict[str, str]:
    authority = None if sample.crs is None else sample.crs.to_authority()
    return {
        "file": sample.file, "sensor": sample.sensor, "bands": " ".join(sample.bands),
        "width": str(sample.pixels.shape[2]), "height": str(sample.pixels.shape[1]),
        "crs": ":".join(authority) if authority else "", "gsd": f"{ground_gsd(sample):.3f}",
        "time": sample.time or "", "split": sample.split, "source": sample.source, "licence": sample.licence,
        "note": sample.note,
    }  # fmt: skip


def build(data: Path, out: Path) -> None:
    """Write the rasters, ``index.csv`` and ``SHA256SUMS`` below ``out``."""
    rows = []
    for part in (terramesh, bigearthnet, eurosat, landsat, naip, ucmerced):
        for sample in part(data):
            write(sample, out)
            rows.append(index_row(sample))
    rows.sort(key=lambda row: row["file"])
    with (out / "index.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, INDEX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    names = [row["file"] for row in rows] + ["index.csv"]
    sums = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (out / "SHA256SUMS").write_text("".join(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the sample pack from the full data pack.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the full data pack")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    arguments = parser.parse_args()
    # the four-band 8-bit sources have an odd TIFF header, and the pictures have no georeference: both known
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    build(arguments.data, arguments.out)
    files = list(arguments.out.rglob("*.tif"))
    print(f"{len(files)} rasters, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB, in {arguments.out}")


if __name__ == "__main__":
    main()
