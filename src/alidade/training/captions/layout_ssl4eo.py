"""The captions of SSL4EO-S12 v1.1: ``SPLIT/NAME.csv`` for each ``SPLIT/S2RGB/NAME.zarr.zip`` of 64 places x 4 seasons.

B. Blumenstiel et al., SSL4EO-S12 v1.1, 2025, arXiv:2503.00168 (pixels, CC-BY-4.0); C. Marimo et al., 2025,
arXiv:2503.15969 (captions by Llama3-LLaVA-Next-8B, llama3 licence). The columns are caption, question_1 to question_3,
file, sample_id, time_id, classes, tags and names. Only the 8-bit pictures S2RGB are read: of the others the owners
changed the offset between releases, and the files do not say which they have.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.imagery.raster import Raster
from alidade.training.captions.captioned import Captioned, Source
from alidade.training.captions.lists import Options, caption, check_missing, split_name, table, wrong
from alidade.training.captions.pictures import display_raster
from alidade.training.tiles.layouts import SPLIT_NAMES, optional

EXPECTED = "SPLIT/*.csv with caption, file, sample_id and time_id, and SPLIT/S2RGB/*.zarr.zip"
VIEW = "S2RGB"
GSD_M = 10.0
MAX_ENTRY_BYTES = 64 * 2**20
_COLUMNS = ("caption", "file", "sample_id", "time_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Season:
    """One place in one season; see ``captioned.Source``.

    Attributes:
        id: ``SAMPLE_TIME``, as the data set itself has it.
        path: the zipped Zarr group.
        sample: seven digits.
        time: 0 to 3.
        gsd_m: metres per pixel.
    """

    id: str
    path: str
    sample: str
    time: int
    gsd_m: float

    def read(self) -> Raster:
        """uint8 ``[3, H, W]``.

        Raises:
            CaptionError: damaged, larger than allowed, of another kind, or without this place.
            StoreError: the package ``zarr`` is not installed.
        """
        told = f"{self.path}: {self.id}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = _read_array(archive, "sample", None, told)
                where = np.flatnonzero(names.astype(str) == self.sample) if names.ndim == 1 else np.empty(0, int)
                if len(where) != 1:
                    raise wrong(told, f"{len(where)} such places", "the place that the caption names")
                pixels = _read_array(archive, "bands", (int(where[0]), self.time), told)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise wrong(told, str(error), "a whole zipped Zarr group") from None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != 3:
            raise wrong(told, f"{pixels.dtype} of shape {pixels.shape}", "uint8 [3, rows, columns]")
        return display_raster(pixels, gsd_m=self.gsd_m, source=told)


def fits(folder: Path) -> bool:
    """Whether lists of captions lie in folders named after splits, and name Zarr files."""
    files = _files(folder)
    if not files:
        return False
    with files[0].open("rb") as file:
        head = file.readline(65536)
    return b"sample_id" in head and b"time_id" in head and b"caption" in head


def read(folder: Path, options: Options) -> Captioned:
    """The data set with its pictures of 10 m.

    Raises:
        CaptionError: see the module ``lists``.
    """
    gsd = options.declared.gsd_m or GSD_M
    images: list[Source] = []
    captions: list[tuple[str, ...]] = []
    splits: list[str] = []
    missing: list[tuple[str, str]] = []
    present: dict[Path, bool] = {}
    for path in _files(folder):
        split = split_name(path.parent.name, str(path))
        if split not in options.splits:
            continue
        for told, row in table(path, _COLUMNS):
            sample, time = _place(row, told)
            text = caption(row["caption"], told)
            name = row["file"]
            if "/" in name or "\\" in name or not name.endswith(".zarr.zip"):
                raise wrong(f"{told}: file", repr(name), "the name of a .zarr.zip without folders")
            there = path.parent / VIEW / name
            if not present.setdefault(there, there.is_file()):
                missing.append((told, f"{VIEW}/{name}"))
                continue
            images.append(Season(id=f"{sample}_{time}", path=str(there), sample=sample, time=time, gsd_m=gsd))
            captions.append((text,))
            splits.append(split)
    check_missing(missing, folder, options, found=len(images))
    return Captioned(
        name="ssl4eo-s12-captions", licence=options.licence or "pixels: CC-BY-4.0; captions: llama3",
        images=tuple(images), captions=tuple(captions), split=tuple(splits), left_out=len(missing),
    )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*/*.csv") if p.parent.name.lower() in SPLIT_NAMES)


def _place(row: Mapping[str, str], told: str) -> tuple[str, int]:
    """Seven digits and the season: the CSV files lost the leading zeros."""
    sample, time = row["sample_id"].strip(), row["time_id"].strip()
    if not (sample.isascii() and sample.isdigit() and len(sample) <= 7 and time in ("0", "1", "2", "3")):
        raise wrong(told, f"sample_id {sample!r}, time_id {time!r}", "up to seven digits, and 0 to 3")
    return sample.zfill(7), int(time)


def _read_array(archive: zipfile.ZipFile, name: str, at: tuple[int, int] | None, told: str) -> NDArray[Any]:
    """An array of Zarr version 2, or its part at the first two indices, from only the chunks that it needs."""
    optional("zarr", "ssl4eo")
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    facts = _facts(archive, name, told)
    shape, chunks = facts.shape, facts.chunks
    if at is not None and (len(shape) < 3 or not all(i < n for i, n in zip(at, shape, strict=False))):
        raise wrong(f"{told}: {name}", f"shape {shape}", "[places, seasons, bands, rows, columns]")
    buffer = default_buffer_prototype().buffer
    store: dict[str, Any] = {".zarray": buffer.from_bytes(facts.content)}
    for key in _keys(shape, chunks, at, facts.separator):
        if f"{name}/{key}" in archive.NameToInfo:
            content = _entry(archive, f"{name}/{key}", told)
            # a Blosc chunk says how large it gets, and the decoder believes it
            if facts.packed and (len(content) < 16 or int.from_bytes(content[4:8], "little") != facts.chunk_bytes):
                raise wrong(f"{told}: {name}/{key}", "a chunk of another size", f"{facts.chunk_bytes:,} bytes unpacked")
            store[key] = buffer.from_bytes(content)
    try:
        opened = zarr.open_array(zarr.storage.MemoryStore(store, read_only=True), mode="r", zarr_format=2)
        return np.asarray(opened[at] if at is not None else opened[...])
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise wrong(f"{told}: {name}", str(error).splitlines()[0][:200], "an array that decodes") from None


@dataclass(frozen=True, kw_only=True)
class _Facts:
    content: bytes
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    chunk_bytes: int
    packed: bool
    separator: str


def _facts(archive: zipfile.ZipFile, name: str, told: str) -> _Facts:
    content = _entry(archive, f"{name}/.zarray", told)
    try:
        facts = json.loads(content)
        shape, chunks = tuple(map(int, facts["shape"])), tuple(map(int, facts["chunks"]))
        kind = np.dtype(facts["dtype"]) if isinstance(facts["dtype"], str) else np.dtype("O")
        codec = None if facts["compressor"] is None else facts["compressor"]["id"]
        filters, separator = facts["filters"], facts.get("dimension_separator", ".")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise wrong(f"{told}: {name}", f"{type(error).__name__}: {error}", "a description of a Zarr array") from None
    # objects would be unpickled, and other codecs do not say how large they get
    harmless = kind.kind in "iufU" and not filters and codec in (None, "blosc") and separator in (".", "/")
    fitting = len(shape) == len(chunks) <= 5 and min((*shape, *chunks), default=0) >= 1
    size = math.prod(chunks) * kind.itemsize if fitting else 0
    if not harmless or not fitting or size > MAX_ENTRY_BYTES:
        got = f"{facts.get('dtype')!r} in chunks of {chunks} by {codec!r}"
        raise wrong(f"{told}: {name}", got, "numbers or text, plain or in Blosc, in chunks of up to 64 MiB")
    return _Facts(
        content=content, shape=shape, chunks=chunks, chunk_bytes=size, packed=codec is not None, separator=separator
    )  # fmt: skip


def _keys(shape: tuple[int, ...], chunks: tuple[int, ...], at: tuple[int, int] | None, separator: str) -> list[str]:
    counts = [range(math.ceil(n / c)) for n, c in zip(shape, chunks, strict=True)]
    if at is not None:
        counts[:2] = [range(i // c, i // c + 1) for i, c in zip(at, chunks, strict=False)]
    if math.prod(len(c) for c in counts) > 4096:
        return []
    grids = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, len(counts))
    return [separator.join(map(str, key)) for key in grids.tolist()]


def _entry(archive: zipfile.ZipFile, name: str, told: str) -> bytes:
    info = archive.NameToInfo.get(name)
    if info is None or info.file_size > MAX_ENTRY_BYTES:
        got = "no such entry" if info is None else f"{info.file_size:,} bytes"
        raise wrong(f"{told}: {name}", got, f"at most {MAX_ENTRY_BYTES:,} bytes")
    # a declared size is a promise: reading stops there, and the checksum then fails
    return archive.read(info)
