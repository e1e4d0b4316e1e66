"""Raster files for tests, good and hostile, made by code from fixed seeds."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

L1C = tuple("B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split())
L2A = tuple(name for name in L1C if name != "B10")
UTM = "EPSG:32633"
PLACE = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)

_GRASS = dict(zip(L1C, (300, 350, 600, 450, 900, 2200, 2700, 2900, 3000, 3000, 12, 1900, 1000), strict=True))
"""Stored numbers of a meadow before baseline 04.00, roughly; B10 sees nothing of it."""


def write_tif(
    path: Path,
    pixels: NDArray[Any],
    *,
    crs: str | None = UTM,
    transform: Affine | None = PLACE,
    names: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    domains: Mapping[str, Mapping[str, str]] | None = None,
    nodata: float | None = None,
    scale_offset: tuple[float, float] | None = None,
    colours: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """A GeoTIFF as any software might write it, with pixels ``[C, H, W]``."""
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    profile |= {
        "crs": crs,
        "transform": transform,
        "nodata": nodata,
        "compress": "deflate",
        **(options or {}),
    }
    given = {key: value for key, value in profile.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path, "w", **given)
    with dataset:
        if colours is not None:
            dataset.colorinterp = [ColorInterp[c] for c in colours]
        if names is not None:
            dataset.descriptions = tuple(names)
        if scale_offset is not None:
            dataset.scales, dataset.offsets = [scale_offset[0]] * count, [scale_offset[1]] * count
        dataset.update_tags(**(tags or {}))
        for domain, items in (domains or {}).items():
            dataset.update_tags(ns=domain, **items)
        dataset.write(pixels)
    return path


def meadow(
    names: Sequence[str] = L1C, *, added: int = 0, side: int = 64, seed: int = 0, dtype: str = "uint16"
) -> NDArray[Any]:
    """Sentinel-2 numbers ``[C, side, side]`` of grass, with ``added`` on top as baseline 04.00 does."""
    rng = np.random.default_rng(seed)
    levels = np.array([_GRASS[n] for n in names], dtype=np.float64)[:, None, None]
    numbers = levels * rng.uniform(0.7, 1.3, (len(names), side, side)) + 1
    return (numbers + added).astype(dtype)


def display(count: int = 3, side: int = 48, seed: int = 0, dtype: str = "uint8") -> NDArray[Any]:
    """Random 8-bit pixels ``[count, side, side]`` without 0."""
    return np.random.default_rng(seed).integers(1, 255, (count, side, side)).astype(dtype)


def vrt_of(path: Path, target: str) -> Path:
    """A VRT, by its content, that shows one band of ``target``."""
    path.write_text(
        '<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="Byte" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="0">{target}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def vrt_of_bytes(path: Path, target: str) -> Path:
    """A VRT, by its content, that shows the bytes of any file as pixels."""
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{target}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>8</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    )
    return path


def wms_of(path: Path, address: str) -> Path:
    """A description of a tile service, by its content."""
    path.write_text(
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX>"
        "<LowerRightY>0</LowerRightY><SizeX>256</SizeX><SizeY>256</SizeY><TileLevel>0</TileLevel></DataWindow>"
        "<Projection>EPSG:3857</Projection><BandsCount>3</BandsCount></GDAL_WMS>"
    )
    return path


def sparse_tif(path: Path, *, side: int, block: int, count: int = 1, dtype: str = "uint16") -> Path:
    """A header of ``side`` x ``side`` pixels over no data at all: a small file, whatever it claims."""
    options = {"tiled": True, "blockxsize": block, "blockysize": block, "sparse_ok": True, "bigtiff": "yes"}
    profile = {"driver": "GTiff", "count": count, "height": side, "width": side, "dtype": dtype, "crs": UTM}
    with rasterio.open(path, "w", transform=PLACE, compress="deflate", **profile, **options):
        pass
    return path


def flipped(data: bytes, flips: int, rng: np.random.Generator) -> bytes:
    """``data`` with some bits turned, mostly in the first kilobytes, where the header lies."""
    damaged = bytearray(data)
    for _ in range(flips):
        reach = int(rng.choice([256, 4096, len(data)]))
        damaged[int(rng.integers(min(reach, len(data))))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


class Canary:
    """A web server on this machine that nobody should call. ``calls`` lists the paths that were asked for."""

    def __init__(self) -> None:
        calls: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                calls.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.calls = calls
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def canary() -> Iterator[Canary]:
    """A running ``Canary``."""
    bird = Canary()
    thread = threading.Thread(target=bird.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield bird
    finally:
        bird.server.shutdown()
        thread.join()
        bird.server.server_close()
