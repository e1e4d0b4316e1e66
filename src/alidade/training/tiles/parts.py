"""A scene of one or several files as one raster on a square's pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alidade.imagery.files import RasterFile
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.training.tiles.align import align
from alidade.training.tiles.scenes import Part, Scene


def laid(scene: Scene, bands: tuple[str, ...], grid: Grid, opened: Callable[[Part], RasterFile]) -> Raster | None:
    """The scene's bands on ``grid``, each file laid onto it from its own CRS and resolution; see ``align``.

    A pixel is valid where it is valid in every file: a band that is missing there is not invented.

    Args:
        scene: has the bands.
        bands: names, in the order wanted.
        grid: north-up pixels on the ground.
        opened: opens a part, or finds it open.

    Returns:
        float32 or float64 stored numbers; ``None`` where a file does not reach the grid.

    Raises:
        RasterError: a file cannot be opened or read.
        GridError: a place that a file's projection does not know.
    """
    layers = []
    for part in scene.parts:
        mine = tuple(b for b in bands if b in part.bands)
        if mine:
            layer = align(opened(part), mine, grid)
            if layer is None:
                return None
            layers.append(layer)
    first = layers[0]
    if len(layers) == 1:
        return first
    together = Raster(
        pixels=np.concatenate([layer.pixels for layer in layers]),
        bands=tuple(b for layer in layers for b in layer.bands),
        encodings=tuple(e for layer in layers for e in layer.encodings),
        valid=np.logical_and.reduce([layer.valid for layer in layers]),
        grid=grid, sensor=first.sensor, time=scene.time, source=scene.source,
    )  # fmt: skip
    return together.select(bands)
