"""Pictures of image-text data sets: files, members of zip archives and of tar shards, read one at a time.

Nothing is unpacked onto the disk. A member is found by where its bytes lie, and never gives more bytes than were
stated and allowed; JPEG and PNG are the only formats decoded here, size checked first. GeoTIFFs go to ``imagery``.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, read
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.training.captions.captioned import CaptionError

MAX_BYTES = 64 * 2**20
"""The most that one picture takes, packed or not."""
MAX_PIXELS = 2**24
"""The most pixels of one JPEG or PNG: 4,096 x 4,096."""
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOCAL = struct.Struct("<4s22xHH")
"""A zip member's local header: signature, then, after what the directory says too, lengths of name and extra."""
_NOTHING = Declared()
_RGB = Encoding(unit=Unit.DISPLAY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Where the bytes of a picture lie.

    Attributes:
        path: the file, archive or shard.
        member: the name inside, empty for a file of its own.
        offset: first byte of the data; of a zip member's local header.
        packed: bytes in the archive.
        size: bytes when unpacked; ``None`` for a file of its own.
        crc: checksum of a zip member, ``None`` elsewhere.
        deflated: whether a zip member is compressed.
    """

    path: str
    member: str = ""
    offset: int = 0
    packed: int = 0
    size: int | None = None
    crc: int | None = None
    deflated: bool = False

    @property
    def told(self) -> str:
        """For messages: the file, and the name inside of it."""
        return f"{self.path}: {self.member}" if self.member else self.path

    def content(self) -> bytes:
        """All bytes of the picture.

        Raises:
            CaptionError: it is missing, larger than 64 MiB, cut short, or does not unpack to what was stated.
        """
        try:
            size = os.path.getsize(self.path) if self.size is None else self.size
            if max(size, self.packed) > MAX_BYTES:
                raise _bad(self.told, f"{max(size, self.packed):,} bytes", f"at most {MAX_BYTES:,}")
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                if self.crc is not None:
                    self._skip_header(file)
                content = file.read(size if self.crc is None else self.packed)
        except OSError as error:
            raise _bad(self.told, error.strerror or str(error), "a file that can be read") from None
        if self.deflated:
            content = self._inflate(content, size)
        if len(content) != size or (self.crc is not None and zlib.crc32(content) != self.crc):
            raise _bad(self.told, f"{len(content):,} bytes that are not the ones stated", f"{size:,} whole bytes")
        return content

    def _skip_header(self, file: BinaryIO) -> None:
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            raise _bad(self.told, "no member where the archive's directory says", "a whole zip archive")
        _, name, extra = _LOCAL.unpack(head)
        file.seek(name + extra, os.SEEK_CUR)

    def _inflate(self, content: bytes, size: int) -> bytes:
        try:
            # one byte more than stated shows a bomb without unpacking it
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise _bad(self.told, str(error), "a whole zip member") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image of a data set; see ``captioned.Source``.

    Attributes:
        id: its name in the data set.
        piece: where its bytes lie.
        gsd_m: true ground metres per pixel where known; goes before what a GeoTIFF says.
        declared: what a GeoTIFF does not say itself; 8-bit RGB by default.
    """

    id: str
    piece: Piece
    gsd_m: float | None = None
    declared: Declared = _NOTHING

    def read(self) -> Raster:
        """The picture as it is stored: uint8 ``[3, H, W]`` of JPEG and PNG, any type and bands of GeoTIFF.

        Raises:
            CaptionError: damaged, too large, of another format, without three colours, or a TIFF in an archive.
            AlidadeError: a GeoTIFF that ``imagery.files.read`` refuses.
        """
        if not self.piece.member and _start(self.piece) in _TIFF:
            return read(self.piece.path, self.declared)
        pixels, valid = decode(self.piece.content(), self.piece.told)
        return display_raster(pixels, valid, gsd_m=self.gsd_m, source=self.piece.told)


def display_raster(
    pixels: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None, *, gsd_m: float | None, source: str
) -> Raster:
    """8-bit RGB pixels ``[3, H, W]`` without a place as a raster.

    Args:
        pixels: red, green, blue.
        valid: ``[H, W]``, all by default.
        gsd_m: ground metres per pixel; where ``None``, asking the raster for its GSD raises ``GridError``.
        source: for messages.
    """
    _, height, width = pixels.shape
    found = sensor("generic-rgb")
    return Raster(
        pixels=pixels,
        bands=(found if gsd_m is None else found.with_gsd(gsd_m)).bands,
        encodings=(_RGB,) * 3,
        valid=np.ones((height, width), dtype=np.bool_) if valid is None else valid,
        grid=Grid(crs=None, transform=Affine.identity(), width=width, height=height, gsd_override_m=gsd_m),
        sensor=found if gsd_m is None else found.with_gsd(gsd_m),
        time=None,
        source=source,
    )


def decode(content: bytes, told: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels ``[3, H, W]`` and where they are data ``[H, W]`` of a JPEG or PNG; half-transparent ones are none.

    Raises:
        CaptionError: another format, damaged, more than 16.8 million pixels, or no three colours of 8 bits.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            (width, height), mode = image.size, image.mode
            if width * height > MAX_PIXELS:
                raise _bad(told, f"{width} x {height} px", f"at most {MAX_PIXELS:,} pixels")
            if mode == "P":
                picture = image.convert("RGBA")
            elif mode in ("RGB", "RGBA"):
                picture = image
            else:
                raise _bad(told, f"a picture of mode {mode}", "8-bit RGB: red, green and blue")
            pixels = np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bad(told, "a header of a huge picture", f"at most {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise _bad(told, f"a file that starts with {content[:8]!r}", "a whole JPEG or PNG") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, CaptionError):
            raise
        raise _bad(told, " ".join(str(error).split())[:200], "a whole JPEG or PNG") from None
    valid = pixels[3] > 127 if len(pixels) == 4 else np.ones((height, width), dtype=np.bool_)
    return np.ascontiguousarray(pixels[:3]), valid


def zip_pieces(path: Path) -> Iterator[Piece]:
    """The members of a zip archive that are plain or deflated files; encrypted ones are refused.

    Raises:
        CaptionError: no zip, or a member that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _bad(str(path), str(error), "a whole zip archive") from None
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(f"{path}: {member.filename}", "an encrypted or rarely packed member", "a plain or deflated one")
        yield Piece(
            path=str(path), member=member.filename, offset=member.header_offset, packed=member.compress_size,
            size=member.file_size, crc=member.CRC, deflated=member.compress_type == zipfile.ZIP_DEFLATED,
        )  # fmt: skip


def tar_pieces(path: Path) -> Iterator[Piece]:
    """The plain files of an uncompressed tar shard; links, devices and sparse files are left out.

    Raises:
        CaptionError: no such file, compressed, or it ends too early.
    """
    try:
        # plain tar only: a compressed one could hold anything, and cannot be read here and there
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield Piece(
                        path=str(path), member=member.name, offset=member.offset_data, packed=member.size,
                        size=member.size,
                    )  # fmt: skip
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            # Python takes the end of a file and a torn header for the end of the archive
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends without its end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _bad(str(path), str(error), "a whole, uncompressed tar file") from None


def _start(piece: Piece) -> bytes:
    try:
        with open(piece.path, "rb") as file:
            return file.read(4)
    except OSError as error:
        raise _bad(piece.told, error.strerror or str(error), "a file that can be read") from None


def _bad(told: str, got: str, expected: str) -> CaptionError:
    return CaptionError(
        told, got=got, expected=expected,
        next_step="Fetch it again if it is damaged; unpack an archive of TIFFs; convert or leave out other pictures.",
    )  # fmt: skip
