"""A PostgreSQL database as a store for many users; ``postgres_load`` fills it.

Few matches are compared one by one, by all processors that the server has for it. Many are searched through pgvector's
IVFFlat index, in more and more of its lists until the best rows stay the same; where that would be most of them, every
match is compared after all. Either way the cosines are computed anew as the exact scanner does, and order the answer.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from psycopg import sql

from alidade.errors import ArchiveError
from alidade.search.filters import Filter, check_k
from alidade.search.postgres_connect import Server, Session, Sessions, check_vector
from alidade.search.postgres_load import EXACT_ROWS
from alidade.search.postgres_rows import READ, SIDES, from_half_vectors, rows_table, vector_text
from alidade.search.postgres_tables import Space, space_of
from alidade.search.postgres_where import Where, numbered, outline_meets, where
from alidade.search.scan import Hits, unknown_ids, with_embeddings
from alidade.search.schema import unit_rows

_SLACK = 256
_FETCHED = 25_000
_MOST_NEAR = 10_000
_MORE = 32
_FEWEST_LISTS = 4
# the first look is at a twentieth of the lists
_FIRST_SHARE = 20
# bounds on what rounding a query to half precision, and leaving out the lengths of the rows, which such rounding made
# differ from 1, do to a cosine; and on the relative error of a float32 sum of so many products, in any order
_HALF_ERROR = 2.0**-10
_FLOAT32_ERROR = 2.0**-22


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Rows that may be among the best: numbers ``[N]``, ids, exact cosines ``[N]`` float64."""

    numbers: npt.NDArray[np.int64]
    ids: list[str]
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PostgresStore:
    """The rows of one embedding space in a database: a :class:`alidade.search.store.Store` for many threads.

    Attributes:
        exact_rows: so many matches are always compared one by one.
    """

    space: Space
    sessions: Sessions = field(repr=False)
    exact_rows: int = EXACT_ROWS

    @classmethod
    def open(cls, url: str, *, model: str | None = None, exact_rows: int = EXACT_ROWS) -> PostgresStore:
        """Open a database that ``index_to`` has filled.

        Args:
            url: ``postgresql://USER@HOST:PORT/DATABASE``.
            model: identity of the model that makes the queries; may be left out where there is only one space.
            exact_rows: see the class.

        Raises:
            ArchiveError: the server cannot be reached or has no pgvector; nothing has been loaded; a ``model`` whose
                vectors are not there; tables of another version.
        """
        sessions = Sessions(Server.of(url))
        with sessions.transaction() as session:
            check_vector(sessions.server, session, create=False)
            space = space_of(sessions.server, session, model)
        return cls(space=space, sessions=sessions, exact_rows=exact_rows)

    def close(self) -> None:
        """Close the sessions that are kept open."""
        self.sessions.close()

    @property
    def archive_id(self) -> str:
        """Server, database and number of the space; no user and no password."""
        return f"{self.sessions.server.label}, space {self.space.number}"

    @property
    def model(self) -> str:
        """Identity of the embedding space."""
        return self.space.model

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.space.dim

    def __len__(self) -> int:
        with self.sessions.transaction() as session:
            return self._state(session)[0]

    def count(self, conditions: Filter) -> int:
        """How many rows meet the conditions.

        Raises:
            ArchiveError: no row has the sensor asked for, or the server fails.
        """
        with self.sessions.transaction() as session:
            meets = self._where(session, conditions)
            return self._count(session, meets) if meets.narrows else self._state(session)[0]

    def search(
        self, vector: npt.NDArray[np.float32], k: int, conditions: Filter, *, describe: str = "a vector"
    ) -> Hits:
        """The ``k`` rows most like ``vector`` that meet the conditions, by exact cosine, then by id.

        Args:
            vector: ``[D]``, any length but zero.
            k: how many, 1 to a million; all matches when there are fewer.
            conditions: what a row must meet.
            describe: what the query is, in words, for exports.

        Returns:
            The answer; ``scanned`` is an estimate where it is not ``exact``.

        Raises:
            ArchiveError: a query of another dimension or without direction, a ``k`` out of range, a sensor that no
                row has, or a server that fails.
        """
        began = clock.perf_counter()
        query = unit_rows(np.asarray(vector)[None], dim=self.dim, what="query")[0]
        check_k(k)
        with self.sessions.transaction() as session:
            meets = self._where(session, conditions)
            total, lists = self._state(session)
            matches = self._count(session, meets) if meets.narrows else total
            near = self._near(session, meets, query, k, lists) if lists and matches > self.exact_rows else None
            found, share = near or (self._all(session, meets, query, k, matches), 1.0)
            order = _order(found, k)
            table = self._table(session, found.numbers[order])
        return Hits(
            table=table.append_column("score", pa.array(found.scores[order], pa.float32())),
            model=self.model,
            query={"like": describe, "k": k, **conditions.describe()},
            vector=query,
            matches=matches,
            scanned=round(share * matches),
            seconds=clock.perf_counter() - began,
            exact=near is None,
        )

    def rows(self, ids: Sequence[str]) -> pa.Table:
        """Every column of these rows, ``embedding`` too, in the order asked.

        Raises:
            ArchiveError: an id that no row has, or a server that fails.
        """
        wanted = [i for i in dict.fromkeys(ids) if _can_be_stored(i)]
        query = sql.SQL("SELECT {}, embedding FROM {} WHERE id = ANY(%s)").format(_columns(READ), self.space.tiles)
        with self.sessions.transaction() as session:
            found = session.execute(query, [wanted], binary=True).fetchall()
        places = {row[0]: index for index, row in enumerate(found)}
        if unknown := [i for i in ids if i not in places]:
            raise unknown_ids(self.sessions.server.label, unknown)
        ordered = [found[places[i]] for i in ids]
        table = rows_table([row[:-1] for row in ordered], model=self.model, dim=self.dim)
        return with_embeddings(table, from_half_vectors([row[-1] for row in ordered], self.dim))

    def _state(self, session: Session) -> tuple[int, int]:
        """Rows of the space, and lists of the index of its vectors; 0 where there is none."""
        query = sql.SQL(
            "SELECT coalesce(sum(rows), 0)::bigint, (SELECT substring(reloptions::text FROM 'lists=([0-9]+)')::int"
            " FROM pg_class WHERE oid = to_regclass(%s)) FROM {}"
        )
        row = session.execute(query.format(self.space.shards), [self.space.vector_index]).fetchone()
        assert row is not None
        return row[0], row[1] or 0

    def _where(self, session: Session, conditions: Filter) -> Where:
        """The conditions as SQL; a polygon without PostGIS as the numbers of the rows that meet it.

        Raises:
            ArchiveError: no row has the sensor asked for.
        """
        if conditions.sensor is not None:
            self._check_sensor(session, conditions.sensor)
        meets = where(conditions)
        if conditions.polygon is None:
            return meets
        if self.space.outlines:
            return meets & outline_meets(conditions.polygon)
        query = sql.SQL("SELECT number, {}, geometry FROM {} WHERE {}").format(
            _columns(SIDES), self.space.tiles, meets.text
        )
        rows = session.execute(query, meets.values, binary=True).fetchall()
        boxes = np.array([row[1:5] for row in rows], dtype=np.float64).reshape(-1, 4).T
        outlines = np.array([row[5] for row in rows], dtype=np.object_)
        inside = conditions.polygon.meets(boxes, lambda some: outlines[some])
        return numbered([rows[index][0] for index in np.flatnonzero(inside)])

    def _check_sensor(self, session: Session, sensor: str) -> None:
        there = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE sensor = %s)").format(self.space.tiles)
        if _can_be_stored(sensor) and session.execute(there, [sensor]).fetchone() == (True,):
            return
        names = session.execute(sql.SQL("SELECT DISTINCT sensor FROM {}").format(self.space.tiles)).fetchall()
        raise ArchiveError(
            "sensor",
            got=repr(sensor),
            expected=f"one in this archive: {', '.join(sorted(name for (name,) in names)) or 'it is empty'}",
            next_step="Choose one of them, or leave the condition out.",
        )

    def _count(self, session: Session, meets: Where) -> int:
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self.space.tiles, meets.text)
        row = session.execute(query, meets.values).fetchone()
        assert row is not None
        return int(row[0])

    def _near(
        self, session: Session, meets: Where, query: npt.NDArray[np.float32], k: int, lists: int
    ) -> tuple[_Found, float] | None:
        """What the index finds, and which share of it was looked at; ``None`` where that would be most of it.

        The lists that are looked at are doubled until the best ``k``, and some more, stay the same. A query of a kind
        that the rows are of needs a few; one that is like none of them, as words may be, has neighbours in many.
        """
        if k > _MOST_NEAR:
            return None
        select = "SELECT number, id, embedding FROM {} WHERE {} ORDER BY embedding <=> %s::halfvec LIMIT %s"
        text, limit = sql.SQL(select).format(self.space.tiles, meets.text), 2 * k + _SLACK
        # a plan that would sort all matches by their distance is what the index is there to avoid; and lists that
        # pgvector adds by itself to fill the answer would make two looks the same that were meant to differ
        _set_here(session, {"ivfflat.iterative_scan": "off", "enable_sort": "off", "enable_seqscan": "off"})
        before: frozenset[int] | None = None
        probes, answer = max(_FEWEST_LISTS, lists // _FIRST_SHARE), None
        while answer is None and probes <= lists // 2:
            _set_here(session, {"ivfflat.probes": str(probes)})
            found = self._scored(session, text, [*meets.values, vector_text(query), limit], query, limit)
            best = frozenset(found.numbers[_order(found, k + _MORE)].tolist())
            if best == before and len(best) == k + _MORE:
                answer = found, probes / lists
            before, probes = best, 2 * probes
        _set_here(session, {"enable_sort": "on", "enable_seqscan": "on"})
        return answer

    def _all(self, session: Session, meets: Where, query: npt.NDArray[np.float32], k: int, matches: int) -> _Found:
        """The best ``k`` of all matches, and every row whose cosine is the same as the last one's or close to it."""
        select = sql.SQL("SELECT number, id, embedding FROM {} WHERE {}").format(self.space.tiles, meets.text)
        text = sql.SQL("{} ORDER BY embedding <#> %s::halfvec LIMIT %s").format(select)
        rough = _HALF_ERROR + _FLOAT32_ERROR * self.dim
        limit = 2 * k + _SLACK
        while limit < matches:
            found = self._scored(session, text, [*meets.values, vector_text(query), limit], query, limit)
            scores = np.sort(found.scores)
            if scores[0] < scores[-k] - 2 * rough:
                return found
            limit *= 4
        return self._scored(session, select, list(meets.values), query, matches)

    def _scored(
        self,
        session: Session,
        text: sql.SQL | sql.Composed,
        values: list[object],
        query: npt.NDArray[np.float32],
        most: int,
    ) -> _Found:
        """What ``text`` finds, ``most`` rows at most, with its cosines."""
        wide = query.astype(np.float64)
        wide /= np.sqrt((wide * wide).sum())
        numbers: list[int] = []
        ids: list[str] = []
        scores: list[npt.NDArray[np.float64]] = [np.empty(0)]
        for rows in _fetched(session, text, values, most):
            vectors = from_half_vectors([row[2] for row in rows], self.dim).astype(np.float64)
            scores.append((vectors * wide).sum(axis=1) / np.sqrt((vectors * vectors).sum(axis=1)))
            numbers.extend(row[0] for row in rows)
            ids.extend(row[1] for row in rows)
        return _Found(numbers=np.array(numbers, np.int64), ids=ids, scores=np.concatenate(scores))

    def _table(self, session: Session, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """The rows with these numbers, in their order."""
        query = sql.SQL("SELECT number, {} FROM {} WHERE number = ANY(%s)").format(_columns(READ), self.space.tiles)
        found = {row[0]: row[1:] for row in session.execute(query, [numbers.tolist()], binary=True)}
        return rows_table([found[number] for number in numbers.tolist()], model=self.model, dim=self.dim)


def _order(found: _Found, k: int) -> npt.NDArray[np.intp]:
    """The best ``k``, by score and then by id."""
    return np.lexsort((np.array(found.ids, dtype=str), -found.scores))[:k]


def _fetched(
    session: Session, text: sql.SQL | sql.Composed, values: list[object], most: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The answer, a long one piece by piece: vectors of a million rows need not be in memory at once."""
    if most <= _FETCHED:
        if rows := session.execute(text, values, binary=True).fetchall():
            yield rows
        return
    # the server plans cursors for one processor, so they are kept for where they are needed
    with session.cursor("alidade", binary=True) as cursor:
        cursor.execute(text, values)
        while rows := cursor.fetchmany(_FETCHED):
            yield rows


def _set_here(session: Session, settings: dict[str, str]) -> None:
    """Settings for what is left of the transaction."""
    calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(settings))
    session.execute(sql.SQL("SELECT {}").format(calls), [part for item in settings.items() for part in item])


def _columns(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _can_be_stored(text: str) -> bool:
    """Whether PostgreSQL could hold this text at all."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
