"""How every call into GDAL is made: with closed doors, without noise, and with errors of our own."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.windows import Window

_GDAL = {
    # no side files (.aux.xml, .ovr, .msk): they can point to other files and addresses
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # a second lock on the door to the network
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    # a mask that is written goes into the file, not beside it
    "GDAL_TIFF_INTERNAL_MASK": "YES",
}
_DAMAGED = "The file is damaged or cut short: fetch it again, or check it with gdalinfo -checksum."


_RELAYED = {
    # never through a proxy: the address is on this machine
    "GDAL_HTTP_PROXY": "",
    "CPL_VSIL_CURL_CHUNK_SIZE": "65536",
    "GDAL_HTTP_MAX_RETRY": "0",
}


def relayed(address: str) -> str:
    """GDAL's name of a file on the relay."""
    return f"/vsicurl/{address}"


@contextmanager
def reading(told: str, window: Window | None, address: str | None = None) -> Iterator[None]:
    """GDAL's settings for the time of one call, and its errors as ours.

    Args:
        told: the file as the user named it.
        window: what is being read, ``None`` for the header.
        address: of the file on the relay; the only address that GDAL may open.

    Raises:
        RasterError: GDAL could not do it.
    """
    # without a handler Python's logging writes GDAL's messages to stderr; the error raised here says the same
    log = logging.getLogger("rasterio")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    try:
        # where it is set, this one name goes before the list of extensions
        one = {} if address is None else {**_RELAYED, "CPL_VSIL_CURL_ALLOWED_FILENAME": relayed(address)}
        with rasterio.Env(**_GDAL, **one):
            yield
    except AlidadeError:
        raise
    except (RasterioError, CPLE_BaseError, OSError, UnicodeError, MemoryError) as error:
        where = "" if window is None else f": {place(window)}"
        raise RasterError(
            f"{told}{where}",
            got=" ".join((str(error.__cause__ or error) or type(error).__name__).split())[:300].rstrip("."),
            expected="a GeoTIFF that can be decoded",
            next_step=_DAMAGED,
        ) from None


def place(window: Window) -> str:
    """A window in words, counted from 0, both ends included."""
    last_row, last_col = window.row + window.height - 1, window.col + window.width - 1
    return f"rows {window.row} to {last_row}, columns {window.col} to {last_col}"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep two messages off stderr that say less than the errors raised here.

    One is that a file has no georeference. The other is that rasterio could not decode GDAL's message about a
    damaged tag: nothing can catch it, and Python prints it by both hooks.
    """
    hooks = sys.excepthook, sys.unraisablehook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if kind is not UnicodeDecodeError:
            hooks[0](kind, error, trace)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.object != "rasterio._env.log_error":
            hooks[1](args)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        sys.excepthook, sys.unraisablehook = uncaught, unraisable
        try:
            yield
        finally:
            sys.excepthook, sys.unraisablehook = hooks
