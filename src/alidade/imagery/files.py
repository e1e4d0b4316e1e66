"""Raster files, opened and written in this one place. ``identify`` and ``offset`` tell what a file means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader, MemoryFile

from alidade.errors import GridError, RasterError, SensorError
from alidade.imagery.atomic import atomic_write
from alidade.imagery.bands import Band, Encoding, Sensor, Unit
from alidade.imagery.dataset import grid_of, has_data, header_of, sample_windows
from alidade.imagery.defences import check_file, check_size, check_tags, driver_of, item_bytes
from alidade.imagery.gdal import place, quietly, reading, relayed
from alidade.imagery.grid import Grid
from alidade.imagery.header import Catalogued, Declared, Header
from alidade.imagery.identify import identify
from alidade.imagery.offset import resolve_offset, weigh
from alidade.imagery.raster import Raster
from alidade.imagery.relay import RemoteFile, open_remote
from alidade.imagery.remote import Door, cut_path, is_address
from alidade.imagery.windows import Window

__all__ = ["Declared", "RasterFile", "open_raster", "read", "write_geotiff"]

MAX_READ_BYTES = 8 * 2**30
"""The most that one ``read`` returns; larger scenes are read in windows."""

_NOTHING = Declared()
_SAMPLE_WINDOWS = 16
_REMOTE_SAMPLE_WINDOWS = 4
"""Each costs a request or two; they lie across the scene."""


class RasterFile:
    """An open raster file: what it holds, and its pixels window by window. Made by ``open_raster``.

    A context manager. One thread at a time may use it, and it need not be the thread that opened it.

    Attributes:
        path: the file; of a remote one the address.
        sensor: what took the image.
        bands, encodings: the bands that are read, in file order, and how each one's stored numbers become a
            unit.
        grid: where the pixels lie; north-up where the file is bottom-up.
        time: moment of acquisition in UTC, or ``None``.
        block_shape: (rows, columns) of the units in which the file is compressed.
        dtype: the type of the stored numbers.
        how: one sentence each on how ``sensor``, ``bands``, ``unit``, ``offset``, ``time`` and ``gsd`` were
            found.
    """

    path: Path
    sensor: Sensor
    bands: tuple[Band, ...]
    encodings: tuple[Encoding, ...]
    grid: Grid
    time: datetime | None
    block_shape: tuple[int, int]
    dtype: np.dtype[Any]
    how: dict[str, str]

    def __init__(
        self, dataset: DatasetReader, told: str, file: Path | RemoteFile, declared: Declared, said: Catalogued | None
    ) -> None:
        self._dataset, self._told = dataset, told
        self._remote = file if isinstance(file, RemoteFile) else None
        check_tags(dataset, told)
        check_size(dataset, told, file.size if isinstance(file, RemoteFile) else file.stat().st_size)
        header = header_of(dataset, told)
        header = header if said is None else said.over(header)
        self.path, self.dtype = Path(told) if isinstance(file, RemoteFile) else file, np.dtype(header.dtype)
        rows, cols = dataset.block_shapes[0]
        self.block_shape = (int(rows), int(cols))
        self.grid, self._bottom_up, how_gsd = grid_of(dataset, header, declared)
        found = identify(header, declared, self._is_mask)
        self.sensor, self.bands, self.encodings, self.time = (
            found.sensor, found.bands, found.encodings, found.time
        )  # fmt: skip
        self._indexes, self._alpha = found.indexes, found.alpha
        flags = dataset.mask_flag_enums[0]
        self._has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        self.how = {**found.how, "offset": self._resolve_offset(header, declared), "gsd": how_gsd}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading is over."""
        with self._reading(None):
            self._dataset.close()
        if self._remote is not None:
            self._remote.close()

    @contextmanager
    def _reading(self, window: Window | None) -> Iterator[None]:
        try:
            with reading(self._told, window, self._remote.address if self._remote else None):
                yield
        except RasterError as error:
            # why bytes did not come is known here; GDAL only knows that they did not
            why = self._remote.failure if self._remote is not None else None
            raise why or error from None

    def read(self, window: Window | None = None, bands: Sequence[str] | None = None) -> Raster:
        """Pixels as they are stored: no scale or offset is applied, no overview is used.

        A pixel is not valid

        - where an alpha band is below half of its type's maximum;
        - else where the file's own mask says so;
        - else where it equals nodata: for whole numbers with nodata of 0 or more in all bands read (a dark
          pixel may be 0 in one), for a negative nodata and for real numbers in any band read;
        - and in any case where a real number is not finite.

        Args:
            window: the part to read, all by default. Beyond the edge pixels are 0 and not valid.
            bands: names or common names in the order wanted, all by default.

        Raises:
            RasterError: the file is damaged there, or it is more than 8 GiB at once.
            SensorError: a band that is not there.
            GridError: a window that lies wholly outside.
        """
        height, width = self.grid.height, self.grid.width
        want = window or Window(row=0, col=0, height=height, width=width)
        top, left = max(want.row, 0), max(want.col, 0)
        bottom, right = min(want.row + want.height, height), min(want.col + want.width, width)
        if top >= bottom or left >= right:
            raise GridError(
                f"{self._told}: window",
                got=place(want),
                expected=f"a part of {height} rows x {width} columns",
                next_step="Check the window against the file's size (alidade inspect shows it).",
            )
        inside = Window(row=top, col=left, height=bottom - top, width=right - left)
        picks = range(len(self.bands)) if bands is None else [self._position(name) for name in bands]
        raster = self._read_inside(inside, picks)
        if inside == want:
            return raster
        return raster.crop(Window(row=want.row - top, col=want.col - left, height=want.height, width=want.width))

    def _read_inside(self, window: Window, picks: Sequence[int]) -> Raster:
        size = window.height * window.width * len(picks) * self.dtype.itemsize
        if size > MAX_READ_BYTES:
            raise RasterError(
                f"{self._told}: one read",
                got=f"{size / 1e9:.1f} GB",
                expected=f"at most {MAX_READ_BYTES / 1e9:.1f} GB",
                next_step="Read it in windows, or fewer bands.",
            )
        stored = self._pixels([self._indexes[i] for i in picks], window)
        encodings = tuple(self.encodings[i] for i in picks)
        if self._alpha is not None:
            # half, because lossy compression leaves small numbers where there is nothing
            valid = self._pixels([self._alpha], window)[0] > np.iinfo(self.dtype).max // 2
        elif self._has_mask:
            valid = self._mask(window)
        else:
            valid = has_data(stored, encodings)
        if stored.dtype.kind == "f":
            for band in stored:
                valid &= np.isfinite(band)
        return Raster(
            pixels=stored,
            bands=tuple(self.bands[i] for i in picks),
            encodings=encodings,
            valid=valid,
            grid=self.grid.window(window.row, window.col, window.height, window.width),
            sensor=self.sensor,
            time=self.time,
            source=self._told,
        )

    def _pixels(self, indexes: Sequence[int], window: Window) -> NDArray[Any]:
        with self._reading(window):
            pixels: NDArray[Any] = self._dataset.read(list(indexes), window=self._in_file(window))
        return np.ascontiguousarray(pixels[:, ::-1]) if self._bottom_up else pixels

    def _mask(self, window: Window) -> NDArray[np.bool_]:
        with self._reading(window):
            mask: NDArray[np.bool_] = self._dataset.read_masks(1, window=self._in_file(window)) != 0
        return mask[::-1].copy() if self._bottom_up else mask

    def _in_file(self, window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
        """((first row, end), (first column, end)) as the file counts them."""
        row = self.grid.height - window.row - window.height if self._bottom_up else window.row
        return (row, row + window.height), (window.col, window.col + window.width)

    def _position(self, name: str) -> int:
        wanted = name.casefold()
        found = [i for i, b in enumerate(self.bands) if b.name.casefold() == wanted]
        found = found or [i for i, b in enumerate(self.bands) if (b.common_name or "").casefold() == wanted]
        if len(found) != 1:
            raise SensorError(
                f"{self._told}: band",
                got=f"{name!r}" + (" (several bands)" if found else ""),
                expected=f"one of {', '.join(b.name for b in self.bands)}",
                next_step="Name bands that the file has, or declare its bands with --bands.",
            )
        return found[0]

    def _is_mask(self, index: int) -> bool:
        allowed = (0, np.iinfo(self.dtype).max)
        samples = sample_windows(self.grid.height, self.grid.width, self.block_shape)[:_SAMPLE_WINDOWS]
        return all(np.isin(self._pixels([index], window), allowed).all() for window in samples)

    def _resolve_offset(self, header: Header, declared: Declared) -> str:
        """Settle a Sentinel-2 offset in ``encodings``; returns how any sensor's offset was found."""
        measured = [i for i, e in enumerate(self.encodings) if e.unit is not Unit.CLASS]
        if not measured or not self.sensor.id.startswith("sentinel-2-"):
            if declared.offset is not None:
                return f"{declared.offset:g}: you declared it."
            return "The bands' metadata hold it." if header.scaled else "It is that of this sensor's files."
        scale = self.encodings[measured[0]].scale
        parts: list[Raster] = []
        windows, enough = sample_windows(self.grid.height, self.grid.width, self.block_shape), _SAMPLE_WINDOWS
        if self._remote is not None:
            windows, enough = windows[::5], _REMOTE_SAMPLE_WINDOWS
        for window in windows:
            part = self._read_inside(window, measured)
            if part.valid.any():
                parts.append(part)
            if len(parts) == enough:
                break
        counts = {
            self.bands[place].name: np.concatenate([p.pixels[i][p.valid] for p in parts] or [np.empty(0)])
            * (scale / 1e-4)
            for i, place in enumerate(measured)
        }
        evidence = weigh(counts, level=self.sensor.id[-3:])
        in_bands = self.encodings[measured[0]].offset if header.scaled else None
        offset, sentence = resolve_offset(header, declared, in_bands, evidence)
        self.encodings = tuple(
            replace(e, offset=offset) if e.unit is not Unit.CLASS and e.offset is None else e for e in self.encodings
        )
        return sentence


def open_raster(
    path: str | os.PathLike[str],
    declared: Declared = _NOTHING,
    *,
    allow_jp2: bool = False,
    door: Door | None = None,
    said: Catalogued | None = None,
) -> RasterFile:
    """Open a GeoTIFF after checking that it is safe to read and that it is known what it means.

    Args:
        path: a local file; with a door, an http address, too.
        declared: what the file does not say itself.
        allow_jp2: also open JPEG 2000, a format whose decoder has a longer record of faults.
        door: which hosts may be asked; without one no address is opened.
        said: what a catalogue says about the file.

    Raises:
        RasterError: missing, damaged, of another format, or a danger.
        SensorError: sensor, bands, unit or a Sentinel-2 offset cannot be told.
        GridError: CRS or ground sample distance is missing or absurd.
    """
    told = cut_path(path)
    file: Path | RemoteFile
    with ExitStack() as on_error:
        if door is not None and is_address(os.fspath(path)):
            remote = open_remote(os.fspath(path), door)
            on_error.callback(remote.close)
            file, name, address = remote, relayed(remote.address), remote.address
            driver = driver_of(remote.start, told, allow_jp2=allow_jp2)
        else:
            file, driver = check_file(path, allow_jp2=allow_jp2)
            name, address = str(file), None
        try:
            with reading(told, None, address), quietly():
                # the place on the ground comes from the file itself, not from a side file
                options = {"GEOREF_SOURCES": "INTERNAL"} if driver == "GTiff" else {}
                dataset = rasterio.open(name, driver=driver, **options)
                on_error.callback(dataset.close)
                opened = RasterFile(dataset, told, file, declared, said)
        except RasterError as error:
            why = file.failure if isinstance(file, RemoteFile) else None
            raise why or error from None
        on_error.pop_all()
    return opened


def read(path: str | os.PathLike[str], declared: Declared = _NOTHING) -> Raster:
    """All pixels of a GeoTIFF; see ``open_raster`` and ``RasterFile.read``, also for what is raised."""
    with open_raster(path, declared) as file:
        return file.read()


def write_geotiff(path: str | os.PathLike[str], raster: Raster) -> None:
    """Write a raster as a tiled, DEFLATE-compressed GeoTIFF that ``open_raster`` reads back as it was.

    The file appears whole or not at all. Pixels, bands, encodings, valid mask, sensor and time come back
    exactly; a valid mask that nodata cannot tell is stored as the file's own mask. A ground sample distance
    given beside a CRS is not kept, and a bottom-up grid comes back north-up.

    Args:
        path: the file to make or to replace.
        raster: what to write.

    Raises:
        SensorError: an unresolved offset, or several units or nodata values, which a GeoTIFF cannot hold.
        RasterError: a type that GeoTIFF does not know, or the disk or the permissions do not allow it.
    """
    told = os.fspath(path)
    measured = [e for e in raster.encodings if e.unit is not Unit.CLASS]
    units, nodatas = {e.unit for e in measured}, {str(e.nodata) for e in raster.encodings}
    if len(units) > 1 or len(nodatas) > 1 or any(e.offset is None for e in raster.encodings):
        raise SensorError(
            f"{told}: encodings",
            got=f"units {', '.join(sorted(units))}, nodata {', '.join(sorted(nodatas))}, "
            f"offsets {', '.join(sorted({str(e.offset) for e in raster.encodings}))}",
            expected="one unit, one nodata value and known offsets",
            next_step="Write the bands to several files (Raster.select), with offsets resolved.",
        )
    item_bytes(str(raster.pixels.dtype), told)
    try:
        with reading(told, None), quietly():
            content = _encode(raster, str(units.pop()) if units else None)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RasterError(
            f"{told}: writing",
            got=error.strerror or str(error),
            expected="a folder that exists, room on the disk and permission to write",
            next_step="Make room, or choose another place.",
        ) from None


def _encode(raster: Raster, unit: str | None) -> memoryview:
    """The bytes of a GeoTIFF, made in memory: GDAL may swallow errors of the disk, Python does not."""
    count, height, width = raster.pixels.shape
    side = min(256, -(-max(height, width) // 16) * 16)
    tags = {"ALIDADE_SENSOR": raster.sensor.id}
    if unit is not None:
        tags["ALIDADE_UNIT"] = unit
    if raster.time is not None:
        tags["ALIDADE_TIME"] = raster.time.isoformat()
    if raster.grid.crs is None and raster.grid.gsd_override_m is not None:
        tags["ALIDADE_GSD"] = repr(raster.grid.gsd_override_m)
    picture = raster.sensor.unit is Unit.DISPLAY and count >= 3 and raster.pixels.dtype == np.uint8
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": raster.pixels.dtype,
        "tiled": True, "blockxsize": side, "blockysize": side, "compress": "deflate",
        "predictor": 3 if raster.pixels.dtype.kind == "f" else 2, "bigtiff": "if_safer",
        # left to itself GDAL marks the fourth of four 8-bit bands, NAIP's near infrared, as alpha
        "photometric": "rgb" if picture else "minisblack", "alpha": "no",
        "nodata": raster.encodings[0].nodata,
    }  # fmt: skip
    if raster.grid.crs is not None:
        profile["crs"] = raster.grid.crs.to_wkt()
    if raster.grid.transform != Affine.identity():
        profile["transform"] = raster.grid.transform
    by_nodata = has_data(raster.pixels, raster.encodings)
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.update_tags(**tags)
            dataset.descriptions = tuple(b.name for b in raster.bands)
            dataset.scales = tuple(e.scale for e in raster.encodings)
            dataset.offsets = tuple(e.offset for e in raster.encodings)
            dataset.write(raster.pixels)
            if not np.array_equal(by_nodata, raster.valid):
                dataset.write_mask(raster.valid)
        return memoryview(memory.read())
