"""Shards of RS5M and other sets in the WebDataset layout: tar files whose members share a key before the first dot.

RS5M (Z. Zhang et al., IEEE TGRS 62, 2024, arXiv:2306.11300) names its members ``KEY.img_content``, ``KEY.img_name`` and
``KEY.caption``, and its shards ``{pub11,rs3}-{train,val}-0000.tar``; others have ``KEY.jpg`` (or png) with ``KEY.txt``
or ``KEY.json``. RS5M's pictures come from the web and from data sets of many licences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from alidade.training.captions.captioned import Captioned, CaptionError, Source
from alidade.training.captions.lists import Options, caption, check_missing, split_name, wrong
from alidade.training.captions.pictures import Picture, Piece, tar_pieces

EXPECTED = "tar shards with KEY.jpg, .png or .img_content, and KEY.txt, .caption or .json"
IMAGE_PARTS = ("img_content", "jpg", "jpeg", "png")
TEXT_PARTS = ("caption", "txt", "json")
JSON_KEYS = ("caption", "text", "title")
MAX_TEXT_BYTES = 2**20
_WORD = re.compile(r"[^a-z]+")


def fits(folder: Path) -> bool:
    """Whether the folder, or one right below, holds tar files."""
    return len(_shards(folder)) > 0


def read(folder: Path, options: Options) -> Captioned:
    """The pairs of all shards; an id is ``SHARD/KEY``. The split is in the shard's name or folder, ``train`` if not.

    Every shard is gone through once, header by header; pictures are read when asked for.

    Raises:
        CaptionError: a shard is damaged, a caption is missing or empty, or no member is a picture.
    """
    gsd = options.declared.gsd_m
    images: list[Source] = []
    captions: list[tuple[str, ...]] = []
    splits: list[str] = []
    missing: list[tuple[str, str]] = []
    for shard in _shards(folder):
        split = _split_of(shard, folder)
        if split not in options.splits:
            continue
        stem = shard.relative_to(folder).with_suffix("").as_posix()
        for key, parts in _samples(shard):
            told = f"{shard}: {key}"
            picture = next((parts[p] for p in IMAGE_PARTS if p in parts), None)
            text = _text(parts, told)
            if picture is None:
                missing.append((told, f"picture among {', '.join(sorted(parts))}"))
                continue
            images.append(Picture(id=f"{stem}/{key}", piece=picture, gsd_m=gsd))
            captions.append((text,))
            splits.append(split)
    check_missing(missing, folder, options, found=len(images))
    name = "rs5m" if any(s.name.startswith(("pub11-", "rs3-")) for s in _shards(folder)) else folder.name.lower()
    licence = "that of each picture's source" if name == "rs5m" else "not stated"
    return Captioned(
        name=name, licence=options.licence or licence, images=tuple(images), captions=tuple(captions),
        split=tuple(splits), left_out=len(missing),
    )  # fmt: skip


def _shards(folder: Path) -> list[Path]:
    return sorted({*folder.glob("*.tar"), *folder.glob("*/*.tar")})


def _split_of(shard: Path, folder: Path) -> str:
    words = [w for part in shard.relative_to(folder).parts for w in _WORD.split(part.lower().removesuffix(".tar"))]
    found = {w for w in words if w in ("train", "val", "valid", "validation", "test")}
    splits = {split_name(w, str(shard)) for w in found} or {"train"}
    if len(splits) != 1:
        raise wrong(str(shard), f"a name with {' and '.join(sorted(splits))}", "the name of one split")
    return splits.pop()


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Piece]]]:
    """Members of one key, which stand one after another."""
    key, parts = "", dict[str, Piece]()
    for piece in tar_pieces(shard):
        folder, _, last = piece.member.rpartition("/")
        stem, _, part = last.partition(".")
        if not stem or not part:
            continue
        here = f"{folder}/{stem}" if folder else stem
        if here != key and parts:
            yield key, parts
            parts = {}
        key, part = here, part.lower()
        if part in parts:
            raise wrong(f"{shard}: {key}", f"two members .{part}", "each key once")
        parts[part] = piece
    if parts:
        yield key, parts


def _text(parts: dict[str, Piece], told: str) -> str:
    part = next((p for p in TEXT_PARTS if p in parts), None)
    if part is None:
        raise wrong(f"{told}: caption", f"only .{', .'.join(sorted(parts))}", EXPECTED)
    piece = parts[part]
    if piece.packed > MAX_TEXT_BYTES:
        raise wrong(piece.told, f"{piece.packed:,} bytes", f"at most {MAX_TEXT_BYTES:,} of text")
    try:
        text = piece.content().decode("utf-8")
        if part != "json":
            return caption(text, piece.told)
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CaptionError):
            raise
        raise wrong(piece.told, str(error)[:200], "text or JSON in UTF-8") from None
    found = next((fields[k] for k in JSON_KEYS if k in fields), None) if isinstance(fields, dict) else None
    if found is None:
        raise wrong(piece.told, "no such field", f"one of {', '.join(JSON_KEYS)}")
    return caption(found, piece.told)
