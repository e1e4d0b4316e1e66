"""Scale-ALiBi's archives: PMTiles with one sensor each, web map tiles of zoom 15 and their children of zoom 16."""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
from affine import Affine
from PIL import Image, UnidentifiedImageError
from pyproj import CRS

from alidade.errors import RasterError
from alidade.imagery.grid import Grid
from alidade.training.tiles.layouts import DISPLAY, DISPLAY_SAR, Found, Item, Options, Part, files_below, optional
from alidade.training.tiles.scenes import Failure
from alidade.training.tiles.schema import SampleView, StoreError, ViewSpec

ZOOM = 15
"""Tiles of this zoom are the samples; the high-resolution view is made of their children, one zoom further down."""

GROUP_ZOOM = 12
"""Samples below one tile of this zoom, about 10 km, share a split."""

TILE = 256
_EARTH_M = 2.0 * math.pi * 6_378_137.0
_MERCATOR = CRS.from_epsg(3857)

MAX_DIRECTORY_BYTES = 64 * 2**20
MAX_TILES = 20_000_000
MAX_TILE_BYTES = 8 * 2**20
_HEADER_BYTES = 127
_MAX_DEPTH = 4

_RGB = ("R", "G", "B")
_SPECS = {
    "s1": ViewSpec(sensor=DISPLAY_SAR, bands=("VV", "VH"), side=TILE, dtype="uint8", encodings=(DISPLAY, DISPLAY)),
    "s2": ViewSpec(sensor="generic-rgb", bands=_RGB, side=TILE, dtype="uint8", encodings=(DISPLAY,) * 3),
    "naip": ViewSpec(sensor="naip-rgb", bands=_RGB, side=2 * TILE, dtype="uint8", encodings=(DISPLAY,) * 3),
}
_WORDS = {"s1": ("s1", "sar", "radar"), "s2": ("s2", "visual", "lores"), "naip": ("naip", "hires")}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive's directory.

    Attributes:
        path: the file.
        tiles: first byte and length in the file of each tile, by (zoom, column, row).
    """

    path: str
    tiles: Mapping[tuple[int, int, int], tuple[int, int]]


class PMTiles:
    """One archive per sensor, found by its name: ``sar``, ``visual`` and ``hires``, or ``s1``, ``s2`` and ``naip``.

    The pixels are pictures, not measurements: 8-bit backscatter (linear amplitude cut off at 1,000 and scaled), true
    colour, and aerial photographs. Samples carry the true ground metres of their latitude, no dates, and places.

    Args:
        root: the folder with ``*.pmtile`` or ``*.pmtiles`` files.
        options: none are used.
        known: not used.

    Raises:
        StoreError: no such folder, an option, an archive of no or of two sensors' names, or no package ``pmtiles``.
        RasterError: an archive is damaged or asks for absurd sizes.
    """

    least = 2

    def __init__(self, root: str, options: Options, known: Mapping[str, ViewSpec] | None) -> None:
        options.refuse("pmtiles")
        self._archives: dict[str, Archive] = {}
        for path in files_below(root, ".pmtile", ".pmtiles"):
            view = _view_of(path)
            if view in self._archives:
                raise StoreError(
                    f"{root}: archives", got=f"{self._archives[view].path} and {path}, both {view}",
                    expected="one archive of each sensor", next_step="Import one set at a time.",
                )  # fmt: skip
            self._archives[view] = read_archive(path)
        self.views = {name: spec for name, spec in _SPECS.items() if name in self._archives}

    def items(self) -> tuple[list[Item], list[Failure]]:
        """Every tile of zoom 15 that a sensor has; aerial photographs only where all four children are there."""
        parts: dict[tuple[int, int], dict[str, tuple[Part, ...]]] = {}
        for view, archive in self._archives.items():
            if view == "naip":
                parents = {(x // 2, y // 2) for zoom, x, y in archive.tiles if zoom == ZOOM + 1}
            else:
                parents = {(x, y) for zoom, x, y in archive.tiles if zoom == ZOOM}
            for x, y in parents:
                keys = [(ZOOM + 1, 2 * x + i, 2 * y + j) for j in (0, 1) for i in (0, 1)]
                keys = keys if view == "naip" else [(ZOOM, x, y)]
                if all(key in archive.tiles for key in keys):
                    places = [archive.tiles[key] for key in keys]
                    pieces = tuple(Part(path=archive.path, offset=start, size=size) for start, size in places)
                    parts.setdefault((x, y), {})[view] = pieces
        shift = ZOOM - GROUP_ZOOM
        items = [
            Item(key=f"xyz_{ZOOM}_{x}_{y}", parts=halves, group=f"xyz_{GROUP_ZOOM}_{x >> shift}_{y >> shift}")
            for (x, y), halves in sorted(parts.items())
        ]
        return items, []

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """See ``Layout.read``. A high-resolution child that is wholly black stands for one that is missing."""
        x, y = map(int, item.key.split("_")[2:])
        read = {}
        for name in views:
            parts = item.parts[name]
            told = f"{parts[0].path}: tile {ZOOM}/{x}/{y}"
            images = [_decode(_bytes(part, told), told) for part in parts]
            if name == "naip" and any(not image[:3].any() for image in images):
                continue
            image = images[0] if len(images) == 1 else np.block([[images[0], images[1]], [images[2], images[3]]])
            pixels, valid = _radar(image, told) if name == "s1" else _picture(image)
            read[name] = SampleView(
                pixels=pixels, valid=valid, gsd_m=tile_grid(x, y, pixels.shape[-1]).gsd_m(), time=None, source=told
            )
        return Found(views=read, grid=tile_grid(x, y, TILE))


def tile_grid(x: int, y: int, side: int) -> Grid:
    """The pixels of a tile of zoom 15 in web Mercator, cut into ``side`` x ``side``."""
    width = _EARTH_M / 2**ZOOM
    step = width / side
    west, north = x * width - _EARTH_M / 2.0, _EARTH_M / 2.0 - y * width
    return Grid(crs=_MERCATOR, transform=Affine(step, 0.0, west, 0.0, -step, north), width=side, height=side)


def read_archive(path: str) -> Archive:
    """Read an archive's directories; nothing is decompressed beyond fixed bounds.

    Raises:
        RasterError: it is damaged, of another version or kind, or asks for absurd sizes.
        StoreError: the package ``pmtiles`` is not installed.
    """
    ids = optional("pmtiles.tile", "pmtiles")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
        if len(head) < _HEADER_BYTES or not head.startswith(b"PMTiles\x03"):
            raise _damaged(path, f"a file that starts with {head[:8]!r}", "PMTiles of version 3")
        try:
            header = ids.deserialize_header(head)
        except ValueError as error:
            raise _damaged(path, str(error), "a header of PMTiles version 3") from error
        if header["tile_compression"].name not in ("NONE", "UNKNOWN") or header["tile_type"].name not in (
            "PNG", "JPEG", "UNKNOWN",
        ):  # fmt: skip
            got = f"{header['tile_type'].name} tiles, compressed by {header['tile_compression'].name}"
            raise _damaged(path, got, "PNG or JPEG tiles as they are")
        entries: list[tuple[int, int, int, int]] = []
        pending = [(header["root_offset"], header["root_length"], 0)]
        while pending:
            start, length, depth = pending.pop()
            if depth >= _MAX_DEPTH or length > MAX_DIRECTORY_BYTES or start + length > size:
                raise _damaged(path, f"a directory of {length:,} bytes at {start:,}, {depth} deep", "one in the file")
            file.seek(start)
            for entry in _directory(file.read(length), header["internal_compression"].name, path):
                if entry[1] == 0:
                    pending.append((header["leaf_directory_offset"] + entry[2], entry[3], depth + 1))
                else:
                    entries.append(entry)
            if len(entries) + len(pending) > MAX_TILES:
                raise _damaged(path, "more entries than a data set has", f"at most {MAX_TILES:,}")
    if sum(run for _, run, _, _ in entries) > MAX_TILES:
        raise _damaged(path, "more tiles than a data set has", f"at most {MAX_TILES:,}")
    tiles = {}
    for first, run, offset, length in entries:
        start = header["tile_data_offset"] + offset
        if length > MAX_TILE_BYTES or start + length > size:
            raise _damaged(path, f"a tile of {length:,} bytes at {start:,}", f"tiles within the {size:,} bytes")
        for number in range(first, first + run):
            tiles[_place(ids, number, path)] = (start, length)
    return Archive(path=path, tiles=tiles)


def _place(ids: ModuleType, number: int, path: str) -> tuple[int, int, int]:
    try:
        zoom, x, y = ids.tileid_to_zxy(number)
    except OverflowError as error:
        raise _damaged(path, f"tile number {number}", "tiles down to zoom 31") from error
    return zoom, x, y


def _directory(content: bytes, compression: str, path: str) -> list[tuple[int, int, int, int]]:
    """(first tile, tiles in a row or 0 for a leaf, offset, length) of each entry of a directory."""
    if compression == "GZIP":
        inflate = zlib.decompressobj(wbits=31)
        try:
            content = inflate.decompress(content, MAX_DIRECTORY_BYTES)
        except zlib.error as error:
            raise _damaged(path, f"a directory that does not decompress ({error})", "gzip") from error
        if not inflate.eof:
            raise _damaged(path, "a directory that is cut short or too large", f"{MAX_DIRECTORY_BYTES:,} bytes at most")
    elif compression != "NONE":
        raise _damaged(path, f"directories compressed by {compression}", "gzip, or none")
    values = _varints(content, path)
    count = int(values[0]) if len(values) else 0
    if count == 0 or len(values) != 1 + 4 * count:
        raise _damaged(path, f"a directory of {len(values)} numbers for {count:,} entries", "four for each entry")
    steps, runs, lengths, offsets = (column.tolist() for column in values[1:].reshape(4, count))
    found: list[tuple[int, int, int, int]] = []
    number = 0
    for step, run, length, offset in zip(steps, runs, lengths, offsets, strict=True):
        number += step
        # 0 says: right behind the entry before
        start = found[-1][2] + found[-1][3] if offset == 0 and found else offset - 1
        if start < 0:
            raise _damaged(path, "an entry without a place", "an offset for each")
        found.append((number, run, start, length))
    return found


def _varints(content: bytes, path: str) -> npt.NDArray[np.uint64]:
    """All numbers of a directory: seven bits a byte, lowest first, the eighth bit set when more follow."""
    raw = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    widths = ends - starts + 1
    # nine bytes hold 63 bits, more than any file is long
    if not len(ends) or ends[-1] != len(raw) - 1 or widths.max() > 9:
        raise _damaged(path, "a directory with numbers that do not end", "numbers of at most 63 bits")
    values = np.zeros(len(ends), dtype=np.uint64)
    for place in range(int(widths.max())):
        there = widths > place
        bits = (raw[starts[there] + place] & 0x7F).astype(np.uint64)
        values[there] |= bits << np.uint64(7 * place)
    return values


def _bytes(part: Part, told: str) -> bytes:
    with open(part.path, "rb") as file:
        file.seek(part.offset)
        content = file.read(part.size)
    if len(content) < part.size:
        raise _damaged(told, f"{len(content):,} bytes", f"{part.size:,}")
    return content


def _decode(content: bytes, told: str) -> npt.NDArray[np.uint8]:
    """A tile ``[3 or 4, 256, 256]``."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as image:
            if image.size != (TILE, TILE) or image.mode not in ("RGB", "RGBA"):
                raise _damaged(told, f"{image.size[0]} x {image.size[1]} px of {image.mode}", "256 x 256 px of RGB(A)")
            pixels = np.asarray(image, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, RasterError):
            raise
        raise _damaged(told, str(error), "a PNG or a JPEG") from error
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _radar(image: npt.NDArray[np.uint8], told: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """VV and VH, and where they mean something.

    The makers scaled to 256 and cast to a byte, which turned the brightest scatterers into 0. Inside the mask a 0 is
    therefore either the darkest or the brightest there is; nothing tells which, so it is not data.
    """
    if len(image) != 4:
        raise _damaged(told, f"{len(image)} channels", "four: empty, VV, VH, mask")
    pixels = image[1:3].copy()
    valid = (image[3] > 127) & (pixels > 0).all(axis=0)
    pixels[:, ~valid] = 0
    return pixels, valid


def _picture(image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    pixels = image[:3].copy()
    valid = image[3] > 127 if len(image) == 4 else np.ones(pixels.shape[1:], dtype=np.bool_)
    pixels[:, ~valid] = 0
    return pixels, valid


def _view_of(path: str) -> str:
    words = re.split(r"[^a-z0-9]+", os.path.basename(path).lower())
    found = [view for view, names in _WORDS.items() if any(word in names for word in words)]
    if len(found) != 1:
        told = "; ".join(f"{' or '.join(names)} for {view}" for view, names in _WORDS.items())
        raise StoreError(
            f"{path}: name", got="no sensor" if not found else f"{' and '.join(found)} at once",
            expected=f"one of these words in it: {told}", next_step="Rename the archive, or move it away.",
        )  # fmt: skip
    return found[0]


def _damaged(path: str, got: str, expected: str) -> RasterError:
    return RasterError(path, got=got, expected=expected, next_step="It is damaged or of another kind: fetch it again.")
