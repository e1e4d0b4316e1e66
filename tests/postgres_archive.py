"""Archives for the tests of PostgreSQL: vectors that have to do with where they are, and rows that are hard to hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from alidade.imagery.footprint import Footprint
from alidade.search.archive import Archive
from alidade.search.manifest import Coverage, ranges_of
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

DIM = 32
START = datetime(2020, 1, 1, tzinfo=UTC)
HOSTILE = (
    "x'); DROP TABLE alidade_tiles_1; --",
    '"quoted" and \\back\\slashed',
    "%s %(name)s {} {0} $1 :a",
    "tab\tline\nfeed\x01",
    "Ünïcödé 漢字 🛰 \u202e",
    "\\.",
    "",
)


def made_rows(number: int, *, scenes: int, seed: int = 0, dim: int = DIM, name: str = "scene") -> list[TileRow]:
    """Tiles all around the globe, scene by scene; neighbours look alike; every 50th lies across the antimeridian."""
    rng = np.random.default_rng(seed)
    slow = rng.standard_normal((2, dim))
    rows = []
    for i in range(number):
        west, south = -180 + 359.0 * ((i * 0.6180339887) % 1), -60 + 120 * ((i * 0.7548776662) % 1)
        box = (west, south, west + 0.5, south + 0.5) if i % 50 else (179.8, south, -179.7, south + 0.5)
        angle = np.radians([west, 2 * south])
        smooth = np.sin(angle) @ slow + np.cos(angle[::-1]) @ slow[::-1]
        scene = f"{name}-{i * scenes // number}"
        rows.append(
            TileRow(
                id=f"{scene}-{i:06d}",
                footprint=None if i % 97 == 5 else Footprint.box(box),
                time=None if i % 89 == 7 else START + timedelta(hours=i, milliseconds=i % 1000),
                sensor=("naip-rgb", "sentinel-1-rtc", "sentinel-2-l2a")[i % 3],
                gsd_m=float(np.float32((0.6, 10.003, 10.0, 60.0)[i % 4])),
                valid_share=1.0 - (i % 5) / 7,
                cloud_share=None if i % 2 else 0.25,
                source=f"{scene}.tif",
                source_id=scene,
                row=0,
                col=i,
                height=8,
                width=9,
                embedding=smooth + 0.8 * rng.standard_normal(dim),
            )
        )
    return rows


def make_archive(
    path: Path, rows: Sequence[TileRow], *, model: str = "tiny-01", dim: int = DIM, per_shard: int = 2
) -> Path:
    """An archive of these rows, ``per_shard`` sources in each shard."""
    sources = list(dict.fromkeys(row.source for row in rows))
    with ArchiveWriter(path, model=model, dim=dim, tile=8) as writer:
        for at in range(0, len(sources), per_shard):
            some = [row for row in rows if row.source in sources[at : at + per_shard]]
            writer.append(some, [_coverage(source, some) for source in sources[at : at + per_shard]])
    return path


def retire(path: Path, source: str, *, model: str = "tiny-01", dim: int = DIM) -> None:
    with ArchiveWriter(path, model=model, dim=dim, tile=8) as writer:
        writer.retire(f"{source}.tif", source, "the file has changed")


def scanner(path: Path) -> Scanner:
    return Scanner(Archive.open(path))


def _coverage(source: str, rows: Sequence[TileRow]) -> Coverage:
    mine = [row for row in rows if row.source == source]
    return Coverage(
        source=source,
        relative=source,
        source_id=mine[0].source_id,
        total=1_000_000,
        tiles=ranges_of(row.col for row in mine),
        empty=(),
    )
