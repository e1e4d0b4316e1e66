"""Fill a PostgreSQL database from an archive, so that its tables mirror what of the archive counts."""

from __future__ import annotations

import hashlib
import math
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from psycopg import errors, sql

from alidade.errors import ArchiveError
from alidade.search.archive import Archive
from alidade.search.manifest import Manifest, Shard
from alidade.search.postgres_connect import Server, Session, alone, check_vector
from alidade.search.postgres_rows import COPIED, copy_rows
from alidade.search.postgres_tables import LONGEST_INDEXED, Space, index_rows, make_space, space_of

EXACT_ROWS = 200_000
"""So many matches are always compared one by one; a space of no more rows needs no index of its vectors."""
LOCK_SECONDS = 20
"""How long a loader waits for another one of the same archive, which a server may not yet know to be dead."""


class Progress(Protocol):
    """What a caller can show while ``index_to`` works; the library itself prints nothing."""

    def started(self, *, rows: int, doing: str) -> None:
        """A step over so many rows begins."""

    def advanced(self, *, rows: int) -> None:
        """So many more rows are in the database for good."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """How the index of the vectors is built: pgvector's IVFFlat, lists of rows that look alike.

    HNSW took 30 to 60 times as long to build (40,000 rows of 256 numbers), and queries unlike all rows found 56 to 94 %
    of their neighbours in it, more slowly than by comparing every row.

    Attributes:
        above: rows above which there is one.
        rows_per_list: rows of a list; from a million rows on there are as many lists as rows in each.
        memory_mb: what the server may use for it; where it is too little for the lists, there are fewer.
    """

    above: int = EXACT_ROWS
    rows_per_list: int = 1000
    memory_mb: int = 1024

    def lists(self, rows: int, dim: int) -> int:
        """How many lists for so many vectors of ``dim`` numbers."""
        wanted = min(rows // self.rows_per_list, max(1000, math.isqrt(rows)))
        while wanted > 1 and _clustering_bytes(wanted, dim) > self.memory_mb << 20:
            wanted = wanted * 9 // 10
        return max(1, wanted)


@dataclass(frozen=True, kw_only=True)
class LoadSummary:
    """What a run did.

    Attributes:
        archive: the archive's name in the store, see :func:`archive_name`.
        model: identity of the embedding space.
        shards: shards taken by this run.
        removed: shards removed or taken anew, because rows of theirs have been retired.
        rows: rows copied by this run.
        total: rows of the space now, of all its archives.
        indexed: whether there is an index of the vectors now.
        seconds: duration of the run.
    """

    archive: str
    model: str
    shards: int
    removed: int
    rows: int
    total: int
    indexed: bool
    seconds: float


def index_to(
    archive: str | Path, url: str, progress: Progress | None = None, *, build: Build | None = None
) -> LoadSummary:
    """Copy what the database does not have of an archive, and remove what the archive no longer has.

    Each shard is one transaction that also records it: a run that was killed at any moment goes on where it stopped.
    Two runs for one archive follow each other; archives of one model share a space and can be loaded side by side.

    Args:
        archive: its directory.
        url: ``postgresql://USER@HOST:PORT/DATABASE``; the password rather in ``~/.pgpass`` or ``PGPASSWORD``.
        progress: is told how far the run is.
        build: how vectors are indexed.

    Raises:
        ArchiveError: the archive is damaged; the server cannot be reached, has no pgvector, refuses the user or has
            no room; tables of another version; another process that loads this archive; a tile that another archive
            has brought already.
    """
    began = clock.perf_counter()
    build = build or Build()
    opened = Archive.open(archive)
    server = Server.of(url)
    with _session(server) as session:
        check_vector(server, session, create=True)
        space = make_space(server, session, opened.header)
        name = archive_name(opened)
        with alone(session, space.number, name, seconds=LOCK_SECONDS):
            # read again: only what is read under the lock is sure to be newer than what another run has taken
            opened = Archive.open(archive) if opened.manifest.shards else opened
            known = _known(session, space, name)
            wanted = {s.file: s for s in opened.manifest.shards if s.live_rows}
            taken = [s for s in wanted.values() if known.get(s.file) != _digest(s)]
            gone = [file for file in known if file not in wanted]
            if progress is not None:
                progress.started(rows=sum(s.live_rows for s in taken), doing="copying")
            for file in gone:
                with session.transaction():
                    _remove(session, space, name, file)
            for shard in taken:
                _take(server, session, space, name, opened, shard)
                if progress is not None:
                    progress.advanced(rows=shard.live_rows)
        indexed, total = _finish(session, space, build, progress, changed=bool(taken or gone))
    return LoadSummary(
        archive=name,
        model=space.model,
        shards=len(taken),
        removed=len(gone) + sum(s.file in known for s in taken),
        rows=sum(s.live_rows for s in taken),
        total=total,
        indexed=indexed,
        seconds=clock.perf_counter() - began,
    )


def remove_archive(url: str, name: str, *, model: str | None = None) -> int:
    """Remove the rows of an archive that is no longer there itself.

    Args:
        url: as for :func:`index_to`.
        name: as :class:`LoadSummary` and the error about a tile that is there already tell it.
        model: identity of the embedding space; may be left out where there is only one.

    Returns:
        How many rows were removed.

    Raises:
        ArchiveError: no such archive there, or as for :func:`index_to`.
    """
    server = Server.of(url)
    with _session(server) as session:
        space = space_of(server, session, model)
        with alone(session, space.number, name, seconds=LOCK_SECONDS), session.transaction():
            files = list(_known(session, space, name))
            removed = sum(_remove(session, space, name, file) for file in files)
    if not files:
        raise server.refused(
            "archive to remove",
            got=name,
            expected="the name of an archive that was loaded",
            next_step="`alidade index ARCHIVE --to URL` prints it.",
        )
    return removed


def archive_name(archive: Archive) -> str:
    """What an archive is called in a store, wherever its directory lies: 16 characters of its first shard's digest."""
    shards = archive.manifest.shards
    return shards[0].sha256[:16] if shards else "empty"


@contextmanager
def _session(server: Server) -> Iterator[Session]:
    """A session that writes, closed at the end, whose errors are told in one line."""
    session = server.connect(reading=False)
    try:
        with server.speaking():
            yield session
    finally:
        session.close()


def _known(session: Session, space: Space, name: str) -> dict[str, str]:
    query = sql.SQL("SELECT file, digest FROM {} WHERE archive = %s ORDER BY file").format(space.shards)
    return {file: digest for file, digest in session.execute(query, [name])}


def _digest(shard: Shard) -> str:
    """Changes with the bytes of a shard and with what of it counts."""
    return hashlib.sha256("\0".join([shard.sha256, *sorted(shard.live)]).encode(errors="surrogatepass")).hexdigest()


def _remove(session: Session, space: Space, name: str, file: str) -> int:
    query = sql.SQL("DELETE FROM {} WHERE archive = %s AND file = %s RETURNING number").format(space.shards)
    row = session.execute(query, [name, file]).fetchone()
    if row is None:
        return 0
    return session.execute(sql.SQL("DELETE FROM {} WHERE shard = %s").format(space.tiles), row).rowcount


def _take(server: Server, session: Session, space: Space, name: str, archive: Archive, shard: Shard) -> None:
    alone = replace(archive, manifest=Manifest(shards=[shard]))
    (table,) = alone.tables()
    record = sql.SQL("INSERT INTO {} (archive, file, digest, rows) VALUES (%s, %s, %s, %s) RETURNING number").format(
        space.shards
    )
    copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        space.tiles, sql.SQL(", ").join(sql.Identifier(column) for column, _ in COPIED)
    )
    try:
        with session.transaction(), session.cursor() as cursor:
            _remove(session, space, name, shard.file)
            row = cursor.execute(record, [name, shard.file, _digest(shard), table.num_rows]).fetchone()
            assert row is not None
            with cursor.copy(copy) as stream:
                # half vectors come as bytes that are already in pgvector's form
                stream.set_types(["bytea" if kind == "halfvec" else kind for _, kind in COPIED])
                for values in copy_rows(table, row[0]):
                    stream.write_row(values)
    except errors.UniqueViolation as error:
        raise _there_already(server, session, space, name, error) from None


def _there_already(
    server: Server, session: Session, space: Space, name: str, error: errors.UniqueViolation
) -> ArchiveError:
    others = sql.SQL("SELECT DISTINCT archive FROM {} WHERE archive <> %s ORDER BY archive").format(space.shards)
    names = ", ".join(other for (other,) in session.execute(others, [name])) or "this one"
    return server.refused(
        "tiles",
        got=f"{error.diag.message_detail or error.diag.message_primary} (archives there: {names})",
        expected="tiles that no other archive has brought",
        next_step="Load this archive into another database, or remove the other one there first.",
    )


def _clustering_bytes(lists: int, dim: int) -> int:
    """About what pgvector needs to find the centres: samples, centres, and a bound for each pair of both."""
    samples = max(50 * lists, 10_000)
    return samples * (2 * dim + 16) + 12 * lists * dim + 4 * lists * (samples + lists) + (8 << 20)


def _finish(
    session: Session, space: Space, build: Build, progress: Progress | None, *, changed: bool
) -> tuple[bool, int]:
    """Make what indexes are missing; whether there is one of the vectors now, and how many rows there are."""
    with alone(session, space.number, "indexes"):
        index_rows(session, space)
        row = session.execute(
            sql.SQL("SELECT coalesce(sum(rows), 0)::bigint, to_regclass(%s) IS NOT NULL FROM {}").format(space.shards),
            [space.vector_index],
        ).fetchone()
        assert row is not None
        total, indexed = row
        if total > build.above and not indexed and space.dim <= LONGEST_INDEXED:
            if progress is not None:
                progress.started(rows=total, doing="building the index of vectors")
            session.execute("SELECT set_config('maintenance_work_mem', %s, false)", [f"{build.memory_mb}MB"])
            session.execute(
                sql.SQL("CREATE INDEX {} ON {} USING ivfflat (embedding halfvec_cosine_ops) WITH (lists = {})").format(
                    sql.Identifier(space.vector_index), space.tiles, sql.Literal(build.lists(total, space.dim))
                )
            )
            indexed, changed = True, True
        if changed:
            # counts are answered from the indexes alone only where the table is known to be all visible
            session.execute(sql.SQL("VACUUM (ANALYZE) {}").format(space.tiles))
    return indexed, total
