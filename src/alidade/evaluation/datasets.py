"""Readers of the public data pack: pixels in their stored type with labels, ground sample distance and sensor.

Archives of the pack are trusted to be what their index says, but not more: members are read, never extracted; only
members that the index names are read; JPEG is the only picture format tried; pictures and members have a largest size.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alidade.errors import AlidadeError
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.files import Declared, read
from alidade.imagery.sensors import sensor

SPLITS = ("train", "val", "test")
MAX_MEMBER_BYTES = 2**20
MAX_SIDE = 1024

EUROSAT_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Order in EuroSAT's own files: B8A stands last, not behind B08."""

Row = Mapping[str, str]


class DataError(AlidadeError):
    """A data set of the pack that is missing, damaged or not what its index says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images of one size from one part of one data set.

    Attributes:
        name: of the data set and its part, such as ``"eurosat-rgb/val"``.
        ids: one stable name per image, unique within the data set.
        pixels: stored numbers ``[N, C, H, W]`` in their native type.
        labels: class numbers ``[N]`` int64.
        classes: what the numbers mean.
        gsd_m: ``[N]`` float64, true ground metres per pixel (the geometric mean of both directions).
        sensor: what took the images.
        bands: the ``C`` bands in order.
        encodings: how each band's stored numbers become a unit.

    Raises:
        DataError: counts that differ, or an id that stands twice.
    """

    name: str
    ids: tuple[str, ...]
    pixels: NDArray[Any]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    gsd_m: NDArray[np.float64]
    sensor: Sensor
    bands: tuple[Band, ...]
    encodings: tuple[Encoding, ...]

    def __post_init__(self) -> None:
        counts = (len(self.ids), len(self.labels), len(self.gsd_m))
        if self.pixels.ndim != 4 or set(counts) != {len(self.pixels)} or len(self.pixels) == 0:
            raise _bad(self.name, f"{counts} ids, labels, GSDs for pixels {self.pixels.shape}", "one of each per image")
        if not len(self.bands) == len(self.encodings) == self.pixels.shape[1]:
            raise _bad(self.name, f"{len(self.bands)} bands for pixels {self.pixels.shape}", "one per channel")
        if len(set(self.ids)) != len(self.ids):
            raise _bad(self.name, "an id that stands twice", "each image once")

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, where: NDArray[np.int64]) -> Images:
        """The images at these positions, in this order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in where),
            pixels=self.pixels[where],
            labels=self.labels[where],
            gsd_m=self.gsd_m[where],
        )

    def sample(self, count: int, seed: int) -> Images:
        """``count`` images with the class shares of the whole, drawn by ``seed``; in their old order.

        Each class gives its share rounded down, and the classes with the largest remainders one more.

        Raises:
            DataError: fewer images than asked for.
        """
        if not 0 < count <= len(self):
            raise _bad(self.name, f"{count} images asked for", f"1 to {len(self)}")
        rng = np.random.default_rng(seed)
        sizes = np.bincount(self.labels, minlength=len(self.classes))
        shares = sizes * count / len(self)
        quota = np.floor(shares).astype(np.int64)
        quota[np.argsort(quota - shares, kind="stable")[: count - quota.sum()]] += 1
        drawn = [rng.permutation(np.flatnonzero(self.labels == c))[:q] for c, q in enumerate(quota)]
        return self.pick(np.sort(np.concatenate(drawn)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The same ground squares by two sensors, row by row; labels number the scene that a square was cut from."""

    sar: Images
    optical: Images

    def __post_init__(self) -> None:
        if self.sar.ids != self.optical.ids:
            raise _bad(self.sar.name, "radar and optical squares that differ", "the same squares in the same order")


def split_hash(*parts: Images) -> str:
    """Twelve hex digits that change when an image, its label or its part changes, and with nothing else."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.name}\n".encode())
        for line in sorted(f"{i}\t{part.classes[label]}\n" for i, label in zip(part.ids, part.labels, strict=True)):
            digest.update(line.encode())
    return digest.hexdigest()[:12]


def eurosat_rgb(data: Path, split: str) -> Images:
    """EuroSAT RGB ``[N, 3, 64, 64]`` uint8 at 10 m (nominal: the JPEGs have no georeference).

    Read from the pack's archives, or from JPEGs unpacked beside ``index.csv`` under the names that it gives.

    Args:
        data: the data pack, or the folder ``eurosat_rgb`` itself.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        DataError: a file is missing, damaged or of another size.
    """
    folder, rows = _index(data, "eurosat_rgb", split)
    decoded: dict[str, NDArray[np.uint8]] = {}
    unpacked = [r for r in rows if (folder / r["file"]).is_file()]
    for row in unpacked:
        decoded[row["file"]] = decode(_small(folder / row["file"]), row["file"], side=64)
    for archive in sorted({r["archive"] for r in rows if r["file"] not in decoded}):
        wanted = {r["file"] for r in rows if r["archive"] == archive}
        for name, content in _tar_members(folder / archive, wanted - decoded.keys()):
            decoded[name] = decode(content, f"{archive}: {name}", side=64)
    return _display_images(f"eurosat-rgb/{split}", folder, rows, decoded, gsd_m=10.0)


def ucmerced(data: Path, split: str) -> Images:
    """UC Merced ``[N, 3, 256, 256]`` uint8 at 0.3 m; ``"train"`` or ``"val"`` of the UCM-Captions split.

    The 44 images that are a few pixels off are cut at the centre or continued with their edge pixels: resampling
    would change their ground sample distance.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder, rows = _index(data, "ucm_captions", split)
    decoded: dict[str, NDArray[np.uint8]] = {}
    for archive in sorted({r["archive"] for r in rows}):
        with _opening(folder / archive), zipfile.ZipFile(folder / archive) as file:
            for row in (r for r in rows if r["archive"] == archive):
                told = f"{archive}: {row['file']}"
                try:
                    member = file.getinfo(row["file"])
                except KeyError:
                    raise _missing(folder / archive, [row["file"]]) from None
                if member.file_size > MAX_MEMBER_BYTES:
                    raise _bad(told, f"{member.file_size:,} bytes", f"at most {MAX_MEMBER_BYTES:,}")
                decoded[row["file"]] = fit(decode(file.read(member), told), 256)
    return _display_images(f"ucmerced/{split}", folder, rows, decoded, gsd_m=0.3)


def eurosat100(data: Path, split: str) -> Images:
    """EuroSAT100 ``[N, 13, 64, 64]`` uint16, Sentinel-2 L1C, in the files' own band order with B8A last.

    The products are of 2015-2017, before processing baseline 04.00, so their offset is declared to be 0.

    Raises:
        AlidadeError: a file is missing or damaged (of the kinds that ``imagery.files.read`` raises).
    """
    folder, rows = _index(data, "eurosat_ms", {"val": "validate"}.get(split, split))
    declared = Declared(sensor="sentinel-2-l1c", bands=EUROSAT_BANDS, offset=0.0)
    rasters = [read(folder / r["file"], declared) for r in rows]
    classes, labels = _labels(rows)
    return Images(
        name=f"eurosat100/{split}",
        ids=tuple(r["file"] for r in rows),
        pixels=np.stack([r.pixels for r in rasters]),
        labels=labels,
        classes=classes,
        gsd_m=np.array([r.gsd_m for r in rasters]),
        sensor=rasters[0].sensor,
        bands=rasters[0].bands,
        encodings=rasters[0].encodings,
    )


def decode(content: bytes, told: str, *, side: int | None = None) -> NDArray[np.uint8]:
    """A JPEG's pixels ``[3, H, W]``.

    Raises:
        DataError: no RGB JPEG, damaged, larger than 1,024 px, or not ``side`` px.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            size, mode = image.size, image.mode
            right = max(size) <= MAX_SIDE if side is None else size == (side, side)
            if right and mode == "RGB":
                return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
    except (OSError, SyntaxError) as error:
        raise _bad(told, str(error), "a whole JPEG picture") from None
    raise _bad(told, f"{mode} of {size[0]} x {size[1]} px", f"RGB of {side or f'at most {MAX_SIDE}'} px a side")


def fit(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """``[C, H, W]`` cut at the centre, or continued with its edge pixels, to ``[C, side, side]``."""
    for axis in (1, 2):
        surplus = pixels.shape[axis] - side
        before = abs(surplus) // 2
        if surplus > 0:
            pixels = np.take(pixels, range(before, before + side), axis=axis)
        elif surplus < 0:
            padding = [(0, 0)] * 3
            padding[axis] = (before, -surplus - before)
            pixels = np.pad(pixels, padding, mode="edge")
    return pixels


def _display_images(
    name: str, folder: Path, rows: Sequence[Row], decoded: Mapping[str, NDArray[np.uint8]], *, gsd_m: float
) -> Images:
    if missing := [r["file"] for r in rows if r["file"] not in decoded]:
        raise _missing(folder, missing)
    classes, labels = _labels(rows)
    found = sensor("generic-rgb").with_gsd(gsd_m)
    return Images(
        name=name,
        ids=tuple(r["file"] for r in rows),
        pixels=np.stack([decoded[r["file"]] for r in rows]),
        labels=labels,
        classes=classes,
        gsd_m=np.full(len(rows), gsd_m),
        sensor=found,
        bands=found.bands,
        encodings=(Encoding(unit=Unit.DISPLAY),) * 3,
    )


def _index(data: Path, name: str, split: str) -> tuple[Path, list[Row]]:
    folder = data if (data / "index.csv").is_file() and data.name == name else data / name
    rows = [r for r in read_index(folder) if r["split"] == split]
    if not rows:
        raise _bad(f"{folder}: part", repr(split), "a part that the index has (train, val, and test in most sets)")
    return folder, rows


def read_index(folder: Path) -> list[Row]:
    """The rows of a folder's ``index.csv``.

    Raises:
        DataError: no such file.
    """
    with _opening(folder / "index.csv"), (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _labels(rows: Sequence[Row]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    names = {int(r["label_id"]): r["label"] for r in rows}
    classes = tuple(names.get(i, f"class {i}") for i in range(max(names) + 1))
    return classes, np.array([int(r["label_id"]) for r in rows], dtype=np.int64)


def _tar_members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    with _opening(archive), tarfile.open(archive, "r|xz") as file:
        for member in file:
            if member.isfile() and member.name in wanted:
                if member.size > MAX_MEMBER_BYTES:
                    raise _bad(f"{archive}: {member.name}", f"{member.size:,} bytes", f"at most {MAX_MEMBER_BYTES:,}")
                content = file.extractfile(member)
                if content is not None:
                    yield member.name, content.read()


def _small(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_MEMBER_BYTES:
        raise _bad(str(path), f"{size:,} bytes", f"at most {MAX_MEMBER_BYTES:,}")
    return path.read_bytes()


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Turns what a missing or torn file raises into one line for the user."""
    if not path.is_file():
        raise DataError(
            f"{path}: data",
            got="no such file",
            expected="a file of the public data pack",
            next_step="Pass the folder that holds eurosat_rgb, ucm_captions, ... with --data.",
        )
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, EOFError, OSError, csv.Error) as error:
        raise _bad(str(path), f"{type(error).__name__}: {error}", "a whole file of the data pack") from None


def _missing(where: Path, names: Sequence[str]) -> DataError:
    return _bad(str(where), f"no {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""), "all of the index")


def _bad(what: str, got: str, expected: str) -> DataError:
    return DataError(what, got=got, expected=expected, next_step="Check the data pack against its SHA256SUMS.")


CLASSIFIED: dict[str, Callable[[Path, str], Images]] = {
    "eurosat-rgb": eurosat_rgb,
    "eurosat100": eurosat100,
    "ucmerced": ucmerced,
}
"""Data sets with classes, by the name that the command line takes."""
