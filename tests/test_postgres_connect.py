"""Ways to a PostgreSQL server that lead nowhere: told in one line, without the password. No server is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from alidade.errors import ArchiveError
from alidade.search.postgres import PostgresStore
from alidade.search.postgres_connect import Server
from alidade.search.postgres_load import index_to
from postgres_archive import make_archive
from postgres_server import PASSWORD


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archives") / "a", [])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se@cret@127.0.0.1:1/db",
        "postgresql://u:se/cret@127.0.0.1:1/db",
        "postgresql://u:se%zzcret@127.0.0.1:1/db",
        "postgresql://u:secret@127.0.0.1:1:2/db?nonsense=secret",
        "mysql://u:secret@127.0.0.1/db",
        "host=127.0.0.1 password=secret",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(archive: Path, url: str) -> None:
    with pytest.raises(ArchiveError, match="PostgreSQL: got a URL that cannot be read") as told:
        index_to(archive, url)
    for part in ("se@", "cret", "secret", "zz"):
        assert part not in str(told.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "postgresql://u:kept-to-itself@127.0.0.1:1/db",
            "PostgreSQL at 127.0.0.1:1, database db: connection: got .*refused",
        ),
        ("postgresql://u:kept-to-itself@/db?host=/nowhere", "PostgreSQL at /nowhere, database db: connection: got "),
        ("postgresql://u:kept-to-itself@127.0.0.1:99999/db", "connection: got .*port"),
    ],
)
def test_a_server_that_is_not_there_is_told_without_the_password(archive: Path, url: str, told: str) -> None:
    for use in (lambda: index_to(archive, url), lambda: PostgresStore.open(url)):
        with pytest.raises(ArchiveError, match=told) as error:
            use()
        assert PASSWORD not in str(error.value)
        assert error.value.__cause__ is None
        assert "\n" not in str(error.value)


def test_a_server_shows_no_password_and_no_user() -> None:
    server = Server.of("postgresql://somebody:kept-to-itself@db.example:5433/tiles?sslpassword=second-one")
    assert server.label == "PostgreSQL at db.example:5433, database tiles"
    for hidden in (PASSWORD, "second-one", "somebody"):
        assert hidden not in repr(server)
    refused = server.refused("x", got="y", expected="z", next_step="w")
    assert str(refused) == "PostgreSQL at db.example:5433, database tiles: x: got y, expected z. w"
