"""Scenes cut into tiles: nothing lost, nothing twice, and each block of the file decoded about once."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alidade.errors import GridError

if TYPE_CHECKING:
    from alidade.imagery.grid import Grid
    from alidade.imagery.raster import Raster

MAX_PIXELS = 4_194_304
"""The largest panel by default, in pixels: with 13 bands of 16 bits it is 104 MiB."""


@dataclass(frozen=True, kw_only=True, order=True)
class Window:
    """A rectangle of pixels, ordered by row, then column.

    Attributes:
        row, col: the first row and column; negative ones lie before the edge.
        height, width: size in pixels, at least one.

    Raises:
        GridError: a size below one pixel.
    """

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        if self.height < 1 or self.width < 1:
            raise GridError(
                "window",
                got=f"{self.height} rows x {self.width} columns",
                expected="at least one pixel each way",
                next_step="Give the window a height and a width.",
            )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is read at once to make several tiles.

    Attributes:
        window: the part of the scene to hold; covers the tiles and goes on to the end of their row of blocks.
        tiles: the tiles that lie in it, in reading order.
    """

    window: Window
    tiles: tuple[Window, ...]


class TileSource(Protocol):
    """An opened raster file, as far as reading tiles needs it."""

    @property
    def grid(self) -> Grid:
        """The scene's grid."""

    @property
    def block_shape(self) -> tuple[int, int]:
        """(rows, columns) of the units in which the file is compressed."""

    def read(self, window: Window | None = None, bands: Sequence[str] | None = None) -> Raster:
        """The part of the scene in ``window``, which lies inside it."""


def tile_windows(height: int, width: int, tile: int) -> list[Window]:
    """A scene's tiles, row by row from the first pixel. Those of the last row and column are cut at the edge.

    Every pixel of the scene lies in exactly one tile. A tile's index is its place in this list.

    Args:
        height: the scene's rows.
        width: the scene's columns.
        tile: the tiles' side in pixels.

    Raises:
        GridError: a size below one.
    """
    _check_sizes(height, width, tile)
    return [
        Window(row=row, col=col, height=min(tile, height - row), width=min(tile, width - col))
        for row in range(0, height, tile)
        for col in range(0, width, tile)
    ]


def panels(
    height: int, width: int, tile: int, block_shape: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> list[Panel]:
    """Reading units that together hold each tile once: strips from left to right, panels down each strip.

    A strip is as wide as memory allows, and ends where a block ends if the tile's and the block's sides meet
    within it. Down a strip a panel ends with a row of blocks, so that a reader that keeps the rows left over
    decodes none of them again.

    Args:
        height: the scene's rows.
        width: the scene's columns.
        tile: the tiles' side in pixels.
        block_shape: (rows, columns) of the file's blocks.
        max_pixels: no panel has more pixels (per band), unless a single tile has.

    Raises:
        GridError: a size below one.
    """
    _check_sizes(height, width, tile)
    block_height, block_width = block_shape
    _check_sizes(block_height, block_width, 1)
    # the most rows between the end of a tile and the end of its block
    tail = block_height - math.gcd(tile, block_height)
    if min(tile + tail, height) * min(tile, width) > max_pixels:
        tail = 0
    across = _tiles_across(width, tile, block_width, max_pixels // min(tile + tail, height))
    found = []
    for col in range(0, width, across * tile):
        strip_width = min(across * tile, width - col)
        rows = max_pixels // strip_width
        down = math.ceil(height / tile) if rows >= height else max(1, (rows - tail) // tile)
        for row in range(0, height, down * tile):
            end = min(row + down * tile, height)
            tiles = tuple(
                Window(row=r, col=c, height=min(tile, height - r), width=min(tile, width - c))
                for r in range(row, end, tile)
                for c in range(col, col + strip_width, tile)
            )
            if tail:
                end = min(math.ceil(end / block_height) * block_height, height)
            found.append(Panel(window=Window(row=row, col=col, height=end - row, width=strip_width), tiles=tiles))
    return found


def _tiles_across(width: int, tile: int, block_width: int, columns: int) -> int:
    """How many tiles a strip of at most ``columns`` pixels takes, at least one."""
    if columns >= width:
        return math.ceil(width / tile)
    most = max(1, columns // tile)
    aligned = math.lcm(tile, block_width) // tile
    return most // aligned * aligned or most


def read_tiles(
    file: TileSource,
    tile: int,
    *,
    only: Container[int] | None = None,
    bands: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[int, Window, Raster]]:
    """Read a scene's tiles in the order that costs least, which is not the order of their indices.

    Memory: about twice ``max_pixels`` per band at the peak, whatever the scene's size. May run in a thread of
    its own, as long as nothing else uses the file meanwhile.

    Args:
        file: the opened file.
        tile: the tiles' side in pixels.
        only: indices that are still wanted; panels without any are not read.
        bands: names of the bands to read, all by default.
        max_pixels: the most pixels per band to hold at once, as in ``panels``.

    Yields:
        The tile's index in ``tile_windows``; its window, cut at the scene's edge; and a ``Raster`` of exactly
        ``tile`` x ``tile`` pixels, not valid beyond the edge. The ground that the tile covers is that of
        ``file.grid.window`` of the cut window, not of the padded raster's grid.

    Raises:
        GridError: ``tile`` is below one.
        RasterError: the file cannot be read.
    """
    height, width = file.grid.height, file.grid.width
    tiles_per_row = math.ceil(width / tile) if tile > 0 else 0
    held: tuple[Window, Raster] | None = None
    for panel in panels(height, width, tile, file.block_shape, max_pixels):
        indexed = [((w.row // tile) * tiles_per_row + w.col // tile, w) for w in panel.tiles]
        wanted = [(index, w) for index, w in indexed if only is None or index in only]
        if not wanted:
            continue
        held = _advance(file, held, panel.window, bands)
        origin, raster = held
        for index, w in wanted:
            local = Window(row=w.row - origin.row, col=w.col - origin.col, height=tile, width=tile)
            yield index, w, raster.crop(local)


def _advance(
    file: TileSource, held: tuple[Window, Raster] | None, want: Window, bands: Sequence[str] | None
) -> tuple[Window, Raster]:
    """A raster over at least ``want``, reading only the rows that the one held does not have already."""
    if held is None or held[0].col != want.col or held[0].row + held[0].height <= want.row:
        return want, file.read(want, bands)
    have, raster = held
    have_end, want_end = have.row + have.height, want.row + want.height
    if have_end >= want_end:
        return held
    below = file.read(Window(row=have_end, col=want.col, height=want_end - have_end, width=want.width), bands)
    first = want.row - have.row
    merged = replace(
        below,
        pixels=np.concatenate([raster.pixels[:, first:], below.pixels], axis=1),
        valid=np.concatenate([raster.valid[first:], below.valid], axis=0),
        grid=file.grid.window(want.row, want.col, want.height, want.width),
    )
    return want, merged


def _check_sizes(height: int, width: int, tile: int) -> None:
    if height < 1 or width < 1 or tile < 1:
        raise GridError(
            "tiles",
            got=f"a tile of {tile} px and a scene of {height} x {width} px",
            expected="sizes of at least one pixel",
            next_step="Pass a positive side with --tile.",
        )
