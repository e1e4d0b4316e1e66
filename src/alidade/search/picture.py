"""The answer as one picture: the query, the best tiles, and a scene of theirs tinted by similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.atomic import atomic_write
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.quicklook import Colours, chip, overview, stretch_of
from alidade.imagery.sensors import SENSORS
from alidade.imagery.windows import Window
from alidade.search.scan import Hits, Scanner

# dark violet to yellow, rising evenly in lightness, so that it also reads in grey and for colour-blind eyes
RAMP = ((68, 1, 84), (62, 74, 137), (38, 130, 142), (53, 183, 121), (181, 222, 43), (253, 231, 37))
_INK, _MUTED, _LINE, _PAPER, _EMPTY = "#111827", "#6b7280", "#d1d5db", "#ffffff", "#f3f4f6"
_MARGIN, _CHIP, _GAP, _PER_ROW = 48, 224, 20, 5
_CAPTION, _HEAD, _BAR = 76, 104, 110
_WIDTH = 2 * _MARGIN + (_PER_ROW + 1) * (_CHIP + _GAP)
_SCENE_HEIGHT = 620
_MOST_CHIPS = 10
_TINT = 0.62
_MANY = 40
_WORD_SIZES = (34, 28, 23, 19, 16)
_MOST_LETTERS = 400
# thirds of the levels, black and white among them: no value moves by more than one, and files shrink by a third
_LEVELS = [3 * round(level / 3) for level in range(256)]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What the lower half shows: the scene in colours, its tiles with their scores, and the hits in it."""

    name: str
    rank: int
    colours: Colours
    size: tuple[int, int]
    windows: list[Window]
    scores: npt.NDArray[np.float32]
    ranks: dict[int, int]


def draw_result(
    hits: Hits,
    scanner: Scanner,
    out: str | Path,
    *,
    query: Colours | None = None,
    declared: Declared | None = None,
) -> None:
    """Draw an answer as a PNG, about 1,500 pixels wide, whole or not at all.

    A source that cannot be read any more becomes a labelled empty box.

    Args:
        hits: the answer; the first ten hits are shown.
        scanner: what gave it; tells the similarity of the other tiles of the best hit's scene.
        out: the file; an existing one is replaced.
        query: the query's own picture ``[H, W, 3]`` (see ``quicklook.of_raster`` and ``row_colours``). Without one
            ``hits.query["like"]`` itself stands in its place when it begins with words in quotes, as that of a query
            by text does, and else a sentence that there is no picture.
        declared: what the user said about the files when they were embedded.

    Raises:
        ArchiveError: the file cannot be written.
    """
    told = declared or Declared()
    rows = hits.table.slice(0, _MOST_CHIPS).to_pylist()
    scene = _scene(rows, hits, scanner, told)
    lines = max(1, -(-len(rows) // _PER_ROW))
    grid_bottom = _MARGIN + _HEAD + lines * (_CHIP + _CAPTION + _GAP)
    scene_height = 0 if scene is None else _scene_size(scene)[1] + _HEAD + _MARGIN
    image = Image.new("RGB", (_WIDTH, grid_bottom + scene_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    _draw_head(draw, hits)
    _draw_query(image, draw, (_MARGIN, _MARGIN + _HEAD), query, _asked(hits))
    left = _MARGIN + _CHIP + 2 * _GAP
    draw.line([(left - _GAP, _MARGIN + _HEAD), (left - _GAP, grid_bottom - _GAP)], fill=_LINE)
    for number, row in enumerate(rows):
        at = (
            left + (number % _PER_ROW) * (_CHIP + _GAP),
            _MARGIN + _HEAD + number // _PER_ROW * (_CHIP + _CAPTION + _GAP),
        )
        try:
            _draw_chip(image, draw, at, row_colours(scanner, row, told), "")
        except AlidadeError as error:
            _draw_chip(image, draw, at, None, f"{Path(row['source']).name}: {error.got}")
        _caption(draw, (at[0], at[1] + _CHIP + 8), _caption_of(number + 1, row))
    if not rows:
        _text(draw, (left, _MARGIN + _HEAD), "No tile meets the conditions.", 20, _MUTED)
    if scene is not None:
        _draw_scene(image, draw, scene, grid_bottom + _GAP)
    _save(image, Path(out))


def row_colours(scanner: Scanner, row: dict[str, Any], declared: Declared) -> Colours:
    """The tile of an archive's row as colours ``[H, W, 3]``, read from its source.

    Raises:
        AlidadeError: the source is missing, cannot be read, or no longer has this window.
    """
    path = scanner.archive.locate(row["source"], row["source_id"])
    with open_raster(path, declared) as file:
        window = Window(**{name: row[name] for name in ("row", "col", "height", "width")})
        return chip(file, stretch_of(file), window)


def ramp(shares: npt.ArrayLike) -> Colours:
    """Colours ``[..., 3]`` of shares between 0 and 1, interpolated between the anchors of :data:`RAMP`."""
    values = np.clip(np.asarray(shares, dtype=np.float64), 0.0, 1.0)
    at = np.linspace(0.0, 1.0, len(RAMP))
    channels = [np.interp(values, at, [anchor[i] for anchor in RAMP]) for i in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def _scene(rows: Sequence[dict[str, Any]], hits: Hits, scanner: Scanner, declared: Declared) -> _Scene | None:
    """The scene of the best tile that is not alone in it: of one tile, its own picture tells all."""
    ranked = enumerate(rows, start=1)
    found = next(((rank, row) for rank, row in ranked if len(scanner.rows_of(row["source_id"])) > 1), None)
    if found is None:
        return None
    rank, best = found
    indices = scanner.rows_of(best["source_id"])
    tiles = scanner.table.select(["id", "row", "col", "height", "width"]).take(indices).to_pylist()
    ranks = {row["id"]: rank for rank, row in enumerate(rows, start=1)}
    try:
        with open_raster(scanner.archive.locate(best["source"], best["source_id"]), declared) as file:
            return _Scene(
                name=Path(best["source"]).name,
                rank=rank,
                colours=overview(file, stretch_of(file), _SCENE_HEIGHT),
                size=(file.grid.width, file.grid.height),
                windows=[Window(**{n: t[n] for n in ("row", "col", "height", "width")}) for t in tiles],
                scores=scanner.scores(hits.vector, indices),
                ranks={i: ranks[t["id"]] for i, t in enumerate(tiles) if t["id"] in ranks},
            )
    except AlidadeError:
        # the chip of the same source tells the reason
        return None


def _scene_size(scene: _Scene) -> tuple[int, int]:
    """Width and height of one of the two pictures of the scene."""
    most = (_WIDTH - 2 * _MARGIN - _BAR - _GAP) // 2
    scale = min(most / scene.size[0], _SCENE_HEIGHT / scene.size[1])
    return max(1, round(scene.size[0] * scale)), max(1, round(scene.size[1] * scale))


def _draw_head(draw: ImageDraw.ImageDraw, hits: Hits) -> None:
    _text(draw, (_MARGIN, _MARGIN - 8), _cut(draw, f"Most like {_asked(hits)}", 32, _WIDTH - 2 * _MARGIN), 32, _INK)
    conditions = [f"{name} {_flat(value)}" for name, value in hits.query.items() if name not in ("like", "k")]
    parts = [
        f"{len(hits):,} best of {hits.matches:,} matching tiles",
        *conditions,
        "exact cosine",
        hits.model,
    ]
    about = _cut(draw, "  ·  ".join(parts), 18, _WIDTH - 2 * _MARGIN)
    _text(draw, (_MARGIN, _MARGIN + 40), about, 18, _MUTED)


def _asked(hits: Hits) -> str:
    return " ".join(str(hits.query.get("like", "the query")).split())


def _draw_query(
    image: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], query: Colours | None, asked: str
) -> None:
    in_words = query is None and asked.startswith('"')
    if in_words:
        _draw_words(draw, at, asked)
    else:
        _draw_chip(image, draw, at, query, f"no picture of {asked}")
    _caption(draw, (at[0], at[1] + _CHIP + 8), ("query", "in words" if in_words else "", ""))


def _draw_words(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """The text in the middle of a box, as large as it fits there; what is too long ends in an ellipsis."""
    x, y = at
    draw.rectangle((x, y, x + _CHIP - 1, y + _CHIP - 1), fill=_PAPER, outline=_LINE)
    side, short = _CHIP - 32, text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"
    for size in _WORD_SIZES:
        high = round(1.3 * size)
        lines = _wrapped(draw, short, size, side)
        if len(lines) * high <= side and all(_fits(draw, word, size, side) for word in short.split(" ")):
            break
    room = side // high
    if len(lines) > room:
        lines = [*lines[: room - 1], _cut(draw, f"{lines[room - 1]}…", size, side)]
    top = y + (_CHIP - len(lines) * high) // 2
    for number, line in enumerate(lines):
        left = x + (_CHIP - round(draw.textlength(line, font=_font(size)))) // 2
        _text(draw, (left, top + number * high), line, size, _INK)


def _draw_scene(image: Image.Image, draw: ImageDraw.ImageDraw, scene: _Scene, top: int) -> None:
    width, height = _scene_size(scene)
    limits = _limits(scene.scores)
    draw.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], fill=_LINE)
    _text(draw, (_MARGIN, top + 22), f"Similarity over {scene.name}", 26, _INK)
    size = f"{scene.size[0]:,} x {scene.size[1]:,} px"
    whose = "the best tile" if scene.rank == 1 else f"tile {scene.rank}"
    about = f"the scene of {whose}  ·  {len(scene.windows):,} tiles  ·  {size}"
    _text(draw, (_MARGIN, top + 58), about, 18, _MUTED)
    top += _HEAD
    plain = Image.fromarray(scene.colours).resize((width, height), Image.Resampling.LANCZOS)
    tinted = Image.fromarray(_tint(np.asarray(plain), scene, limits))
    marks = ImageDraw.Draw(tinted)
    for index, rank in scene.ranks.items():
        _mark(marks, _scaled(scene.windows[index], scene.size, (width, height)), rank)
    image.paste(plain, (_MARGIN, top))
    image.paste(tinted, (_MARGIN + width + _GAP, top))
    _draw_bar(image, draw, (_MARGIN + 2 * (width + _GAP), top), height, limits, bool(scene.scores.min() < limits[0]))


def _limits(scores: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The scores at the ends of the ramp: a few strangers at the bottom must not use up all its colours."""
    low = np.percentile(scores, 5) if scores.size >= _MANY else scores.min()
    low, high = float(low), float(scores.max())
    return (low, high) if high - low >= 1e-3 else (low - 5e-4, high + 5e-4)


def _tint(base: Colours, scene: _Scene, limits: tuple[float, float]) -> Colours:
    """The scene in grey, each tile under the colour of its score; what has no row stays as it is."""
    out = base.astype(np.float32)
    grey = np.repeat(out.mean(axis=2, keepdims=True), 3, axis=2)
    low, high = limits
    colours = ramp((scene.scores - low) / (high - low)).astype(np.float32)
    for window, colour in zip(scene.windows, colours, strict=True):
        x0, y0, x1, y1 = _scaled(window, scene.size, (base.shape[1], base.shape[0]))
        out[y0:y1, x0:x1] = _TINT * colour + (1 - _TINT) * grey[y0:y1, x0:x1]
    return np.round(out).astype(np.uint8)


def _scaled(window: Window, size: tuple[int, int], shown: tuple[int, int]) -> Box:
    across, down = shown[0] / size[0], shown[1] / size[1]
    left, top = round(window.col * across), round(window.row * down)
    return left, top, round((window.col + window.width) * across), round((window.row + window.height) * down)


def _mark(draw: ImageDraw.ImageDraw, box: Box, rank: int) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle((x0, y0, max(x0 + 3, x1 - 1), max(y0 + 3, y1 - 1)), outline=_INK, width=3)
    draw.rectangle((x0 + 1, y0 + 1, max(x0 + 2, x1 - 2), max(y0 + 2, y1 - 2)), outline=_PAPER, width=1)
    if min(x1 - x0, y1 - y0) >= 26:
        draw.rectangle((x0 + 4, y0 + 4, x0 + 10 + 9 * len(str(rank)), y0 + 23), fill=_PAPER)
        _text(draw, (x0 + 7, y0 + 4), str(rank), 15, _INK)


def _draw_bar(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    height: int,
    limits: tuple[float, float],
    clipped: bool,
) -> None:
    x, y = at
    length = max(height, 60)
    bar = np.repeat(ramp(np.linspace(1.0, 0.0, length))[:, None], 22, axis=1)
    image.paste(Image.fromarray(bar), (x, y))
    for step, label in enumerate(bar_labels(limits, clipped=clipped)):
        tick = y + round((length - 1) * step / 4)
        draw.line([(x + 22, tick), (x + 28, tick)], fill=_INK)
        _text(draw, (x + 34, tick - (0, 9, 9, 9, 17)[step]), label, 16, _INK)


def bar_labels(limits: tuple[float, float], *, clipped: bool) -> tuple[str, ...]:
    """What stands at the five ticks of the colour bar, from the highest score down.

    Args:
        limits: the scores at the ends of the ramp.
        clipped: whether some scores are below it.
    """
    low, high = limits
    digits = 2 if high - low >= 0.05 else 4
    # z: what rounds to zero has no sign
    labels = [f"{high - (high - low) * step / 4:z.{digits}f}" for step in range(5)]
    return (*labels[:4], f"< {labels[4]}" if clipped else labels[4])


def _draw_chip(
    image: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], colours: Colours | None, reason: str
) -> None:
    x, y = at
    draw.rectangle((x, y, x + _CHIP - 1, y + _CHIP - 1), fill=_EMPTY, outline=_LINE)
    if colours is None:
        draw.line([(x, y), (x + _CHIP - 1, y + _CHIP - 1)], fill=_LINE)
        for number, line in enumerate(_wrapped(draw, reason, 16, _CHIP - 24)[:6]):
            _text(draw, (x + 12, y + 12 + 21 * number), line, 16, _MUTED)
        return
    scale = _CHIP / max(colours.shape[:2])
    size = max(1, round(colours.shape[1] * scale)), max(1, round(colours.shape[0] * scale))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    small = Image.fromarray(colours).resize(size, how)
    image.paste(small, (x + (_CHIP - size[0]) // 2, y + (_CHIP - size[1]) // 2))


def _caption_of(rank: int, row: dict[str, Any]) -> tuple[str, str, str]:
    title = SENSORS[row["sensor"]].title if row["sensor"] in SENSORS else row["sensor"]
    when = row["time"].strftime("%Y-%m-%d") if row["time"] else "date unknown"
    return f"{rank}    {row['score']:z.3f}", title, f"{when}  ·  {row['gsd_m']:.3g} m"


def _caption(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: tuple[str, str, str]) -> None:
    for (size, colour, down), line in zip(((20, _INK, 0), (16, _MUTED, 27), (16, _MUTED, 48)), lines, strict=True):
        _text(draw, (at[0], at[1] + down), _cut(draw, line, size, _CHIP), size, colour)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    draw.text(at, text, font=_font(size), fill=colour)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> list[str]:
    """The text in lines no wider than ``width``; breaks inside a word only where it alone is too wide."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and draw.textlength(f"{lines[-1]} {word}", font=_font(size)) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
        while draw.textlength(lines[-1], font=_font(size)) > width:
            cut = next(n for n in range(len(lines[-1]), 0, -1) if _fits(draw, lines[-1][:n], size, width))
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return lines


def _cut(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """The text as one line: where it is too wide, its beginning and an ellipsis."""
    if len(text) <= _MOST_LETTERS and _fits(draw, text, size, width):
        return text
    shorter = (text[:n].rstrip(" …") + "…" for n in range(min(len(text), _MOST_LETTERS), 0, -1))
    return next(line for line in shorter if len(line) == 2 or _fits(draw, line, size, width))


def _fits(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> bool:
    return len(text) == 1 or draw.textlength(text, font=_font(size)) <= width


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _flat(value: object) -> str:
    return ", ".join("open" if v is None else str(v) for v in value) if isinstance(value, list) else str(value)


def _save(image: Image.Image, path: Path) -> None:
    try:
        with atomic_write(path) as temporary:
            image.point(3 * _LEVELS).save(temporary, format="PNG")
    except OSError as error:
        raise ArchiveError(
            f"{path}: writing the picture",
            got=error.strerror or type(error).__name__,
            expected="a place where a file can be written",
            next_step="Name another file.",
        ) from error
