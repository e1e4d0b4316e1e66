"""TerraMesh: tar files per sensor that hold one zipped Zarr group of version 2 for each patch of 264 px at 10 m.

B. Blumenstiel et al., TerraMesh: A Planetary Mosaic of Multimodal Earth Observation Data, 2025, arXiv:2504.11172.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.dataset import has_data
from alidade.imagery.grid import Grid
from alidade.imagery.offset import OFFSET, Verdict, weigh
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor as sensor_of
from alidade.training.tiles.layouts import (
    DB,
    DISPLAY,
    SPLIT_NAMES,
    Found,
    Item,
    Options,
    Part,
    check_same_ground,
    files_below,
    optional,
    view_from,
)
from alidade.training.tiles.scenes import Failure
from alidade.training.tiles.schema import StoreError, ViewSpec

SIDE = 264
MAX_MEMBER_BYTES = 32 * 2**20
MAX_ARRAY_BYTES = 32 * 2**20
_MAX_ENTRIES = 512
_ENDING = ".zarr.zip"
_SINCE = re.compile(r"(nanoseconds|microseconds|milliseconds|seconds|minutes|hours|days) since (.+)")
_LEAST_TIME = 10**6
"""Smaller numbers are no time: elevation has none, and its field holds 0."""

_STORED = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=0.0, nodata=0)


def _spec(sensor: str, dtype: str, encoding: Encoding, bands: Sequence[str] | None = None) -> ViewSpec:
    names = tuple(bands or sensor_of(sensor).band_names)
    return ViewSpec(sensor=sensor, bands=names, side=SIDE, dtype=dtype, encodings=(encoding,) * len(names))


_SPECS = {
    "s1grd": _spec("sentinel-1-grd", "float32", DB, ("VV", "VH")),
    "s1rtc": _spec("sentinel-1-rtc", "float32", DB, ("VV", "VH")),
    "s2l1c": _spec("sentinel-2-l1c", "int16", _STORED),
    "s2l2a": _spec("sentinel-2-l2a", "int16", _STORED),
    "s2rgb": _spec("generic-rgb", "uint8", DISPLAY),
}


class TerraMesh:
    """``SPLIT/MODALITY/*_shard_N.tar`` with members ``KEY.zarr.zip``; a key is one place in every modality.

    Radar and Sentinel-2 are taken in; elevation, vegetation index and land cover are not: a store holds images. Some
    Sentinel-2 patches carry the +1000 of processing baseline 04.00 and some do not, without a word in the files; the
    pixels of each patch tell, and the offset is taken off. Where they do not tell, the sample fails, unless
    ``offsets`` says it.

    Args:
        root: the folder with the splits, or one split.
        options: ``offsets`` only.
        known: not used.

    Raises:
        StoreError: no such folder, an option, or the package ``zarr`` is not installed.
    """

    least = 2

    def __init__(self, root: str, options: Options, known: Mapping[str, ViewSpec] | None) -> None:
        options.refuse("terramesh", but=("offsets",))
        optional("zarr", "terramesh")
        self._root, self._offsets = root, dict(options.offsets)
        self._failures: list[Failure] = []
        self._items = self._list()
        there = {name for item in self._items for name in item.parts}
        self.views = {name: spec for name, spec in _SPECS.items() if name in there}

    def items(self) -> tuple[list[Item], list[Failure]]:
        """Every key of every tar; a tar that ends too early gives what comes before its end."""
        return self._items, self._failures

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """See ``Layout.read``."""
        read, grids = {}, []
        for name in views:
            raster = self._raster(item, name)
            grids.append(raster.grid)
            check_same_ground(grids[0], raster.grid, item.key)
            read[name] = view_from(raster, self.views[name])
        return Found(views=read, grid=grids[0])

    def _list(self) -> list[Item]:
        parts: dict[tuple[str, str], dict[str, tuple[Part, ...]]] = {}
        for path in files_below(self._root, ".tar"):
            folders = os.path.abspath(path).split(os.sep)
            view = folders[-2].lower()
            if view not in _SPECS:
                continue
            split = SPLIT_NAMES.get(folders[-3].lower(), "")
            try:
                # plain tar only: a compressed one could hold anything, and cannot be read here and there
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        name = os.path.basename(member.name)
                        if member.isreg() and not member.issparse() and name.endswith(_ENDING):
                            halves = parts.setdefault((split, name.removesuffix(_ENDING)), {})
                            halves[view] = (Part(path=path, offset=member.offset_data, size=member.size),)
                    end = tar.offset
                with open(path, "rb") as file:
                    file.seek(end)
                    # Python takes the end of a file and a torn header for the end of the archive
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise EOFError("it ends without its end mark")
            except (tarfile.TarError, OSError, EOFError) as error:
                self._failures.append(Failure(source=path, message=str(_damaged(path, str(error), "a whole tar file"))))
        return [
            Item(key=key, parts=halves, split=split or None)
            for (split, key), halves in sorted(parts.items(), key=lambda pair: pair[0])
        ]

    def _raster(self, item: Item, name: str) -> Raster:
        (part,) = item.parts[name]
        told = f"{part.path}: {item.key}"
        spec = self.views[name]
        group = _Group.read(part, told)
        grid = group.grid()
        stored = group.bands((len(spec.bands), grid.height, grid.width))
        order = _order(group.names(), spec, told)
        pixels = _as_type(stored[order], spec.dtype, told)
        valid = has_data(pixels, spec.encodings) & np.isfinite(pixels).all(axis=0)
        encodings = spec.encodings
        if spec.sensor.startswith("sentinel-2-"):
            offset = self._offset(name, spec, pixels[:, valid], told)
            encodings = tuple(Encoding(unit=e.unit, scale=e.scale, offset=offset, nodata=e.nodata) for e in encodings)
        sensor = sensor_of(spec.sensor)
        return Raster(
            pixels=pixels, bands=tuple(sensor.band(b) for b in spec.bands), encodings=encodings, valid=valid,
            grid=grid, sensor=sensor, time=group.time(), source=told,
        )  # fmt: skip

    def _offset(self, name: str, spec: ViewSpec, counts: npt.NDArray[Any], told: str) -> float:
        if name in self._offsets:
            return self._offsets[name]
        evidence = weigh(dict(zip(spec.bands, counts, strict=True)), level=spec.sensor[-3:])
        if evidence.verdict is Verdict.UNCLEAR:
            raise StoreError(
                f"{told}: Sentinel-2 offset", got=f"{evidence.verdict} ({evidence.reason})",
                expected="pixels that tell whether 1000 was added",
                next_step=f"Leave the view out (name the others with --view), or pass --offset {name}=0 or -0.1.",
            )  # fmt: skip
        return OFFSET if evidence.verdict is Verdict.ADDED else 0.0


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The files of one zipped Zarr group, unpacked in memory within bounds."""

    files: Mapping[str, bytes]
    told: str

    @classmethod
    def read(cls, part: Part, told: str) -> _Group:
        """Read and unzip a tar member.

        Raises:
            RasterError: it is cut short, no zip, or would unpack to more than a patch can be.
        """
        if part.size > MAX_MEMBER_BYTES:
            raise _damaged(told, f"{part.size:,} bytes", f"at most {MAX_MEMBER_BYTES:,}")
        with open(part.path, "rb") as file:
            file.seek(part.offset)
            content = file.read(part.size)
        if len(content) < part.size:
            raise _damaged(told, f"{len(content):,} bytes", f"{part.size:,}, as the tar says")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                entries = archive.infolist()
                total = sum(e.file_size for e in entries)
                if len(entries) > _MAX_ENTRIES or total > MAX_ARRAY_BYTES + MAX_MEMBER_BYTES:
                    raise _damaged(told, f"{len(entries)} files of {total:,} bytes", "a patch")
                # a declared size is a promise: reading stops there, and the checksum then fails
                return cls(files={e.filename: archive.read(e) for e in entries if not e.is_dir()}, told=told)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise _damaged(told, str(error), "a zipped Zarr group") from error

    def grid(self) -> Grid:
        """Where the pixels lie, by the coordinates of their centres and the EPSG code.

        Raises:
            AlidadeError: a coordinate is missing, or they are not evenly spaced.
        """
        x, y = self.array("x", 1).astype(np.float64), self.array("y", 1).astype(np.float64)
        code = self.array("crs", None).reshape(-1)
        for axis, sign in ((x, 1.0), (y, -1.0)):
            steps = np.diff(axis) * sign
            even = len(steps) > 0 and bool(np.isfinite(axis).all()) and steps.min() > 0
            if not even or np.ptp(steps) > 1e-3 * steps.mean():
                raise _damaged(self.told, "coordinates that are not evenly spaced", "x rising and y falling evenly")
        dx, dy = float(x[-1] - x[0]) / (len(x) - 1), float(y[-1] - y[0]) / (len(y) - 1)
        try:
            crs = CRS.from_epsg(int(code[0]))
        except (CRSError, IndexError, ValueError, OverflowError) as error:
            raise _damaged(self.told, f"crs {code.tolist()}", "an EPSG code") from error
        transform = Affine(dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, float(y[0]) - dy / 2)
        return Grid(crs=crs, transform=transform, width=len(x), height=len(y))

    def bands(self, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
        """The pixels ``[C, H, W]``.

        Raises:
            RasterError: another shape, or more than one time.
        """
        pixels = self.array("bands", None)
        if pixels.ndim == 4 and len(pixels) == 1:
            pixels = pixels[0]
        if pixels.shape != shape:
            raise _damaged(self.told, f"bands of shape {pixels.shape}", f"{shape}, or (1, {str(shape)[1:]}")
        return pixels

    def names(self) -> list[str]:
        """The names of the bands, empty where the file has none.

        Raises:
            RasterError: they are no text.
        """
        if "band/.zarray" not in self.files:
            return []
        text = np.ascontiguousarray(self.array("band", 1))
        # Python makes strings of whatever numbers stand there, and falls over those that are no characters
        if text.dtype.kind != "U" or not text.dtype.isnative or (text.view(np.uint32) > sys.maxunicode).any():
            raise _damaged(self.told, f"band names of type {text.dtype}", "text")
        return [str(n) for n in text.tolist()]

    def time(self) -> datetime | None:
        """The moment of acquisition; ``None`` where the file holds none."""
        if "time/.zarray" not in self.files:
            return None
        values = self.array("time", None).reshape(-1)
        attributes = self._json("time/.zattrs") if "time/.zattrs" in self.files else {}
        found = _SINCE.match(str(attributes.get("units", "nanoseconds since 1970-01-01")))
        if len(values) != 1 or found is None or not math.isfinite(float(values[0])):
            raise _damaged(self.told, f"time {values.tolist()[:3]} in {attributes.get('units')!r}", "one moment")
        unit, origin = found.groups()
        count = float(values[0])
        if unit == "nanoseconds" and count < _LEAST_TIME:
            return None
        try:
            begin = datetime.fromisoformat(origin.strip())
            begin = begin.replace(tzinfo=UTC) if begin.tzinfo is None else begin.astimezone(UTC)
            step = timedelta(microseconds=count / 1e3) if unit == "nanoseconds" else timedelta(**{unit: count})
            return begin + step
        except (ValueError, OverflowError) as error:
            raise _damaged(self.told, f"time {count:g} {unit} since {origin!r}", "a moment") from error

    def array(self, name: str, ndim: int | None) -> npt.NDArray[Any]:
        """An array of the group, decoded by Zarr after its description has been found harmless.

        Raises:
            RasterError: it is missing, too large, or of a kind that can hold more than numbers and text.
        """
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        told = f"{self.told}: array {name}"
        facts = self._json(f"{name}/.zarray")
        shape, chunks, kind = _described(facts, told)
        if ndim is not None and len(shape) != ndim:
            raise _damaged(told, f"{len(shape)} dimensions", str(ndim))
        chunk_bytes = math.prod(chunks) * kind.itemsize
        store: dict[str, Any] = {}
        buffer = default_buffer_prototype().buffer
        for path, content in self.files.items():
            folder, _, last = path.rpartition("/")
            if folder != name or last == ".zattrs":
                continue
            if last != ".zarray" and facts["compressor"] is not None:
                # a Blosc chunk says how large it gets, and the decoder believes it
                declared = int.from_bytes(content[4:8], "little")
                if len(content) < 16 or declared != chunk_bytes:
                    raise _damaged(told, f"a chunk that unpacks to {declared:,} bytes", f"{chunk_bytes:,}")
            store[last] = buffer.from_bytes(content)
        try:
            opened = zarr.open_array(zarr.storage.MemoryStore(store, read_only=True), mode="r", zarr_format=2)
            return np.asarray(opened[...])
        except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
            raise _damaged(told, str(error).splitlines()[0][:200], "an array that decodes") from error

    def _json(self, path: str) -> dict[str, Any]:
        try:
            value = json.loads(self.files[path])
        except (KeyError, ValueError, RecursionError) as error:
            got = "no such file" if isinstance(error, KeyError) else str(error)
            raise _damaged(f"{self.told}: {path}", got, "a JSON object") from None
        if not isinstance(value, dict):
            raise _damaged(f"{self.told}: {path}", type(value).__name__, "a JSON object")
        return value


def _described(facts: Mapping[str, Any], told: str) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]]:
    """Shape, chunk shape and type of an array, if they are within bounds and of harmless kinds."""
    try:
        shape, chunks = tuple(map(int, facts["shape"])), tuple(map(int, facts["chunks"]))
        text, codec, filters = facts["dtype"], facts["compressor"], facts["filters"]
        kind = np.dtype(text) if isinstance(text, str) else np.dtype("O")
        codec_id = None if codec is None else codec["id"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(told, f"{type(error).__name__}: {error}", "a description of a Zarr array") from error
    # objects would be unpickled or parsed, and other codecs do not say how large they get
    if kind.kind not in "iufU" or kind.hasobject or filters or codec_id not in (None, "blosc"):
        got = f"type {text!r}, filters {filters!r}, compressor {codec_id!r}"
        raise _damaged(told, got, "numbers or text of fixed length, without filters, plain or in Blosc")
    fitting = len(shape) == len(chunks) <= 4 and all(s >= 0 for s in shape) and all(c >= 1 for c in chunks)
    large = max(math.prod(shape), math.prod(chunks)) * max(kind.itemsize, 1) > MAX_ARRAY_BYTES
    pieces = math.prod(math.ceil(s / c) for s, c in zip(shape, chunks, strict=False)) if fitting else 0
    if not fitting or large or pieces > _MAX_ENTRIES:
        raise _damaged(told, f"shape {shape} in chunks of {chunks}", "an array of a patch's size")
    return shape, chunks, kind


def _order(names: Sequence[str], spec: ViewSpec, told: str) -> list[int]:
    """Places in the file of the view's bands; without names they are in the view's order."""
    if not names or spec.sensor == "generic-rgb":
        return list(range(len(spec.bands)))
    known = [re.sub(r"^B(\d)$", r"B0\1", n.strip().upper()) for n in names]
    if sorted(known) != sorted(spec.bands):
        raise _damaged(told, f"bands {', '.join(names)}", ", ".join(spec.bands))
    return [known.index(b) for b in spec.bands]


def _as_type(stored: npt.NDArray[Any], dtype: str, told: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    whole = stored.dtype.kind in "iu"
    if whole != (kind.kind in "iu"):
        raise _damaged(told, f"pixels of {stored.dtype}", f"{'whole' if kind.kind in 'iu' else 'real'} numbers")
    if whole and stored.size and not np.iinfo(kind).min <= int(stored.min()) <= int(stored.max()) <= np.iinfo(kind).max:
        raise _damaged(told, f"numbers from {stored.min()} to {stored.max()}", f"those of {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(stored.astype(kind))


def _damaged(told: str, got: str, expected: str) -> AlidadeError:
    return RasterError(
        told, got=got, expected=expected, next_step="It is damaged or of another kind: fetch its tar file again."
    )
