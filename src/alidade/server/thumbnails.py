"""Small pictures of tiles, read from their source scenes; a grey one with a sentence where that cannot be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alidade.errors import AlidadeError
from alidade.imagery.windows import Window
from alidade.server.lru import Lru
from alidade.server.scenes import Picture, SceneBook, encode

PLACE_COLUMNS = ["id", "source", "source_id", "row", "col", "height", "width"]
"""What a :class:`TilePlace` is made of."""
SMALLEST, LARGEST = 16, 512
_KEPT = 48 * 2**20
_GREY, _INK = (229, 231, 235), (75, 85, 99)


@dataclass(frozen=True, kw_only=True)
class TilePlace:
    """Where the pixels of a row are: scene id, source as it was given, and window."""

    scene: str
    source: str
    window: Window

    @classmethod
    def of(cls, row: dict[str, Any]) -> TilePlace:
        """From an archive's row as plain values."""
        window = Window(**{name: row[name] for name in ("row", "col", "height", "width")})
        return cls(scene=row["source_id"], source=row["source"], window=window)


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A PNG, and why there is nothing but grey in it (``None`` when there is)."""

    png: bytes
    missing: str | None = None


class Thumbnails:
    """Thumbnails by place and size; those used last are kept, up to 48 MiB. One that failed is tried again."""

    def __init__(self) -> None:
        self._kept: Lru[tuple[TilePlace, int], Thumbnail] = Lru(_KEPT, weigh=lambda t: len(t.png))

    def get(self, scenes: SceneBook, place: TilePlace, size: int) -> Thumbnail:
        """One thumbnail, its longer side ``size`` pixels.

        Raises:
            AlidadeError: ``size`` is not between ``SMALLEST`` and ``LARGEST``.
        """
        if not SMALLEST <= size <= LARGEST:
            raise AlidadeError(
                "size", got=size, expected=f"{SMALLEST} to {LARGEST} pixels", next_step="Ask for such a size."
            )
        key = (place, size)
        kept = self._kept.get(key)
        if kept is None:
            try:
                picture = scenes.chip(place.scene, place.source, place.window)
            except AlidadeError as error:
                reason = f"{Path(place.source).name}: {error.got}"
                return Thumbnail(png=encode(grey(reason, size)), missing=reason)
            kept = Thumbnail(png=encode(scaled(picture, size)))
            self._kept.put(key, kept)
        return kept


def scaled(picture: Picture, size: int) -> Picture:
    """A picture with its longer side ``size`` pixels; what is not valid is transparent."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize(shape, how))


def grey(reason: str, size: int) -> Picture:
    """A grey square with a sentence, as much of it as fits."""
    image = Image.new("RGB", (size, size), _GREY)
    draw = ImageDraw.Draw(image)
    letters = max(8, size // 12)
    font = ImageFont.load_default(letters)
    margin, line = letters // 2, round(1.3 * letters)
    wrapped = _wrapped(draw, f"No picture. {reason}"[:300], font, size - 2 * margin)
    for number, words in enumerate(wrapped[: max(1, (size - margin) // line)]):
        draw.text((margin, margin + number * line), words, font=font, fill=_INK)
    return np.asarray(image)


def _wrapped(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> Sequence[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
