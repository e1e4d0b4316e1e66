"""SEN12MS: Sentinel-1 and Sentinel-2 patches of 256 px that overlap by half within a scene.

M. Schmitt, L. H. Hughes, C. Qiu, X. X. Zhu, SEN12MS, ISPRS Annals IV-2/W7, 2019,
doi:10.5194/isprs-annals-IV-2-W7-153-2019.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.sensors import sensor
from alidade.training.tiles.layouts import (
    DB,
    Found,
    Item,
    Options,
    Part,
    check_same_ground,
    files_below,
    view_from,
)
from alidade.training.tiles.scenes import Failure
from alidade.training.tiles.schema import StoreError, ViewSpec

_NAME = re.compile(r"(ROIs\d+_[a-z]+)_(s1|s2|s2_cloudy)_(\d+)_p(\d+)\.tif")
_HELD_OUT = re.compile(r"(ROIs\d+_[a-z]+)[/_\\]s1_(\d+)\b")
_HELD_OUT_FILE = "SEN12MS_holdOutScenes.txt"

_RADAR = ViewSpec(sensor="sentinel-1-grd", bands=("VV", "VH"), side=256, dtype="float32", encodings=(DB, DB))
_OPTICAL = ViewSpec(
    sensor="sentinel-2-l1c", bands=sensor("sentinel-2-l1c").band_names, side=256, dtype="uint16",
    # all acquisitions are of 2016 and 2017, long before processing baseline 04.00
    encodings=(Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=0.0, nodata=0),) * 13,
)  # fmt: skip
_SPECS = {"s1": _RADAR, "s2": _OPTICAL, "s2-cloudy": _OPTICAL}


class Sen12MS:
    """``ROIs####_season/s1_N/ROIs####_season_s1_N_pP.tif`` and the like for ``s2``; also SEN12MS-CR's ``s2_cloudy``.

    The folders do not matter, the file names do. Land cover (``lc``) is not taken in: a store holds images. The data
    set names no dates. Where its list of held-out scenes is there, those are the split ``test``.

    Args:
        root: the folder.
        options: none are used.
        known: not used.

    Raises:
        StoreError: no such folder, an option, or a file that is there twice.
    """

    least = 2

    def __init__(self, root: str, options: Options, known: Mapping[str, ViewSpec] | None) -> None:
        options.refuse("sen12ms")
        self._root = root
        self._items = self._list()
        there = {name for item in self._items for name in item.parts}
        self.views = {name: spec for name, spec in _SPECS.items() if name in there}

    def items(self) -> tuple[list[Item], list[Failure]]:
        """Every patch of every scene; the scene is the group."""
        return self._items, []

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """See ``Layout.read``."""
        read, grids = {}, []
        for name in views:
            spec = self.views[name]
            radar = name == "s1"
            declared = Declared(
                sensor=spec.sensor, bands=spec.bands, unit=Unit.DB if radar else None, offset=None if radar else 0.0
            )
            with open_raster(item.parts[name][0].path, declared) as file:
                raster = file.read()
            grids.append(raster.grid)
            check_same_ground(grids[0], raster.grid, item.key)
            read[name] = view_from(raster, spec)
        return Found(views=read, grid=grids[0])

    def _list(self) -> list[Item]:
        held_out = self._held_out()
        parts: dict[tuple[str, int, int], dict[str, tuple[Part, ...]]] = {}
        for path in files_below(self._root, ".tif"):
            found = _NAME.fullmatch(os.path.basename(path))
            if found is None:
                continue
            season, kind, scene, patch = found.groups()
            halves = parts.setdefault((season, int(scene), int(patch)), {})
            view = kind.replace("_", "-")
            if view in halves:
                raise StoreError(
                    f"{self._root}: names", got=f"{halves[view][0].path} and {path}", expected="each patch once",
                    next_step="Import one copy of the data set.",
                )  # fmt: skip
            halves[view] = (Part(path=path),)
        return [
            Item(
                key=f"{season}_{scene}_p{patch}", parts=halves, group=f"{season}_{scene}",
                split=None if held_out is None else "test" if (season, scene) in held_out else "train",
            )
            for (season, scene, patch), halves in sorted(parts.items())
        ]  # fmt: skip

    def _held_out(self) -> set[tuple[str, int]] | None:
        """The scenes that the authors' own list holds out, ``None`` where the list is not there."""
        for path in files_below(self._root, ".txt"):
            if os.path.basename(path) == _HELD_OUT_FILE:
                with open(path, encoding="utf-8", errors="replace") as file:
                    return {(m[1], int(m[2])) for line in file if (m := _HELD_OUT.search(line)) is not None}
        return None
