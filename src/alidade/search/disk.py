"""What the disk refuses, as one error of alidade's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alidade.errors import ArchiveError


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
