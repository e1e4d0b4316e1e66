"""Images that strangers send, decoded by a process that can do nothing else; ``sandbox_worker`` is that process.

Each upload gets a fresh interpreter with an empty environment. It has no network but an empty one of its own, no
file but the upload and its own open libraries, may start nothing, write nothing, and has limits on memory, processor
time and time by the clock. What it answers is checked as if a stranger had written it: plain numbers of a stated
shape and a JSON header, never a pickle.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from alidade.errors import AlidadeError, GridError, RasterError, SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.defences import MAX_BANDS
from alidade.imagery.grid import Grid
from alidade.imagery.header import Declared
from alidade.imagery.identify import SCL
from alidade.imagery.raster import Raster
from alidade.imagery.sandbox_worker import HEAD, NAME, NOBODY, REQUEST, declared_to, picture_format
from alidade.imagery.sensors import sensor

_START = "import sys; sys.path[:] = sys.argv[1:]; from alidade.imagery.sandbox_worker import {0}; {1}"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_HEADER = 1 << 20
_MAX_STDERR = 4096
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_ERRORS: dict[str, type[AlidadeError]] = {e.__name__: e for e in (RasterError, SensorError, GridError)}
_NOTHING = Declared()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one upload may cost.

    Attributes:
        upload_bytes: the most that is taken in.
        pixels: rows times columns, by the header, before anything is decoded.
        decoded_bytes: all bands together.
        memory_bytes: address space on top of the libraries' own.
        cpu_seconds, seconds: processor time on top of the start's, and time by the clock of everything.
        open_files: descriptors.
        isolated: whether to refuse where the system gives no namespaces (``can_isolate``). Without them a decoder
            that has been taken over could still read what this user reads and use the network: only the checks of
            ``open_raster``, the limits, the empty environment and the empty directory remain.
    """

    upload_bytes: int = 32 * 2**20
    pixels: int = 2**24
    decoded_bytes: int = 2**28
    memory_bytes: int = 2**30
    cpu_seconds: int = 20
    seconds: float = 30.0
    open_files: int = 32
    isolated: bool = True


_USUAL = Limits()


def decode_upload(data: bytes, *, limits: Limits = _USUAL, declared: Declared | None = None) -> Raster:
    """The pixels of an uploaded GeoTIFF, PNG or JPEG, told apart by their first bytes.

    PNG and JPEG are taken for pictures of 8 bits, red, green and blue unless ``declared`` names another sensor;
    an alpha channel below half is no data, and ``declared.gsd_m`` has to tell the ground sample distance. A CRS
    without an EPSG code is not kept, though the ground sample distance that it gives is.

    Takes about half a second, most of it the start of the process. Safe to call from several threads; each call
    may use ``limits.memory_bytes``, so the caller bounds how many there are.

    Args:
        data: the file's content.
        limits: what it may cost.
        declared: what the file does not say itself.

    Raises:
        RasterError: another format, too large, damaged, dangerous, over a limit, or no sandbox can be had here.
        SensorError: sensor, bands, unit or offset cannot be told.
        GridError: the ground sample distance cannot be told.
    """
    if len(data) > limits.upload_bytes:
        raise _refuse(
            f"{len(data):,} bytes", f"at most {limits.upload_bytes:,}", "Cut out the part that shows what you want."
        )
    if not data.startswith(_TIFF) and picture_format(data[:12]) is None:
        start = f"a file that starts with {data[:8]!r}" if data else "an empty file"
        raise _refuse(start, "a GeoTIFF, PNG or JPEG", "Save it in one of these formats.")
    with tempfile.TemporaryDirectory(prefix="alidade-upload-") as folder:
        request = {"limits": asdict(limits), "declared": declared_to(declared or _NOTHING)}
        Path(folder, NAME).write_bytes(data)
        Path(folder, REQUEST).write_text(json.dumps(request))
        if os.geteuid() == 0:
            for path in (folder, os.path.join(folder, NAME)):
                os.chown(path, NOBODY, NOBODY)
        answer = _run("main", "main()", folder, limits)
    return _raster_of(answer, limits)


def can_isolate() -> bool:
    """Whether this system gives a decoder a network and a root directory of its own; ask once, before serving."""
    code = "sys.exit(enter_namespaces() is not None)"
    run = subprocess.run(_command("enter_namespaces", code), env={}, capture_output=True, timeout=60, check=False)
    return run.returncode == 0


def _command(name: str, code: str) -> list[str]:
    # the interpreter reads no variable and no user's folder: it imports from where this process does
    path = [os.path.abspath(p) for p in sys.path if p]
    return [sys.executable, "-I", "-B", "-c", _START.format(name, code), *path]


def _run(name: str, code: str, folder: str, limits: Limits) -> bytearray:
    """What the worker wrote to its stdout, which is bounded, as are its time and its last words.

    Raises:
        RasterError: it did not end well.
    """
    most = HEAD.size + _MAX_HEADER + limits.decoded_bytes + limits.pixels
    process = subprocess.Popen(
        _command(name, code), cwd=folder, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            answer, words, in_time = _listen(process, most, time.monotonic() + limits.seconds)
        finally:
            process.kill()
    if not in_time:
        raise _over("time", f"{limits.seconds:g} s by the clock")
    if len(answer) > most:
        raise _over("answer", f"{most:,} bytes")
    if process.returncode == -signal.SIGXCPU:
        raise _over("processor time", f"{limits.cpu_seconds} s of processor time")
    if process.returncode != 0:
        raise _crashed(process.returncode, words)
    return answer


def _listen(process: subprocess.Popen[bytes], most: int, deadline: float) -> tuple[bytearray, bytes, bool]:
    """stdout, the end of stderr, and whether both ended before the deadline and stdout before ``most`` bytes."""
    assert process.stdout is not None
    assert process.stderr is not None
    answer, words = bytearray(), bytearray()
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ, answer)
        waiting.register(process.stderr, selectors.EVENT_READ, words)
        while waiting.get_map() and len(answer) <= most:
            left = deadline - time.monotonic()
            ready = waiting.select(left) if left > 0 else []
            if not ready:
                return answer, bytes(words), False
            for key, _ in ready:
                part = os.read(key.fd, 1 << 20)
                if not part:
                    waiting.unregister(key.fileobj)
                key.data.extend(part)
            del words[:-_MAX_STDERR]
    if len(answer) <= most:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return answer, bytes(words), False
    return answer, bytes(words), True


def _raster_of(answer: bytearray, limits: Limits) -> Raster:
    """The raster that the worker wrote down, every number of it checked.

    Raises:
        RasterError, SensorError, GridError: the worker's own, or its answer is not one.
    """
    try:
        header, body = _parts(answer)
        told = header.get("error")
        if told is None:
            return _checked(header, body, limits)
        kind = _ERRORS[told["kind"]]
        what, got, expected, next_step = (_text(told[k])[:500] for k in ("what", "got", "expected", "next_step"))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise RasterError(
            f"{NAME}: answer of the sandbox",
            got=f"{type(error).__name__}: {error}"[:200],
            expected="the pixels it was asked for",
            next_step="The file may be hostile: do not send it again.",
        ) from None
    raise kind(what, got=got, expected=expected, next_step=next_step)


def _parts(answer: bytearray) -> tuple[dict[str, Any], memoryview]:
    """The JSON header, and the numbers behind it."""
    (length,) = HEAD.unpack_from(answer)
    start = HEAD.size + length
    if start > min(_MAX_HEADER, len(answer)):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(answer[HEAD.size : start])
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    return header, memoryview(answer)[start:]


def _checked(header: Mapping[str, Any], body: memoryview, limits: Limits) -> Raster:
    """Raises ValueError and its kin for whatever is not as it must be."""
    count, height, width = (_whole(n, 1, 2**31) for n in header["shape"])
    if header["dtype"] not in _DTYPES:
        raise ValueError(f"pixels of type {header['dtype']!r:.40}")
    dtype = np.dtype(header["dtype"])
    size = count * height * width * dtype.itemsize
    if count > MAX_BANDS or height * width > limits.pixels or size > limits.decoded_bytes:
        raise ValueError(f"{count} x {height} x {width} pixels, more than allowed")
    if len(body) != size + height * width:
        raise ValueError(f"{len(body)} bytes instead of {size + height * width}")
    found = sensor(_text(header["sensor"]))
    moment = header["time"]
    epsg, gsd = header["epsg"], header["gsd_m"]
    return Raster(
        pixels=np.frombuffer(body[:size], dtype).reshape(count, height, width).copy(),
        bands=tuple(SCL if name == SCL.name else found.band(_text(name)) for name in header["bands"]),
        encodings=tuple(_encoding(e) for e in header["encodings"]),
        valid=np.frombuffer(body[size:], np.uint8).reshape(height, width) != 0,
        grid=Grid(
            crs=None if epsg is None else _crs(epsg),
            transform=Affine(*(_number(n) for n in header["transform"])),
            width=width,
            height=height,
            gsd_override_m=None if gsd is None else _number(gsd),
        ),
        sensor=found,
        time=None if moment is None else datetime.fromisoformat(_text(moment)),
        source=NAME,
    )


def _crs(code: object) -> CRS:
    try:
        return CRS.from_epsg(_whole(code, 1, 10**6))
    except CRSError as error:
        raise ValueError(str(error)) from None


def _encoding(content: Mapping[str, Any]) -> Encoding:
    offset, nodata = content["offset"], content["nodata"]
    return Encoding(
        unit=Unit(content["unit"]),
        scale=_number(content["scale"]),
        offset=None if offset is None else _number(offset),
        nodata=None if nodata is None else float(nodata),
    )


def _whole(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.40} instead of a whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} instead of a finite number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} instead of text")
    return value


def _crashed(code: int, words: bytes) -> RasterError:
    if code < 0:
        how = f"ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"ended by signal {-code}"
    else:
        last = words.decode(errors="replace").strip().splitlines()[-1:]
        how = f"ended with status {code}" + (f" ({last[0][:200]})" if last else "")
    return RasterError(
        f"{NAME}: decoding",
        got=f"a decoder that {'was ' if code < 0 else ''}{how}",
        expected="an image that can be decoded",
        next_step="The file is damaged or hostile: save it again with another program.",
    )


def _over(what: str, most: str) -> RasterError:
    return RasterError(
        f"{NAME}: {what}",
        got="more than allowed",
        expected=f"at most {most}",
        next_step="Send a smaller part of the image, or save it again with another program.",
    )


def _refuse(got: str, expected: str, next_step: str) -> RasterError:
    return RasterError(NAME, got=got, expected=expected, next_step=next_step)
