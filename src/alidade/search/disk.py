"""What the disk refuses, as one error of alidade's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alidade.errors import ArchiveError
from alidade.imagery.atomic import atomic_write


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an ``OSError`` of the block into one line about ``path``.

    Raises:
        ArchiveError: the block met an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{os.fspath(path)}: reading",
            got=error.strerror or type(error).__name__,
            expected="files that are there and may be read",
            next_step="Check the path, its permissions and the disk.",
        ) from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an ``OSError`` of the block into one line about ``path``.

    Raises:
        ArchiveError: the block met an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{os.fspath(path)}: writing",
            got=error.strerror or str(error) or type(error).__name__,
            expected="room on the disk and permission to write",
            next_step="Make room or choose another --out, then run the same command again: it goes on from here.",
        ) from error


def save(path: Path, content: bytes | memoryview, *, instead: str) -> None:
    """Write a file that a user asked for, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        content: of the file.
        instead: what to do where it cannot be written.

    Raises:
        ArchiveError: it cannot.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ArchiveError(
            f"{path}: writing",
            got=error.strerror or type(error).__name__,
            expected="a place where a file can be written",
            next_step=instead,
        ) from error
