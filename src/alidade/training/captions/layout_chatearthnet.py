"""ChatEarthNet: ``ChatEarthNet_caps_{35,4v}_SPLIT.json``, lists of objects with an image's name and its caption.

Z. Yuan, Z. Xiong, L. Mou, X. X. Zhu, ChatEarthNet, Earth System Science Data 17, 2025, arXiv:2402.11325; CC-BY-4.0.
Captions by GPT-3.5 (``35``) or GPT-4V (``4v``) of Sentinel-2 scenes at 10 m; the RGB pictures are 8-bit PNG.
"""

from __future__ import annotations

import re
from pathlib import Path

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, json_of, split_name, wrong

EXPECTED = "ChatEarthNet_caps_35_SPLIT.json (or 4v), lists of objects with image_id and caption"
_NAME = re.compile(r"ChatEarthNet_caps_(35|4v)_([a-z]+)\.json", re.IGNORECASE)
_IMAGE_KEYS = ("image_id", "image")
GSD_M = 10.0


def fits(folder: Path) -> bool:
    """Whether such a file is there, or in a folder below."""
    return len(_files(folder)) > 0


def read(folder: Path, options: Options) -> Captioned:
    """The captions of one language model, by default those of GPT-3.5 where they are there, with the RGB pictures.

    The pictures of other bands (``s2_band_5_6_7_images``, ``s2_band_8_11_12_images``) carry the same names and are
    not read: only folders and archives with ``rgb`` in their names are, where there are any.

    Raises:
        CaptionError: see the module ``lists``; also another structure.
    """
    files = _files(folder)
    models = sorted({model for _, model, _ in files})
    model = options.captions or (models[0] if models else "35")
    if model not in models:
        raise wrong(f"{folder}: captions", f"{model} asked for, {', '.join(models) or 'none'} there", EXPECTED)
    lines = []
    for path, of, split in files:
        part = split_name(split, str(path))
        if of != model or part not in options.splits:
            continue
        entries = json_of(path)
        if not isinstance(entries, list):
            raise wrong(str(path), type(entries).__name__, EXPECTED)
        lines += [_line(e, part, f"{path}, entry {n}") for n, e in enumerate(entries, 1)]
    return gather(
        lines, _album(folder), options, name=f"chatearthnet-{model}", licence="CC-BY-4.0", gsd_m=GSD_M
    )  # fmt: skip


def _files(folder: Path) -> list[tuple[Path, str, str]]:
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted({*folder.glob("*.json"), *folder.glob("*/*.json")})]
    return [(path, match[1].lower(), match[2].lower()) for path, match in found if match is not None]


def _album(folder: Path) -> Album:
    album = Album.of(folder)
    rgb = {k: p for k, p in album.pieces.items() if "rgb" in k.rpartition("/")[0].lower()}
    return Album.over(folder, rgb) if rgb else album


def _line(entry: object, split: str, told: str) -> Line:
    fields = entry if isinstance(entry, dict) else {}
    name = next((fields[k] for k in _IMAGE_KEYS if isinstance(fields.get(k), str)), None)
    texts = fields.get("caption")
    texts = texts if isinstance(texts, list) else [texts]
    if name is None or not texts:
        raise wrong(told, ", ".join(sorted(fields)) or type(entry).__name__, EXPECTED)
    captions = tuple(caption(t, f"{told} ({name}), sentence {n}") for n, t in enumerate(texts, 1))
    return Line(image=name, captions=captions, split=split, told=told)
