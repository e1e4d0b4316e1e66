"""The JSON layout of UCM-Captions, Sydney-Captions, RSICD and RSITMD: ``dataset*.json`` beside a folder of images.

One object with ``images``, a list of objects with ``filename``, ``split``, ``imgid`` and ``sentences``, each of which
has ``raw``; the layout of A. Karpathy's splits. X. Lu et al., Exploring Models and Data for Remote Sensing Image
Caption Generation, IEEE TGRS 56(4), 2018 (RSICD); Z. Yuan et al., Exploring a Fine-Grained Multiscale Method for
Cross-Modal Remote Sensing Image Retrieval, IEEE TGRS 60, 2022 (RSITMD). No owner states a licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, json_of, split_name, wrong

EXPECTED = "dataset*.json with images[].filename, .split and .sentences[].raw"
_KNOWN_GSD_M = {"ucm": 0.3, "sydney": 0.5}
"""Sets of one ground sample distance; those of RSICD and RSITMD are mixed and unknown."""


def fits(folder: Path) -> bool:
    """Whether the folder holds such a file."""
    return len(_files(folder)) > 0


def read(folder: Path, options: Options) -> Captioned:
    """The data set; repeated sentences are kept, see ``Captioned.distinct``.

    Raises:
        CaptionError: see the module ``lists``; also several such files, or another structure.
    """
    files = _files(folder)
    if len(files) != 1:
        got = ", ".join(f.name for f in files) or "none"
        raise wrong(f"{folder}: list of captions", got, f"one {EXPECTED}", "Keep one such file in the folder.")
    content = json_of(files[0])
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        keys = ", ".join(sorted(content)[:8]) if isinstance(content, dict) else type(content).__name__
        raise wrong(str(files[0]), keys or "an empty object", EXPECTED)
    _check_numbers(entries, files[0])
    lines = [_line(e, f"{files[0]}, image {n}") for n, e in enumerate(entries, 1)]
    name = (files[0].stem.lower().removeprefix("dataset").strip("_-") or folder.name).lower()
    gsd = next((g for word, g in _KNOWN_GSD_M.items() if word in name or word in folder.name.lower()), None)
    return gather(lines, Album.of(folder), options, name=name, licence="not stated by the owners", gsd_m=gsd)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.json") if p.name.lower().startswith("dataset") and p.is_file())


def _check_numbers(entries: list[Any], path: Path) -> None:
    numbers = [e["imgid"] for e in entries if isinstance(e, dict) and isinstance(e.get("imgid"), int)]
    if len(set(numbers)) != len(numbers):
        twice = next(n for i, n in enumerate(numbers) if n in numbers[:i])
        raise wrong(f"{path}: imgid", f"{twice} twice", "each number once")


def _line(entry: object, told: str) -> Line:
    keys = sorted(entry) if isinstance(entry, dict) else []
    if not isinstance(entry, dict) or not {"filename", "split", "sentences"} <= set(keys):
        raise wrong(told, ", ".join(keys) or type(entry).__name__, EXPECTED)
    name, sentences = entry["filename"], entry["sentences"]
    if not isinstance(name, str) or not isinstance(sentences, list) or not sentences:
        raise wrong(told, f"filename {name!r} with sentences of {type(sentences).__name__}", EXPECTED)
    captions = [
        caption(s.get("raw") if isinstance(s, dict) else s, f"{told} ({name}), sentence {n}")
        for n, s in enumerate(sentences, 1)
    ]
    return Line(image=name, captions=tuple(captions), split=split_name(entry["split"], told), told=told)
