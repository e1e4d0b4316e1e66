"""The "precomp" layout of retrieval papers: ``SPLIT_filename.txt`` and ``SPLIT_caps.txt`` beside a folder of images.

``SPLIT_caps.txt`` has five lines an image; ``SPLIT_filename.txt`` has the image's name on one line or, as the files of
Z. Yuan et al. (IEEE TGRS 60, 2022) for UCM, Sydney, RSICD and RSITMD have it, once for each caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alidade.training.captions.captioned import Captioned
from alidade.training.captions.lists import Album, Line, Options, caption, gather, lines_of, split_name, wrong

EXPECTED = "train_filename.txt and train_caps.txt (or those of val, test) with five captions an image"
PER_IMAGE = 5
_NAMES, _CAPTIONS = "_filename.txt", "_caps.txt"


def fits(folder: Path) -> bool:
    """Whether the folder holds such files."""
    return any(folder.glob(f"*{_NAMES}")) and any(folder.glob(f"*{_CAPTIONS}"))


def read(folder: Path, options: Options) -> Captioned:
    """The data set. Some repositories ship a copy of the test part as val: name the splits to read then.

    Raises:
        CaptionError: see the module ``lists``; also files whose lines do not fit together.
    """
    lines: list[Line] = []
    for names in sorted(folder.glob(f"*{_NAMES}")):
        split = split_name(names.name.removesuffix(_NAMES), str(names))
        if split in options.splits:
            lines += _part(names, names.with_name(names.name.removesuffix(_NAMES) + _CAPTIONS), split)
    name = folder.name.lower()
    gsd = 0.3 if "ucm" in name else 0.5 if "sydney" in name else None
    return gather(lines, Album.of(folder), options, name=name, licence="not stated by the owners", gsd_m=gsd)


def _part(names_file: Path, captions_file: Path, split: str) -> list[Line]:
    names = _stripped(names_file)
    captions = [(n, text) for n, text in lines_of(captions_file)]
    # a trailing blank line is the end of the file, any other is a caption that is missing
    while captions and not captions[-1][1].strip():
        captions.pop()
    if len(names) == len(captions):
        names = _once(names, names_file)
    if not names or len(names) * PER_IMAGE != len(captions):
        got = f"{len(names):,} images and {len(captions):,} captions"
        raise wrong(str(captions_file), got, f"{PER_IMAGE} captions an image, as {names_file.name} counts them")
    lines = []
    for i, (number, name) in enumerate(names):
        five = captions[i * PER_IMAGE : (i + 1) * PER_IMAGE]
        clean = tuple(caption(text, f"{captions_file}, line {n}") for n, text in five)
        lines.append(Line(image=name, captions=clean, split=split, told=f"{names_file}, line {number}"))
    return lines


def _stripped(path: Path) -> list[tuple[int, str]]:
    return [(n, text.strip()) for n, text in lines_of(path) if text.strip()]


def _once(names: Sequence[tuple[int, str]], path: Path) -> list[tuple[int, str]]:
    """Every fifth name of a list that gives each five times in a row."""
    for i in range(0, len(names), PER_IMAGE):
        group = {name for _, name in names[i : i + PER_IMAGE]}
        if len(group) != 1:
            got = f"{' and '.join(sorted(group)[:2])} among the five lines from {names[i][0]}"
            raise wrong(str(path), got, "each name five times in a row, or once")
    return list(names[::PER_IMAGE])
