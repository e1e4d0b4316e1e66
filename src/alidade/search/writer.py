"""The one writer of an archive: creates it, repairs it after a kill, appends to it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from alidade.errors import ArchiveError
from alidade.imagery.atomic import atomic_write, is_temporary
from alidade.search.archive import Archive, Header, check_same, read_header
from alidade.search.manifest import (
    Coverage,
    Manifest,
    count,
    coverage_from_json,
    coverage_to_json,
    read_manifest,
)
from alidade.search.schema import (
    EMBEDDING_DTYPE,
    FORMAT_VERSION,
    TileRow,
    damaged,
    parse_table,
    rows_to_table,
    shard_schema,
    table_bytes,
)

_SHARD_NAME = re.compile(r"part-(\d{6,})\.parquet")
_LOCK = ".lock"


class ArchiveWriter:
    """The one writer of an archive: a context manager that creates or opens it, repairs it and appends to it.

    Attributes:
        manifest: what is acknowledged.
        repairs: what was put right on entering, one sentence each.

    Args:
        path: the directory; it may not exist yet.
        model: identity of the model whose embeddings will be appended.
        dim: length of its embeddings.
        tile: side of its tiles in pixels.

    Raises:
        ArchiveError: on entering: ``path`` is a file or a directory of something else; the archive was made
            by another model or with another tile side; another process is writing; an acknowledged shard is
            missing.
    """

    def __init__(self, path: str | Path, *, model: str, dim: int, tile: int) -> None:
        self.path = Path(path)
        self.manifest = Manifest()
        self.repairs: tuple[str, ...] = ()
        self._header = Header(
            format=FORMAT_VERSION,
            model=model,
            dim=dim,
            dtype=EMBEDDING_DTYPE,
            tile=tile,
            created_by=f"alidade {version('alidade')}",
        )

    def __enter__(self) -> ArchiveWriter:
        _make_folder(self.path)
        self._lock = _lock(self.path)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _open(self) -> None:
        if (self.path / "archive.json").exists():
            header = read_header(self.path)
            check_same(self.path, header, model=self._header.model, tile=self._header.tile)
            self._header = header
        else:
            content = json.dumps(asdict(self._header), indent=1, ensure_ascii=False) + "\n"
            _write_bytes(self.path / "archive.json", content.encode())
        (self.path / "shards").mkdir(exist_ok=True)
        repairs = _remove_leftovers(self.path)
        log = self.path / "manifest.jsonl"
        self.manifest, whole, torn = read_manifest(log)
        if torn:
            os.truncate(log, whole)
            repairs.append(f"Dropped an unfinished last line ({torn} bytes) from the manifest.")
        Archive(path=self.path, header=self._header, manifest=self.manifest).check_files()
        self.repairs = (*repairs, *self._settle_unacknowledged())

    def _settle_unacknowledged(self) -> list[str]:
        """Acknowledge shards that were written whole just before a kill; remove what is not such a shard."""
        known = {s.file for s in self.manifest.shards}
        repairs = []
        for path in sorted((self.path / "shards").iterdir()):
            if path.name in known or not _SHARD_NAME.fullmatch(path.name):
                continue
            data = path.read_bytes()
            try:
                rows, coverage = self._verify(path, data)
            except (ArchiveError, KeyError, TypeError, ValueError):
                path.unlink()
                repairs.append(f"Removed {path.name}: it was never acknowledged and is not a whole new shard.")
                continue
            self._acknowledge(_shard_event(path.name, rows, data, coverage))
            repairs.append(f"Acknowledged {path.name}: it was written whole, with {rows} rows.")
        return repairs

    def _verify(self, path: Path, data: bytes) -> tuple[int, tuple[Coverage, ...]]:
        """Rows and coverage of a shard that only its content vouches for; raises when that is not right."""
        table, note = parse_table(data, str(path))
        coverage = coverage_from_json(note["coverage"])
        if table.schema.names != shard_schema(self._header.dim).names:
            raise damaged(str(path), "other columns")
        if note["model"] != self._header.model or sum(count(c.tiles) for c in coverage) != table.num_rows:
            raise damaged(str(path), "another model, or another number of rows")
        if self.manifest.overlaps(coverage):
            raise damaged(str(path), "rows that are there already")
        return table.num_rows, coverage

    def append(self, rows: Sequence[TileRow], coverage: Sequence[Coverage]) -> None:
        """Write a shard and acknowledge it; without rows, acknowledge only that ``coverage`` is empty.

        Raises:
            ArchiveError: the disk is full or refuses; nothing torn is left and the archive stays usable.
        """
        if not rows:
            self._acknowledge({"kind": "nodata", "coverage": coverage_to_json(coverage)})
            return
        header = self._header
        table = rows_to_table(rows, model=header.model, dim=header.dim)
        note = {"format": header.format, "model": header.model, "coverage": coverage_to_json(coverage)}
        data = table_bytes(table, note)
        name = f"part-{self._next_number():06d}.parquet"
        _write_bytes(self.path / "shards" / name, data)
        self._acknowledge(_shard_event(name, table.num_rows, data, coverage))

    def retire(self, source: str, source_id: str, why: str) -> None:
        """Take every row of one state of a source out of the archive (the shard files stay as they are)."""
        self._acknowledge({"kind": "retire", "source": source, "source_id": source_id, "why": why})

    def _next_number(self) -> int:
        names = (_SHARD_NAME.fullmatch(p.name) for p in (self.path / "shards").iterdir())
        return max((int(m[1]) for m in names if m), default=0) + 1

    def _acknowledge(self, event: dict[str, object]) -> None:
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        log = os.open(self.path / "manifest.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(log).st_size
            try:
                written = os.write(log, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written")
                os.fsync(log)
            except OSError as error:
                os.ftruncate(log, size)
                raise _refused(self.path / "manifest.jsonl", error) from error
            if size == 0:
                _sync_folder(self.path)
        finally:
            os.close(log)
        self.manifest.apply(event)


def _shard_event(name: str, rows: int, data: bytes, coverage: Sequence[Coverage]) -> dict[str, object]:
    return {
        "kind": "shard",
        "file": name,
        "rows": rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "coverage": coverage_to_json(coverage),
    }


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        got = "a file"
    elif path.is_dir() and not (path / "archive.json").exists() and any(path.iterdir()) and not _is_unfinished(path):
        got = "a directory with other content"
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(path, error) from error
        return
    raise ArchiveError(
        str(path),
        got=got,
        expected="an archive, or a directory that does not exist yet",
        next_step="Name another --out.",
    )


def _is_unfinished(path: Path) -> bool:
    """Whether this is what a kill leaves of an archive that had not got its ``archive.json`` yet."""
    return (path / _LOCK).is_file()


def _lock(path: Path) -> int:
    """Descriptor of the lock; closing it, or the end of the process however it comes, gives the lock back."""
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise _refused(path / _LOCK, error) from error
        raise ArchiveError(
            str(path),
            got="another process that is writing to it",
            expected="one writer at a time",
            next_step="Wait until the other `alidade embed` has ended, then run this one again.",
        ) from None
    return lock


def _remove_leftovers(path: Path) -> list[str]:
    leftovers = [p for folder in (path, path / "shards") for p in sorted(folder.iterdir()) if is_temporary(p)]
    for leftover in leftovers:
        leftover.unlink()
    return [f"Removed {p.name}: an unfinished file of a run that was interrupted." for p in leftovers]


def _write_bytes(path: Path, data: bytes) -> None:
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise _refused(path, error) from error


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refused(path: Path, error: OSError) -> ArchiveError:
    return ArchiveError(
        f"{path}: writing",
        got=error.strerror or str(error),
        expected="room on the disk and permission to write",
        next_step="Make room or choose another --out, then run the same command again: it goes on from here.",
    )
