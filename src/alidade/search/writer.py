"""The one writer of an archive: creates it, repairs it after a kill, appends to it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from alidade.errors import ArchiveError
from alidade.imagery.atomic import atomic_write, is_temporary
from alidade.search.archive import Archive, Header, check_same, read_header
from alidade.search.disk import reading, writing
from alidade.search.manifest import (
    SHARD_NAME,
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
    check_columns,
    damaged,
    parse_table,
    rows_to_table,
    table_bytes,
)

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
            missing; the disk or the permissions do not allow to read or to write there.
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
        if os.path.lexists(self.path / "archive.json"):
            header = read_header(self.path)
            check_same(self.path, header, model=self._header.model, tile=self._header.tile)
            self._header = header
        else:
            content = json.dumps(asdict(self._header), indent=1, ensure_ascii=False) + "\n"
            _write_bytes(self.path / "archive.json", content.encode())
        with writing(self.path / "shards"):
            (self.path / "shards").mkdir(exist_ok=True)
        repairs = _remove_leftovers(self.path)
        log = self.path / "manifest.jsonl"
        self.manifest, whole, torn = read_manifest(log)
        if torn:
            with writing(log):
                os.truncate(log, whole)
            repairs.append(f"Dropped an unfinished last line ({torn} bytes) from the manifest.")
        Archive(path=self.path, header=self._header, manifest=self.manifest).check_files()
        self.repairs = (*repairs, *self._settle_unacknowledged())

    def _settle_unacknowledged(self) -> list[str]:
        """Acknowledge shards that were written whole just before a kill; remove what is not such a shard."""
        known = {s.file for s in self.manifest.shards}
        repairs = []
        for path in _inside(self.path / "shards"):
            if path.name in known or not SHARD_NAME.fullmatch(path.name):
                continue
            with reading(path):
                data = path.read_bytes()
            try:
                rows, coverage = self._verify(path, data)
            except (ArchiveError, KeyError, TypeError, ValueError):
                with writing(path):
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
        check_columns(table.schema, self._header.dim, str(path))
        if note["model"] != self._header.model or sum(count(c.tiles) for c in coverage) != table.num_rows:
            raise damaged(str(path), "another model, or another number of rows")
        self.manifest.check(coverage)
        return table.num_rows, coverage

    def append(self, rows: Sequence[TileRow], coverage: Sequence[Coverage]) -> None:
        """Write a shard and acknowledge it; without rows, acknowledge only that ``coverage`` is empty.

        Raises:
            ArchiveError: the disk is full or refuses; nothing torn is left and the archive stays usable.
            ValueError: ``coverage`` does not fit the rows or what is acknowledged; nothing is written.
        """
        # as it will be read back: what is in the manifest cannot be taken out of it
        self.manifest.check(coverage_from_json(coverage_to_json(coverage)))
        if sum(count(c.tiles) for c in coverage) != len(rows):
            raise ValueError(f"{len(rows)} rows do not fit the coverage {coverage}")
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
        names = (SHARD_NAME.fullmatch(p.name) for p in _inside(self.path / "shards"))
        return max((int(m[1]) for m in names if m), default=0) + 1

    def _acknowledge(self, event: dict[str, object]) -> None:
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        path = self.path / "manifest.jsonl"
        with writing(path):
            log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _append_whole(log, line)
                if os.fstat(log).st_size == len(line):
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


def _append_whole(log: int, line: bytes) -> None:
    """Write and synchronise one line, or leave the file as it was and raise the ``OSError``."""
    size = os.fstat(log).st_size
    try:
        written = os.write(log, line)
        if written < len(line):
            raise OSError(f"only {written} of {len(line)} bytes could be written")
        os.fsync(log)
    except OSError:
        os.ftruncate(log, size)
        raise


def _make_folder(path: Path) -> None:
    if not os.path.exists(path):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return
    got = "a file"
    if os.path.isdir(path):
        names = {p.name for p in _inside(path)}
        # a kill may leave the lock of an archive that had not got its archive.json yet
        if not names or names & {"archive.json", _LOCK}:
            return
        got = "a directory with other content"
    raise ArchiveError(
        str(path),
        got=got,
        expected="an archive, or a directory that does not exist yet",
        next_step="Name another --out.",
    )


def _lock(path: Path) -> int:
    """Descriptor of the lock; closing it, or the end of the process however it comes, gives the lock back."""
    with writing(path / _LOCK):
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ArchiveError(
                str(path),
                got="another process that is writing to it",
                expected="one writer at a time",
                next_step="Wait until the other `alidade embed` has ended, then run this one again.",
            ) from None
        except OSError:
            os.close(lock)
            raise
    return lock


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names."""
    with reading(folder):
        return sorted(folder.iterdir())


def _remove_leftovers(path: Path) -> list[str]:
    leftovers = [p for folder in (path, path / "shards") for p in _inside(folder) if is_temporary(p)]
    for leftover in leftovers:
        with writing(leftover):
            leftover.unlink()
    return [f"Removed {p.name}: an unfinished file of a run that was interrupted." for p in leftovers]


def _write_bytes(path: Path, data: bytes) -> None:
    with writing(path), atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
