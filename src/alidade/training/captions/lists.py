"""What readers of captions share: text files within bounds, rows with their line numbers, images found by name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from alidade.imagery.files import Declared
from alidade.training.captions.captioned import SPLITS, Captioned, CaptionError, Source
from alidade.training.captions.pictures import ENDINGS, Picture, Piece, zip_pieces
from alidade.training.tiles.layouts import SPLIT_NAMES

MAX_TEXT_BYTES = 4 * 2**30
"""The most of one list of captions: SkyScript's largest takes about 1.5 GB."""
MAX_JSON_BYTES = 512 * 2**20
MAX_CAPTION = 10_000
"""Characters of one caption; longer ones are no captions."""


_NOTHING = Declared()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user can say about an image-text data set.

    Attributes:
        declared: what GeoTIFFs do not say themselves; its ``gsd_m`` also goes for JPEG and PNG.
        licence: in place of what is known about the data set.
        captions: which of several sets of captions: SkyScript's column, ChatEarthNet's ``35`` or ``4v``.
        splits: read only these.
        partial: leave out images that have captions but no file, and count them.
    """

    declared: Declared = _NOTHING
    licence: str | None = None
    captions: str | None = None
    splits: tuple[str, ...] = SPLITS
    partial: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One image as a caption file names it; ``told`` says where, for messages."""

    image: str
    captions: tuple[str, ...]
    split: str
    told: str


def wrong(told: str, got: str, expected: str, next_step: str = "") -> CaptionError:
    """The error of a caption file in another layout than expected."""
    return CaptionError(told, got=got, expected=expected, next_step=next_step or "Repair the file, or fetch it again.")


def caption(text: object, told: str) -> str:
    """A caption with its white space put in order.

    Raises:
        CaptionError: no text, an empty one, or one of more than 10,000 characters.
    """
    if not isinstance(text, str):
        raise wrong(f"{told}: caption", f"{type(text).__name__}", "text")
    clean = " ".join(text.split())
    if not clean:
        raise wrong(f"{told}: caption", "an empty one", "a sentence", "Write one, or remove the entry.")
    if len(clean) > MAX_CAPTION:
        raise wrong(f"{told}: caption", f"{len(clean):,} characters", f"at most {MAX_CAPTION:,}")
    return clean


def split_name(text: object, told: str) -> str:
    """``"train"``, ``"val"`` or ``"test"`` for any of the usual names.

    Raises:
        CaptionError: another one.
    """
    found = SPLIT_NAMES.get(text.strip().lower()) if isinstance(text, str) else None
    if found is None:
        raise wrong(f"{told}: split", repr(text), f"one of {', '.join(SPLIT_NAMES)}", "Name the split so.")
    return found


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file in UTF-8 with their numbers from 1, without their ends.

    Raises:
        CaptionError: missing, larger than 4 GiB, or no UTF-8.
    """
    _check_size(path, MAX_TEXT_BYTES)
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise wrong(f"{path}, line {number + 1}", "bytes that are no UTF-8", "text in UTF-8") from None


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Rows of a CSV file with where they stand; at least these columns.

    Raises:
        CaptionError: missing, no CSV, a column is missing, or a row of another length.
    """
    _check_size(path, MAX_TEXT_BYTES)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            there = tuple(reader.fieldnames or ())
            if missing := [c for c in columns if c not in there]:
                got = f"columns {', '.join(there) or 'none'} (no {', '.join(missing)})"
                raise wrong(str(path), got, f"a CSV file with the columns {', '.join(columns)}")
            for row in reader:
                told = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise wrong(told, "another number of fields", f"{len(there)}, as the first line has")
                yield told, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise wrong(str(path), str(error), "a CSV file in UTF-8") from None


def json_of(path: Path) -> Any:  # noqa: ANN401
    """What a JSON file holds.

    Raises:
        CaptionError: missing, larger than 512 MiB, or no JSON.
    """
    _check_size(path, MAX_JSON_BYTES)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise wrong(str(path), str(error)[:200], "a JSON file in UTF-8") from None


def _check_size(path: Path, most: int) -> None:
    if not path.is_file():
        raise wrong(str(path), "no such file", "a list of captions", "Check the path.")
    if (size := path.stat().st_size) > most:
        raise wrong(str(path), f"{size:,} bytes", f"at most {most:,}", "Cut it into parts.")


@dataclass(frozen=True, kw_only=True)
class Album:
    """The pictures of a folder, on disk and inside zip archives, found by their names."""

    root: Path
    pieces: Mapping[str, Piece] = field(repr=False)
    by_name: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def of(cls, root: Path, *, below: Path | None = None) -> Album:
        """All pictures under ``below`` (``root`` by default), hidden folders left out.

        Raises:
            CaptionError: a zip archive is damaged.
        """
        pieces: dict[str, Piece] = {}
        for folder, folders, names in os.walk(below or root):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for name in sorted(n for n in names if not n.startswith(".")):
                path = Path(folder, name)
                if name.lower().endswith(ENDINGS):
                    pieces[path.relative_to(root).as_posix()] = Piece(path=str(path))
                elif name.lower().endswith(".zip") and not name.lower().endswith(".zarr.zip"):
                    inside = (p for p in zip_pieces(path) if p.member.lower().endswith(ENDINGS))
                    pieces.update({f"{path.relative_to(root).as_posix()}/{p.member}": p for p in inside})
        return cls.over(root, pieces)

    @classmethod
    def over(cls, root: Path, pieces: Mapping[str, Piece]) -> Album:
        """An album of these pictures, by their paths below ``root``."""
        by_name: dict[str, tuple[str, ...]] = {}
        for key in pieces:
            by_name[_last(key)] = (*by_name.get(_last(key), ()), key)
        return cls(root=root, pieces=pieces, by_name=by_name)

    def find(self, name: str, told: str) -> Piece | None:
        """The picture that a caption file calls ``name``: a path below the folder, its end, or only the file's name.

        Raises:
            CaptionError: a name that leads out of the folder, or that several pictures have.
        """
        asked = PurePosixPath(name.replace("\\", "/"))
        if asked.is_absolute() or ".." in asked.parts or not asked.parts or ":" in asked.parts[0]:
            raise wrong(f"{told}: image", repr(name), f"a path below {self.root}", "Name images of the folder only.")
        if (piece := self.pieces.get(asked.as_posix())) is not None:
            return piece
        keys = [k for k in self.by_name.get(asked.name, ()) if f"/{k}".endswith(f"/{asked.as_posix()}")]
        # a list that names folders of its own means the file's name where that is the only one
        keys = keys or list(self.by_name.get(asked.name, ()))
        if len(keys) > 1:
            raise wrong(f"{told}: image", f"{name!r}, which is {keys[0]} and {keys[1]}", "the name of one image")
        return self.pieces[keys[0]] if keys else None


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def gather(
    lines: Sequence[Line], album: Album, options: Options, *, name: str, licence: str, gsd_m: float | None = None
) -> Captioned:
    """A data set from its lines and pictures.

    Args:
        lines: one per image.
        album: where the images are.
        options: what the user says.
        name: of the data set.
        licence: of the data set, unless the user says another.
        gsd_m: where the user does not say it.

    Raises:
        CaptionError: an image stands twice or is not there, or no line is of the splits asked for.
    """
    seen: dict[str, str] = {}
    images: list[Source] = []
    kept: list[Line] = []
    missing: list[Line] = []
    gsd = gsd_m if options.declared.gsd_m is None else options.declared.gsd_m
    declared = replace(options.declared, gsd_m=gsd)
    for line in lines:
        if line.split not in options.splits:
            continue
        if line.image in seen:
            raise wrong(
                f"{line.told}: image", f"{line.image!r} again, after {seen[line.image]}", "each image once",
                "Remove one of them, or name the splits to read.",
            )  # fmt: skip
        seen[line.image] = line.told
        piece = album.find(line.image, line.told)
        if piece is None:
            missing.append(line)
            continue
        images.append(Picture(id=line.image, piece=piece, gsd_m=gsd, declared=declared))
        kept.append(line)
    check_missing([(line.told, line.image) for line in missing], album.root, options, found=len(images))
    return Captioned(
        name=name,
        licence=options.licence or licence,
        images=tuple(images),
        captions=tuple(line.captions for line in kept),
        split=tuple(line.split for line in kept),
        left_out=len(missing),
    )


def check_missing(missing: Sequence[tuple[str, str]], root: Path, options: Options, *, found: int) -> None:
    """Refuse captions whose images are not there.

    Raises:
        CaptionError: one is missing and the user did not ask for what there is, or none is there.
    """
    if missing and (not options.partial or not found):
        told, name = missing[0]
        more = f" and {len(missing) - 1:,} more" if missing[1:] else ""
        raise wrong(
            f"{told}: image", f"no {name} in {root}{more}", "every image that has captions",
            "Put the images (or their zip archives) there, or read the set with partial=True.",
        )  # fmt: skip
    if not found:
        raise wrong(
            str(root), "no image of the splits asked for", f"captions of {' or '.join(options.splits)}",
            "Name a split that the data set has.",
        )  # fmt: skip
