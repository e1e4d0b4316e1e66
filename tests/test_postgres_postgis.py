"""Footprints as PostGIS geometry: what a polygon meets there, against the exact scanner's own geometry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql

from alidade.imagery.polygon import Polygon, parse_geojson
from alidade.search.filters import Filter
from alidade.search.postgres import PostgresStore
from alidade.search.postgres_load import index_to
from alidade.search.postgres_tables import OUTLINE
from alidade.search.postgres_where import outline_meets
from alidade.search.scan import Scanner
from postgres_archive import DIM, made_rows, make_archive, scanner
from postgres_server import Running, find, running

POSTGIS, BOTH = find("postgis"), find("postgis", "vector")
needs_postgis = pytest.mark.skipif(POSTGIS is None, reason="no PostgreSQL with PostGIS: postgresql-NN-postgis-3")
needs_both = pytest.mark.skipif(BOTH is None, reason="no PostgreSQL with both PostGIS and pgvector 0.8")
N = 4000


def ring(*corners: tuple[float, float]) -> list[list[float]]:
    return [list(corner) for corner in (*corners, corners[0])]


AREAS = {
    "triangle": {"type": "Polygon", "coordinates": [ring((0, 0), (60, 0), (0, 50))]},
    "with a hole": {
        "type": "Polygon",
        "coordinates": [ring((-90, -40), (-10, -40), (-10, 40), (-90, 40)), ring((-80, -30), (-20, 0), (-80, 30))],
    },
    "over the antimeridian": {
        "type": "MultiPolygon",
        "coordinates": [[ring((170, -50), (180, -50), (180, 50))], [ring((-180, -50), (-175, 0), (-180, 50))]],
    },
    "ends at 180": {"type": "Polygon", "coordinates": [ring((179, -50), (180, -50), (180, 50))]},
    "begins at -180": {"type": "Polygon", "coordinates": [ring((-180, -50), (-179.9, 0), (-180, 50))]},
    "all around": {"type": "Polygon", "coordinates": [ring((-180, -10), (0, -12), (180, -10), (180, 9), (-180, 9))]},
    "nothing there": {"type": "Polygon", "coordinates": [ring((0, 80), (1, 80), (0, 81))]},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archives") / "a", made_rows(N, scenes=4))


@pytest.fixture(scope="module")
def exact(archive: Path) -> Scanner:
    return scanner(archive)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    found = BOTH or POSTGIS
    assert found is not None
    with running(found) as it:
        yield it


@pytest.fixture(scope="module")
def footprints(server: Running, exact: Scanner) -> Iterator[psycopg.Connection[tuple[str]]]:
    """The column as the store makes it, in a table of footprints."""
    with psycopg.connect(server.make_database("footprints", "postgis"), autocommit=True) as session:
        session.execute(
            sql.SQL("CREATE TABLE footprints (id text, geometry bytea, {})").format(sql.SQL(OUTLINE))  # type: ignore[arg-type]
        )
        rows = exact.table.select(["id", "geometry"]).to_pylist()
        with session.cursor().copy("COPY footprints (id, geometry) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["text", "bytea"])
            for row in rows:
                copy.write_row((row["id"], row["geometry"]))
        session.execute("CREATE INDEX outlines ON footprints USING gist (outline)")
        session.execute("ANALYZE footprints")
        yield session


@needs_postgis
@pytest.mark.parametrize("name", AREAS)
def test_a_polygon_meets_the_same_footprints(
    footprints: psycopg.Connection[tuple[str]], exact: Scanner, name: str
) -> None:
    area: Polygon = parse_geojson(AREAS[name])
    meets = outline_meets(area)
    query = sql.SQL("SELECT id FROM footprints WHERE {}").format(meets.text)
    found = {i for (i,) in footprints.execute(query, meets.values)}
    right = exact.find(np.ones(DIM), N, Filter(polygon=area)).table["id"].to_pylist()
    assert found == set(right)
    assert (len(found) > 0) is (name != "nothing there")


@needs_postgis
def test_its_index_is_what_answers(footprints: psycopg.Connection[tuple[str]]) -> None:
    meets = outline_meets(parse_geojson(AREAS["ends at 180"]))
    plan = footprints.execute(
        sql.SQL("EXPLAIN SELECT id FROM footprints WHERE {}").format(meets.text), meets.values
    ).fetchall()
    assert any("on outlines" in line for (line,) in plan), plan


@needs_both
def test_a_store_with_postgis_finds_what_the_scanner_finds(server: Running, archive: Path, exact: Scanner) -> None:
    url = server.make_database("store", "postgis", "vector")
    index_to(archive, url)
    store = PostgresStore.open(url)
    assert store.space.outlines
    for area in AREAS.values():
        for conditions in (
            Filter(polygon=parse_geojson(area)),
            Filter(polygon=parse_geojson(area), sensor="naip-rgb", bbox=(-100, -50, 100, 50), gsd=(None, 20)),
        ):
            hits, right = store.search(np.ones(DIM), 20, conditions), exact.find(np.ones(DIM), 20, conditions)
            assert hits.matches == right.matches
            assert hits.table["id"].to_pylist() == right.table["id"].to_pylist()
    store.close()
