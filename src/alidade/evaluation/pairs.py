"""The California and Texas pairs of the data pack: radar and optical windows over the same ground."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from alidade.evaluation.datasets import DataError, Images, Pairs, Row, read_index
from alidade.imagery.files import Declared, read
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import tile_windows


def california_texas(data: Path, split: str, *, window: int = 128, aligned_only: bool = True) -> Pairs:
    """Windows of the 512 px pairs: radar ``[N, 1, W, W]`` and optical ``[N, 3, W, W]``, both uint8.

    The grid is in World Mercator with 10 projected metres a pixel; ``gsd_m`` is measured on the ellipsoid at each
    window's centre (8.3 to 8.7 m).

    Args:
        data: the data pack, or the folder ``s1s2_ca_tx`` itself.
        split: ``"train"`` and ``"val"`` are California, ``"test"`` is Texas.
        window: side in pixels; 512 must be a multiple.
        aligned_only: leave out pairs whose alignment two estimators did not agree on (``align_ok`` = 0).

    Raises:
        DataError: a pair lacks a half, or no pair is left.
        AlidadeError: a file is missing or damaged (of the kinds that ``imagery.files.read`` raises).
    """
    folder = data if data.name == "s1s2_ca_tx" else data / "s1s2_ca_tx"
    halves: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in read_index(folder):
        if row["split"] == split and (row["align_ok"] == "1" or not aligned_only):
            halves[row["pair_id"]][row["modality"]] = row
    if not halves or any(set(h) != {"opt", "sar"} for h in halves.values()) or 512 % window:
        raise DataError(
            f"{folder}: pairs",
            got=f"{len(halves)} of part {split!r} for windows of {window} px",
            expected="an optical and a radar half of each, in part train, val or test, and a window that divides 512",
            next_step="Check the data pack against its SHA256SUMS, or the names you passed.",
        )
    names = sorted(halves)
    found = sensor("generic-rgb").with_gsd(10.0)
    optical = [replace(read(folder / halves[n]["opt"]["file"]), sensor=found, bands=found.bands) for n in names]
    # one 8-bit display band is what the file is; that it shows VH only the pack's index knows
    one_band = Declared(sensor="display-vh", bands=("VH",))
    sar = [read(folder / halves[n]["sar"]["file"], one_band) for n in names]
    kind = "aligned" if aligned_only else "all"
    return Pairs(
        sar=_windows(f"ca-tx-{kind}/{split}", names, sar, window),
        optical=_windows(f"ca-tx-{kind}/{split}", names, optical, window),
    )


def _windows(name: str, names: list[str], rasters: list[Raster], window: int) -> Images:
    parts = [
        (f"{pair}/{w.row}-{w.col}", number, raster.crop(w))
        for number, (pair, raster) in enumerate(zip(names, rasters, strict=True))
        for w in tile_windows(raster.grid.height, raster.grid.width, window)
    ]
    return Images(
        name=name,
        ids=tuple(identifier for identifier, _, _ in parts),
        pixels=np.stack([r.pixels for _, _, r in parts]),
        labels=np.array([number for _, number, _ in parts], dtype=np.int64),
        classes=tuple(names),
        gsd_m=np.array([r.gsd_m for _, _, r in parts]),
        sensor=rasters[0].sensor,
        bands=rasters[0].bands,
        encodings=rasters[0].encodings,
    )
