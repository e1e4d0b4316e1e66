"""``alidade index`` as a user runs it: on the disk, into a database, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alidade.cli import main
from alidade.search.archive import Archive
from alidade.search.index import Index
from alidade.search.postgres import PostgresStore
from postgres_archive import made_rows, make_archive
from postgres_server import PASSWORD, find, running

FOUND = find("vector")
N = 480


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    make_archive(path, made_rows(N, scenes=4))
    return path


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | None:
    monkeypatch.setattr("sys.argv", ["alidade", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    code = stop.value.code
    assert code is None or isinstance(code, int)
    return code


def test_an_index_is_made_and_then_found_up_to_date(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", str(archive)], monkeypatch) in (0, None)
    assert len(Index.open(Archive.open(archive))) == N
    capsys.readouterr()
    assert run(["index", str(archive), "--json"], monkeypatch) in (0, None)
    assert json.loads(capsys.readouterr().out)["rows"] == N


@pytest.mark.skipif(FOUND is None, reason="no PostgreSQL with pgvector 0.8: pip install 'alidade[dev]'")
def test_an_archive_is_copied_into_a_database_once(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FOUND is not None
    with running(FOUND) as server:
        url = server.make_database("tiles")
        assert run(["index", str(archive), "--to", url], monkeypatch) in (0, None)
        first = capsys.readouterr()
        assert f"the database holds {N} rows" in " ".join(first.out.split())
        assert PASSWORD not in first.out + first.err
        assert run(["index", str(archive), "--to", url, "--json"], monkeypatch) in (0, None)
        again = json.loads(capsys.readouterr().out)
        assert (again["rows"], again["total"]) == (0, N)
        store = PostgresStore.open(url)
        assert len(store) == N
        store.close()


def test_a_database_is_never_rebuilt(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", str(archive), "--rebuild", "--to", "postgresql://nowhere/db"], monkeypatch) == 2
    assert "--rebuild" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", str(archive), "--to", "postgresql://me:secret@127.0.0.1:9/db"], monkeypatch) == 2
    told = capsys.readouterr().err
    assert "127.0.0.1" in told
    assert "secret" not in told
    assert "Traceback" not in told
