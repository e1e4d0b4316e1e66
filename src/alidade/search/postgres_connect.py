"""Sessions with a PostgreSQL server, and what it refuses as one error of alidade's own.

The URL's password stays in :class:`Server`: it is in no label, no message and no ``repr``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from alidade.errors import ArchiveError

PREFIXES = ("postgresql://", "postgres://")
"""How the URLs begin that this module takes."""
VECTOR_LEAST = (0, 8)
"""pgvector brought half precision in 0.7 and iterative scans, without which filters lose rows, in 0.8."""
_SECRETS = ("password", "sslpassword")
_KEPT_OPEN = 4
# a server that has gone away without a word is noticed within a minute, not after the two hours of the system's default
_DEFAULTS = {
    "application_name": "alidade",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_AGAIN = "Run the same command again: it goes on from here."
_REFUSALS: tuple[tuple[tuple[type[psycopg.Error], ...], str, str, str], ...] = (
    (
        (errors.InsufficientPrivilege,),
        "permission",
        "a user who may do this",
        "Ask the owner of the database to grant it; tables are made in the first schema of the search_path.",
    ),
    (
        (errors.DiskFull, errors.OutOfMemory, errors.ConfigurationLimitExceeded, errors.ProgramLimitExceeded),
        "room",
        "room on the server",
        f"Make room there. {_AGAIN}",
    ),
    (
        (errors.LockNotAvailable,),
        "loading",
        "one process at a time that loads this archive",
        "Wait until the other one has finished. " + _AGAIN,
    ),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction, errors.UndefinedObject),
        "tables",
        "the tables that this version of alidade makes",
        "Name another database, or drop the alidade_* tables in this one and load the archive again.",
    ),
    (
        (psycopg.DataError,),
        "value",
        "text and numbers that the database can hold",
        "Use a database with the encoding UTF8, and sources whose names it can hold.",
    ),
)
_INSTALL = (
    "Install it on the server (Debian and Ubuntu: the package postgresql-NN-pgvector for server version NN; else "
    "https://github.com/pgvector/pgvector), then run the same command again."
)

Session = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a database is and how to get in.

    Attributes:
        label: the place in words for messages, without user and password.
        parameters: what libpq is given.
    """

    label: str
    parameters: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, url: str) -> Server:
        """The server of ``postgresql://USER@HOST:PORT/DATABASE``; libpq fills in what the URL leaves out.

        Raises:
            ArchiveError: not such a URL. The message does not repeat it: it may hold a password.
        """
        parameters = _parameters(url)
        if parameters is None:
            raise ArchiveError(
                "PostgreSQL",
                got="a URL that cannot be read",
                expected="postgresql://USER@HOST:PORT/DATABASE",
                next_step="Write it so, with @ : / ? # % in a password as %40 %3A %2F %3F %23 %25, or leave the "
                "password out and put it into ~/.pgpass or PGPASSWORD.",
            )
        host = parameters.get("host") or parameters.get("hostaddr") or "this machine"
        port, name = parameters.get("port"), parameters.get("dbname")
        label = f"PostgreSQL at {host}{f':{port}' if port else ''}{f', database {name}' if name else ''}"
        return cls(label=label, parameters={**_DEFAULTS, **parameters})

    def connect(self, *, reading: bool) -> Session:
        """A new session in UTC; one that reads sees one state of the database in each transaction.

        Raises:
            ArchiveError: the server cannot be reached or lets nobody in.
        """
        try:
            # a statement prepared for all values would be planned without looking at the box that is asked for
            session = psycopg.connect(**self.parameters, autocommit=True, prepare_threshold=None)
        except (psycopg.Error, UnicodeError) as error:
            raise self.refused(
                "connection",
                got=self._words(error),
                expected="a server that lets this user in",
                next_step="Check that it runs, and host, port, database, user and password.",
            ) from None
        with self.speaking():
            try:
                session.execute("SELECT set_config('TimeZone', 'UTC', false), set_config('jit', 'off', false)")
                if reading:
                    session.autocommit = False
                    session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                    session.read_only = True
                else:
                    # a loader that was killed must not hold its lock until its index has been built
                    with suppress(errors.InvalidParameterValue, errors.UndefinedObject, errors.FeatureNotSupported):
                        session.execute("SET client_connection_check_interval = '2s'")
            except BaseException:
                session.close()
                raise
        return session

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turns what the server or the way to it refuses into one line.

        Raises:
            ArchiveError: the block met an error of PostgreSQL.
        """
        try:
            yield
        except psycopg.Error as error:
            # not chained: what the driver says goes through `_words` only
            raise self._told(error) from None

    def refused(self, what: str, *, got: str, expected: str, next_step: str) -> ArchiveError:
        """An error about something on this server."""
        return ArchiveError(f"{self.label}: {what}", got=got, expected=expected, next_step=next_step)

    def _told(self, error: psycopg.Error) -> ArchiveError:
        words = self._words(error)
        for kinds, what, expected, next_step in _REFUSALS:
            if isinstance(error, kinds):
                return self.refused(what, got=words, expected=expected, next_step=next_step)
        if isinstance(error, psycopg.OperationalError) and (not error.sqlstate or error.sqlstate.startswith("57P")):
            return self.refused("connection", got=words, expected="a connection that lasts", next_step=_AGAIN)
        return self.refused("query", got=words, expected="an answer", next_step="Look into the server's log.")

    def _words(self, error: Exception) -> str:
        diagnosis = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        text = diagnosis or str(error) or type(error).__name__
        for name in _SECRETS:
            if secret := self.parameters.get(name):
                text = text.replace(str(secret), "***")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[:2]) or type(error).__name__


class Sessions:
    """Sessions for searches from many threads: one is used by one thread at a time, a few are kept open."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._idle: list[Session] = []
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction that changes nothing and sees one state of the database.

        Raises:
            ArchiveError: the server cannot be reached, or refuses something in the block.
        """
        with self.server.speaking():
            session = self._living() or self.server.connect(reading=True)
            try:
                with session.transaction():
                    yield session
            except BaseException:
                session.close()
                raise
            with self._lock:
                if len(self._idle) < _KEPT_OPEN:
                    self._idle.append(session)
                    return
            session.close()

    def close(self) -> None:
        """Close what is kept open."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _living(self) -> Session | None:
        """A kept session that still answers: the server may have been started anew since."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                session = self._idle.pop()
            try:
                session.execute("SELECT")
                session.rollback()
                return session
            except psycopg.OperationalError:
                session.close()


def lock_key(*parts: object) -> int:
    """A number of 64 bits for an advisory lock on what ``parts`` name."""
    digest = hashlib.sha256("\0".join(["alidade", *map(str, parts)]).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def alone(session: Session, *what: object, seconds: int = 0) -> Iterator[None]:
    """One process at a time in this block; the server lets go of the lock when the session ends, however it ends.

    ``seconds`` is how long to wait for another one: 0 is without end.
    """
    key = lock_key(*what)
    session.execute("SELECT set_config('lock_timeout', %s, false)", [f"{seconds}s"])
    session.execute("SELECT pg_advisory_lock(%s)", [key])
    session.execute("SELECT set_config('lock_timeout', '0', false)")
    yield
    # after an error the session is closed, which unlocks too
    session.execute("SELECT pg_advisory_unlock(%s)", [key])


def check_vector(server: Server, session: Session, *, create: bool) -> None:
    """See that the database has pgvector; ``create`` makes it known there when the server has it.

    Raises:
        ArchiveError: it is not there, too old, or this user may not make it known.
    """
    if create and _vector_version(session) is None:
        try:
            # of two that make it known at once, the server would tell one that it may not
            with alone(session, "tables"):
                session.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (errors.FeatureNotSupported, errors.UndefinedFile):
            pass
        except errors.InsufficientPrivilege:
            raise server.refused(
                "extension vector",
                got="not made known to this database, which this user may not do",
                expected="pgvector 0.8 or newer",
                next_step="Ask an administrator to run there: CREATE EXTENSION vector;",
            ) from None
    version = _vector_version(session)
    if version is None:
        raise server.refused(
            "extension vector", got="none in this database", expected="pgvector 0.8 or newer", next_step=_INSTALL
        )
    if tuple(int(part) for part in version.split(".")[:2]) < VECTOR_LEAST:
        raise server.refused(
            "extension vector",
            got=f"version {version}",
            expected="pgvector 0.8 or newer",
            next_step="Install a newer one on the server, then run: ALTER EXTENSION vector UPDATE;",
        )


def _vector_version(session: Session) -> str | None:
    row = session.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return None if row is None else str(row[0])


def _parameters(url: str) -> dict[str, Any] | None:
    """What libpq reads in a URL; ``None`` where it cannot be sure which part is the password."""
    if not url.startswith(PREFIXES):
        return None
    authority, _, rest = url.partition("://")[2].partition("/")
    # an @ or / of a password that was not written as %40 or %2F would make its end a host name, which messages show
    if authority.count("@") > 1 or "@" in rest.partition("?")[0]:
        return None
    try:
        return conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        return None
