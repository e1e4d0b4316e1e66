"""What people write about an archive, kept beside it: small files of JSON lines, each replaced whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.atomic import atomic_write, is_temporary
from alidade.search.disk import reading, writing
from alidade.server.problems import Refused

V = TypeVar("V")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a file of notes may be called."""
_LOCK = ".lock"


class Notes(Generic[V]):
    """Named files of values by key, under one folder of the archive.

    A change is on the disk before the call returns, also when power fails or the process is killed after it. Two
    servers of one archive may change the same file: the folder's lock makes them take turns, and each reads what
    the other wrote.

    Args:
        folder: made when something is first written.
        decode: one line's JSON to key and value; raises ValueError, KeyError or TypeError for what is none.
        encode: the inverse.
    """

    def __init__(
        self, folder: Path, decode: Callable[[object], tuple[str, V]], encode: Callable[[str, V], object]
    ) -> None:
        self.folder, self._decode, self._encode = folder, decode, encode
        self._known: dict[str, tuple[tuple[int, ...], dict[str, V]]] = {}
        self._turn = Lock()

    def repair(self) -> tuple[str, ...]:
        """Remove what a kill left unfinished; one sentence for each such file."""
        if not self.folder.is_dir():
            return ()
        removed = []
        with self._locked(), writing(self.folder):
            for path in sorted(p for p in self.folder.iterdir() if is_temporary(p)):
                path.unlink()
                removed.append(f"Removed {path.name}: notes that were being written when a server was stopped.")
        return tuple(removed)

    def names(self) -> list[str]:
        """The files there are, in order."""
        with reading(self.folder):
            found = sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []
        return [p.stem for p in found if NAME.fullmatch(p.stem)]

    def read(self, name: str) -> dict[str, V]:
        """What a file holds; nothing when there is no such file.

        Raises:
            AlidadeError: a name that no file may have.
            ArchiveError: the file cannot be read, or is damaged.
        """
        path = self._path(name)
        with reading(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                return {}
            # the number of the file changes with every replacement
            state = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._known.get(name)
            if known is not None and known[0] == state:
                return dict(known[1])
            data = path.read_bytes()
        values = self._parse(path, data)
        self._known[name] = (state, values)
        return dict(values)

    def change(self, name: str, change: Callable[[dict[str, V]], None]) -> dict[str, V]:
        """Let ``change`` alter what a file holds, and write it; returns what it holds now.

        Raises:
            Refused: the disk or the permissions do not allow it (409); the file is as it was.
            AlidadeError, ArchiveError: as :meth:`read`, and what ``change`` raises.
        """
        path = self._path(name)
        try:
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
            with self._locked():
                values = self.read(name)
                change(values)
                lines = [json.dumps(self._encode(key, value)) for key, value in values.items()]
                with writing(path), atomic_write(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except ArchiveError as error:
            raise Refused(
                error.what, got=error.got, expected=error.expected, next_step=error.next_step, status=409
            ) from error
        return values

    def _parse(self, path: Path, data: bytes) -> dict[str, V]:
        values: dict[str, V] = {}
        for number, line in enumerate(data.splitlines(), start=1):
            try:
                key, value = self._decode(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ArchiveError(
                    f"{path}: line {number}",
                    got=f"{type(error).__name__}: {error}"[:200],
                    expected="one note in JSON",
                    next_step="Mend or remove the line, or restore the file from a copy.",
                ) from error
            values[key] = value
        return values

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise AlidadeError(
                "name",
                got=repr(name[:80]),
                expected="1 to 64 small letters, digits, - and _, with a letter or digit first",
                next_step="Choose another name.",
            )
        return self.folder / f"{name}.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._turn, writing(self.folder / _LOCK):
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
