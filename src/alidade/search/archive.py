"""The archive directory, and how it is read (``writer`` is the only code that changes it).

::

    ARCHIVE/archive.json      what it holds: format version, model identity, dimension, tile side
    ARCHIVE/manifest.jsonl    acknowledgements, appended and synchronised one line at a time
    ARCHIVE/shards/*.parquet  immutable GeoParquet 1.1 files
    ARCHIVE/.lock             held by the one process that writes

A shard is written to a temporary file, synchronised, renamed, and only then acknowledged in the manifest.
What the manifest names is there after a kill or a power cut at any moment; what it does not name does not
exist for readers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.search.disk import reading
from alidade.search.manifest import Manifest, Shard, read_manifest, text, whole
from alidade.search.schema import EMBEDDING_DTYPE, FORMAT_VERSION, check_columns, damaged, parse_table, stored_rows

_LONGEST_VECTOR = 65_536
_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """``archive.json``: what every row of the archive has in common."""

    format: int
    model: str
    dim: int
    dtype: str
    tile: int
    created_by: str


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive as it was acknowledged when it was opened. Reading never changes the directory."""

    path: Path
    header: Header
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Archive:
        """Open for reading.

        Raises:
            ArchiveError: no archive there, another format version, a damaged header or manifest, an acknowledged
                shard that is missing or has another size, or files that must not be read.
        """
        folder = Path(path)
        header = read_header(folder)
        manifest, _, _ = read_manifest(folder / "manifest.jsonl")
        archive = cls(path=folder, header=header, manifest=manifest)
        archive.check_files()
        return archive

    def check_files(self) -> None:
        """See that every acknowledged shard is there with its size.

        Raises:
            ArchiveError: one is not; the message names it.
        """
        for shard in self.manifest.shards:
            try:
                size = os.stat(self.shard_path(shard)).st_size
            except FileNotFoundError:
                raise damaged(str(self.shard_path(shard)), "no such file, though it was acknowledged") from None
            except OSError as error:
                raise damaged(str(self.shard_path(shard)), error.strerror or type(error).__name__) from error
            if size != shard.bytes:
                raise damaged(str(self.shard_path(shard)), f"{size:,} bytes instead of {shard.bytes:,}")

    def shard_path(self, shard: Shard) -> Path:
        """Where a shard lies."""
        return self.path / "shards" / shard.file

    @property
    def rows(self) -> int:
        """Rows that count: those of retired sources do not."""
        return self.manifest.rows

    def check_rows(self) -> None:
        """See that every live shard holds as many rows as the manifest says, by its own footer.

        Memory for ``rows`` rows may be asked for afterwards: a damaged number cannot ask for more than there is.

        Raises:
            ArchiveError: one does not; the message names it.
        """
        for shard in self.manifest.shards:
            if shard.live:
                path = self.shard_path(shard)
                found = stored_rows(path)
                if found != shard.rows:
                    raise damaged(str(path), f"{found:,} rows instead of {shard.rows:,}")

    def tables(self) -> Iterator[pa.Table]:
        """The live rows, shard by shard, each shard's bytes checked against its digest.

        Raises:
            ArchiveError: a shard is not what was acknowledged; the message names it.
        """
        for shard in self.manifest.shards:
            if not shard.live:
                continue
            path = self.shard_path(shard)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise damaged(str(path), error.strerror or type(error).__name__) from error
            if hashlib.sha256(data).hexdigest() != shard.sha256:
                raise damaged(str(path), "other bytes (its SHA-256 digest differs)")
            table, _ = parse_table(data, str(path))
            check_columns(table.schema, self.header.dim, str(path))
            if len(shard.live) < len({c.source_id for c in shard.coverage}):
                table = table.filter(pc.is_in(table["source_id"].cast(pa.string()), pa.array(sorted(shard.live))))
            if table.num_rows != shard.live_rows:
                raise damaged(str(path), f"{table.num_rows:,} rows that count instead of {shard.live_rows:,}")
            yield table

    def locate(self, source: str, source_id: str) -> Path:
        """Where to look for a source: beside the archive as when it was embedded, else the path as given."""
        for relative, known in self.manifest.current.items():
            if known == source_id and os.path.exists(self.path / relative):
                return Path(os.path.normpath(self.path / relative))
        return Path(source)


def check_same(path: Path, header: Header, *, model: str, tile: int) -> None:
    """Refuse to mix embedding spaces.

    Raises:
        ArchiveError: ``header`` names another model or tile side.
    """
    for what, got, made in (("model", model, header.model), ("tile side", f"{tile} px", f"{header.tile} px")):
        if got != made:
            raise ArchiveError(
                f"{path}: {what}",
                got=got,
                expected=f"{made}, with which this archive was made",
                next_step="Use the same, or name another directory with --out.",
            )


def read_header(folder: Path) -> Header:
    """``archive.json`` of an archive.

    Raises:
        ArchiveError: there is none, it cannot be read, it is damaged, or of another format version.
    """
    path = folder / "archive.json"
    with reading(path):
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            here = "no archive.json" if os.path.isdir(folder) else "a file"
            raise ArchiveError(
                str(folder),
                got=here if os.path.exists(folder) else "no such directory",
                expected="an archive made by `alidade embed`",
                next_step="Check the path, or make one with `alidade embed PATHS --out ARCHIVE`.",
            ) from None
    try:
        content = json.loads(data)
        version = whole(content["format"], 0, _MOST)
        if version == FORMAT_VERSION:
            return _header(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(
            str(path),
            got=f"{type(error).__name__}: {error}",
            expected="the JSON that alidade wrote",
            next_step="Restore the file from a copy.",
        ) from error
    raise ArchiveError(
        f"{path}: format",
        got=version,
        expected=str(FORMAT_VERSION),
        next_step="Open it with the version of alidade that made it, or embed again.",
    )


def _header(content: Mapping[str, object]) -> Header:
    dtype = text(content["dtype"])
    if dtype != EMBEDDING_DTYPE:
        raise ValueError(f"dtype {dtype!r} instead of {EMBEDDING_DTYPE!r}")
    return Header(
        format=FORMAT_VERSION,
        model=text(content["model"]),
        dim=whole(content["dim"], 1, _LONGEST_VECTOR),
        dtype=dtype,
        tile=whole(content["tile"], 1, _MOST),
        created_by=text(content["created_by"]),
    )
