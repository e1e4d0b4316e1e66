"""Samples of a store side by side in one picture, every view as wide as its ground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from PIL import Image, ImageDraw, ImageFont

from alidade.imagery.atomic import atomic_write
from alidade.imagery.grid import Grid
from alidade.imagery.quicklook import Colours, of_raster
from alidade.imagery.raster import Raster
from alidade.training.tiles.schema import StoreError, ViewSpec
from alidade.training.tiles.store import TileStore, ViewBatch

MOST = 64

_INK, _MUTED, _PAPER, _EMPTY = "#111827", "#6b7280", "#ffffff", "#f3f4f6"
_CHIP, _GAP, _MARGIN, _HEAD, _ROW_HEAD, _CAPTION = 256, 16, 32, 40, 30, 26

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def pick(ids: npt.NDArray[np.int64], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """At most ``count`` of the ids, drawn by chance without repetition, ascending."""
    if len(ids) <= count:
        return ids
    return np.sort(np.random.default_rng(seed).choice(ids, count, replace=False))


def draw_samples(store: TileStore, ids: Sequence[int] | npt.NDArray[np.int64], out: str | Path) -> None:
    """Draw samples as a PNG, one row each, one column per view; whole or not at all.

    All chips of a row show the same ground at the same size, so that a pixel of 10 m is drawn 16 times as wide as one
    of 0.625 m. Each chip is stretched by itself; what is not valid is grey.

    Args:
        store: the store.
        ids: which samples, at most 64.
        out: the PNG to make or to replace.

    Raises:
        StoreError: no sample or too many, or the file cannot be written.
    """
    chosen = np.asarray(ids, dtype=np.int64)
    if not 1 <= len(chosen) <= MOST:
        raise StoreError(
            "samples to draw", got=str(len(chosen)), expected=f"1 to {MOST}",
            next_step="Ask for another number, or loosen the filters.",
        )  # fmt: skip
    samples = store.__getitems__(chosen)
    rows = store.index.take(chosen).to_pylist()
    names = list(store.views)
    width = max(2 * _MARGIN + len(names) * (_CHIP + _GAP) - _GAP, 720)
    row_height = _ROW_HEAD + _CHIP + _CAPTION + _GAP
    page = Image.new("RGB", (width, _HEAD + len(rows) * row_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(16)
    for column, name in enumerate(names):
        spec = store.views[name]
        told = f"{name}  {spec.side} px" if name == spec.sensor else f"{name}  {spec.sensor}, {spec.side} px"
        _text(draw, (_MARGIN + column * (_CHIP + _GAP), 14), told, _INK, small, _CHIP)
    for number, row in enumerate(rows):
        top = _HEAD + number * row_height
        _text(draw, (_MARGIN, top + 4), _headline(int(chosen[number]), row), _INK, bold, width - 2 * _MARGIN)
        for column, name in enumerate(names):
            left = _MARGIN + column * (_CHIP + _GAP)
            box = (left, top + _ROW_HEAD)
            if row[f"{name}.present"]:
                colours = colours_of(store.views[name], samples.views[name], number)
                page.paste(Image.fromarray(colours).resize((_CHIP, _CHIP), Image.Resampling.NEAREST), box)
            else:
                draw.rectangle((*box, left + _CHIP - 1, box[1] + _CHIP - 1), fill=_EMPTY)
                draw.text((left + 90, box[1] + 118), "not there", fill=_MUTED, font=small)
            _text(draw, (left, box[1] + _CHIP + 4), _caption(row, name), _MUTED, small, _CHIP)
    try:
        with atomic_write(out) as temporary:
            page.save(temporary, format="PNG")
    except OSError as error:
        raise StoreError(
            f"{out}: writing", got=error.strerror or str(error),
            expected="a folder that exists, room on the disk and permission to write",
            next_step="Choose another --out.",
        ) from error  # fmt: skip


def colours_of(spec: ViewSpec, batch: ViewBatch, number: int) -> Colours:
    """One sample's view as colours ``[S, S, 3]``.

    Args:
        spec: the view.
        batch: as it was read.
        number: which of the batch.
    """
    sensor = spec.the_sensor()
    measured = list(spec.measured)
    gsd = float(np.sqrt(batch.gsd_m[number].prod()))
    raster = Raster(
        pixels=batch.pixels[number][measured],
        bands=tuple(sensor.band(spec.bands[i]) for i in measured),
        encodings=tuple(spec.encodings[i] for i in measured),
        valid=batch.valid[number],
        grid=Grid(crs=None, transform=Affine.identity(), width=spec.side, height=spec.side, gsd_override_m=gsd),
        sensor=sensor,
        time=None,
        source=f"view of {spec.sensor}",
    )
    return of_raster(raster)


def _headline(number: int, row: dict[str, Any]) -> str:
    parts = [f"{number}", row["sample_id"], row["split"]]
    if row["lon"] is not None:
        parts.append(f"{row['lat']:.4f}, {row['lon']:.4f}")
    gap = row["date_gap_days"]
    parts.append("dates unknown" if gap is None else f"{gap:.1f} days apart")
    return "   ".join(parts)


def _caption(row: dict[str, Any], name: str) -> str:
    if not row[f"{name}.present"]:
        return ""
    time, cloud = row[f"{name}.time"], row[f"{name}.cloud_share"]
    parts = [f"{(row[f'{name}.gsd_x'] * row[f'{name}.gsd_y']) ** 0.5:.3f} m", f"{row[f'{name}.valid_share']:.0%} valid"]
    if time is not None:
        parts.insert(0, f"{time:%Y-%m-%d}")
    if cloud is not None:
        parts.append(f"{cloud:.0%} cloud")
    return "  ".join(parts)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, fill: str, font: Font, width: int) -> None:
    """Text on one line, cut where it would run into its neighbour."""
    kept = text
    while kept and draw.textlength(kept, font=font) > width:
        kept = kept[:-1]
    draw.text(at, kept if kept == text else kept[:-1] + "…", fill=fill, font=font)
