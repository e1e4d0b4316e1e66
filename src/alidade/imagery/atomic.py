"""Files that appear whole or not at all, also when the power fails while they are written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".alidade-part"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path; what is written there becomes ``path`` when the block ends without error.

    The file's bytes reach the disk before its name does, and the name before this returns: who was told that
    the file is written finds it whole after a crash. An error inside the block removes the temporary file and
    leaves ``path`` as it was. After ``kill -9`` a temporary file may stay behind; ``is_temporary`` tells it.

    Args:
        path: the file to make or to replace. Its folder must exist.

    Yields:
        The path to write to, in the same folder. Nothing is there yet.

    Raises:
        OSError: nothing was written there, or the disk or the permissions do not allow it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
        _sync(target.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named like an unfinished file of ``atomic_write``."""
    name = Path(path).name
    return name.startswith(".") and name.endswith(_SUFFIX)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
