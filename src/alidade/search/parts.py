"""Parts of an archive that several jobs make side by side, and how they become one archive.

::

    ARCHIVE/parts/I-of-N   an archive by itself, with the rows of part I while its job is at work

When its work is done, a job takes the one lock of ARCHIVE, puts its shard files in as they are, has them acknowledged,
and removes its part. Killed anywhere in between, the same command goes on: what is acknowledged in a part stays
there until it is acknowledged in ARCHIVE.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time as clock
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from alidade.errors import ArchiveError
from alidade.imagery.atomic import atomic_write
from alidade.search.archive import Archive, check_same
from alidade.search.disk import reading, writing
from alidade.search.manifest import SHARD_NAME, Coverage, Manifest, Ranges, ranges_of, union
from alidade.search.plan import Shard
from alidade.search.writer import ArchiveWriter

PATIENCE_S = 600.0
"""How long a job waits for others to put their parts in."""
_GONE = ".gone-"


def part_folder(archive: Path, shard: Shard) -> Path:
    """Where the rows of a part lie while its job is at work."""
    return archive / "parts" / f"{shard.index}-of-{shard.count}"


def read_base(archive: Path, *, model: str, tile: int) -> Manifest:
    """What the whole archive has acknowledged by now; nothing if there is none.

    Raises:
        ArchiveError: it is damaged, or was made by another model or tile side.
    """
    if not os.path.lexists(archive / "archive.json"):
        return Manifest()
    opened = Archive.open(archive)
    check_same(archive, opened.header, model=model, tile=tile)
    return opened.manifest


def combined(base: Manifest, own: Manifest) -> Manifest:
    """What is settled in either, for planning only."""
    ids = (*base.covered, *own.covered)
    return Manifest(
        covered={i: union(base.covered.get(i, ()), own.covered.get(i, ())) for i in ids},
        totals={**base.totals, **own.totals},
        current={**base.current, **own.current},
    )


@contextmanager
def when_free(make: Callable[[], ArchiveWriter]) -> Iterator[ArchiveWriter]:
    """The archive's writer, as soon as no other process writes.

    Raises:
        ArchiveError: another one writes for ten minutes on end; or what ``ArchiveWriter`` raises.
    """
    until = clock.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                writer = stack.enter_context(make())
                break
            except ArchiveError as error:
                if error.expected != "one writer at a time" or clock.monotonic() > until:
                    raise
                clock.sleep(0.1)
        yield writer


def take_in(make: Callable[[], ArchiveWriter], part: Path, broken: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    """Put a finished part into the archive and remove it; the caller holds the part's lock.

    Args:
        make: makes the archive's writer.
        part: the part's folder.
        broken: source ids that failed: nothing of them may stay.

    Returns:
        Rows in the archive now, and what was put right when it was opened.

    Raises:
        ArchiveError: the archive has some of these tiles from another run; the disk refuses; another process writes
            to the archive all the time. The part stays, and the same command tries again.
    """
    own = Archive.open(part)
    settled = [(shard, c) for shard in own.manifest.shards for c in shard.coverage]
    live = {c.source_id: c for shard, c in settled if c.source_id in shard.live}
    dead = {c.source_id for _, c in settled} - live.keys() | set(broken)
    with when_free(make) as writer:
        repairs = writer.repairs
        for c in live.values():
            old = writer.manifest.current.get(c.relative, c.source_id)
            if old != c.source_id:
                writer.retire(c.source, old, "the file has changed")
        for shard in own.manifest.shards:
            if any(c.source_id in shard.live and _lacks(writer.manifest, c) for c in shard.coverage):
                _copy(own.shard_path(shard), writer.path / "shards")
    # entering acknowledges whole shards that lie there and are not known yet
    with when_free(make) as writer:
        for c in live.values():
            empty = set(_indices(own.manifest.covered[c.source_id])) - _row_tiles(own.manifest, c.source_id)
            empty -= set(_indices(writer.manifest.covered.get(c.source_id, ())))
            if empty:
                writer.append([], [replace(c, tiles=(), empty=ranges_of(empty))])
        for source_id in sorted(dead & writer.manifest.covered.keys()):
            writer.retire(part.name, source_id, "it failed, or has changed")
        if any(_lacks(writer.manifest, c) for shard, c in settled if c.source_id in shard.live):
            raise ArchiveError(
                f"{part}: tiles",
                got="some that the archive got from another run meanwhile",
                expected="parts that do not overlap",
                next_step="Run `alidade embed` without --shard to complete the archive, then remove this folder.",
            )
        rows = writer.manifest.rows
    _remove(part)
    return rows, repairs


def _lacks(manifest: Manifest, coverage: Coverage) -> bool:
    known = manifest.covered.get(coverage.source_id, ())
    return union(known, coverage.tiles, coverage.empty) != known


def _row_tiles(manifest: Manifest, source_id: str) -> set[int]:
    return {i for s in manifest.shards for c in s.coverage if c.source_id == source_id for i in _indices(c.tiles)}


def _indices(ranges: Ranges) -> Iterator[int]:
    return (i for start, stop in ranges for i in range(start, stop))


def _copy(shard: Path, folder: Path) -> None:
    """A shard file under the next free number, whole or not at all."""
    with reading(folder):
        names = [SHARD_NAME.fullmatch(name) for name in os.listdir(folder)]
    number = max((int(found[1]) for found in names if found), default=0) + 1
    target = folder / f"part-{number:06d}.parquet"
    with writing(target), atomic_write(target) as temporary:
        shutil.copyfile(shard, temporary)


def _remove(part: Path) -> None:
    """First out of sight: half of a part would pass for a damaged one."""
    with writing(part):
        for old in part.parent.glob(f"{_GONE}{part.name}-*"):
            shutil.rmtree(old)
        gone = part.with_name(f"{_GONE}{part.name}-{secrets.token_hex(4)}")
        os.replace(part, gone)
        shutil.rmtree(gone)
