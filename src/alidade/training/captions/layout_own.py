"""What a user brings: a folder of images with ``captions.csv`` or ``captions.jsonl``.

The columns (keys) are ``file``, ``caption`` and, optionally, ``split``; an image with several captions has several
rows. Without splits every image is ``train``. GeoTIFFs keep their bands, types and places; JPEG and PNG are 8-bit RGB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, lines_of, split_name, table, wrong

EXPECTED = "captions.csv or captions.jsonl with file, caption and, if you like, split"
_CSV, _JSONL = "captions.csv", "captions.jsonl"

Entry = tuple[str, str, str, str | None]
"""Where it stands, file, caption, split."""


def fits(folder: Path) -> bool:
    """Whether such a file is there."""
    return (folder / _CSV).is_file() or (folder / _JSONL).is_file()


def read(folder: Path, options: Options) -> Captioned:
    """The data set; ids are the files as the list names them.

    Raises:
        CaptionError: see the module ``lists``; also an image in two splits, or rows of which only some name one.
    """
    if (folder / _CSV).is_file() and (folder / _JSONL).is_file():
        raise wrong(str(folder), f"{_CSV} and {_JSONL}", "one of them", "Keep one.")
    entries = _from_csv(folder / _CSV) if (folder / _CSV).is_file() else _from_jsonl(folder / _JSONL)
    first: dict[str, Line] = {}
    for told, name, text, split in entries:
        part = "train" if split is None else split_name(split, told)
        known = first.get(name)
        if known is not None and known.split != part:
            raise wrong(f"{told}: split", f"{part} after {known.split} for {name!r}", "one split for each image")
        before = () if known is None else known.captions
        place = told if known is None else known.told
        first[name] = Line(image=name, captions=(*before, text), split=part, told=place)
    name = folder.resolve().name
    return gather(list(first.values()), Album.of(folder), options, name=name, licence="yours to state")


def _from_csv(path: Path) -> Iterator[Entry]:
    for told, row in table(path, ("file", "caption")):
        yield told, _file(row["file"], told), caption(row["caption"], told), row.get("split")


def _from_jsonl(path: Path) -> Iterator[Entry]:
    for number, text in lines_of(path):
        told = f"{path}, line {number}"
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise wrong(told, str(error)[:200], "a JSON object on one line") from None
        if not isinstance(fields, dict) or not {"file", "caption"} <= fields.keys():
            keys = ", ".join(sorted(fields)) if isinstance(fields, dict) else type(fields).__name__
            raise wrong(told, keys or "an empty object", "file, caption and, if you like, split")
        texts = fields["caption"] if isinstance(fields["caption"], list) else [fields["caption"]]
        for sentence in texts or [""]:
            yield told, _file(fields["file"], told), caption(sentence, told), fields.get("split")


def _file(name: object, told: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise wrong(f"{told}: file", repr(name), "the name of an image")
    return name.strip()
