"""The manifest: one JSON line per acknowledged event, and the state that follows from reading them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alidade.errors import ArchiveError

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
        if kind == "shard":
            shard = Shard(
                file=str(event["file"]),
                rows=int(event["rows"]),
                bytes=int(event["bytes"]),
                sha256=str(event["sha256"]),
                coverage=coverage,
            )
            if sum(count(c.tiles) for c in coverage) != shard.rows or "/" in shard.file:
                raise ValueError(f"{shard.file}: {shard.rows} rows do not fit the coverage")
            shard.live.update(c.source_id for c in coverage)
            self.shards.append(shard)
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

    def overlaps(self, coverage: Iterable[Coverage]) -> bool:
        """Whether a tile of ``coverage`` is settled already."""
        for c in coverage:
            known = self.covered.get(c.source_id, ())
            if count(union(known, c.tiles, c.empty)) != count(known) + count(c.tiles) + count(c.empty):
                return True
        return False


def read_manifest(path: Path) -> tuple[Manifest, int, int]:
    """The state, the bytes up to the end of the last whole line, and the bytes behind it.

    A last line without its line feed was never acknowledged: it is left out. Anything else that cannot be
    understood is damage.

    Raises:
        ArchiveError: a line that is not an event, with its number.
    """
    manifest = Manifest()
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            manifest.apply(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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
        KeyError, TypeError, ValueError: something is missing or of another type.
    """
    return tuple(
        Coverage(
            source=str(c["source"]),
            relative=str(c["relative"]),
            source_id=str(c["source_id"]),
            total=int(c["total"]),
            tiles=tuple((int(a), int(b)) for a, b in c["tiles"]),
            empty=tuple((int(a), int(b)) for a, b in c["empty"]),
        )
        for c in items
    )


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
    held = {i for start, stop in ranges for i in range(start, stop)}
    return [i for i in range(total) if i not in held]
