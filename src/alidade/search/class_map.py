"""A map of named classes at the resolution of the model's patches, as a GeoTIFF on the scene's own grid.

Each pixel of the map is one patch. A patch alone says little: words were learnt on pooled images. So a patch shows what
the model's head makes of it and its neighbours. Attention carries what is elsewhere in an image into every token, so
windows are small, half of a usual tile; they overlap, and a patch has the mean of all windows that saw it, heaviest
where it lies in their middle: no seams show where windows begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from torch.nn import functional as F

from alidade.errors import ModelError, RasterError
from alidade.imagery.bands import Sensor
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.windows import MAX_PIXELS, Window
from alidade.models.model import Model
from alidade.models.scale_alibi import Head
from alidade.models.tokens import Tokens
from alidade.models.words import tower_of
from alidade.search.classify import Classes, Probabilities

RADIUS = 4
"""Patches on each side that are pooled with the one in the middle.

With windows of 8 patches it did best over fields of 64 and 128 pixels together (EuroSAT chips side by side, class
vectors fitted on whole chips): 1 gave 31 % and 34 % of all patches right, 4 gave 36 % and 49 %; in windows of 16
patches 4 gave 29 % and 42 %.
"""
OVERLAP = 4
"""Windows begin every so many parts of their side, so that each patch is seen ``OVERLAP ** 2`` times.

Moving a NAIP scene by one patch changed 27 % of the map's pixels at 2, 13 % at 4 and 2 % at 8, with ten classes none of
which fits well; each doubling takes three to four times as long.
"""
NODATA = 0
"""In the map of classes; class ``i`` of the list is ``i + 1``."""


class Progress(Protocol):
    """What a caller can show meanwhile; the library itself prints nothing."""

    def started(self, *, tiles: int, sources: int) -> None:
        """So many windows will be read."""

    def advanced(self, *, tiles: int, source: str) -> None:
        """So many more are done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMap:
    """A map in memory.

    Attributes:
        classes: what it shows.
        numbers: ``[h, w]`` uint8; ``NODATA``, or 1 more than the place in ``classes.names``.
        probabilities: ``[C, h, w]`` uint8, 255 for 1; ``None`` when they were not asked for.
        grid: of the map: the scene's with pixels as large as patches.
        source: the scene.
        patch: side of a pixel of the map in pixels of the scene.
    """

    classes: Classes
    numbers: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None
    grid: Grid
    source: str
    patch: int

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class among the map's pixels with data; empty for a map without any."""
        counts = np.bincount(self.numbers.ravel(), minlength=len(self.classes.names) + 1)[1:]
        total = int(counts.sum())
        return {n: int(c) / total for n, c in zip(self.classes.names, counts, strict=True)} if total else {}


def starts(total: int, side: int, overlap: int) -> list[int]:
    """Where windows of ``side`` patches begin along ``total``: every ``side / overlap`` patches, and one at the end.

    Windows lie inside the scene; a scene that is smaller is one window.
    """
    last = max(total - side, 0)
    return sorted({*range(0, last, max(side // overlap, 1)), last})


def map_classes(
    path: str | Path,
    model: Model,
    classes: Classes,
    *,
    declared: Declared | None = None,
    window: int | None = None,
    radius: int = RADIUS,
    overlap: int = OVERLAP,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> ClassMap:
    """The classes of every patch of one scene.

    A patch with data gets a class from the patches with data among it and its neighbours; one without any data is
    ``NODATA``. Memory: the pixels of a few rows of windows, and the map itself, which for patches of 8 pixels is 64
    times smaller than a band of the scene.

    Args:
        path: a GeoTIFF.
        model: one that has the classes' words.
        classes: of ``make_classes`` with this model.
        declared: what the file does not say itself.
        window: side in pixels of what the model sees at once, a multiple of its patch; half its usual tile by default.
        radius: patches on each side that are pooled together; 0 for each patch alone.
        overlap: how many windows see a patch in each direction; 1 for windows side by side.
        probabilities: whether to keep every class's probability too.
        progress: is told how far the run is.

    Raises:
        RasterError: the file cannot be read, or has no data.
        SensorError: the model has no tower for its bands.
        ModelError: windows that the model cannot take, or a negative radius or overlap.
    """
    least, most = model.tile_range
    pixels = max(model.tile // 2, least) if window is None else window
    if not least <= pixels <= most or radius < 0 or overlap < 1:
        raise ModelError(
            "map",
            got=f"windows of {pixels} px, overlap {overlap} and a radius of {radius} patches",
            expected=f"windows of {least} to {most} px for {model.identity}, overlap 1 or more, radius 0 or more",
            next_step="Choose others, or leave them out.",
        )
    with open_raster(path, declared or Declared()) as file:
        bands = model.bands_for(file.sensor, [b.name for b in file.bands])
        patch = _patch_of(model, file.sensor, bands)
        if window is not None and window % patch:
            raise ModelError(
                "map",
                got=f"windows of {window} px",
                expected=f"a multiple of {patch} px, the side of a patch of {model.identity}",
                next_step=f"Choose {max(window // patch, 1) * patch} px.",
            )
        grid = coarser(file.grid, patch)
        windows = _Windows(
            down=starts(grid.height, pixels // patch, overlap),
            across=starts(grid.width, pixels // patch, overlap),
            height=min(pixels // patch, grid.height),
            width=min(pixels // patch, grid.width),
            patch=patch,
        )
        found = ClassMap(
            classes=classes,
            numbers=np.full((grid.height, grid.width), NODATA, dtype=np.uint8),
            probabilities=np.zeros((len(classes.names), grid.height, grid.width), np.uint8) if probabilities else None,
            grid=grid,
            source=Path(path).name,
            patch=patch,
        )
        if progress is not None:
            progress.started(tiles=len(windows.down) * len(windows.across), sources=1)
        strip = _Strip(found, windows)
        for row, col, raster in windows.read(file, bands):
            strip.add(row, col, *_shares(model, classes, raster, patch, radius))
            if progress is not None:
                progress.advanced(tiles=1, source=str(path))
        strip.finish(grid.height)
    if not found.numbers.any():
        raise RasterError(
            f"{path}: pixels",
            got="no valid pixel (all nodata, NaN or masked)",
            expected="some imagery",
            next_step="Check the nodata value with `alidade inspect`.",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Windows of ``height`` x ``width`` patches that begin at each of ``down`` and ``across``."""

    down: list[int]
    across: list[int]
    height: int
    width: int
    patch: int

    def read(self, file: RasterFile, bands: Sequence[str]) -> Iterator[tuple[int, int, Raster]]:
        """(row, column, pixels) of each window, row by row, reading as many at once as ``MAX_PIXELS`` allow."""
        most = MAX_PIXELS // self.patch**2
        strips = list(_groups(self.across, self.width, most // self.height))
        reach = strips[0][-1] + self.width - strips[0][0]
        # where a row of windows takes several reads, rows of windows are read one at a time
        for rows in _groups(self.down, self.height, most // reach if len(strips) == 1 else 0):
            for cols in strips:
                raster = file.read(self._pixels(rows, cols, (0, 0)), bands)
                for row in rows:
                    for col in cols:
                        yield row, col, raster.crop(self._pixels([row], [col], (rows[0], cols[0])))

    def _pixels(self, rows: list[int], cols: list[int], corner: tuple[int, int]) -> Window:
        return Window(
            row=(rows[0] - corner[0]) * self.patch,
            col=(cols[0] - corner[1]) * self.patch,
            height=(rows[-1] + self.height - rows[0]) * self.patch,
            width=(cols[-1] + self.width - cols[0]) * self.patch,
        )


def _groups(begins: list[int], side: int, most: int) -> Iterator[list[int]]:
    """Neighbouring windows that together reach over at most ``most`` patches, at least one at a time."""
    group: list[int] = []
    for begin in begins:
        if group and begin + side - group[0] > most:
            yield group
            group = []
        group.append(begin)
    yield group


class _Strip:
    """The rows of the map that windows still add to: weighted sums of probabilities, and of weights."""

    def __init__(self, found: ClassMap, windows: _Windows) -> None:
        self._found, self._top = found, 0
        height, width = windows.height, windows.width
        self._sums = np.zeros((len(found.classes.names) + 1, height, found.numbers.shape[1]), dtype=np.float32)
        down, across = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (height, width))
        self._weight = (down[:, None] * across).astype(np.float32)

    def add(self, row: int, col: int, shares: Probabilities, seen: NDArray[np.bool_]) -> None:
        """Take in a window that begins at (row, col): ``[C, h, w]``, and which patches count ``[h, w]``."""
        if row > self._top:
            self.finish(row)
        weight = self._weight * seen
        part = self._sums[:, :, col : col + weight.shape[1]]
        part[:-1] += shares * weight
        part[-1] += weight

    def finish(self, until: int) -> None:
        """Write down the rows before ``until``, to which no window adds any more."""
        count = until - self._top
        sums, weight = self._sums[:-1, :count], self._sums[-1, :count]
        shares = sums / np.maximum(weight, np.finfo(np.float32).tiny)
        rows, some = slice(self._top, until), weight > 0
        self._found.numbers[rows] = np.where(some, shares.argmax(axis=0) + 1, NODATA)
        if self._found.probabilities is not None:
            self._found.probabilities[:, rows] = np.round(255 * shares)
        self._sums = np.concatenate([self._sums[:, count:], np.zeros_like(self._sums[:, :count])], axis=1)
        self._top = until


def coarser(grid: Grid, patch: int) -> Grid:
    """The grid with the same corner whose pixels are ``patch`` x ``patch`` of its own.

    Its last row and column reach over the edge where the sides are no multiples.
    """
    a, b, c, d, e, f = grid.transform[:6]
    told = grid.gsd_override_m
    return Grid(
        crs=grid.crs,
        transform=Affine(a * patch, b * patch, c, d * patch, e * patch, f),
        width=-(-grid.width // patch),
        height=-(-grid.height // patch),
        gsd_override_m=None if told is None else told * patch,
    )


def _patch_of(model: Model, sensor: Sensor, bands: tuple[str, ...]) -> int:
    """Patch side in pixels of the tower that reads these bands of a sensor."""
    tower = tower_of(model.towers, sensor, bands)
    # they are what the model itself has named
    assert tower is not None
    return tower.patch


def _shares(
    model: Model, classes: Classes, raster: Raster, patch: int, radius: int
) -> tuple[Probabilities, NDArray[np.bool_]]:
    """Probabilities ``[C, h, w]`` of a window's patches, and which of them have data ``[h, w]``."""
    height, width = (n // patch for n in raster.valid.shape)
    real: NDArray[np.bool_] = np.asarray(raster.valid.reshape(height, patch, width, patch).any(axis=(1, 3)))
    shares = np.zeros((len(classes.names), height, width), dtype=np.float32)
    if not real.any():
        return shares, real
    try:
        tokens = model.encode(raster)
    except RasterError:
        # not one pixel is valid in the model's own bands and units, such as radar power of 0
        return shares, np.zeros_like(real)
    vectors, some = pool_sets(model, tokens, near((height, width), radius))
    shares[:] = classes.probabilities(vectors).T.reshape(shares.shape)
    return shares, real & some.reshape(real.shape)


def near(grid: tuple[int, int], radius: int) -> torch.Tensor:
    """Which patches of a grid are at most ``radius`` rows and columns apart, ``[N, N]`` bool, numbered row by row."""
    rows, cols = (side.flatten() for side in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return ((rows[:, None] - rows).abs() <= radius) & ((cols[:, None] - cols).abs() <= radius)


def pool_sets(model: Model, tokens: Tokens, sets: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What the model's head makes of sets of one image's tokens, as if each set were an image.

    Means and deviations of all sets come from two products of matrices: pooling each set by itself
    (``network.pool``) gives the same and takes longer than encoding the image.

    Args:
        model: whose tokens they are.
        tokens: of one image, ``[1, N, D]``.
        sets: ``[P, N]`` bool, which tokens belong to a set; those that are not valid never count.

    Returns:
        Unit vectors ``[P, D]`` float32, zero for a set without a valid token; and which sets have one, ``[P]``.
    """
    head = model.network.heads[tokens.sensor]
    assert isinstance(head, Head)
    with torch.inference_mode():
        weight = (sets.to(tokens.features.device) & tokens.places.valid[0]).float()
        count = weight.sum(dim=1, keepdim=True)
        weight = weight / count.clamp(min=1)
        features = tokens.features[0].float()
        # about their own mean, as a difference of large squares would be noise
        middle = features.mean(dim=0)
        off = weight @ (features - middle)
        pooled = [off + middle]
        if head.pooling == "mean-std":
            spread = weight @ (features - middle).square() - off.square()
            pooled.append((spread.clamp(min=0) + 1e-6).sqrt())
        vectors = F.normalize(head.layers(torch.cat(pooled, dim=1)).float(), dim=1) * (count > 0)
    return vectors.cpu().numpy(), (count[:, 0] > 0).cpu().numpy()
