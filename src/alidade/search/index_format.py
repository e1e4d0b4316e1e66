"""What an index directory holds, how it says what it was made from, and how its files are told to be whole.

::

    ARCHIVE/index/current.json    the header: replaced in one step, it decides what counts
    ARCHIVE/index/.lock           held by the one process that builds
    ARCHIVE/index/g-<hex>/        a generation
        rows.lance/               LanceDB: every column but the embedding, and a short vector with its index
        vectors.f16               embeddings, float16, one row after the other; mapped into memory
        lengths.f32               one over the length of each, float32
        basis.npy                 [short, D] float32: what shortens a vector

Nothing here is truth: all of it can be made again from the acknowledged shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.atomic import atomic_write
from alidade.search.archive import Archive
from alidade.search.manifest import text, whole

if TYPE_CHECKING:
    from lancedb.db import DBConnection

INDEX_FORMAT = 1
"""Version of the directory layout and of the columns of ``rows.lance``."""
FOLDER = "index"
HEADER = "current.json"
VECTORS, LENGTHS, BASIS, TABLE = "vectors.f16", "lengths.f32", "basis.npy", "rows"
STALE = "one of an earlier state of the archive"
_MOST = 2**53

# what LanceDB raises for files that are gone, torn or not its own, and for a full disk
LANCE_ERRORS = (RuntimeError, OSError, ValueError, pa.ArrowException)

Part = tuple[str, str, tuple[str, ...], int]
"""A shard as it was indexed: file, SHA-256, source ids whose rows counted, and how many rows they were."""


class IndexUnusable(ArchiveError):
    """An index that is not there, is not the archive's, or cannot be read. Searching goes on without it."""


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """``current.json``.

    Attributes:
        format: :data:`INDEX_FORMAT`.
        digest: :func:`digest_of` the archive's state.
        model: identity of the embedding space.
        dim: length of the embeddings.
        rows: rows that count; files may hold more behind them, of a run that was interrupted.
        parts: the shards, in the order of their rows.
        sensors: ids of the sensors that have rows.
        generation: name of the directory.
        version: version of the LanceDB table.
        files: size in bytes by path within the generation.
        built: rows that there were when the partitions were made.
        exact_rows: up to so many matches are always compared one by one.
        short: numbers in a short vector; 0 when no short vectors were made because there are so few rows.
        partitions: partitions of the short vectors' index.
        probes: partitions looked into for 50 results; 0 when no number was enough.
        refine: short vectors taken for each result, to be compared again in full.
        recall: share of the true best 50 that was found, in a trial after the build; 1 without short vectors.
        least_share: a query of which the short vector holds less (squared length) is compared with every match.
    """

    format: int
    digest: str
    model: str
    dim: int
    rows: int
    parts: tuple[Part, ...]
    sensors: tuple[str, ...]
    generation: str
    version: int
    files: dict[str, int]
    built: int
    exact_rows: int
    short: int
    partitions: int
    probes: int
    refine: int
    recall: float
    least_share: float

    @property
    def folder(self) -> Path:
        """The generation's directory within the archive."""
        return Path(FOLDER) / self.generation


def parts_of(archive: Archive) -> tuple[Part, ...]:
    """The shards that have rows, in their order."""
    return tuple(
        (shard.file, shard.sha256, tuple(sorted(shard.live)), shard.live_rows)
        for shard in archive.manifest.shards
        if shard.live
    )


def digest_of(archive: Archive) -> str:
    """What tells one state of an archive's rows from another: 64 hexadecimal digits."""
    state = [INDEX_FORMAT, archive.header.model, archive.header.dim, parts_of(archive)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def write_header(archive: Path, header: IndexHeader) -> None:
    """Make ``header`` the one that counts, in one step.

    Raises:
        OSError: the disk refuses.
    """
    with atomic_write(archive / FOLDER / HEADER) as temporary:
        temporary.write_text(json.dumps(asdict(header), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_index_header(archive: Path) -> IndexHeader:
    """The header that counts.

    Raises:
        IndexUnusable: there is none, it cannot be understood, or it is of another version.
    """
    path = archive / FOLDER / HEADER
    try:
        content = json.loads(path.read_bytes())
        version = whole(content["format"], 0, _MOST)
        if version != INDEX_FORMAT:
            raise unusable(archive, f"format {version} where this alidade reads {INDEX_FORMAT}")
        return _header(content)
    except IndexUnusable:
        raise
    except FileNotFoundError:
        raise unusable(archive, "none") from None
    except OSError as error:
        raise unusable(archive, error.strerror or type(error).__name__) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise unusable(archive, f"a damaged {HEADER} ({type(error).__name__})") from error


def check_whole(archive: Path, header: IndexHeader) -> None:
    """See that the files of a generation are there with their sizes. Rows behind the last are no damage.

    Raises:
        IndexUnusable: one is missing or has another size; the message names it.
    """
    folder = archive / header.folder
    for name, size in header.files.items():
        try:
            found = os.stat(folder / name).st_size
        except OSError as error:
            raise unusable(archive, f"a damaged one ({name}: {error.strerror})") from error
        if found < size or (found > size and name not in (VECTORS, LENGTHS)):
            raise unusable(archive, f"a damaged one ({name}: {found:,} bytes instead of {size:,})")


def sizes_of(folder: Path) -> dict[str, int]:
    """Size in bytes of each file below a directory, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def unusable(archive: Path, got: str) -> IndexUnusable:
    """The error for an index that cannot be used; ``got`` says why."""
    return IndexUnusable(
        f"{archive}: index",
        got=got,
        expected="an index of the archive as it is",
        next_step=f"Make it with `alidade index {archive}`.",
    )


@contextmanager
def lance_errors(archive: Path) -> Iterator[None]:
    """Turns what LanceDB and the disk raise within the block into :class:`IndexUnusable`.

    Raises:
        IndexUnusable: see above. Errors of alidade pass through.
    """
    try:
        yield
    except AlidadeError:
        raise
    except LANCE_ERRORS as error:
        raise unusable(archive, f"one that cannot be read ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """An error in a few words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_search_extra(command: str) -> None:
    """Refuse without LanceDB.

    Raises:
        AlidadeError: it is not installed.
    """
    if find_spec("lancedb") is None:
        raise AlidadeError(
            command,
            got="an installation without lancedb",
            expected="the extra `search`",
            next_step='Install it: pip install "alidade[search]" (in a clone: pip install -e ".[search]").',
        )


def connect(folder: Path) -> DBConnection:
    """LanceDB on a directory. It is imported here and nowhere before: that takes a second.

    Raises:
        AlidadeError: LanceDB is not installed.
    """
    check_search_extra("index")
    import lancedb

    return lancedb.connect(folder)


def _header(content: dict[str, object]) -> IndexHeader:
    parts, files, sensors = content["parts"], content["files"], content["sensors"]
    if not (isinstance(parts, list) and isinstance(files, dict) and isinstance(sensors, list)):
        raise ValueError("lists and objects are missing")
    numbers = ("dim", "rows", "version", "built", "exact_rows", "short", "partitions", "probes", "refine")
    recall, share = content["recall"], content["least_share"]
    if not (isinstance(recall, int | float) and isinstance(share, int | float)):
        raise ValueError("numbers are missing")
    counts = {name: whole(content[name], 0, _MOST) for name in numbers}
    generation = text(content["generation"])
    if not generation.startswith("g-") or not generation[2:].isalnum():
        # a name that leads out of the archive must not be followed
        raise ValueError(f"generation {generation!r:.40}")
    return IndexHeader(
        format=INDEX_FORMAT,
        digest=text(content["digest"]),
        model=text(content["model"]),
        dim=counts["dim"],
        rows=counts["rows"],
        parts=tuple((text(f), text(s), tuple(map(text, live)), whole(n, 0, _MOST)) for f, s, live, n in parts),
        sensors=tuple(map(text, sensors)),
        generation=generation,
        version=counts["version"],
        files={text(name): whole(size, 0, _MOST) for name, size in files.items()},
        built=counts["built"],
        exact_rows=counts["exact_rows"],
        short=counts["short"],
        partitions=counts["partitions"],
        probes=counts["probes"],
        refine=counts["refine"],
        recall=float(recall),
        least_share=float(share),
    )
