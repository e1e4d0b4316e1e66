"""BigEarthNet with both sensors: a folder per patch of 1,200 m with a file per band, in versions 1 and 2.

G. Sumbul et al., BigEarthNet-MM, IEEE GRSM 9(3), 2021, doi:10.1109/MGRS.2021.3089174; K. N. Clasen et al., reBEN:
Refined BigEarthNet Dataset for Remote Sensing Image Analysis, IGARSS 2025, arXiv:2407.03653.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.offset import Verdict, weigh
from alidade.imagery.product_names import facts_from_name
from alidade.imagery.raster import Raster
from alidade.training.tiles.layouts import (
    DB,
    SPLIT_NAMES,
    Found,
    Item,
    Options,
    Part,
    check_same_ground,
    files_below,
    stack,
    view_from,
)
from alidade.training.tiles.scenes import Failure
from alidade.training.tiles.schema import StoreError, ViewSpec

_S2 = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d{5,6}(?:_N\d{4}_R\d{3}_T\w{5})?_\d+_\d+")
_S1 = re.compile(r"S1[A-D]_IW_GRDH_1SDV_\d{8}T\d{6}_\w{5}_\d+_\d+")
_JSON_LIMIT = 2**20

# Sen2Cor adds nothing to products of baselines before 04.00, which both versions are made of
_STORED = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=0.0, nodata=0)
_SPECS = {
    "s1": ViewSpec(sensor="sentinel-1-grd", bands=("VV", "VH"), side=120, dtype="float32", encodings=(DB, DB)),
    **{
        name: ViewSpec(
            sensor="sentinel-2-l2a", bands=bands, side=side, dtype="uint16", encodings=(_STORED,) * len(bands)
        )
        for name, side, bands in (
            ("s2", 120, ("B02", "B03", "B04", "B08")),
            ("s2-20m", 60, ("B05", "B06", "B07", "B8A", "B11", "B12")),
            ("s2-60m", 20, ("B01", "B09")),
        )
    },
}


class BigEarthNet:
    """Sentinel-2 L2A at its native 10, 20 and 60 m as three views, and Sentinel-1 in dB at 10 m.

    Version 1 tells in each Sentinel-1 patch's ``*_labels_metadata.json`` which Sentinel-2 patch it belongs to, and its
    splits in ``train.csv``, ``val.csv`` and ``test.csv``. Version 2 tells both in ``metadata.parquet``. These files
    may lie anywhere in the folder.

    Args:
        root: the folder that holds Sentinel-1 and Sentinel-2 patches at any depth.
        options: none are used.
        known: not used.

    Raises:
        StoreError: no such folder, or an option.
    """

    def __init__(self, root: str, options: Options, known: Mapping[str, ViewSpec] | None) -> None:
        options.refuse("bigearthnet-mm")
        self._root = root
        self._failures: list[Failure] = []
        self._items = self._list()
        there = {name for item in self._items for name in item.parts}
        self.views = {name: spec for name, spec in _SPECS.items() if name in there}
        self.least = len(self.views)

    def items(self) -> tuple[list[Item], list[Failure]]:
        """Every Sentinel-2 patch, and every Sentinel-1 patch whose partner is missing."""
        return self._items, self._failures

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """See ``Layout.read``."""
        read = {}
        rasters = []
        for name in views:
            folder = item.parts[name][0].path
            spec = self.views[name]
            time = _time(folder)
            raster = stack([_band(folder, band, spec, time) for band in spec.bands])
            rasters.append(raster)
            check_same_ground(rasters[0].grid, raster.grid, item.key)
            read[name] = view_from(raster, spec)
        _check_offset(rasters, item.key)
        return Found(views=read, grid=rasters[0].grid)

    def _list(self) -> list[Item]:
        optical, radar = {}, {}
        # a folder counts by its bands: the last one written tells that the patch is there at all
        for path in files_below(self._root, ".tif"):
            folder = os.path.dirname(path)
            name = os.path.basename(folder)
            if _S2.fullmatch(name):
                optical[name] = folder
            elif _S1.fullmatch(name):
                radar[name] = folder
        table = self._metadata()
        partners = {s1: s2 for s2, (s1, _) in table.items()} if table else self._partners(radar)
        splits = {s2: split for s2, (_, split) in table.items()} if table else self._splits()
        radar_of = {s2: s1 for s1, s2 in partners.items() if s1 in radar}
        items = []
        for name in sorted({*optical, *radar_of}):
            parts = {}
            if name in radar_of:
                parts["s1"] = (Part(path=radar[radar_of[name]]),)
            if name in optical:
                parts |= {view: (Part(path=optical[name]),) for view in _SPECS if view != "s1"}
            items.append(Item(key=name, parts=parts, split=splits.get(name)))
        return items

    def _metadata(self) -> dict[str, tuple[str, str | None]]:
        """Partner and split of each Sentinel-2 patch by version 2's table; empty where there is none."""
        for path in files_below(self._root, ".parquet"):
            if os.path.basename(path) != "metadata.parquet":
                continue
            try:
                columns = pq.read_table(path, columns=["patch_id", "s1_name", "split"]).to_pydict()
            except (pa.ArrowException, OSError) as error:
                raise StoreError(
                    path, got=str(error).splitlines()[0], expected="the columns patch_id, s1_name and split",
                    next_step="Fetch the file again.",
                ) from error  # fmt: skip
            rows = zip(columns["patch_id"], columns["s1_name"], columns["split"], strict=True)
            return {s2: (s1, SPLIT_NAMES.get(str(split), split)) for s2, s1, split in rows}
        return {}

    def _partners(self, radar: Mapping[str, str]) -> dict[str, str]:
        found = {}
        for name, folder in radar.items():
            path = os.path.join(folder, f"{name}_labels_metadata.json")
            partner = _json(path).get("corresponding_s2_patch")
            if isinstance(partner, str) and _S2.fullmatch(partner):
                found[name] = partner
            else:
                self._failures.append(
                    Failure(
                        source=folder,
                        message=f"{path}: got no corresponding_s2_patch, expected the name of its partner (or, for "
                        "version 2, a metadata.parquet in the folder). Fetch the file again.",
                    )
                )
        return found

    def _splits(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in files_below(self._root, ".csv"):
            split = SPLIT_NAMES.get(os.path.splitext(os.path.basename(path))[0].lower())
            if split is not None:
                with open(path, newline="", encoding="utf-8", errors="replace") as file:
                    for row in csv.reader(file):
                        found |= {cell.strip(): split for cell in row if _S2.fullmatch(cell.strip())}
        return found


def _band(folder: str, band: str, spec: ViewSpec, time: datetime | None) -> Raster:
    name = os.path.basename(folder)
    radar = spec.sensor.startswith("sentinel-1-")
    declared = Declared(
        sensor=spec.sensor, bands=(band,), unit=Unit.DB if radar else None, offset=None if radar else 0.0,
        time=time,
    )  # fmt: skip
    with open_raster(os.path.join(folder, f"{name}_{band}.tif"), declared) as file:
        return file.read()


def _time(folder: str) -> datetime | None:
    """By the metadata, since names of version 1 lost leading zeros; else by the name."""
    name = os.path.basename(folder)
    facts = _json(os.path.join(folder, f"{name}_labels_metadata.json"))
    for key in ("acquisition_date", "acquisition_time"):
        try:
            moment = datetime.fromisoformat(str(facts[key]))
        except (KeyError, ValueError):
            continue
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return facts_from_name(name).time


def _json(path: str) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.loads(file.read(_JSON_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_offset(rasters: Sequence[Raster], told: str) -> None:
    """Refuse a patch whose Sentinel-2 bands look as if 1000 had been added, as neither version's do."""
    counts = {
        band.name: stored[raster.valid]
        for raster in rasters
        if raster.sensor.kind == "optical"
        for band, stored in zip(raster.bands, raster.pixels, strict=True)
    }
    evidence = weigh(counts, level="l2a")
    if evidence.verdict is Verdict.ADDED:
        raise StoreError(
            f"{told}: Sentinel-2 offset", got=f"{evidence.verdict} ({evidence.reason})",
            expected="none, as in BigEarthNet", next_step="Import files of another origin as pairs.",
        )  # fmt: skip
