"""Classified tiles as plain values, GeoJSON or a table, and maps of classes as GeoTIFFs."""

from __future__ import annotations

import colorsys
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from alidade.errors import ArchiveError
from alidade.imagery.gdal import quietly, reading
from alidade.search.class_map import NODATA, ClassMap
from alidade.search.classify import Classified, TileClasses
from alidade.search.disk import save

ENDINGS = ("geojson", "csv")
"""What ``write`` can write; the ending of the file name decides."""
_FIRST = ((31, 119, 180), (44, 160, 44), (214, 39, 40), (255, 187, 51), (148, 103, 189), (140, 86, 75), (227, 119, 194))


def to_json(found: Classified) -> dict[str, Any]:
    """Plain values: ``model``, ``classes``, ``sentences``, ``files`` and ``failures``; no single tiles."""
    names = found.classes.names
    return {
        "model": found.classes.model,
        "classes": list(names),
        "sentences": list(found.classes.sentences),
        "files": [
            {
                "source": file.source,
                "sensor": file.sensor,
                "class": names[file.best],
                "probabilities": _named(names, file.probabilities),
                "shares": _named(names, file.shares),
                "tiles": len(file.tiles),
                "nodata_tiles": file.nodata_tiles,
            }
            for file in found.files
        ],
        "failures": [{"source": f.source, "message": f.message} for f in found.failures],
    }


def to_geojson(found: Classified) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946), one feature a tile; a tile without a place has a null geometry."""
    features = [
        {
            "type": "Feature",
            "geometry": None if tile.footprint is None else tile.footprint.geojson(),
            "properties": row,
        }
        for tile, row in _rows(found)
    ]
    about = {k: v for k, v in to_json(found).items() if k in ("model", "classes", "sentences")}
    return {"type": "FeatureCollection", "alidade": about, "features": features}


def to_csv(found: Classified) -> str:
    """A table with one line a tile: its pixels, its centre in degrees, its class, and every class's probability."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    fixed = ("source", "sensor", "row", "col", "height", "width", "class", "probability")
    table.writerow([*fixed, "lon", "lat", *found.classes.names])
    for tile, row in _rows(found):
        lon, lat = ("", "") if tile.footprint is None else (f"{degrees:.7f}" for degrees in tile.footprint.centre())
        table.writerow([*(row[name] for name in fixed), lon, lat, *row["probabilities"].values()])
    return text.getvalue()


def _rows(found: Classified) -> Iterable[tuple[TileClasses, dict[str, Any]]]:
    names = found.classes.names
    for file in found.files:
        for tile in file.tiles:
            best, w = int(tile.probabilities.argmax()), tile.window
            told = _named(names, tile.probabilities)
            place = {"row": w.row, "col": w.col, "height": w.height, "width": w.width}
            about = {"class": names[best], "probability": told[names[best]], "probabilities": told}
            yield tile, {"source": file.source, "sensor": file.sensor, **place, **about}


def _named(names: Sequence[str], values: NDArray[Any]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def check_ending(path: Path) -> str:
    """Which of ``ENDINGS`` a file will hold.

    Raises:
        ArchiveError: its name ends otherwise.
    """
    ending = path.suffix.lstrip(".").lower()
    if ending not in ENDINGS:
        raise ArchiveError(
            f"{path}: format of the classes",
            got=repr(ending),
            expected=f"a name that ends with .{' or .'.join(ENDINGS)}",
            next_step="Name another --out.",
        )
    return ending


def write(found: Classified, path: Path) -> None:
    """Write the tiles' classes, whole or not at all; an existing file is replaced.

    Raises:
        ArchiveError: a name with another ending, or the file cannot be written.
    """
    if check_ending(path) == "csv":
        content = to_csv(found)
    else:
        content = json.dumps(to_geojson(found), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    save(path, content.encode(), instead="Name another file.")


def colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ, the first seven chosen, the others by turning the hue by the golden angle."""
    made = (
        colorsys.hsv_to_rgb((0.11 + 0.382 * i) % 1.0, 0.55 + 0.15 * (i % 3), 0.9 - 0.2 * (i % 2)) for i in range(count)
    )
    turned = [tuple(round(255 * v) for v in colour) for colour in made]
    return [(r, g, b) for r, g, b in [*_FIRST, *turned][:count]]


def write_map(found: ClassMap, path: Path) -> None:
    """Write the map of classes as a GeoTIFF with a colour table, whole or not at all; an existing file is replaced.

    Names are in the band's description and in its tags ``CLASS_1``, ``CLASS_2`` and so on; the model's identity and the
    list of classes as JSON are in the tags ``ALIDADE_MODEL`` and ``ALIDADE_CLASSES``.

    Raises:
        ArchiveError: the file cannot be written.
    """
    names = found.classes.names
    told = "class: " + ", ".join(f"{i} {name}" for i, name in enumerate(names, start=1))
    table = {NODATA: (0, 0, 0, 0)} | {i: (*c, 255) for i, c in enumerate(colours(len(names)), start=1)}
    _write(path, found, found.numbers[None], [told], table)


def write_probabilities(found: ClassMap, path: Path) -> None:
    """Write the probabilities as a GeoTIFF with one band a class, 255 for 1, and a mask where there is no data.

    Raises:
        ArchiveError: they were not asked for, or the file cannot be written.
    """
    if found.probabilities is None:
        raise ArchiveError(
            f"{path}: probabilities",
            got="a map made without them",
            expected="map_classes(..., probabilities=True)",
            next_step="Make the map anew.",
        )
    _write(path, found, found.probabilities, list(found.classes.names), None)


def _write(
    path: Path,
    found: ClassMap,
    pixels: NDArray[np.uint8],
    told: list[str],
    table: Mapping[int, tuple[int, int, int, int]] | None,
) -> None:
    names, grid = found.classes.names, found.grid
    side = min(256, -(-max(pixels.shape[1:]) // 16) * 16)
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": len(pixels), "height": grid.height, "width": grid.width, "dtype": "uint8",
        "tiled": True, "blockxsize": side, "blockysize": side, "compress": "deflate", "bigtiff": "if_safer",
        "photometric": "minisblack" if table is None else "palette", "alpha": "no",
        "nodata": None if table is None else NODATA,
    }  # fmt: skip
    if grid.crs is not None:
        profile["crs"] = grid.crs.to_wkt()
    # a scene without a place has none here either
    if grid.crs is not None or grid.transform != Affine.scale(found.patch):
        profile["transform"] = grid.transform
    tags = {"ALIDADE_MODEL": found.classes.model, "ALIDADE_CLASSES": json.dumps(names, ensure_ascii=False)}
    tags |= {"ALIDADE_SOURCE": found.source, "ALIDADE_PATCH": str(found.patch)}
    # made in memory: GDAL may swallow errors of the disk, Python does not
    content = io.BytesIO()
    with reading(str(path), None), quietly(), rasterio.open(content, "w", **profile) as dataset:
        dataset.update_tags(**tags)
        dataset.descriptions = told
        if table is None:
            dataset.scales = (1 / 255,) * len(pixels)
            dataset.write_mask(found.numbers != NODATA)
        else:
            dataset.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(names, start=1)})
            dataset.write_colormap(1, table)
        dataset.write(pixels)
    save(path, content.getbuffer(), instead="Name another file.")
