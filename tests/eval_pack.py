"""A small data pack in the layout of the public one, made by code: flat colours by class, pairs with one field."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from alidade.evaluation.datasets import EUROSAT_BANDS

CLASSES = ("Crop", "Forest", "Water")
COLOURS = ((170, 140, 90), (40, 90, 50), (30, 50, 120))
SPLITS = {"train": 12, "val": 6, "test": 3}


def write_pack(folder: Path) -> Path:
    """All four data sets, a few images each."""
    eurosat_rgb(folder / "eurosat_rgb")
    ucmerced(folder / "ucm_captions")
    eurosat100(folder / "eurosat_ms")
    pairs(folder / "s1s2_ca_tx")
    return folder


def picture(label: int, side: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.array(COLOURS[label]) + rng.normal(scale=25, size=(*side, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def eurosat_rgb(folder: Path) -> None:
    rows, archives = [], {"train_a.tar.xz": [], "train_b.tar.xz": [], "val.tar.xz": [], "test.tar.xz": []}
    for split, count in SPLITS.items():
        for i in range(count):
            label = i % 3
            archive = f"{split}.tar.xz" if split != "train" else f"train_{'ab'[label > 0]}.tar.xz"
            name = f"{CLASSES[label]}/{CLASSES[label]}_{split}_{i}.jpg"
            archives[archive].append((name, picture(label, (64, 64), len(rows))))
            rows.append({"file": name, "archive": archive, "label": CLASSES[label], "label_id": label, "split": split})
    write_index(folder, rows)
    for archive, members in archives.items():
        write_tar(folder / archive, members)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:xz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def ucmerced(folder: Path) -> None:
    rows = []
    for split in ("train", "val"):
        members = []
        for i in range(SPLITS[split]):
            label = i % 3
            # one image is a few pixels off, as in the original
            side = (250, 258) if i == 0 else (256, 256)
            name = f"{CLASSES[label].lower()}{split}{i:02}.jpg"
            members.append((name, picture(label, side, i)))
            rows.append(
                {
                    "file": name,
                    "archive": f"images_{split}.zip",
                    "label": CLASSES[label].lower(),
                    "label_id": label,
                    "split": split,
                }
            )
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"images_{split}.zip", "w") as file:
            for name, content in members:
                file.writestr(name, content)
    write_index(folder, rows)


def eurosat100(folder: Path) -> None:
    rows = []
    for split, count in {"train": 6, "validate": 3, "test": 3}.items():
        for i in range(count):
            label = i % 3
            name = f"tif/{CLASSES[label]}/{CLASSES[label]}_{split}{i}.tif"
            rng = np.random.default_rng(i)
            level = np.array([1500, 1200, 1000, 900, 1000, 1800, 2200, 2100, 700, 12, 1800, 1100, 2400])
            pixels = (level[:, None, None] * (1 + label / 4) + rng.normal(scale=60, size=(13, 64, 64))).clip(1)
            write_tif(folder / name, pixels.astype(np.uint16), "EPSG:32631", (600_000, 5_400_000))
            rows.append({"file": name, "label": CLASSES[label], "label_id": label, "split": split})
    write_index(folder, rows)
    assert len(EUROSAT_BANDS) == 13


def pairs(folder: Path) -> None:
    rows = []
    places = {"train": 4, "val": 2, "test": 2}
    number = 0
    for split, count in places.items():
        for i in range(count):
            number += 1
            rng = np.random.default_rng(number)
            # a coarse field per window, which both sensors see with noise of their own
            field = np.kron(rng.uniform(30, 220, size=(16, 16)), np.ones((32, 32)))
            sar = field + rng.normal(scale=10, size=(512, 512))
            optical = field * np.array([0.9, 1.0, 1.1])[:, None, None] + rng.normal(scale=5, size=(3, 512, 512))
            corner = (-13_200_000 + 6000 * number, 4_000_000)
            for kind, pixels in (("sar", sar[None]), ("opt", optical)):
                name = f"{kind}/{number:03}.tif"
                write_tif(folder / name, pixels.clip(0, 255).astype(np.uint8), "EPSG:3395", corner)
                ok = 0 if (split, i) == ("train", 3) else 1
                rows.append({"pair_id": f"{number:03}", "modality": kind, "file": name, "split": split, "align_ok": ok})
    write_index(folder, rows)


def write_tif(path: Path, pixels: np.ndarray, crs: str, corner: tuple[float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    transform = rasterio.transform.from_origin(*corner, 10, 10)
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    photometric = {"photometric": "rgb"} if count == 3 else {}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile, **photometric) as file:
        file.write(pixels)


def write_index(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
