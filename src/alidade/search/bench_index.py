"""What ``alidade bench index`` measures: the index beside the exact scanner, over made rows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alidade.evaluation.timing import Row
from alidade.imagery.footprint import Box, Footprint
from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.index_build import EXACT_ROWS, build_index
from alidade.search.manifest import Coverage
from alidade.search.planner import PlannedStore, open_store
from alidade.search.scan import Hits, Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

ROWS = 1_000_000
DIM = 256
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""How many of the rows a box leaves: the selectivities that are measured."""
K = 50
_SHARD_ROWS = 16_384
_SCENE_ROWS = 10_000
_TILE_DEG = 0.01
_CLASSES, _WAVES = 40, 24
_BUILD_S, _P50_MS, _P95_MS, _RECALL, _SCAN_MS = 120.0, 60.0, 200.0, 0.99, 150.0

Floats = npt.NDArray[np.float32]


def bench_index(
    *, rows: int = ROWS, rounds: int = 40, directory: Path | None = None, exact_rows: int = EXACT_ROWS
) -> list[Row]:
    """Measure the making of an index, and searches through it, beside the exact scanner.

    Targets of time hold for a million rows on two cores that have nothing else to do; the processor time of a search
    says what it costs on a busy machine.

    Args:
        rows: rows of the made archive.
        rounds: queries at each selectivity.
        directory: where the archive is made (a temporary directory by default); it is removed afterwards.
        exact_rows: up to so many matches every one is compared.

    Raises:
        AlidadeError: the disk is full, or LanceDB is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="alidade-bench-", dir=directory) as name:
        path = Path(name) / "archive"
        made = MadeRows(rows)
        write_archive(path, made)
        used = clock.process_time()
        summary = build_index(path, exact_rows=exact_rows)
        used = clock.process_time() - used
        store = open_store(path)
        queries = made.queries(rounds)
        taken = {share: _ask(store, queries, made.box(share)) for share in SHARES}
        scanner = Scanner(Archive.open(path))
        found = [
            _row("index build", summary.seconds, "s", _BUILD_S),
            Row(name="index build, processor time", value=used, unit="s"),
            Row(name="index size", value=summary.bytes / max(1, rows), unit="bytes/row"),
            Row(name="memory of a process that searches", value=_memory_of_a_search(path), unit="MB"),
        ]
        for share, asked in taken.items():
            found += _rows_of(share, asked, scanner, queries, made.box(share))
        scan = [scanner.find(query, K, Filter()).seconds for query in queries]
        return [*found, _row("exact scanner, all rows, p50", 1e3 * float(np.median(scan)), "ms", _SCAN_MS)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Answers at one selectivity, and what each took: seconds by the clock and of the processor."""

    hits: list[Hits]
    seconds: list[float]
    processor: list[float]


class MadeRows:
    """Rows that are alike where they are near each other: scenes of one square degree at random places.

    A vector is its class (of 40, in patches on the ground), plus waves over the ground, plus noise whose variance falls
    from direction to direction as one over its rank: 64 of 256 directions hold 88 % of the squared length, as they do
    in archives of real scenes.

    Args:
        rows: how many.
        seed: of everything that is random.
    """

    def __init__(self, rows: int, seed: int = 0) -> None:
        self.rows = rows
        self._seed = seed
        rng = np.random.default_rng(seed)
        scenes = -(-rows // _SCENE_ROWS)
        corners = np.stack([rng.uniform(-180, 178, scenes), rng.uniform(-60, 70, scenes)], axis=1)
        self.places = corners[np.arange(rows) // _SCENE_ROWS] + rng.uniform(0, 1, (rows, 2))
        self._centres = rng.standard_normal((_CLASSES, DIM)) / DIM**0.5
        self._waves = 1.4 * rng.standard_normal((_WAVES, DIM)) / (DIM * _WAVES) ** 0.5
        self._lengths, self._phases = rng.standard_normal((2, _WAVES)) / 20, rng.uniform(0, 2 * np.pi, _WAVES)
        self._patches = 3 * rng.standard_normal((8, 2, _CLASSES))
        spectrum = np.arange(1, DIM + 1) ** -0.5
        turned, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
        self._noise = (0.8 * spectrum / np.linalg.norm(spectrum))[:, None] * turned

    def vectors(self, start: int, stop: int) -> Floats:
        """The vectors ``[stop - start, DIM]`` of rows; the same rows come out the same only with the same limits."""
        rng = np.random.default_rng([self._seed, start])
        places = self.places[start:stop]
        field = sum(np.cos(places @ patch) for patch in self._patches) + 0.5 * rng.gumbel(size=(stop - start, _CLASSES))
        classes = np.asarray(field).argmax(axis=1)
        smooth = np.cos(2 * np.pi * places @ self._lengths + self._phases) @ self._waves
        noise = rng.standard_normal((stop - start, DIM), dtype=np.float32) @ self._noise.astype(np.float32)
        return np.asarray(self._centres[classes] + smooth + noise, dtype=np.float32)

    def queries(self, count: int) -> Floats:
        """Unit vectors ``[count, DIM]`` near rows of places all over: two thirds single, the others means of two."""
        rng = np.random.default_rng([self._seed, 1, 2])
        starts = rng.integers(0, self.rows, 2 * count).tolist()
        near = np.concatenate([self.vectors(start, start + 1) for start in starts])
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        noise = 0.3 * rng.standard_normal((count, DIM), dtype=np.float32) / DIM**0.5
        pairs = np.arange(count) % 3 == 2
        found = near[:count] + np.where(pairs[:, None], near[count:], noise)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)

    def box(self, share: float) -> Box | None:
        """A box with about this share of the rows; ``None`` for all."""
        if share >= 1.0:
            return None
        west, east = np.quantile(self.places[:, 0], (0.3, 0.3 + share**0.5)).tolist()
        within = (self.places[:, 0] >= west) & (self.places[:, 0] <= east)
        south, north = np.quantile(self.places[within, 1], (0.3, 0.3 + share**0.5)).tolist()
        # the tiles to the west and south that only touch it are left out
        west, south = west + _TILE_DEG, south + _TILE_DEG
        return west, south, max(east, west), max(north, south)


def write_archive(path: Path, made: MadeRows) -> None:
    """An archive of made rows.

    Raises:
        ArchiveError: the disk is full.
    """
    with ArchiveWriter(path, model="bench", dim=DIM, tile=1) as writer:
        for start, stop in _pieces(made.rows):
            rows = [
                _tile(index, place, vector)
                for index, place, vector in zip(
                    range(start, stop), made.places[start:stop].tolist(), made.vectors(start, stop), strict=True
                )
            ]
            coverage = Coverage(
                source="bench.tif",
                relative="bench.tif",
                source_id="bench",
                total=made.rows,
                tiles=((start, stop),),
                empty=(),
            )
            writer.append(rows, [coverage])


def _tile(index: int, place: list[float], vector: Floats) -> TileRow:
    west, south = place
    return TileRow(
        id=f"bench-{index}",
        footprint=Footprint.box((west, south, west + _TILE_DEG, south + _TILE_DEG)),
        time=datetime(2020, 1 + index // _SCENE_ROWS % 12, 1, tzinfo=UTC),
        sensor="sentinel-2-l2a",
        gsd_m=10.0,
        valid_share=1.0,
        cloud_share=0.0,
        source="bench.tif",
        source_id="bench",
        row=0,
        col=index,
        height=1,
        width=1,
        embedding=vector,
    )


def _pieces(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _SHARD_ROWS):
        yield start, min(start + _SHARD_ROWS, rows)


def _ask(store: PlannedStore, queries: Floats, box: Box | None) -> Asked:
    """Every query once, after one that is not counted."""
    conditions = Filter(bbox=box)
    store.search(queries[0], K, conditions)
    asked = Asked(hits=[], seconds=[], processor=[])
    for query in queries:
        began, used = clock.perf_counter(), clock.process_time()
        asked.hits.append(store.search(query, K, conditions))
        asked.seconds.append(clock.perf_counter() - began)
        asked.processor.append(clock.process_time() - used)
    return asked


def recall_of(hits: Hits, true: Hits) -> float:
    """Share of the true answer's rows that were found: those with at least its last score; 0 when rows are missing."""
    if len(hits) < len(true):
        return 0.0
    if len(true) == 0:
        return 1.0
    bar = true.table["score"][-1].as_py()
    found = hits.table["score"].to_numpy()
    return float((found >= bar).sum()) / len(true)


def _rows_of(share: float, asked: Asked, scanner: Scanner, queries: Floats, box: Box | None) -> list[Row]:
    true = [scanner.find(query, K, Filter(bbox=box)) for query in queries]
    recall = float(np.mean([recall_of(h, t) for h, t in zip(asked.hits, true, strict=True)]))
    at = f"{share:.2%} of the rows".replace(".00%", "%").replace("%", " %")
    exact = float(np.mean([h.exact for h in asked.hits]))
    p50, p95 = (1e3 * float(np.percentile(asked.seconds, p)) for p in (50, 95))
    return [
        Row(name=f"{at}: recall@{K}", value=recall, unit="", target=f">= {_RECALL:g}", ok=recall >= _RECALL),
        _row(f"{at}: p50", p50, "ms", _P50_MS),
        _row(f"{at}: p95", p95, "ms", _P95_MS),
        Row(name=f"{at}: processor time, median", value=1e3 * float(np.median(asked.processor)), unit="ms"),
        Row(name=f"{at}: answers that are exact", value=100 * exact, unit="%"),
    ]


def _row(name: str, value: float, unit: str, most: float) -> Row:
    return Row(name=name, value=value, unit=unit, target=f"<= {most:g} {unit}", ok=value <= most)


def _memory_of_a_search(path: Path) -> float:
    """MB that searching takes a fresh process, beyond what its libraries take and files stand behind (Linux; or 0)."""
    command = [sys.executable, "-c", _SEARCHER, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


_SEARCHER = """
import sys
from pathlib import Path
import lancedb, numpy as np
from alidade.search.filters import Filter
from alidade.search.planner import open_store

def own():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)

before = own()
store = open_store(sys.argv[1], heal=False)
rng = np.random.default_rng(0)
for _ in range(10):
    query = rng.standard_normal(store.dim).astype(np.float32)
    for box in (None, (-90.0, -45.0, 90.0, 45.0), (0.0, 0.0, 5.0, 5.0)):
        store.search(query, 50, Filter(bbox=box))
print(own() - before)
"""
