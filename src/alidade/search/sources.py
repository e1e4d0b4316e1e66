"""Which files are meant, and what makes a file the same source as yesterday."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from alidade.errors import RasterError
from alidade.imagery.files import Declared

_SUFFIXES = (".tif", ".tiff")
_SAMPLE_BYTES = 65_536
_SAMPLES = 8


def expand(paths: Iterable[str | Path]) -> tuple[list[str], dict[str, RasterError]]:
    """Files and the ``.tif``/``.tiff`` files below folders, each once, in the order given (folders sorted).

    A path that does not exist stays in the list: it becomes one failure of the batch, not the end of it.

    Returns:
        The files; and by its path, why a folder could not be looked into.

    Raises:
        RasterError: no paths at all, or only folders without a single GeoTIFF.
    """
    given = [str(p) for p in paths]
    found: dict[str, str] = {}
    closed: dict[str, RasterError] = {}
    for path in given:
        for file in _below(path, closed) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)
    if not found and not closed:
        raise RasterError(
            "paths to embed",
            got=", ".join(given) or "nothing",
            expected="GeoTIFF files, or folders that hold *.tif or *.tiff",
            next_step="Name at least one file or folder.",
        )
    return list(found.values()), closed


def _below(folder: str, closed: dict[str, RasterError]) -> list[str]:
    def refused(error: OSError) -> None:
        closed[str(error.filename)] = RasterError(
            f"{error.filename}: folder",
            got=error.strerror or type(error).__name__,
            expected="a folder that may be looked into",
            next_step="Change its permissions, or leave it out.",
        )

    files = (os.path.join(root, name) for root, _, names in os.walk(folder, onerror=refused) for name in names)
    return sorted(f for f in files if f.lower().endswith(_SUFFIXES) and not os.path.basename(f).startswith("."))


def relative_to_archive(source: str, archive: Path) -> str:
    """``source`` as seen from the archive's directory.

    The same file is then the same source whether it was named relatively, absolutely or through a link, and
    the archive and its rasters can be moved together.
    """
    return os.path.relpath(os.path.realpath(source), os.path.realpath(archive))


def identify(source: str, relative: str, declared: Declared) -> str:
    """16 hexadecimal digits that stand for one file, in one state, read in one way.

    Hashed are: the path seen from the archive, size, modification time in nanoseconds, what the user declared
    about the file, and up to eight pieces of 64 KiB spread from the first byte to the last. A file that was
    touched counts as changed: only reading all of it could tell otherwise. A copy under another path is
    another source.

    Raises:
        RasterError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            head = [relative, status.st_size, status.st_mtime_ns, asdict(declared)]
            digest.update(json.dumps(head, default=str, sort_keys=True).encode())
            for start in _sample_starts(status.st_size):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise RasterError(
            source,
            got=error.strerror or type(error).__name__,
            expected="a readable GeoTIFF file",
            next_step="Check the path and its permissions.",
        ) from error
    return digest.hexdigest()[:16]


def _sample_starts(size: int) -> Sequence[int]:
    if size <= _SAMPLES * _SAMPLE_BYTES:
        return range(0, size, _SAMPLE_BYTES)
    last = size - _SAMPLE_BYTES
    return [round(i * last / (_SAMPLES - 1)) for i in range(_SAMPLES)]
