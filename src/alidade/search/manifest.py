"""The manifest: one JSON line per acknowledged event, and the state that follows from reading them all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alidade.errors import ArchiveError
from alidade.search.disk import reading

SHARD_NAME = re.compile(r"part-([0-9]{6,})\.parquet")
"""What shards are called; no other name in a manifest is followed: it could lead out of the archive."""
_MOST_TILES = 1_000_000_000
_MOST_BYTES = 2**48

Ranges = tuple[tuple[int, int], ...]
"""Half-open, sorted, disjoint ranges of tile indices: ``((0, 10), (12, 13))`` is 0–9 and 12."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which tiles of one source an event settles.

    Attributes:
        source: path as it was given.
        relative: the path seen from the archive (see :func:`sources.relative_to_archive`).
        source_id: the state of the file (see :func:`sources.identify`).
        total: tiles in the whole source.
        tiles: tiles that have a row.
        empty: tiles that hold no valid pixel and therefore have none.
    """

    source: str
    relative: str
    source_id: str
    total: int
    tiles: Ranges
    empty: Ranges


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An acknowledged shard file; ``live`` holds the source ids whose rows still count."""

    file: str
    rows: int
    bytes: int
    sha256: str
    coverage: tuple[Coverage, ...]
    live: set[str] = field(default_factory=set)

    @property
    def live_rows(self) -> int:
        """Rows whose source has not been retired."""
        return sum(count(c.tiles) for c in self.coverage if c.source_id in self.live)


@dataclass(kw_only=True)
class Manifest:
    """What the acknowledged events add up to.

    Attributes:
        shards: in the order of their acknowledgement.
        covered: settled tile ranges by source id.
        totals: tiles by source id.
        current: source id by relative path, the newest acknowledged state of each file.
    """

    shards: list[Shard] = field(default_factory=list)
    covered: dict[str, Ranges] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set, init=False, repr=False)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event in.

        Raises:
            KeyError, TypeError, ValueError: the event is not one of alidade's.
        """
        kind = event["kind"]
        if kind == "retire":
            self._retire(event["source_id"])
            return
        coverage = coverage_from_json(event["coverage"])
        self.check(coverage)
        if kind == "shard":
            shard = Shard(
                file=text(event["file"]),
                rows=whole(event["rows"], 0, _MOST_TILES),
                bytes=whole(event["bytes"], 0, _MOST_BYTES),
                sha256=text(event["sha256"]),
                coverage=coverage,
            )
            if not SHARD_NAME.fullmatch(shard.file) or shard.file in self._names:
                raise ValueError(f"{shard.file!r} is not the name of a new shard")
            if sum(count(c.tiles) for c in coverage) != shard.rows:
                raise ValueError(f"{shard.file}: {shard.rows} rows do not fit the coverage")
            shard.live.update(c.source_id for c in coverage)
            self.shards.append(shard)
            self._names.add(shard.file)
        elif kind != "nodata":
            raise ValueError(f"unknown kind {kind!r}")
        for c in coverage:
            self.covered[c.source_id] = union(self.covered.get(c.source_id, ()), c.tiles, c.empty)
            self.totals[c.source_id] = c.total
            self.current[c.relative] = c.source_id

    def _retire(self, source_id: str) -> None:
        for shard in self.shards:
            shard.live.discard(source_id)
        self.covered.pop(source_id, None)
        self.totals.pop(source_id, None)
        self.current = {path: known for path, known in self.current.items() if known != source_id}

    @property
    def rows(self) -> int:
        """Rows that count: those of retired sources do not."""
        return sum(shard.live_rows for shard in self.shards)

    def is_complete(self, source_id: str) -> bool:
        """Whether every tile of this source is settled."""
        return source_id in self.totals and count(self.covered[source_id]) == self.totals[source_id]

    def check(self, coverage: Iterable[Coverage]) -> None:
        """See that ``coverage`` fits what is acknowledged.

        Raises:
            ValueError: it settles a tile again, or knows another number of tiles of a source.
        """
        settled: dict[str, Ranges] = {}
        for c in coverage:
            known = settled.get(c.source_id, self.covered.get(c.source_id, ()))
            settled[c.source_id] = union(known, c.tiles, c.empty)
            if count(settled[c.source_id]) != count(known) + count(c.tiles) + count(c.empty):
                raise ValueError(f"tiles of {c.source_id} are settled twice")
            if self.totals.get(c.source_id, c.total) != c.total:
                raise ValueError(f"{c.source_id} has {self.totals[c.source_id]} tiles, not {c.total}")


def read_manifest(path: Path) -> tuple[Manifest, int, int]:
    """The state, the bytes up to the end of the last whole line, and the bytes behind it.

    A last line without its line feed was never acknowledged: it is left out. Anything else that cannot be
    understood is damage.

    Raises:
        ArchiveError: the file cannot be read, or a line is not an event; the message has its number.
    """
    manifest = Manifest()
    with reading(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            manifest.apply(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{path}: line {number}",
                got=f"{type(error).__name__}: {error}",
                expected="one event of an alidade manifest in JSON",
                next_step="Restore the manifest from a copy, or embed into a new archive.",
            ) from error
    return manifest, whole, len(data) - whole


def coverage_to_json(coverage: Sequence[Coverage]) -> list[dict[str, Any]]:
    """Plain lists and numbers for JSON."""
    return [
        {
            "source": c.source,
            "relative": c.relative,
            "source_id": c.source_id,
            "total": c.total,
            "tiles": [list(r) for r in c.tiles],
            "empty": [list(r) for r in c.empty],
        }
        for c in coverage
    ]


def coverage_from_json(items: Sequence[Mapping[str, Any]]) -> tuple[Coverage, ...]:
    """The inverse of :func:`coverage_to_json`.

    Raises:
        KeyError, TypeError, ValueError: something is missing, of another type, or a range is not one of tiles
            that the source has.
    """
    return tuple(
        Coverage(
            source=text(c["source"]),
            relative=text(c["relative"]),
            source_id=text(c["source_id"]),
            total=whole(c["total"], 1, _MOST_TILES),
            tiles=_ranges(c["tiles"], c["total"]),
            empty=_ranges(c["empty"], c["total"]),
        )
        for c in items
    )


def _ranges(pairs: Sequence[Sequence[object]], total: int) -> Ranges:
    ranges = tuple((whole(start, 0, total - 1), whole(stop, 1, total)) for start, stop in pairs)
    if any(start >= stop for start, stop in ranges):
        raise ValueError(f"empty ranges in {ranges}")
    return ranges


def whole(value: object, least: int, most: int) -> int:
    """``value`` itself, when it is a whole number (not ``True``, not 3.0) from ``least`` to ``most``.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.40} instead of a whole number from {least} to {most}")
    return value


def text(value: object) -> str:
    """``value`` itself, when it is text.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} instead of text")
    return value


def ranges_of(indices: Iterable[int]) -> Ranges:
    """The ranges that hold exactly ``indices``."""
    return union(tuple((i, i + 1) for i in indices))


def union(*parts: Ranges) -> Ranges:
    """The ranges that hold everything in ``parts``."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(r for part in parts for r in part):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def count(ranges: Ranges) -> int:
    """How many indices ``ranges`` hold."""
    return sum(stop - start for start, stop in ranges)


def missing(ranges: Ranges, total: int) -> list[int]:
    """The indices below ``total`` that ``ranges`` do not hold."""
    found: list[int] = []
    at = 0
    for start, stop in ranges:
        found.extend(range(at, min(start, total)))
        at = stop
    return [*found, *range(at, total)]
