"""What is checked of a raster file before its pixels are touched, because files from outside may be hostile.

GDAL's drivers follow pointers: to other files, to other hosts, to memory that a few bytes of header ask for.
None of this needs the file to be decoded, and none of it replaces a sandbox for files from strangers.
"""

from __future__ import annotations

import os
from pathlib import Path

from rasterio.io import DatasetReader

from alidade.errors import RasterError

MAX_BANDS = 512
MAX_BLOCK_BYTES = 256 * 2**20
MAX_DECLARED_BYTES = 256 * 2**30
MAX_RATIO = 2000
"""Decoded bytes per byte of file. DEFLATE, which compresses zeros best of the common ones, reaches 1030."""
_RATIO_FREE_BYTES = 64 * 2**20
"""A file that decodes to less than this may be as empty as it likes."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_POINTERS = ("overviews", "geolocation", "xml:vrt")
"""Metadata domains through which a GeoTIFF can name another file or address to be opened. GDAL ignores their
case."""


def check_file(path: str | os.PathLike[str], *, allow_jp2: bool) -> tuple[Path, str]:
    """The absolute path of a local file with the right first bytes, and the one driver that may open it.

    Raises:
        RasterError: an address, a missing file, a folder or device, an empty or unreadable file, or another
            format.
    """
    told = os.fspath(path)
    if "://" in told or told.startswith("/vsi"):
        raise _refuse(told, "an address or a virtual path", "a file on this machine", "Download it first.")
    try:
        told.encode("utf-8")
    except UnicodeEncodeError:
        # GDAL takes names in UTF-8 only, and would call the file damaged
        raise _refuse(told, "a name that is not UTF-8", "a name in UTF-8", "Rename the file.") from None
    file = Path(os.path.abspath(told))
    try:
        kind = "folder" if file.is_dir() else "file" if file.is_file() else "device" if file.exists() else None
        start = b""
        if kind == "file":
            with file.open("rb") as handle:
                start = handle.read(12)
    except OSError as error:
        got = error.strerror or str(error)
        raise _refuse(told, got, "a file that can be read", "Check the path and its permissions.") from None
    if kind is None:
        raise _refuse(told, "no such file", "a raster file", "Check the path.")
    if kind != "file":
        raise _refuse(told, f"a {kind}", "a raster file", "Name the files themselves.")
    return file, driver_of(start, told, allow_jp2=allow_jp2)


def driver_of(start: bytes, told: str, *, allow_jp2: bool) -> str:
    """The one driver that may open a file with these first bytes.

    Raises:
        RasterError: an empty file, or another format.
    """
    if not start:
        raise _refuse(told, "an empty file", "a GeoTIFF", "Fetch or write the file again.")
    if start.startswith(_TIFF):
        return "GTiff"
    if allow_jp2 and start.startswith(_JPEG_2000):
        return "JP2OpenJPEG"
    expected = "a GeoTIFF or JPEG 2000 file" if allow_jp2 else "a GeoTIFF"
    hint = "If you trust it, convert it: gdal_translate -of COG IN OUT.tif."
    raise _refuse(told, f"a file that starts with {start[:8]!r}", expected, hint)


def check_tags(dataset: DatasetReader, path: str) -> None:
    """Refuse a file with metadata that makes GDAL open something else.

    Args:
        dataset: an open ``rasterio`` dataset.
        path: for the message.

    Raises:
        RasterError: such metadata is there, on the file or on a band.
    """
    for band in (0, *dataset.indexes):
        for domain in dataset.tag_namespaces(band):
            if domain.casefold() in _POINTERS:
                raise _refuse(
                    path,
                    f"the metadata domain {domain}, which can make GDAL open other files or addresses",
                    "a file without it",
                    "If you trust it, copy the pixels without metadata: gdal_translate -nomd IN OUT.tif.",
                )


def check_size(dataset: DatasetReader, path: str, file_bytes: int) -> None:
    """Refuse a header that asks for more memory than the file can be worth.

    Args:
        dataset: an open ``rasterio`` dataset.
        path: for the message.
        file_bytes: the size of the file on disk.

    Raises:
        RasterError: too many bands, blocks too large, or too many pixels, absolutely or for the size of the
            file.
    """
    if not 1 <= dataset.count <= MAX_BANDS:
        cut = "Take the bands you need: gdal_translate -b 1 -b 2 ... IN OUT.tif."
        raise _refuse(path, f"{dataset.count} bands", f"1 to {MAX_BANDS}", cut)
    pixel_bytes = sum(item_bytes(dtype, path) for dtype in dataset.dtypes)
    rows, cols = dataset.block_shapes[0]
    together = dataset.interleaving is not None and dataset.interleaving.value.casefold() == "pixel"
    block = rows * cols * (pixel_bytes if together else max(item_bytes(d, path) for d in dataset.dtypes))
    if block > MAX_BLOCK_BYTES:
        raise _refuse(
            path,
            f"blocks of {rows} x {cols} pixels, {_size(block)} each",
            f"at most {_size(MAX_BLOCK_BYTES)}",
            "If you trust it, cut it into smaller blocks: gdal_translate -of COG IN OUT.tif.",
        )
    declared = dataset.height * dataset.width * pixel_bytes
    shape = f"{dataset.height} x {dataset.width} pixels x {dataset.count} bands, {_size(declared)}"
    if declared > MAX_DECLARED_BYTES:
        cut = "Cut it into parts: gdal_translate -srcwin X Y WIDTH HEIGHT IN OUT.tif."
        raise _refuse(path, shape, f"at most {_size(MAX_DECLARED_BYTES)}", cut)
    if declared > _RATIO_FREE_BYTES and declared > MAX_RATIO * file_bytes:
        raise _refuse(
            path,
            f"a header of {shape}, in a file of {_size(file_bytes)}",
            f"at most {MAX_RATIO} times the file's size",
            "It is damaged, hostile or nearly empty: cut out the part with data (gdal_translate -srcwin).",
        )


def item_bytes(dtype: str, path: str) -> int:
    """Bytes of one stored number of type ``dtype``.

    Raises:
        RasterError: a type that is not supported (complex numbers, half precision).
    """
    sizes = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4}
    sizes |= {"uint64": 8, "int64": 8, "float32": 4, "float64": 8}
    if dtype not in sizes:
        raise _refuse(
            path,
            f"pixels of type {dtype}",
            f"one of {', '.join(sizes)}",
            "Convert them to real numbers: gdal_translate -ot Float32 IN OUT.tif.",
        )
    return sizes[dtype]


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} bytes"


def _refuse(path: str, got: str, expected: str, next_step: str) -> RasterError:
    return RasterError(path, got=got, expected=expected, next_step=next_step)
