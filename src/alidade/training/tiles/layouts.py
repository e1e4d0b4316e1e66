"""What imports have in common: a layout lists the samples of a data set and reads one of them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol

import numpy as np

from alidade.errors import GridError, SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.clouds import reflectance_cloud_share
from alidade.imagery.footprint import unwrap_lon
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.training.tiles.align import encode
from alidade.training.tiles.scenes import Failure, View
from alidade.training.tiles.schema import SampleView, StoreError, ViewSpec

DISPLAY_SAR = "display-sar"
"""Sensor id of 8-bit pictures of backscatter, which hold neither dB nor power."""

DB, DISPLAY = Encoding(unit=Unit.DB, nodata=float("nan")), Encoding(unit=Unit.DISPLAY)

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}
"""How folders and lists name their splits, and how a store does."""

SAME_PLACE_PX = 0.5
"""Views of a sample show the same ground when no corner is further off than so many of the coarser pixels."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where pixels lie: a file or folder, or a piece of a file.

    Attributes:
        path: the file or folder.
        offset, size: the piece's first byte and length, where a layout needs them.
    """

    path: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Item:
    """A sample as it is listed; none of its pixels have been read.

    Attributes:
        key: becomes the sample's id.
        parts: by view name; views that are missing are left out.
        group: samples of one group always share a split; where ``None``, those of one cell of about 10 km do.
        split: what the data set itself says, ``None`` where it is silent.
    """

    key: str
    parts: Mapping[str, tuple[Part, ...]]
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A sample that was read: its views, and the grid of the first one, which tells the place."""

    views: dict[str, SampleView]
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user can say about a data set; each layout uses some of it and refuses the rest.

    Attributes:
        views: sensors and band names (in file order, ``"-"`` for one not to be read) of ``pairs``.
        pattern: regular expression with a group ``key`` and, optionally, ``view`` (else the folder's name), ``split``
            and ``date``.
        name: goes before the keys, so that two folders with equal file names can feed one store.
        cut: every file is cut into ``cut`` x ``cut`` pieces, each a sample of its own.
        units, scales, offsets, nodata: by view name, see ``Declared``.
    """

    views: Sequence[View] = ()
    pattern: str | None = None
    name: str | None = None
    cut: int = 1
    units: Mapping[str, Unit] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    nodata: Mapping[str, float] = field(default_factory=dict)

    def refuse(self, layout: str, *, but: Sequence[str] = ()) -> None:
        """Refuse options that the layout has no use for.

        Raises:
            StoreError: one is given that is not among ``but``.
        """
        plain = Options()
        given = [n for n in self.__dataclass_fields__ if n not in but and getattr(self, n) != getattr(plain, n)]
        if given:
            raise StoreError(
                f"layout {layout}: options", got=", ".join(given), expected=", ".join(but) or "none of these",
                next_step="Leave them out: what the data set holds is known.",
            )  # fmt: skip


class Layout(Protocol):
    """One way in which data sets lie on disk."""

    @property
    def views(self) -> dict[str, ViewSpec]:
        """The views that there are."""

    @property
    def least(self) -> int:
        """How many views a sample needs unless the user says otherwise."""

    def items(self) -> tuple[list[Item], list[Failure]]:
        """All samples, and what could not even be listed."""

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """Read some of the views of a sample.

        Raises:
            AlidadeError: they are damaged, of another kind than they should be, or do not show the same ground.
        """


def optional(module: str, layout: str) -> ModuleType:
    """A package that only imports need.

    Raises:
        StoreError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StoreError(
            f"layout {layout}: package", got=f"no {error.name or module}", expected="the extra `import`",
            next_step="Install it: pip install 'alidade[import]'.",
        ) from error  # fmt: skip


def files_below(root: str, *suffixes: str) -> Iterator[str]:
    """Paths of the files with one of these endings, in order of their names; hidden ones are left out.

    Raises:
        StoreError: ``root`` is no folder.
    """
    if not os.path.isdir(root):
        got = "a file" if os.path.exists(root) else "no such folder"
        raise StoreError(root, got=got, expected="a folder", next_step="Name the data set's folder.")
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(folder, name)


def stack(rasters: Sequence[Raster]) -> Raster:
    """Bands of one image that come as a file each, as one raster.

    Whole numbers are data where any band has data (a dark pixel may be 0 in one), real ones where all have.

    Raises:
        GridError: the files do not lie on one grid.
    """
    first = rasters[0]
    for other in rasters[1:]:
        same = (other.grid.transform, other.grid.width, other.grid.height, other.grid.crs)
        if same != (first.grid.transform, first.grid.width, first.grid.height, first.grid.crs):
            raise GridError(
                f"{other.source}: grid", got="another CRS, place or size", expected=f"that of {first.source}",
                next_step="Fetch the files again: bands of one image lie on one grid.",
            )  # fmt: skip
    masks = np.stack([r.valid for r in rasters])
    pixels = np.concatenate([r.pixels for r in rasters])
    return replace(
        first,
        pixels=pixels,
        bands=tuple(b for r in rasters for b in r.bands),
        encodings=tuple(e for r in rasters for e in r.encodings),
        valid=np.asarray(masks.any(axis=0) if pixels.dtype.kind in "ui" else masks.all(axis=0)),
    )


def view_from(raster: Raster, spec: ViewSpec) -> SampleView:
    """A raster as it goes into the store.

    Raises:
        StoreError: it has another size, or numbers that the view's type cannot hold.
        SensorError: a band is missing or in another unit.
    """
    height, width = raster.valid.shape
    if (height, width) != (spec.side, spec.side):
        raise StoreError(
            f"{raster.source}: size", got=f"{height} x {width} px", expected=f"{spec.side} x {spec.side} px",
            next_step="Leave the file out, or import files of one size at a time into stores of their own.",
        )  # fmt: skip
    chosen = raster.select(spec.bands)
    for band, theirs, ours in zip(chosen.bands, chosen.encodings, spec.encodings, strict=True):
        if theirs.unit is not ours.unit:
            raise SensorError(
                f"{raster.source}: unit of band {band.name}", got=theirs.unit.value, expected=ours.unit.value,
                next_step="Units are never mixed: make another store of such files.",
            )  # fmt: skip
    if not np.can_cast(chosen.pixels.dtype, spec.dtype):
        raise StoreError(
            f"{raster.source}: type of pixels", got=str(chosen.pixels.dtype), expected=spec.dtype,
            next_step="Convert the files to one type, or make another store of such files.",
        )  # fmt: skip
    if raster.pixels.dtype.kind == "f":
        # what is not data may be a number that cannot even be converted
        raster = replace(raster, pixels=np.where(raster.valid, raster.pixels, raster.pixels.dtype.type(0)))
    return SampleView(
        pixels=encode(raster, spec), valid=raster.valid, gsd_m=raster.grid.gsd_m(), time=raster.time,
        source=raster.source, cloud_share=reflectance_cloud_share(raster),
    )  # fmt: skip


def check_same_ground(first: Grid, other: Grid, told: str) -> None:
    """Refuse grids that do not show the same ground.

    Args:
        first: the sample's first view.
        other: another view; its CRS may differ as long as its corners lie where they should.
        told: what it belongs to, for the message.

    Raises:
        GridError: a corner is further off than half a pixel of the coarser grid, or only one of them has a place.
    """
    if first.crs is None or other.crs is None:
        same = (
            first.crs is other.crs
            and abs(first.width * first.gsd_m()[0] / (other.width * other.gsd_m()[0]) - 1.0) < 0.01
        )
        off = "another extent, or only one of the views with a CRS"
    else:
        rows, cols = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
        places = other.to_lonlat(rows * other.height, cols * other.width)
        there_rows, there_cols = first.from_lonlat(*places)
        distance = np.hypot(there_rows - rows * first.height, there_cols - cols * first.width).max()
        metres = float(distance) * first.mean_gsd_m()
        limit = SAME_PLACE_PX * max(first.mean_gsd_m(), other.mean_gsd_m())
        same = bool(np.isfinite(metres)) and metres <= limit
        off = f"corners up to {metres:,.1f} m away, at most {limit:.1f} m allowed"
    if not same:
        raise GridError(
            f"{told}: ground", got=off, expected="all views over the same ground",
            next_step="Leave the pair out, or let `alidade tiles build` lay the files onto one grid.",
        )  # fmt: skip


def place_of(grid: Grid) -> tuple[float, float, tuple[float, float, float, float]] | None:
    """Longitude and latitude of the centre, and the box (west, south, east, north); ``None`` without a CRS."""
    if grid.crs is None:
        return None
    rows, cols = np.array([0.0, 0.0, 1.0, 1.0]) * grid.height, np.array([0.0, 1.0, 1.0, 0.0]) * grid.width
    lon, lat = grid.to_lonlat(np.append(rows, grid.height / 2), np.append(cols, grid.width / 2))
    path = unwrap_lon(lon)
    west, east = float(path[:4].min()), float(path[:4].max())
    turn = 360.0 * np.floor((west + 180.0) / 360.0)
    west, east = west - turn, east - turn
    box = (west, float(lat[:4].min()), east - 360.0 if east > 180.0 else east, float(lat[:4].max()))
    return float(lon[4]), float(lat[4]), box
