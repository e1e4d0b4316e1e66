"""How an index is made from the shards: aside, swapped in whole; or extended by the rows of added shards."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.atomic import is_temporary
from alidade.search.archive import Archive
from alidade.search.index import Index
from alidade.search.index_format import (
    BASIS,
    FOLDER,
    INDEX_FORMAT,
    LANCE_ERRORS,
    LENGTHS,
    STALE,
    TABLE,
    VECTORS,
    IndexHeader,
    IndexUnusable,
    check_search_extra,
    check_whole,
    connect,
    digest_of,
    first_line,
    lance_errors,
    parts_of,
    read_index_header,
    sizes_of,
    write_header,
)
from alidade.search.index_trial import find_effort
from alidade.search.index_write import RowsWriter, add_indexes, basis_of, read_basis
from alidade.search.manifest import Manifest

EXACT_ROWS = 500_000
"""Up to so many matches every one is compared: that takes no longer than to ask the vector index under conditions."""
_MOST_GROWTH = 1.5
"""Rows, as a multiple of those that the partitions were made from, from which on they are made anew."""
_LOCK = ".lock"
_UNFINISHED = ".building-"


class IndexProgress(Protocol):
    """What a caller can show while an index is made."""

    def started(self, *, rows: int, doing: str) -> None:
        """So many rows will be read; or, with 0, something begins that cannot be counted."""

    def advanced(self, *, rows: int) -> None:
        """So many more rows are written."""


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What ``build_index`` did.

    Attributes:
        action: ``"kept"``, ``"made"`` or ``"extended"``.
        why: what was found before, such as ``"none"`` or what is damaged.
        rows: rows in the index now.
        added: rows written by this run.
        bytes: size of its files.
        seconds: duration of the run.
        short: numbers in a short vector; 0 when there are so few rows that all are compared.
        partitions: partitions of the vector index.
        recall: share of the true best 50 that a trial found.
        repairs: what was put right, one sentence each.
    """

    action: str
    why: str
    rows: int
    added: int
    bytes: int
    seconds: float
    short: int
    partitions: int
    recall: float
    repairs: tuple[str, ...]

    def sentence(self) -> str:
        """The run in one line."""
        size = f"{self.rows:,} rows, {self.bytes / 1e6:,.1f} MB"
        if self.action == "kept":
            return f"The index is up to date: {size}."
        done = f"Added {self.added:,} rows to the index" if self.action == "extended" else "Made the index"
        ways = "every match is compared"
        if self.short:
            ways = f"{self.partitions} partitions of {self.short} numbers, recall@50 {self.recall:.3f} in a trial"
        return f"{done} in {self.seconds:.1f} s: {size}; {ways}."


def build_index(
    path: str | Path, *, rebuild: bool = False, exact_rows: int = EXACT_ROWS, progress: IndexProgress | None = None
) -> IndexSummary:
    """See that an archive has a whole index of its present rows; make, extend or mend it where it has not.

    A new index is made aside and swapped in by replacing one small file, so that a kill at any moment leaves the old
    one, or none, and a search going on is not disturbed.

    Args:
        path: the archive.
        rebuild: make it anew even when it is whole.
        exact_rows: see :data:`EXACT_ROWS`.
        progress: is told how far the run is.

    Raises:
        ArchiveError: no archive, a damaged one, another process that is building, or a disk that is full or may not
            be written to; the old index is kept.
        AlidadeError: LanceDB is not installed.
    """
    began = clock.perf_counter()
    check_search_extra("alidade index")
    archive = Archive.open(path)
    with _alone(archive.path):
        why, header = _found(archive)
        repairs = _tidy(archive.path, header)
        build = _Build(archive, exact_rows, progress)
        if header is not None and why == "" and not rebuild:
            return _summary("kept", why, header, 0, began, repairs)
        if why not in ("", "none", STALE):
            repairs.append(f"The index was unusable ({why}): it was made again from the shards.")
        with _refusals(archive.path):
            if header is not None and why == STALE and not rebuild and (extended := build.extend(header)) is not None:
                return _summary("extended", why, extended, extended.rows - header.rows, began, repairs)
            made = build.make()
        return _summary("made", why or "an index that was to be made anew", made, made.rows, began, repairs)


class _Build:
    def __init__(self, archive: Archive, exact_rows: int, progress: IndexProgress | None) -> None:
        self._archive, self._exact_rows, self._progress = archive, exact_rows, progress

    def make(self) -> IndexHeader:
        """A new generation, swapped in; the ones before are removed."""
        archive, name = self._archive, secrets.token_hex(8)
        folder = archive.path / FOLDER
        work = folder / f"{_UNFINISHED}{name}"
        try:
            work.mkdir()
            header = self._fill(work, f"g-{name}")
            _sync_tree(work)
            os.rename(work, folder / header.generation)
            _sync(folder)
            write_header(archive.path, header)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _tidy(archive.path, header)
        return header

    def _fill(self, work: Path, generation: str) -> IndexHeader:
        archive, wide = self._archive, self._archive.rows > self._exact_rows
        archive.check_rows()
        self._tell(0, "looking at a sample")
        basis = basis_of(archive, work / BASIS) if wide else None
        with RowsWriter(connect(work), work, archive.header.dim, basis, first=0) as writer:
            self._tell(archive.rows, "indexing rows")
            self._copy(archive, writer)
        table = writer.table
        self._tell(0, "sorting the rows")
        partitions = add_indexes(table, archive.rows, wide=wide)
        header = IndexHeader(
            format=INDEX_FORMAT,
            digest=digest_of(archive),
            model=archive.header.model,
            dim=archive.header.dim,
            rows=archive.rows,
            parts=parts_of(archive),
            sensors=tuple(sorted(writer.sensors)),
            generation=generation,
            version=table.version,
            files={},
            built=archive.rows,
            exact_rows=self._exact_rows,
            short=0 if basis is None else len(basis),
            partitions=partitions,
            probes=0,
            refine=0,
            recall=1.0,
            least_share=0.0,
        )
        if wide:
            self._tell(0, "trying it")
            header = find_effort(Index(archive, header, work))
        return replace(header, files=sizes_of(work))

    def extend(self, header: IndexHeader) -> IndexHeader | None:
        """The index with the rows of added shards, or ``None`` where a new one is needed."""
        archive = self._archive
        if not self._extendable(header):
            return None
        known = {file for file, *_ in header.parts}
        shards = [s for s in archive.manifest.shards if s.live and s.file not in known]
        news = replace(archive, manifest=Manifest(shards=shards))
        folder = archive.path / header.folder
        try:
            with lance_errors(archive.path):
                table = connect(folder).open_table(TABLE)
                if table.version != header.version:
                    # rows of a run that was interrupted
                    table.checkout(header.version)
                    table.restore()
        except IndexUnusable:
            return None
        for name, size in ((VECTORS, 2 * header.dim * header.rows), (LENGTHS, 4 * header.rows)):
            os.truncate(folder / name, size)
        basis = read_basis(folder / BASIS) if header.short else None
        with RowsWriter(connect(folder), folder, header.dim, basis, first=header.rows) as writer:
            self._tell(archive.rows - header.rows, "adding rows")
            self._copy(news, writer)
        table = writer.table
        self._tell(0, "sorting the rows")
        # versions of the last day stay, for those who have them open
        table.optimize(cleanup_older_than=timedelta(days=1))
        _sync_tree(folder)
        extended = replace(
            header,
            digest=digest_of(archive),
            rows=archive.rows,
            parts=parts_of(archive),
            sensors=tuple(sorted({*header.sensors, *writer.sensors})),
            version=table.version,
            files=sizes_of(folder),
        )
        write_header(archive.path, extended)
        return extended

    def _extendable(self, header: IndexHeader) -> bool:
        """Whether all that is new are shards behind those of the index, and not too many rows."""
        archive = self._archive
        known = (header.model, header.dim, header.exact_rows)
        outgrown = header.short == 0 and archive.rows > self._exact_rows
        return (
            known == (archive.header.model, archive.header.dim, self._exact_rows)
            and parts_of(archive)[: len(header.parts)] == header.parts
            and archive.rows <= _MOST_GROWTH * header.built
            and not outgrown
        )

    def _copy(self, archive: Archive, writer: RowsWriter) -> None:
        for table in archive.tables():
            writer.write(table)
            if self._progress is not None:
                self._progress.advanced(rows=table.num_rows)

    def _tell(self, rows: int, doing: str) -> None:
        if self._progress is not None:
            self._progress.started(rows=rows, doing=doing)


def _found(archive: Archive) -> tuple[str, IndexHeader | None]:
    """What is wrong with the index (nothing: ``""``), and its header where that can be read."""
    try:
        header = read_index_header(archive.path)
        check_whole(archive.path, header)
    except IndexUnusable as error:
        return str(error.got), None
    try:
        Index.open(archive)
    except IndexUnusable as error:
        return str(error.got), header
    return "", header


def _summary(action: str, why: str, header: IndexHeader, added: int, began: float, repairs: list[str]) -> IndexSummary:
    return IndexSummary(
        action=action,
        why=why,
        rows=header.rows,
        added=added,
        bytes=sum(header.files.values()),
        seconds=clock.perf_counter() - began,
        short=header.short,
        partitions=header.partitions,
        recall=header.recall,
        repairs=tuple(repairs),
    )


@contextmanager
def _alone(archive: Path) -> Iterator[None]:
    """Holds the lock of those who build; the end of the process, however it comes, gives it back."""
    folder = archive / FOLDER
    with _refusals(archive):
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with _refusals(archive):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArchiveError(
                    f"{archive}: index",
                    got="another process that is building it",
                    expected="one builder at a time",
                    next_step="Wait until the other `alidade index` has ended.",
                ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def _refusals(archive: Path) -> Iterator[None]:
    """Turns what the disk and LanceDB refuse while an index is made into one line.

    Raises:
        ArchiveError: see above. Errors of alidade pass through.
    """
    try:
        yield
    except AlidadeError:
        raise
    except LANCE_ERRORS as error:
        got = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ArchiveError(
            f"{archive / FOLDER}: building the index",
            got=got,
            expected="room on the disk and permission to write",
            next_step="Make room, then run `alidade index` again; an index that was there is still there.",
        ) from error


def _tidy(archive: Path, header: IndexHeader | None) -> list[str]:
    """Remove what no header names: unfinished directories, and generations that have been replaced."""
    kept = "" if header is None else header.generation
    told = []
    with _refusals(archive):
        for path in sorted((archive / FOLDER).iterdir()):
            if path.name.startswith(_UNFINISHED) or is_temporary(path):
                told.append(f"Removed {path.name}: an unfinished index of a run that was interrupted.")
            elif not (path.name.startswith("g-") and path.name != kept):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return told


def _sync_tree(folder: Path) -> None:
    """Bring every file below a directory, and their names, to the disk: LanceDB itself does not."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
