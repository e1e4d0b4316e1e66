"""What ``alidade bench store`` measures: ratios taken in one run, on files and archives made for it."""

from __future__ import annotations

import shutil
import tempfile
import time as clock
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from alidade.errors import RasterError
from alidade.evaluation.timing import Row, median_ratio, take_turns
from alidade.imagery.files import open_raster
from alidade.imagery.footprint import Footprint
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import read_tiles, tile_windows
from alidade.models.croma import BASE
from alidade.models.model import Model
from alidade.models.registry import DEFAULT, load
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.search.archive import Archive
from alidade.search.embed import SHARD_ROWS, embed
from alidade.search.manifest import Coverage
from alidade.search.plan import Embedder, Failure
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
_BARE_SECONDS = 4.0
_PIPELINE_SECONDS = 15.0
_TURNS = 3
_ROUNDS = 9


def bench_store(*, size: int = SCENE_SIDE, directory: Path | None = None, rows: int = SCAN_ROWS) -> list[Row]:
    """Measure the way from file to archive to answer.

    The pipeline is measured with CROMA-base geometry (random weights: speed does not depend on them), and with
    the model that comes with alidade, which is so light that reading competes with it for the processor.

    Args:
        size: side of the generated 13-band scene in pixels.
        directory: where the files are made (a temporary directory by default); they are removed afterwards.
        rows: rows of the generated archive that is scanned.

    Raises:
        AlidadeError: the disk is full, or the default model has no weights.
    """
    network = ScaleAlibi(BASE.build())
    initialise(network, seed=0)
    base, light = Model(network), load()
    with tempfile.TemporaryDirectory(prefix="alidade-bench-", dir=directory) as name:
        work = Path(name)
        scene = write_scene(work / "scene.tif", size)
        found = reading_rows(scene, base.tile)
        found += pipeline_rows(scene, work, base, "croma-base")
        found += pipeline_rows(scene, work, light, DEFAULT)
        scene.unlink()
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
        "transform": Affine(10, 0, 500_000, 0, -10, 5_200_000),
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


def reading_rows(scene: Path, tile: int) -> list[Row]:
    """Tiles per second through ``read_tiles``, and window by window in no order, for some seconds each."""
    with open_raster(scene) as file:
        aligned = _rate(read_tiles(file, tile))
    with open_raster(scene) as file:
        windows = tile_windows(file.grid.height, file.grid.width, tile)
        np.random.default_rng(0).shuffle(windows)
        scattered = _rate(file.read(w) for w in windows)
    return [
        Row(name="tiles read in block-aligned panels", value=aligned, unit="tiles/s"),
        Row(name="tiles read one by one, scattered", value=scattered, unit="tiles/s"),
        Row(name="block-aligned / scattered", value=aligned / scattered, unit="x"),
    ]


def pipeline_rows(scene: Path, work: Path, model: Embedder, label: str) -> list[Row]:
    """The rate of ``embed`` over a scene beside that of the bare model on tiles in memory, taking turns.

    ``embed`` runs for ``_PIPELINE_SECONDS`` a turn, or to the end of the scene; its rate is counted from the end
    of the first batch on, so it holds for scenes of any size.
    """
    with open_raster(scene) as file:
        names = model.bands_for(file.sensor, [b.name for b in file.bands])
        tiles = [r for _, (_, _, r) in zip(range(_BATCH), read_tiles(file, model.tile, bands=names), strict=False)]
    bare_rate(model, tiles, 1.0)
    bare, piped = [], []
    for turn in range(_TURNS):
        before = bare_rate(model, tiles, _BARE_SECONDS)
        watch = _Watch(_PIPELINE_SECONDS)
        with suppress(_Enough):
            embed([scene], work / f"{label}-{turn}", model, batch=_BATCH, progress=watch)
        bare.append((before + bare_rate(model, tiles, _BARE_SECONDS)) / 2)
        piped.append(watch.rate())
    share = 100 * float(np.median(np.array(piped) / np.array(bare)))
    return [
        Row(name=f"bare model, {label}", value=float(np.median(bare)), unit="tiles/s"),
        Row(name=f"embed, file to archive, {label}", value=float(np.median(piped)), unit="tiles/s"),
        Row(
            name=f"embed / bare model, {label}",
            value=share,
            unit="%",
            target=">= 90 %",
            ok=share >= 90,
        ),
    ]


class _Enough(Exception):
    """The measurement is long enough."""


class _Watch:
    """Counts tiles over time as ``embed`` tells of them, and stops it after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._moments: list[float] = []

    def started(self, *, tiles: int, sources: int) -> None:
        """Nothing to show."""

    def advanced(self, *, tiles: int, source: str) -> None:
        """Count, and end the run when its time is up.

        Raises:
            _Enough: now.
        """
        self._moments.append(clock.perf_counter())
        if len(self._moments) % _BATCH == 0 and self._moments[-1] - self._moments[0] > self._seconds:
            raise _Enough

    def failed(self, failure: Failure) -> None:
        """Impossible for a scene that was written a moment ago."""
        raise RuntimeError(failure.message)

    def rate(self) -> float:
        """Tiles per second after the first batch."""
        first = min(_BATCH, len(self._moments) - 1)
        return (len(self._moments) - first) / (self._moments[-1] - self._moments[first - 1])


def scan_rows(out: Path, rows: int) -> list[Row]:
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
    wide = scanner.embeddings.astype(np.float32)
    vector = (query / np.linalg.norm(query)).astype(np.float32)
    taken = take_turns(
        {
            "scan": lambda: scanner.search(query, 50),
            "box": lambda: scanner.search(query, 50, bbox=(0.0, -90.0, 45.0, 90.0)),
            "product": lambda: wide @ vector,
        },
        rounds=_ROUNDS,
    )
    scan, limit = 1e3 * taken["scan"].median, 150.0 * rows / SCAN_ROWS
    ratio = median_ratio(taken["scan"], taken["product"])
    return [
        Row(name="shard writing", value=written, unit="rows/s"),
        Row(name="shard size", value=size / rows, unit="bytes/row"),
        Row(name="loading the scanner", value=loaded, unit="s"),
        Row(name=f"exact scan, {rows:,} rows", value=scan, unit="ms", target=f"<= {limit:g} ms", ok=scan <= limit),
        Row(name="exact scan of the eighth in a box", value=1e3 * taken["box"].median, unit="ms"),
        Row(name="float32 product in numpy", value=1e3 * taken["product"].median, unit="ms"),
        Row(name="exact scan / float32 product", value=ratio, unit="x"),
    ]


def _blocks(bands: int) -> list[npt.NDArray[np.uint16]]:
    """Eight different blocks ``[bands, 256, 256]``: fields of even colour, and the grain of a real sensor."""
    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(8):
        fields = np.kron(rng.uniform(500, 3000, (bands, 16, 16)), np.ones((16, 16)))
        blocks.append((fields + rng.normal(0, 25, fields.shape)).clip(1, 10_000).astype(np.uint16))
    return blocks


def bare_rate(model: Embedder, tiles: list[Raster], seconds: float) -> float:
    """Tiles per second of a model on tiles in memory."""
    began, done = clock.perf_counter(), 0
    while clock.perf_counter() - began < seconds:
        model.embed(tiles, batch_size=_BATCH)
        done += len(tiles)
    return done / (clock.perf_counter() - began)


def _rate(items: Iterable[object]) -> float:
    """Items per second, over all of them or ``_READ_SECONDS``."""
    began, number, taken = clock.perf_counter(), 0, 0.0
    for _ in items:
        number, taken = number + 1, clock.perf_counter() - began
        if taken > _READ_SECONDS:
            break
    return number / taken


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
