"""The tables of the PostgreSQL store: one registry, and two tables for each embedding space.

::

    alidade_spaces     one row per model: format version, identity, dimension, tile side
    alidade_shards_N   shards that were taken: archive, file, a digest of what of it counts
    alidade_tiles_N    the rows

A row of ``alidade_shards_N`` is written in the transaction that writes the shard's rows: both are there, or neither.
Names are looked up in the session's ``search_path``, so a schema of one's own can be chosen in the URL
(``?options=-csearch_path%3Dmine,public``).
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from alidade.errors import ArchiveError
from alidade.search.archive import Header
from alidade.search.postgres_connect import Server, Session, alone
from alidade.search.postgres_rows import COPIED, SIDES

STORE_FORMAT = 1
"""Version of the tables."""
LONGEST = 16_000
"""Numbers that a ``halfvec`` can hold."""
LONGEST_INDEXED = 4_000
"""Numbers of a ``halfvec`` that pgvector can index; longer ones are compared one by one."""
_NULLABLE = ("geometry", "time", "cloud_share", *SIDES)
# a tile across the antimeridian claims all longitudes here; the four numbers beside it say the rest
_PLACE = """place box GENERATED ALWAYS AS (CASE
    WHEN west <= east THEN box(point(west, south), point(east, north))
    WHEN west > east THEN box(point(-180, south), point(180, north)) END) STORED"""
OUTLINE = "outline geometry GENERATED ALWAYS AS (ST_GeomFromWKB(geometry, 4326)) STORED"
"""The column of footprints where there is PostGIS; made of ``geometry``, which is WKB."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The tables of one model.

    Attributes:
        number: stands at the end of their names.
        model: identity of the model.
        dim: length of its embeddings.
        tile: side of a tile in pixels.
        outlines: whether PostGIS keeps footprints as geometry beside the boxes.
    """

    number: int
    model: str
    dim: int
    tile: int
    outlines: bool

    @property
    def tiles(self) -> sql.Identifier:
        """Table of the rows."""
        return sql.Identifier(f"alidade_tiles_{self.number}")

    @property
    def shards(self) -> sql.Identifier:
        """Table of the shards that were taken."""
        return sql.Identifier(f"alidade_shards_{self.number}")

    @property
    def vector_index(self) -> str:
        """Name of pgvector's index, which is there once the space is large enough."""
        return f"alidade_vectors_{self.number}"


def spaces(server: Server, session: Session) -> list[Space]:
    """The spaces of a database.

    Raises:
        ArchiveError: one was made by a version of alidade with other tables.
    """
    if _one(session, "SELECT to_regclass('alidade_spaces') IS NULL"):
        return []
    rows = session.execute(
        "SELECT number, model, dim, tile, outlines, format FROM alidade_spaces ORDER BY number"
    ).fetchall()
    for row in rows:
        if row[5] != STORE_FORMAT:
            raise server.refused(
                "format of the tables",
                got=row[5],
                expected=str(STORE_FORMAT),
                next_step="Open it with the version of alidade that made it, or load into another database.",
            )
    return [Space(number=r[0], model=r[1], dim=r[2], tile=r[3], outlines=r[4]) for r in rows]


def space_of(server: Server, session: Session, model: str | None) -> Space:
    """The space of a model, or the only one.

    Raises:
        ArchiveError: there is none, or several and no model was named.
    """
    found = spaces(server, session)
    names = ", ".join(space.model for space in found)
    if not found:
        raise server.refused(
            "archive",
            got="none in this database",
            expected="one that was loaded",
            next_step="Load one with `alidade index ARCHIVE --to URL`.",
        )
    if model is None and len(found) > 1:
        raise server.refused(
            "model",
            got="none named",
            expected=f"one of those in this database: {names}",
            next_step="Name the model: embeddings of two models cannot be compared.",
        )
    for space in found:
        if model in (None, space.model):
            return space
    raise server.refused(
        "model",
        got=str(model),
        expected=f"{names}, with which this database was filled",
        next_step="Load that model for the query: embeddings of two models cannot be compared.",
    )


def make_space(server: Server, session: Session, header: Header) -> Space:
    """The space for an archive's model; its tables are made when they are not there.

    Raises:
        ArchiveError: the space has another dimension or tile side, or vectors are too long.
    """
    if header.dim > LONGEST:
        raise server.refused(
            "embeddings",
            got=f"{header.dim:,} numbers",
            expected=f"at most {LONGEST:,}",
            next_step="Search this archive with its own index: `alidade index ARCHIVE`.",
        )
    # looked at first: a user who may only add rows need not be allowed to make tables
    found = {space.model: space for space in spaces(server, session)}.get(header.model)
    if found is None:
        # the transaction begins under the lock: in one that is older, `to_regclass` may still not know a new table
        with alone(session, "tables"), session.transaction():
            found = {space.model: space for space in spaces(server, session)}.get(header.model)
            found = found or _create(session, header)
    for what, got, made in (("dimension", header.dim, found.dim), ("tile side", header.tile, found.tile)):
        if got != made:
            raise ArchiveError(
                f"{server.label}: {what}",
                got=got,
                expected=f"{made}, as {found.model} has it there",
                next_step="Load this archive into another database.",
            )
    return found


def index_rows(session: Session, space: Space) -> None:
    """Make the indexes of places, times and sensors when they are not there."""
    n = space.number
    wanted = {
        f"alidade_places_{n}": "USING gist (place) INCLUDE (west, south, east, north, time, sensor, gsd_m)",
        f"alidade_times_{n}": "(time) INCLUDE (sensor, gsd_m)",
        f"alidade_sensors_{n}": "(sensor, time) INCLUDE (gsd_m)",
        f"alidade_sources_{n}": "(shard)",
    }
    if space.outlines:
        wanted[f"alidade_outlines_{n}"] = "USING gist (outline)"
    for name, definition in wanted.items():
        session.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} {}").format(
                sql.Identifier(name), space.tiles, sql.SQL(definition)
            )
        )


def _create(session: Session, header: Header) -> Space:
    session.execute(
        "CREATE TABLE IF NOT EXISTS alidade_spaces (number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " format int NOT NULL, model text NOT NULL UNIQUE, dim int NOT NULL, tile int NOT NULL,"
        " outlines boolean NOT NULL)"
    )
    outlines = bool(_one(session, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgis')"))
    row = session.execute(
        "INSERT INTO alidade_spaces (format, model, dim, tile, outlines) VALUES (%s, %s, %s, %s, %s) RETURNING number",
        [STORE_FORMAT, header.model, header.dim, header.tile, outlines],
    ).fetchone()
    assert row is not None
    space = Space(number=row[0], model=header.model, dim=header.dim, tile=header.tile, outlines=outlines)
    session.execute(
        sql.SQL(
            "CREATE TABLE {} (number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, archive text NOT NULL,"
            " file text NOT NULL, digest text NOT NULL, rows int NOT NULL, UNIQUE (archive, file))"
        ).format(space.shards)
    )
    kinds = [(name, f"halfvec({space.dim})" if kind == "halfvec" else kind) for name, kind in COPIED]
    columns = [
        sql.SQL("{} {} {}").format(
            sql.Identifier(name), sql.SQL(kind), sql.SQL("" if name in _NULLABLE else "NOT NULL")
        )
        for name, kind in kinds
    ]
    made = [sql.SQL(_PLACE), *([sql.SQL(OUTLINE)] if outlines else [])]
    # ids are compared byte by byte, which orders them as Python does
    session.execute(
        sql.SQL("CREATE TABLE {} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {}, UNIQUE (id))").format(
            space.tiles, sql.SQL(", ").join([*columns, *made])
        )
    )
    return space


def _one(session: Session, query: str) -> object:
    row = session.execute(query).fetchone()
    assert row is not None
    return row[0]
