"""What ``alidade bench store`` measures: ratios taken in one run, on files and archives made for it."""

from __future__ import annotations

import shutil
import tempfile
import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

from alidade.errors import RasterError
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.footprint import Footprint
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import Window, read_tiles, tile_windows
from alidade.search.archive import Archive
from alidade.search.embed import SHARD_ROWS, embed
from alidade.search.manifest import Coverage
from alidade.search.plan import Embedder
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

SCENE_SIDE = 10_980
"""Side of a Sentinel-2 granule at 10 m, in pixels."""
SCAN_ROWS = 1_000_000
SCAN_DIM = 256
_BLOCK = 256
_BATCH = 16
_READ_SECONDS = 5.0
_BARE_SECONDS = 6.0


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One line of a bench: ``ok`` is ``None`` where nothing is promised."""

    name: str
    value: float
    unit: str
    target: str
    ok: bool | None


def store_rows(
    model: Embedder,
    *,
    side: int = SCENE_SIDE,
    rows: int = SCAN_ROWS,
    folder: str | Path | None = None,
    told: Callable[[str], None] | None = None,
) -> list[BenchRow]:
    """Measure the way from file to archive to answer.

    Args:
        model: embeds the scene; its bare rate is the measure of the pipeline.
        side: side of the generated 13-band scene in pixels.
        rows: rows of the generated archive that is scanned.
        folder: where the files are made (a temporary directory by default); they are removed afterwards.
        told: is given a sentence as each part begins.

    Raises:
        AlidadeError: the disk is full, or the model cannot take Sentinel-2 Level-1C.
    """
    say = told or (lambda sentence: None)
    with tempfile.TemporaryDirectory(prefix="alidade-bench-", dir=folder) as name:
        work = Path(name)
        say(f"writing a 13-band scene of {side:,} x {side:,} px")
        scene = write_scene(work / "scene.tif", side)
        say("reading tiles in block-aligned panels, and one by one")
        found = reading_rows(scene, model.tile)
        say("embedding the scene, with the bare model before and after it")
        found += pipeline_rows(scene, work / "embedded", model)
        scene.unlink()
        say(f"writing and scanning {rows:,} rows of {SCAN_DIM} dimensions")
        return found + scan_rows(work / "rows", rows)


def write_scene(path: Path, side: int) -> Path:
    """A tiled 13-band Sentinel-2 Level-1C GeoTIFF of made pixels that compress about as well as real ones.

    Raises:
        RasterError: the disk is full.
    """
    found = sensor("sentinel-2-l1c")
    blocks = _blocks(len(found.bands))
    profile = {
        "driver": "GTiff",
        "count": len(found.bands),
        "height": side,
        "width": side,
        "dtype": "uint16",
        "nodata": 0,
        "crs": "EPSG:32632",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_200_000),
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
        "num_threads": "all_cpus",
        "bigtiff": "if_safer",
    }
    try:
        with rasterio.open(path, "w", **profile) as file:
            file.update_tags(ALIDADE_SENSOR=found.id, ALIDADE_TIME="2021-06-01T10:00:00+00:00")
            file.descriptions = found.band_names
            file.scales, file.offsets = (1e-4,) * len(found.bands), (0.0,) * len(found.bands)
            for number, window in enumerate(tile_windows(side, side, _BLOCK)):
                part = blocks[number % len(blocks)][:, : window.height, : window.width]
                rows, cols = (window.row, window.row + window.height), (window.col, window.col + window.width)
                file.write(part, window=(rows, cols))
    except (OSError, rasterio.errors.RasterioError) as error:
        raise RasterError(
            f"{path}: writing the scene for the bench",
            got=str(error),
            expected=f"about {side * side * 20 / 1e9:.1f} GB of room",
            next_step="Make room, or choose a smaller --size or another --dir.",
        ) from error
    return path


def reading_rows(scene: Path, tile: int) -> list[BenchRow]:
    """Tiles per second through ``read_tiles``, and window by window, over the same first tiles of a scene."""
    with open_raster(scene) as file:
        height, width = file.grid.height, file.grid.width
        windows = tile_windows(height, width, tile)
        began, aligned = clock.perf_counter(), 0
        for _ in read_tiles(file, tile):
            aligned += 1
            if clock.perf_counter() - began > _READ_SECONDS:
                break
        aligned_rate = aligned / (clock.perf_counter() - began)
    with open_raster(scene) as file:
        # down the columns, as the tiles of a scattered selection lie: no two share a freshly decoded block
        order = sorted(windows, key=lambda w: (w.col, w.row))
        began, single = clock.perf_counter(), 0
        for window in order:
            file.read(Window(row=window.row, col=window.col, height=tile, width=tile))
            single += 1
            if clock.perf_counter() - began > _READ_SECONDS:
                break
        single_rate = single / (clock.perf_counter() - began)
    return [
        BenchRow(name="tiles read in block-aligned panels", value=aligned_rate, unit="tiles/s", target="", ok=None),
        BenchRow(name="tiles read one by one", value=single_rate, unit="tiles/s", target="", ok=None),
        BenchRow(
            name="gain of block-aligned reading",
            value=aligned_rate / single_rate,
            unit="x",
            target=">= 1",
            ok=aligned_rate >= single_rate,
        ),
    ]


def pipeline_rows(scene: Path, out: Path, model: Embedder) -> list[BenchRow]:
    """The rate of ``embed`` over a whole scene beside the rate of the bare model on tiles in memory.

    The bare rate is the mean of a measurement before and one after, as other work on the machine comes and goes.
    """
    with open_raster(scene) as file:
        names = model.bands_for(file.sensor, [b.name for b in file.bands])
        tiles = []
        for _, _, raster in read_tiles(file, model.tile, bands=names):
            tiles.append(raster)
            if len(tiles) == _BATCH:
                break
    _bare_rate(model, tiles, 1.0)
    before = _bare_rate(model, tiles, _BARE_SECONDS)
    summary = embed([scene], out, model, declared=Declared(), batch=_BATCH)
    after = _bare_rate(model, tiles, _BARE_SECONDS)
    bare = (before + after) / 2
    share = summary.tiles_per_second / bare
    return [
        BenchRow(name="bare model", value=bare, unit="tiles/s", target="", ok=None),
        BenchRow(name="embed, file to archive", value=summary.tiles_per_second, unit="tiles/s", target="", ok=None),
        BenchRow(name="embed / bare model", value=100 * share, unit="%", target=">= 90", ok=share >= 0.9),
    ]


def scan_rows(out: Path, rows: int) -> list[BenchRow]:
    """Time to write ``rows`` random unit rows as shards, and to answer a query exactly over them."""
    rng = np.random.default_rng(0)
    began = clock.perf_counter()
    with ArchiveWriter(out, model="bench", dim=SCAN_DIM, tile=1) as writer:
        for start in range(0, rows, SHARD_ROWS):
            writer.append(*_made_rows(rng, start, min(start + SHARD_ROWS, rows), rows))
    written = rows / (clock.perf_counter() - began)
    size = sum(p.stat().st_size for p in (out / "shards").iterdir())
    began = clock.perf_counter()
    scanner = Scanner(Archive.open(out))
    loaded = clock.perf_counter() - began
    shutil.rmtree(out)
    query = rng.standard_normal(SCAN_DIM)
    scan = 1e3 * _median_seconds(lambda: scanner.search(query, 50))
    box = 1e3 * _median_seconds(lambda: scanner.search(query, 50, bbox=(0.0, -90.0, 45.0, 90.0)))
    wide = scanner.embeddings.astype(np.float32)
    vector = (query / np.linalg.norm(query)).astype(np.float32)
    product = 1e3 * _median_seconds(lambda: wide @ vector)
    limit = 150.0 * rows / SCAN_ROWS
    return [
        BenchRow(name="shard writing", value=written, unit="rows/s", target="", ok=None),
        BenchRow(name="shard size", value=size / rows, unit="bytes/row", target="", ok=None),
        BenchRow(name="loading the scanner", value=loaded, unit="s", target="", ok=None),
        BenchRow(name=f"exact scan of {rows:,} rows", value=scan, unit="ms", target=f"<= {limit:g}", ok=scan <= limit),
        BenchRow(name="exact scan with a box (1/8 of the rows)", value=box, unit="ms", target="", ok=None),
        BenchRow(name="numpy float32 product alone", value=product, unit="ms", target="", ok=None),
        BenchRow(name="exact scan / float32 product", value=scan / product, unit="x", target="", ok=None),
    ]


def _blocks(bands: int) -> list[npt.NDArray[np.uint16]]:
    """Eight different blocks ``[bands, 256, 256]``: fields of even colour, and the grain of a real sensor."""
    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(8):
        fields = np.kron(rng.uniform(500, 3000, (bands, 16, 16)), np.ones((16, 16)))
        blocks.append((fields + rng.normal(0, 25, fields.shape)).clip(1, 10_000).astype(np.uint16))
    return blocks


def _bare_rate(model: Embedder, tiles: list[Raster], seconds: float) -> float:
    began, done = clock.perf_counter(), 0
    while clock.perf_counter() - began < seconds:
        model.embed(tiles)
        done += len(tiles)
    return done / (clock.perf_counter() - began)


def _made_rows(rng: np.random.Generator, start: int, stop: int, total: int) -> tuple[list[TileRow], list[Coverage]]:
    vectors = rng.standard_normal((stop - start, SCAN_DIM), dtype=np.float32)
    rows = []
    for index, vector in zip(range(start, stop), vectors, strict=True):
        west, south = -180 + (index * 0.37) % 359.9, -80 + (index * 0.011) % 160
        rows.append(
            TileRow(
                id=f"bench-{index}",
                footprint=Footprint.box((west, south, west + 0.01, south + 0.01)),
                time=datetime(2020, 1 + index % 12, 1, tzinfo=UTC),
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
        )
    coverage = Coverage(
        source="bench.tif", relative="bench.tif", source_id="bench", total=total, tiles=((start, stop),), empty=()
    )
    return rows, [coverage]


def _median_seconds(call: Callable[[], object], times: int = 7) -> float:
    call()
    taken = []
    for _ in range(times):
        began = clock.perf_counter()
        call()
        taken.append(clock.perf_counter() - began)
    return float(np.median(taken))
