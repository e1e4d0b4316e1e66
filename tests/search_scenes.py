"""What tests of embedding share: a small real model, made scenes, and an archive's rows as one table."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from affine import Affine
from pyproj import CRS

from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.model import Model
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.search.archive import Archive

TILE = 32


def tiny_model(name: str = "tiny", tile: int = TILE) -> Model:
    """A real network, small enough for tests: radar, and colours of four sensors."""
    ways = {
        "sar": (("VV", "VH"), ("sentinel-1-grd", "sentinel-1-rtc")),
        "colour": (("red", "green", "blue"), ("naip-rgb", "generic-rgb", "sentinel-2-l2a")),
    }
    towers = tuple(
        TowerConfig(
            name=way,
            bands=bands,
            depth=1,
            patch=8,
            normalizations={i: Normalization.for_sensor(sensor(i), bands) for i in sensors},
        )
        for way, (bands, sensors) in ways.items()
    )
    config = ScaleAlibiConfig(name=name, width=32, heads=4, towers=towers, position=PositionConfig(), tile=tile)
    network = ScaleAlibi(config)
    initialise(network, seed=len(name))
    return Model(network, dtype=torch.float32)


def make_raster(seed: int, height: int = 80, width: int = 104, sensor_id: str = "naip-rgb") -> Raster:
    """Smooth noise somewhere in UTM zone 32, another place for every seed."""
    rng = np.random.default_rng(seed)
    found = sensor(sensor_id)
    bands = found.bands[: 2 if found.kind == "sar" else 12]
    coarse = rng.random((len(bands), height // 8 + 2, width // 8 + 2))
    smooth = np.kron(coarse, np.ones((8, 8)))[:, :height, :width]
    if found.unit is Unit.REFLECTANCE:
        pixels, encoding = (
            (500 + 2500 * smooth).astype(np.uint16),
            Encoding(unit=found.unit, scale=1e-4, nodata=0),
        )
    elif found.unit is Unit.DB:
        pixels, encoding = (-20 + 15 * smooth).astype(np.float32), Encoding(unit=found.unit)
    else:
        pixels, encoding = (20 + 200 * smooth).astype(np.uint8), Encoding(unit=found.unit)
    return Raster(
        pixels=pixels,
        bands=bands,
        encodings=(encoding,) * len(bands),
        valid=np.ones((height, width), dtype=bool),
        grid=Grid(
            crs=CRS.from_epsg(32632),
            transform=Affine(10, 0, 500_000 + 5_000 * seed, 0, -10, 5_200_000),
            width=width,
            height=height,
        ),
        sensor=found,
        time=datetime(2021, 5, 1 + seed % 28, 10, tzinfo=UTC),
        source="made",
    )


def make_scene(path: Path, seed: int, **changes: object) -> Path:
    write_geotiff(path, make_raster(seed, **changes))  # type: ignore[arg-type]
    return path


def rows_of(archive: Path) -> pa.Table:
    tables = [t.cast(t.schema.remove_metadata()) for t in Archive.open(archive).tables()]
    text = [pa.string() if pa.types.is_dictionary(f.type) else f.type for f in tables[0].schema]
    plain = pa.schema([f.with_type(t) for f, t in zip(tables[0].schema, text, strict=True)])
    return pa.concat_tables([t.cast(plain) for t in tables]).sort_by([("source", "ascending"), ("id", "ascending")])


@contextmanager
def without_override() -> Iterator[None]:
    """Permissions count in this thread and those it starts, even for root (Linux: capabilities 1 and 2)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, reduced = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for data in (before, reduced):
        assert libc.capget(head, data) == 0, os.strerror(ctypes.get_errno())
    reduced[0] &= ~0b110
    assert libc.capset(head, reduced) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(head, before) == 0, os.strerror(ctypes.get_errno())
