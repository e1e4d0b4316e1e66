"""Folders of GeoTIFF files that belong together by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from alidade.errors import AlidadeError
from alidade.imagery.bands import Unit
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.training.tiles.layouts import (
    SPLIT_NAMES,
    Found,
    Item,
    Options,
    Part,
    check_same_ground,
    files_below,
    view_from,
)
from alidade.training.tiles.scenes import MIN_SIDE, Failure, View
from alidade.training.tiles.schema import StoreError, ViewSpec

_SPLIT = f"(?P<split>{'|'.join(SPLIT_NAMES)})/"
_LAST = r"(?P<key>[^/]+)\.tiff?"
_FOLDERS = tuple(
    re.compile(text, re.IGNORECASE)
    for text in (
        rf"(?:.*/)?{_SPLIT}(?:.*/)?(?P<view>[^/]+)/{_LAST}",
        rf"(?:.*/)?(?P<view>[^/]+)/{_SPLIT}{_LAST}",
        rf"(?:.*/)?(?P<view>[^/]+)/{_LAST}",
    )
)
_ENDINGS = tuple(
    re.compile(rf"(?:.*/)?{text}(?P<key>[^/]+)_(?P<view>[^_/]+)\.tiff?", re.IGNORECASE) for text in (_SPLIT, "")
)
"""Where a path names split, view and key; the first that fits counts."""

_USED = ("views", "pattern", "name", "cut", "units", "scales", "offsets", "nodata")


@dataclass(frozen=True, kw_only=True)
class _Match:
    key: str
    view: str
    split: str | None
    date: str | None


class Pairs:
    """Folders of paired files: a folder per sensor and equal names, or names that end in ``_SENSOR``.

    Args:
        root: the folder.
        options: sensors and units where the files do not tell, a pattern where the names are other ones.
        known: the views of a store that is added to.

    Raises:
        StoreError: no folder, a pattern without a group ``key``, names that are not unique, or views of which not
            one file can be used.
    """

    least = 2

    def __init__(self, root: str, options: Options, known: Mapping[str, ViewSpec] | None) -> None:
        options.refuse("pairs", but=_USED)
        self._root, self._options = root, options
        self._declared = {v.name: v for v in options.views}
        self._dates: dict[str, datetime] = {}
        self._open_files: dict[str, tuple[str, RasterFile]] = {}
        self._items = self._list()
        names = list(self._declared) or sorted({name for item in self._items for name in item.parts})
        self.views: dict[str, ViewSpec] = {n: s for n, s in known.items() if n in names} if known else {}
        for name in names:
            if name not in self.views and known is None:
                self.views[name] = self._first_spec(name)

    def items(self) -> tuple[list[Item], list[Failure]]:
        """Every name that a file has, with the views it is there in."""
        return self._items, []

    def read(self, item: Item, views: Sequence[str]) -> Found:
        """See ``Layout.read``."""
        read = {}
        first = None
        for name in views:
            (part,) = item.parts[name]
            raster = self._read(name, part)
            first = first or raster
            check_same_ground(first.grid, raster.grid, item.key)
            read[name] = view_from(raster, self.views[name])
        assert first is not None
        return Found(views=read, grid=first.grid)

    def _list(self) -> list[Item]:
        files = list(files_below(self._root, ".tif", ".tiff"))
        paths = {os.path.relpath(f, self._root).replace(os.sep, "/"): f for f in files}
        found = self._matches(list(paths))
        prefix = self._options.name or os.path.basename(os.path.abspath(self._root))
        parts: dict[tuple[str | None, str], dict[str, str]] = {}
        for path, match in found.items():
            if self._declared and match.view not in self._declared:
                continue
            halves = parts.setdefault((match.split, match.key), {})
            if match.view in halves:
                raise StoreError(
                    f"{self._root}: names", got=f"{halves[match.view]} and {path}, both {match.view} of {match.key!r}",
                    expected="one file of each view for a key",
                    next_step="Pass a --pattern that tells them apart, such as '(?P<view>s1|s2)/(?P<key>.+)[.]tif'.",
                )  # fmt: skip
            halves[match.view] = path
            if match.date is not None:
                self._dates[paths[path]] = _moment(match.date, path)
        items = []
        for (split, key), halves in sorted(parts.items(), key=lambda pair: (pair[0][0] or "", pair[0][1])):
            inside = f"{prefix}/{split}/{key}" if split else f"{prefix}/{key}"
            for piece in range(self._options.cut**2):
                row, col = divmod(piece, self._options.cut)
                items.append(
                    Item(
                        key=inside if self._options.cut == 1 else f"{inside}#{row}-{col}",
                        parts={v: (Part(path=paths[p], offset=piece),) for v, p in halves.items()},
                        split=split,
                    )
                )
        return items

    def _matches(self, paths: Sequence[str]) -> dict[str, _Match]:
        if self._options.pattern is not None:
            patterns = (_compiled(self._options.pattern),)
            return {p: m for p in paths if (m := _match(patterns, p)) is not None}
        by_folder = {p: m for p in paths if (m := _match(_FOLDERS, p)) is not None}
        keys: dict[tuple[str | None, str], set[str]] = {}
        for match in by_folder.values():
            keys.setdefault((match.split, match.key), set()).add(match.view)
        if any(len(views) > 1 for views in keys.values()):
            return by_folder
        # no name is there in two folders: then the names themselves end in the sensor
        return {p: m for p in paths if (m := _match(_ENDINGS, p)) is not None} or by_folder

    def _first_spec(self, name: str) -> ViewSpec:
        """What a view holds, from the first file that can be used."""
        first = None
        for item in self._items:
            for part in item.parts.get(name, ()):
                try:
                    return self._spec(name, part)
                except AlidadeError as error:
                    first = first or error
        raise StoreError(
            f"{self._root}: view {name}", got=f"no file that can be used ({first or 'none has this name'})",
            expected="at least one", next_step=f"Say what the files are: --view {name}=SENSOR:BAND,BAND.",
        )  # fmt: skip

    def _spec(self, name: str, part: Part) -> ViewSpec:
        with self._open(name, part) as file:
            side = file.grid.width // self._options.cut
            cut_evenly = file.grid.width == file.grid.height == side * self._options.cut
            if not cut_evenly or side < MIN_SIDE:
                raise StoreError(
                    f"{part.path}: size", got=f"{file.grid.height} x {file.grid.width} px",
                    expected=f"a square that {self._options.cut} pieces of at least {MIN_SIDE} px fill",
                    next_step="Pass another --cut, or let `alidade tiles build` cut squares from the files.",
                )  # fmt: skip
            bands = [(b.name, e) for b, e in zip(file.bands, file.encodings, strict=True) if e.unit is not Unit.CLASS]
            return ViewSpec(
                sensor=file.sensor.id, bands=tuple(b for b, _ in bands), side=side, dtype=str(file.dtype),
                encodings=tuple(e for _, e in bands),
            )  # fmt: skip

    def _read(self, name: str, part: Part) -> Raster:
        side, cut = self.views[name].side, self._options.cut
        file = self._kept_open(name, part)
        if (file.grid.height, file.grid.width) != (side * cut, side * cut):
            raise StoreError(
                f"{part.path}: size", got=f"{file.grid.height} x {file.grid.width} px",
                expected=f"{side * cut} x {side * cut} px, as the view's other files",
                next_step="Import files of one size at a time, into stores of their own.",
            )  # fmt: skip
        row, col = divmod(part.offset, cut)
        raster = file.read(Window(row=row * side, col=col * side, height=side, width=side))
        return replace(raster, time=self._dates.get(part.path, raster.time))

    def _kept_open(self, name: str, part: Part) -> RasterFile:
        """The view's file; it stays open until another is asked for, as its pieces follow one another."""
        path, file = self._open_files.get(name, (None, None))
        if file is None or path != part.path:
            if file is not None:
                file.close()
                del self._open_files[name]
            file = self._open(name, part)
            self._open_files[name] = (part.path, file)
        return file

    def _open(self, name: str, part: Part) -> RasterFile:
        view, options = self._declared.get(name, View(name=name, sensor="")), self._options
        return open_raster(
            part.path,
            Declared(
                sensor=view.sensor or None, bands=view.bands, unit=options.units.get(name),
                scale=options.scales.get(name), offset=options.offsets.get(name),
                nodata=options.nodata.get(name), gsd_m=view.gsd_m,
            ),
        )  # fmt: skip


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        if "key" in compiled.groupindex:
            return compiled
        got = f"groups {', '.join(compiled.groupindex) or 'none'}"
    except re.error as error:
        got = str(error)
    raise StoreError(
        "--pattern", got=got, expected="a regular expression with a group (?P<key>...)",
        next_step="Write it like '(?P<view>s1|s2)/(?P<key>.+)[.]tif'; it must match the path below the folder.",
    ) from None  # fmt: skip


def _match(patterns: Sequence[re.Pattern[str]], path: str) -> _Match | None:
    found = next((m for p in patterns if (m := p.fullmatch(path)) is not None), None)
    if found is None:
        return None
    groups = found.groupdict()
    # a pattern without the group leaves it to the folder that the file lies in
    text = groups.get("view") or path.rpartition("/")[0].rpartition("/")[2]
    view = re.sub(r"[^a-z0-9_-]", "-", text.lower()).lstrip("_-") or "view"
    split = groups.get("split")
    return _Match(
        key=groups["key"], view=view, split=SPLIT_NAMES.get(split.lower(), split) if split else None,
        date=groups.get("date"),
    )  # fmt: skip


def _moment(text: str, path: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise StoreError(
            f"{path}: date", got=repr(text), expected="a date such as 20240531 or 20240531T102030",
            next_step="Pass a --pattern whose group `date` holds just that.",
        ) from None  # fmt: skip
