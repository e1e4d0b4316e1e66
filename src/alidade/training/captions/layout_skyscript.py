"""SkyScript: ``SkyScript_SPLIT_*.csv`` (filepath, title, title_multi_objects) with ``images2.zip`` to ``images7.zip``.

Z. Wang et al., SkyScript: A Large and Semantically Diverse Vision-Language Dataset for Remote Sensing, AAAI 2024,
arXiv:2312.12856. Sentences are made from OpenStreetMap tags (ODbL); pictures are of many sensors, whose alias is in the
file's name. Its metadata are pickles and are not read.
"""

from __future__ import annotations

import re
from pathlib import Path

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, split_name, table, wrong

EXPECTED = "SkyScript_SPLIT_*.csv with the columns filepath and title (or title_multi_objects)"
_NAME = re.compile(r"SkyScript_(train|val|test)_.*\.csv", re.IGNORECASE)
COLUMN = "title"


def fits(folder: Path) -> bool:
    """Whether such a file is there, or in a folder below."""
    return len(_files(folder)) > 0


def read(folder: Path, options: Options) -> Captioned:
    """The pairs by the sentences in ``options.captions`` (a column, ``title`` by default). Images may stay zipped.

    Raises:
        CaptionError: see the module ``lists``; also two lists of one split, which share images.
    """
    column = options.captions or COLUMN
    files: dict[str, Path] = {}
    for path, split in _files(folder):
        if split in files:
            raise wrong(f"{folder}: {split}", f"{files[split].name} and {path.name}", "one list a split", "Keep one.")
        files[split] = path
    lines = [
        Line(image=row["filepath"], captions=(caption(row[column], told),), split=split, told=told)
        for split, path in files.items()
        if split in options.splits
        for told, row in table(path, ("filepath", column))
    ]
    licence = "sentences: ODbL (OpenStreetMap); pictures: that of each source"
    return gather(lines, Album.of(folder), options, name="skyscript", licence=licence)


def _files(folder: Path) -> list[tuple[Path, str]]:
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted({*folder.glob("*.csv"), *folder.glob("*/*.csv")})]
    return [(path, split_name(match[1], str(path))) for path, match in found if match is not None]
