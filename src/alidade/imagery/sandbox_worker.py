"""The inside of the sandbox: the program that decodes one uploaded image and can do nothing else.

Started by ``sandbox`` in an interpreter of its own. It shuts its doors before a byte of the upload is looked at:
no network, no file but the upload, no other process, and only so much memory and time.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alidade.errors import AlidadeError, RasterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alidade.imagery.header import Declared
    from alidade.imagery.raster import Raster

NAME = "uploaded image"
"""The upload's file name, so that messages about the file say this."""
REQUEST = "request.json"
HEAD = struct.Struct("<Q")
"""Length of the JSON header that follows; behind it come pixels and valid mask as they lie in memory."""

NOBODY = 65534

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x0800_0000, 0x1000_0000, 0x4000_0000
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522


def main() -> None:
    """Decode the upload in the working directory and write it, or why not, to stdout."""
    answer = os.dup(1)
    # whatever a library prints goes where it cannot be taken for the answer
    os.dup2(2, 1)
    request = json.loads(Path(REQUEST).read_bytes())
    limits = request["limits"]
    signal.alarm(int(limits["seconds"]) + 2)
    try:
        load_decoders()
        closed = enter_namespaces()
        if limits["isolated"] and closed is not None:
            raise _not_isolated(closed)
        shut(limits, files=closed is None)
        raster = decode(Path(NAME), limits, declared_from(request["declared"]))
        header = describe(raster)
    except AlidadeError as error:
        _send(answer, {"error": _without_path(error)})
        return
    except MemoryError:
        _send(answer, {"error": _without_path(_too_large("more memory than allowed", limits["memory_bytes"]))})
        return
    _send(answer, header, raster.pixels.tobytes(), raster.valid.tobytes())


def load_decoders() -> None:
    """Import and touch all that is loaded at first use: behind the closed door there are no files to load it from."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"
    for name in ("numpy.ma", "alidade.imagery.files"):
        import_module(name)
    import pyproj
    import rasterio
    from PIL import Image
    from rasterio.crs import CRS

    Image.preinit()
    datetime.strptime("2000", "%Y")
    # both copies of PROJ keep their database open from the first question on
    utm = pyproj.CRS.from_epsg(32633)
    pyproj.CRS.from_wkt(utm.to_wkt()).to_epsg(min_confidence=100)
    pyproj.Transformer.from_crs(utm, 4326, always_xy=True).transform(500_000, 5_000_000)
    with rasterio.Env():
        CRS.from_epsg(32633).to_wkt()


def enter_namespaces() -> str | None:
    """Leave the machine's network for an empty one; ``None``, or why the system does not allow it.

    Root becomes nobody first: for root there is no limit on processes. A process with threads is not let in, which
    is why ``load_decoders`` keeps the libraries from starting any.
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        return None
    return os.strerror(ctypes.get_errno())


def shut(limits: Mapping[str, Any], *, files: bool) -> None:
    """Close the doors for good.

    Args:
        limits: fields of ``sandbox.Limits``.
        files: whether the working directory becomes the whole file system; only inside the namespaces.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # the libraries' address space is not the upload's fault
    loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if files:
        os.chroot(".")
        os.chdir("/")
        # without capabilities the root directory cannot be left again
        head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        if libc.capset(head, (ctypes.c_uint32 * 6)()) != 0:
            raise _not_isolated(os.strerror(ctypes.get_errno()))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + int(limits["cpu_seconds"])
    for what, most in (
        (resource.RLIMIT_AS, loaded + int(limits["memory_bytes"])),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(what)[1]
        ceiling = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        # over the lower of two limits on processor time the signal tells why; over the upper one there is no word
        upper = most + 1 if what == resource.RLIMIT_CPU else most
        resource.setrlimit(what, (min(most, ceiling), min(upper, ceiling)))


def decode(path: Path, limits: Mapping[str, Any], declared: Declared) -> Raster:
    """The image, by its first bytes.

    Raises:
        RasterError, SensorError, GridError: no GeoTIFF, PNG or JPEG, too large, damaged, or its meaning cannot be
            told.
    """
    from alidade.imagery.files import open_raster

    with path.open("rb") as file:
        start = file.read(12)
    form = picture_format(start)
    if form is not None:
        return _picture(path, form, limits, declared)
    with open_raster(path, declared) as opened:
        height, width = opened.grid.height, opened.grid.width
        check_pixels(height, width, len(opened.bands) * opened.dtype.itemsize, limits)
        return opened.read()


def picture_format(start: bytes) -> str | None:
    """``"PNG"`` or ``"JPEG"`` by a file's first bytes."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "JPEG" if start.startswith(b"\xff\xd8\xff") else None


def check_pixels(height: int, width: int, pixel_bytes: int, limits: Mapping[str, Any]) -> None:
    """Refuse what would be too large, before it is decoded.

    Raises:
        RasterError: more pixels, or more decoded bytes, than allowed.
    """
    if height * width > limits["pixels"] or height * width * pixel_bytes > limits["decoded_bytes"]:
        raise RasterError(
            NAME,
            got=f"{height:,} x {width:,} pixels of {pixel_bytes} bytes",
            expected=f"at most {limits['pixels']:,} pixels and {limits['decoded_bytes'] // 2**20} MiB",
            next_step="Cut out the part that shows what you look for.",
        )


def _picture(path: Path, form: str, limits: Mapping[str, Any], declared: Declared) -> Raster:
    import numpy as np
    from affine import Affine
    from PIL import Image, UnidentifiedImageError

    from alidade.imagery.grid import Grid
    from alidade.imagery.header import Header
    from alidade.imagery.identify import identify
    from alidade.imagery.raster import Raster

    # the limit that counts is checked below, on the header
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path, formats=[form]) as image:
            check_pixels(image.height, image.width, 4, limits)
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise RasterError(
                    f"{NAME}: channels",
                    got=f"{image.mode} pixels",
                    expected=f"a {form} of 8 bits a channel",
                    next_step="Send measurements of more than 8 bits as a GeoTIFF.",
                )
            colours = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, AlidadeError):
            raise
        raise RasterError(
            f"{NAME}: {form}",
            got=" ".join(str(error).split())[:200] or type(error).__name__,
            expected="a picture that can be decoded",
            next_step="It is damaged or cut short: send it again.",
        ) from None
    header = Header(
        path=NAME, dtype="uint8", descriptions=(None,) * 3, colours=("red", "green", "blue"), units=(None,) * 3,
        scales=(1.0,) * 3, offsets=(0.0,) * 3, nodata=None, tags={},
    )  # fmt: skip
    found = identify(header, declared, lambda _: False)
    height, width = colours.shape[:2]
    grid = Grid(crs=None, transform=Affine.identity(), width=width, height=height, gsd_override_m=declared.gsd_m)
    grid.gsd_m()
    places = [i - 1 for i in found.indexes]
    return Raster(
        pixels=np.ascontiguousarray(colours[..., places].transpose(2, 0, 1)),
        bands=found.bands,
        encodings=found.encodings,
        valid=colours[..., 3] > 127,
        grid=grid,
        sensor=found.sensor,
        time=found.time,
        source=NAME,
    )


def describe(raster: Raster) -> dict[str, Any]:
    """What ``sandbox`` needs beside the numbers to make the raster again, as JSON.

    A CRS leaves the sandbox as an EPSG code only: outside nothing parses text that a stranger wrote. One without a
    code is left behind, and the ground sample distance that was measured with it is told instead.
    """
    grid = raster.grid
    epsg = None if grid.crs is None else grid.crs.to_epsg(min_confidence=100)
    gsd = grid.gsd_override_m
    if gsd is None and epsg is None:
        gsd = grid.mean_gsd_m()
    return {
        "shape": list(raster.pixels.shape),
        "dtype": raster.pixels.dtype.name,
        "bands": [b.name for b in raster.bands],
        "encodings": [asdict(e) for e in raster.encodings],
        "sensor": raster.sensor.id,
        "time": None if raster.time is None else raster.time.isoformat(),
        "epsg": epsg,
        "transform": list(grid.transform[:6]),
        "gsd_m": gsd,
    }


def declared_to(declared: Declared) -> dict[str, Any]:
    """A declaration as JSON."""
    time = declared.time
    return {**asdict(declared), "time": None if time is None else time.isoformat()}


def declared_from(content: Mapping[str, Any]) -> Declared:
    """The inverse of ``declared_to``."""
    from alidade.imagery.bands import Unit
    from alidade.imagery.header import Declared

    time, unit, bands = content["time"], content["unit"], content["bands"]
    return Declared(
        sensor=content["sensor"],
        bands=None if bands is None else tuple(bands),
        unit=None if unit is None else Unit(unit),
        scale=content["scale"],
        offset=content["offset"],
        nodata=content["nodata"],
        time=None if time is None else datetime.fromisoformat(time),
        gsd_m=content["gsd_m"],
    )


def _not_isolated(why: str) -> RasterError:
    return RasterError(
        f"{NAME}: sandbox",
        got=f"a system that does not allow one ({why})",
        expected="a network namespace and a root directory of its own for the process that decodes",
        next_step="Allow user namespaces here, or accept limits alone with Limits(isolated=False).",
    )


def _too_large(got: str, most: int) -> RasterError:
    return RasterError(
        NAME, got=got, expected=f"at most {most // 2**20} MiB", next_step="Cut out the part that shows what you want."
    )


def _without_path(error: AlidadeError) -> dict[str, Any]:
    told = {"what": error.what, "got": str(error.got), "expected": error.expected, "next_step": error.next_step}
    told = {key: text.replace(os.path.abspath(NAME), NAME) for key, text in told.items()}
    return {"kind": type(error).__name__, **told}


def _send(answer: int, header: Mapping[str, Any], *parts: bytes) -> None:
    content = json.dumps(header).encode()
    with os.fdopen(answer, "wb") as file:
        for part in (HEAD.pack(len(content)), content, *parts):
            file.write(part)
