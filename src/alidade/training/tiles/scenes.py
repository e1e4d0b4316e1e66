"""The scenes that tiles are made of, and the views that follow from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np

from alidade.errors import AlidadeError, GridError, RasterError, SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.grid import Grid
from alidade.imagery.header import Catalogued
from alidade.imagery.sensors import sensor as sensor_of
from alidade.training.tiles.grid import nominal_gsd
from alidade.training.tiles.schema import StoreError, ViewSpec
from alidade.training.tiles.store import read_header

_SUFFIXES = (".tif", ".tiff")
MIN_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class View:
    """What one view of the samples shall hold.

    Attributes:
        name: its name in the store.
        sensor: the sensor's id; all scenes of it feed this view.
        bands: names in the order wanted; by default all measured bands that every scene of the sensor has.
        gsd_m: metres per pixel on the square's grid; by default the step of the grid's ladder (0.625 m times a
            power of two) nearest to the scenes' own.
    """

    name: str
    sensor: str
    bands: tuple[str, ...] | None = None
    gsd_m: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scene that could not be used, and why, in one line."""

    source: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a scene.

    Attributes:
        path: a local path, or an http address.
        bands: names of the bands that are taken from it.
        said: what a catalogue says about it.
    """

    path: str
    bands: tuple[str, ...]
    said: Catalogued | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one sensor took at one moment: one file, or several with some bands each.

    Attributes:
        source: the path as given, or the catalogue's name of it.
        state: what the pixels depend on as far as can be told: path, size, time of change.
        sensor: its id.
        bands: encodings by band name, in file order.
        dtype: type that holds the stored numbers of all its files.
        grid: where its pixels lie, those of the finest file; has a CRS.
        gsd_m: mean true ground metres per pixel of that grid.
        time: moment of acquisition.
        parts: its files; each band is in one of them.
    """

    source: str
    state: str
    sensor: str
    bands: Mapping[str, Encoding]
    dtype: str
    grid: Grid
    gsd_m: float
    time: datetime | None
    parts: tuple[Part, ...]


def expand(paths: Iterable[str | Path]) -> list[str]:
    """Files, and the ``.tif`` and ``.tiff`` files below folders, each once; folders sorted.

    Raises:
        RasterError: nothing at all, folders without a GeoTIFF, or a folder that cannot be read.
    """
    given = [str(p) for p in paths]
    found: dict[str, str] = {}
    for path in given:
        walked = os.walk(path, onerror=_unreadable)
        inside = (os.path.join(root, name) for root, _, names in walked for name in names)
        wanted = (f for f in inside if f.lower().endswith(_SUFFIXES) and not os.path.basename(f).startswith("."))
        for file in sorted(wanted) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise RasterError(
            "paths to make tiles of", got=", ".join(given) or "nothing",
            expected="GeoTIFF files, or folders that hold *.tif or *.tiff",
            next_step="Name at least one file or folder.",
        )  # fmt: skip
    return list(found.values())


def _unreadable(error: OSError) -> None:
    raise RasterError(
        f"folder {error.filename}", got=error.strerror or str(error), expected="a folder that can be read",
        next_step="Give it the permission to be read, or name the folders beside it.",
    ) from None  # fmt: skip


def list_scenes(files: Sequence[str], declared: Declared) -> tuple[list[Scene], list[Failure]]:
    """Read the headers; files that cannot be aligned are failures of their own, and the others go on."""
    scenes, failures = [], []
    for source in files:
        try:
            scenes.append(_scene(source, declared))
        except AlidadeError as error:
            failures.append(Failure(source=source, message=str(error)))
    return scenes, failures


def _scene(source: str, declared: Declared) -> Scene:
    with open_raster(source, declared) as file:
        if file.grid.crs is None:
            raise GridError(
                f"{source}: CRS", got="none", expected="a place on the ground, to align it with other sensors",
                next_step="Give the file its georeference (gdal_edit.py -a_srs -a_ullr), or leave it out.",
            )  # fmt: skip
        status = os.stat(source)
        return Scene(
            source=source,
            state=f"{os.path.realpath(source)} {status.st_size} {status.st_mtime_ns}",
            sensor=file.sensor.id,
            bands=dict(zip((b.name for b in file.bands), file.encodings, strict=True)),
            dtype=str(file.dtype),
            grid=file.grid,
            gsd_m=file.grid.mean_gsd_m(),
            time=file.time,
            parts=(Part(path=source, bands=tuple(b.name for b in file.bands)),),
        )


def default_views(scenes: Sequence[Scene]) -> list[View]:
    """One view for each sensor there is, named like the sensor, in alphabetical order."""
    return [View(name=s, sensor=s) for s in sorted({s.sensor for s in scenes})]


def specs_of(views: Sequence[View], scenes: Sequence[Scene], square_m: float) -> dict[str, ViewSpec]:
    """What each view holds, from what its scenes hold.

    Scenes of one sensor may be encoded differently (Sentinel-2 before and since baseline 04.00). The view then takes
    the commonest unit and, of its encodings, the one with the lowest offset, which can hold what the others hold;
    pixels of the other scenes are converted to it.

    Raises:
        StoreError: a view without a scene, twice, with bands that not one of its scenes has, or with pixels that do
            not fit the square.
        SensorError: an unknown sensor.
    """
    names = Counter(v.name for v in views)
    if not views or max(names.values()) > 1:
        raise StoreError(
            "views", got=", ".join(v.name for v in views) or "none", expected="at least one, each name once",
            next_step="Name the views apart: --view NAME=SENSOR.",
        )  # fmt: skip
    return {v.name: _spec(v, [s for s in scenes if s.sensor == sensor_of(v.sensor).id], square_m) for v in views}


def _spec(view: View, scenes: Sequence[Scene], square_m: float) -> ViewSpec:
    told = f"view {view.name}"
    if not scenes:
        raise StoreError(
            told, got=f"no usable scene of {view.sensor}", expected="at least one",
            next_step="Check with `alidade inspect` what the files are, or leave the view out.",
        )  # fmt: skip
    bands = _bands(view, scenes)
    fitting = [s for s in scenes if set(bands) <= set(s.bands)]
    if not bands or not fitting:
        raise StoreError(
            f"{told}: bands", got=", ".join(bands) or "none that all scenes have",
            expected=f"bands that a scene has, such as {', '.join(scenes[0].bands)}",
            next_step=f"Name them: --view {view.name}={view.sensor}:BAND,BAND.",
        )  # fmt: skip
    gsd = view.gsd_m or nominal_gsd(median(s.gsd_m for s in fitting))
    side = round(square_m / gsd)
    if side < MIN_SIDE or abs(side * gsd - square_m) > 1e-6 * square_m:
        raise StoreError(
            f"{told}: pixels", got=f"{square_m / gsd:g} of {gsd:g} m along a square of {square_m:g} m",
            expected=f"a whole number, at least {MIN_SIDE}",
            next_step="Pass larger squares, or another ground resolution: NAME=SENSOR:BANDS@METRES.",
        )  # fmt: skip
    return ViewSpec(
        sensor=sensor_of(view.sensor).id,
        bands=bands,
        side=side,
        dtype=str(np.result_type(*(np.dtype(s.dtype) for s in fitting))),
        encodings=tuple(_common(band, fitting) for band in bands),
    )


def _bands(view: View, scenes: Sequence[Scene]) -> tuple[str, ...]:
    sensor = sensor_of(view.sensor)
    if view.bands is not None:
        known = {name.casefold(): name for s in scenes for name in s.bands}
        return tuple(known.get(b.casefold()) or sensor.band(b).name for b in view.bands)
    common = set.intersection(*(set(s.bands) for s in scenes))
    return tuple(name for name in sensor.band_names if name in common)


def _common(band: str, scenes: Sequence[Scene]) -> Encoding:
    encodings = [s.bands[band] for s in scenes]
    unit = Counter(e.unit for e in encodings).most_common(1)[0][0]
    return min((e for e in encodings if e.unit is unit and e.offset is not None), key=lambda e: (e.offset, e.scale))


def check_fits(scene: Scene, view: str, spec: ViewSpec) -> None:
    """Refuse a scene that cannot feed a view.

    Raises:
        SensorError: a band is missing, or in a unit that is not the view's.
    """
    for band, ours in zip(spec.bands, spec.encodings, strict=True):
        theirs = scene.bands.get(band)
        if theirs is None or theirs.unit is not ours.unit:
            raise SensorError(
                f"{scene.source}: band {band} for view {view}",
                got="none" if theirs is None else f"unit {theirs.unit.value}",
                expected=f"unit {ours.unit.value}, as the view's other scenes have",
                next_step="Make another store of such files, or name bands that all scenes have.",
            )
        if ours.unit is Unit.CLASS:
            continue
        if theirs.offset is None:
            raise SensorError(
                f"{scene.source}: offset of band {band}", got="none in the file", expected="a known one",
                next_step="Pass it with --offset.",
            )  # fmt: skip


def resolve_views(
    folder: Path, views: Sequence[View] | None, scenes: Sequence[Scene], square_m: float
) -> dict[str, ViewSpec]:
    """The views: those asked for, else the store's own, else those that follow from the scenes.

    Raises:
        StoreError: see ``specs_of``; or the store in ``folder`` cannot be read.
        SensorError: an unknown sensor.
    """
    if (folder / "store.json").exists():
        there = read_header(folder)
        if views is None:
            return there.views
        # an existing store has settled what the scenes would otherwise decide: type and encodings
        asked = {v.name: v for v in views}
        if list(asked) == list(there.views) and all(_agrees(asked[n], s, square_m) for n, s in there.views.items()):
            return there.views
    return specs_of(views if views is not None else default_views(scenes), scenes, square_m)


def _agrees(view: View, spec: ViewSpec, square_m: float) -> bool:
    return (
        view.sensor == spec.sensor
        and (view.bands is None or view.bands == spec.bands)
        and (view.gsd_m is None or round(square_m / view.gsd_m) == spec.side)
    )


def feeds_of(
    scenes: Sequence[Scene], specs: dict[str, ViewSpec], failures: list[Failure]
) -> tuple[list[Scene], list[list[str]]]:
    """The scenes that fill a view, and which; those that should but cannot become failures."""
    kept, feeds = [], []
    for scene in scenes:
        views = []
        try:
            for name, spec in specs.items():
                if spec.sensor == scene.sensor:
                    check_fits(scene, name, spec)
                    views.append(name)
        except AlidadeError as error:
            failures.append(Failure(source=scene.source, message=str(error)))
            continue
        kept.append(scene)
        feeds.append(views)
    return kept, feeds
