"""UCM-Captions as ``index.csv`` (file, archive, split, caption_1 to caption_5) with zip archives of the images.

B. Qu, X. Li, D. Tao, X. Lu, Deep semantic understanding of high resolution remote sensing image, CITS 2016: 21 classes
of UC Merced, 0.3 m, five sentences an image. The images are US public domain; the captions state no licence.
"""

from __future__ import annotations

from pathlib import Path

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, split_name, table

EXPECTED = "index.csv with the columns file, archive, split and caption_1 to caption_5"
_CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))
_COLUMNS = ("file", "archive", "split", *_CAPTIONS)
GSD_M = 0.3


def fits(folder: Path) -> bool:
    """Whether ``index.csv`` is there with a column of captions."""
    index = folder / "index.csv"
    if not index.is_file():
        return False
    with index.open("rb") as file:
        return b"caption_1" in file.readline(4096)


def read(folder: Path, options: Options) -> Captioned:
    """The data set; ids are the names of the files.

    Raises:
        CaptionError: see the module ``lists``.
    """
    lines = [
        Line(
            image=row["file"],
            captions=tuple(caption(row[c], told) for c in _CAPTIONS),
            split=split_name(row["split"], told),
            told=told,
        )
        for told, row in table(folder / "index.csv", _COLUMNS)
    ]
    licence = "images: US public domain; captions: not stated by the owners"
    return gather(lines, Album.of(folder), options, name="ucm-captions", licence=licence, gsd_m=GSD_M)
