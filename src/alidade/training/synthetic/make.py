"""A tile store of the made-up world, by the same splits and the same guard against leakage as any other."""

from __future__ import annotations

import time as clock
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path

import numpy as np

from alidade.imagery.sensors import SENSORS
from alidade.training.synthetic.land import CELL_M, Cells, is_water
from alidade.training.synthetic.noise import key, uniform
from alidade.training.synthetic.render import BANDS, DTYPES, OPTICAL, PICTURE, PIXEL_M, RADAR, Scene
from alidade.training.tiles.grid import BASE_M, Square, level_of
from alidade.training.tiles.plan import SPLIT_CELL_LEVEL, Split, check_split, split_of
from alidade.training.tiles.schema import Sample, SampleView, StoreError, ViewSpec
from alidade.training.tiles.store import SYNTHETIC, TileStore
from alidade.training.tiles.writer import StoreWriter, full

VIEWS = {"s1": RADAR, "s2": OPTICAL, "hr": PICTURE}
DEALT = {"train": 0.8, "val": 0.1, "test": 0.1}
"""How the world's cells of about 10 km are dealt where a split is asked for by its name."""

SIDES_M = (160.0, 10_240.0)
_EPSG = 32631
_FIRST_CELL = (20, 0)
"""Column and row of the first cell, on the equator in the Gulf of Guinea, where there is no land to be taken for it."""

_CELLS_ABREAST = 56

FIRST, LITTLE_WATER, PROBES = 8, 0.3, 12
"""A world begins with so many squares of less than this share of water; so many probes a side tell the share."""
_YEAR = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """What a run did: samples made and found there already, those of each split now, and its seconds."""

    written: int
    present: int
    splits: dict[str, int]
    seconds: float


def synthesize(
    out: str | Path, samples: int, *, seed: int = 0, split: Split = "train", square_m: float = 1280.0,
    progress: Callable[[int], None] | None = None,
) -> Synthesized:  # fmt: skip
    """Fill a store with the first squares of the world ``seed``; those that it has are left alone.

    The world's squares are numbered, cell of about 10 km by cell, from where there is land (``squares``). A split asked
    for by name gets the squares of the cells that are dealt to it, so that runs for ``train``, ``val`` and ``test``
    never meet.

    Args:
        out: directory of the store, made when there is none.
        samples: how many squares, with those that are there already.
        seed: of the world.
        split: ``"train"``, ``"val"`` or ``"test"``, or names with shares.
        square_m: side of the squares, 160 to 10,240 m, 0.625 m times a power of two.
        progress: is told of every sample made or found there.

    Raises:
        StoreError: another split, number or side; a store of real images, or of another world; or the disk refuses.
        GridError: ``square_m`` is no side of the grid.
    """
    began = clock.perf_counter()
    level = level_of(square_m)
    _check(samples, split, square_m)
    _check_store(Path(out), seed)
    views = {name: _spec(sensor, square_m) for name, sensor in VIEWS.items()}
    written = present = 0
    splits: Counter[str] = Counter()
    with StoreWriter(out, views=views, ground_m=square_m) as writer:
        waiting: list[Sample] = []
        for square, name in islice(squares(seed, level, split), samples):
            splits[name] += 1
            if writer.split_of(square.key) is None:
                waiting.append(sample_of(seed, square, name))
                written += 1
            else:
                present += 1
            if full(len(waiting), sum(s.nbytes for s in waiting)):
                writer.append(waiting)
                waiting = []
            if progress is not None:
                progress(1)
        writer.append(waiting)
    return Synthesized(written=written, present=present, splits=dict(splits), seconds=clock.perf_counter() - began)


def squares(seed: int, level: int, split: Split) -> Iterator[tuple[Square, str]]:
    """The world's squares from where there is land, with their splits; endless for all that a disk holds.

    A first look at an open sea teaches little: all squares are left out before the first ``FIRST`` in a row that have
    little water. The squares after these are as they come, so that a store of many is a fair sample of the world.
    """
    coming = _all_squares(level, split)
    dry: list[tuple[Square, str]] = []
    while len(dry) < FIRST:
        square, name = next(coming)
        dry = [*dry, (square, name)] if water_share(seed, square) < LITTLE_WATER else []
    yield from dry
    yield from coming


def water_share(seed: int, square: Square) -> float:
    """How much of a square is under water, 0 to 1, by a grid of ``PROBES`` x ``PROBES`` places in it."""
    west, south, _, _ = square.bounds()
    steps = (np.arange(PROBES, dtype=np.float64) + 0.5) * (square.side_m / PROBES)
    return float(is_water(seed, west + steps, south + steps).mean())


def _all_squares(level: int, split: Split) -> Iterator[tuple[Square, str]]:
    shares = DEALT if isinstance(split, str) else split
    across = 1 << (SPLIT_CELL_LEVEL - level)
    for number in count():
        north, east = divmod(number, _CELLS_ABREAST)
        col, row = (_FIRST_CELL[0] + east) * across, (_FIRST_CELL[1] + north) * across
        name = split_of(Square(epsg=_EPSG, level=level, row=row, col=col), shares)
        if isinstance(split, str) and name != split:
            continue
        for place in range(across**2):
            yield Square(epsg=_EPSG, level=level, row=row + place // across, col=col + place % across), name


def sample_of(seed: int, square: Square, split: str) -> Sample:
    """The three sensors over one square; the same for a seed and a square in any process."""
    west, south, _, _ = square.bounds()
    side = round(square.side_m / CELL_M)
    scene = Scene(seed, Cells(col=round(west / CELL_M), row=round(south / CELL_M), width=side, height=side))
    place = np.array([square.col]), np.array([square.row])
    day = float(uniform(key(seed, "day"), *place)[0]) * 365.0
    lon, lat = square.centre()
    views = {}
    for name, sensor in VIEWS.items():
        later = float(uniform(key(seed, f"later {name}"), *place)[0]) * 3.0
        pixels = scene.see(sensor)
        views[name] = SampleView(
            pixels=pixels, valid=np.ones(pixels.shape[1:], dtype=np.bool_),
            gsd_m=square.grid(pixels.shape[-1]).gsd_m(), time=_YEAR + timedelta(days=round(day + later, 4)),
            cloud_share=0.0 if sensor == OPTICAL else None, source=f"{SYNTHETIC}{seed}",
        )  # fmt: skip
    return Sample(
        sample_id=square.key, square=square.key, split=split, lon=lon, lat=lat, bbox=square.bbox(), views=views
    )


def _spec(sensor: str, square_m: float) -> ViewSpec:
    native = SENSORS[sensor].native
    encoding = native if native.offset is not None else type(native)(unit=native.unit, scale=native.scale, nodata=0)
    return ViewSpec(
        sensor=sensor, bands=BANDS[sensor], side=round(square_m / PIXEL_M[sensor]), dtype=DTYPES[sensor],
        encodings=(encoding,) * len(BANDS[sensor]),
    )  # fmt: skip


def _check(samples: int, split: Split, square_m: float) -> None:
    check_split(split)
    if samples < 1:
        raise StoreError("samples", got=str(samples), expected="at least 1", next_step="Pass another -n.")
    if isinstance(split, str) and split not in DEALT:
        raise StoreError(
            "split", got=repr(split), expected=f"one of {', '.join(DEALT)}, or names with shares",
            next_step="Pass --split train, or --split train=0.8,val=0.2.",
        )  # fmt: skip
    if not SIDES_M[0] <= square_m <= SIDES_M[1]:
        raise StoreError(
            "square", got=f"{square_m:g} m", expected=f"{SIDES_M[0]:g} to {SIDES_M[1]:g} m",
            next_step=f"Pass --square {BASE_M * 2**11:g}.",
        )  # fmt: skip


def _check_store(folder: Path, seed: int) -> None:
    """Made-up and real samples, or two worlds over one ground, are never mixed."""
    if not (folder / "store.json").exists():
        return
    there = TileStore.open(folder).sources()
    if other := there - {f"{SYNTHETIC}{seed}"}:
        raise StoreError(
            f"{folder}: samples", got=f"some of {min(other)}", expected=f"none but those of {SYNTHETIC}{seed}",
            next_step="Name another --out: what is made up is not mixed with anything else.",
        )  # fmt: skip
