"""Data sets that people already have, taken into a tile store: the driver of all layouts."""

from __future__ import annotations

import hashlib
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from alidade.errors import AlidadeError, GridError
from alidade.training.tiles.build import check_real
from alidade.training.tiles.grid import square_at
from alidade.training.tiles.layout_bigearthnet import BigEarthNet
from alidade.training.tiles.layout_pairs import Pairs
from alidade.training.tiles.layout_pmtiles import PMTiles
from alidade.training.tiles.layout_sen12ms import Sen12MS
from alidade.training.tiles.layout_terramesh import TerraMesh
from alidade.training.tiles.layouts import Found, Item, Layout, Options, place_of
from alidade.training.tiles.leakage import Ground, Guard
from alidade.training.tiles.plan import SPLIT_CELL_LEVEL, Split, check_split
from alidade.training.tiles.scenes import Failure
from alidade.training.tiles.schema import Sample, StoreError, ViewSpec
from alidade.training.tiles.store import read_header
from alidade.training.tiles.writer import StoreWriter, full

OWN = "own"
"""As ``split``: the data set's own splits."""

SHARD_SECONDS = 30.0
"""What is read is acknowledged at least so often."""

Known = Mapping[str, ViewSpec] | None
LAYOUTS: dict[str, Callable[[str, Options, Known], Layout]] = {
    "pairs": Pairs,
    "bigearthnet-mm": BigEarthNet,
    "sen12ms": Sen12MS,
    "terramesh": TerraMesh,
    "pmtiles": PMTiles,
}


class ImportProgress(Protocol):
    """What a caller can show while ``import_tiles`` works; the library itself prints nothing."""

    def started(self, *, samples: int) -> None:
        """So many samples are listed."""

    def advanced(self, *, samples: int) -> None:
        """So many more of them are done."""

    def failed(self, failure: Failure) -> None:
        """One cannot be taken in; the others go on."""


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What a run did.

    Attributes:
        written: samples that this run added.
        present: samples that were there already.
        incomplete: samples with too few views, or whose views are too empty.
        leaking: samples left out because they share ground with another split.
        unlisted: samples that the data set's own splits do not name.
        views: how many of the new samples hold each view.
        failures: what could not be read, and why.
        samples: samples in the store now.
        seconds: duration of the run.
        repairs: what was put right when the store was opened, one sentence each.
    """

    written: int
    present: int
    incomplete: int
    leaking: int
    unlisted: int
    views: dict[str, int]
    failures: tuple[Failure, ...]
    samples: int
    seconds: float
    repairs: tuple[str, ...]

    def sentence(self) -> str:
        """The run in one line."""
        rate = self.written / self.seconds if self.seconds > 0 else 0.0
        held = ", ".join(f"{name} {count:,}" for name, count in self.views.items())
        parts = [f"{self.written:,} samples taken in, in {self.seconds:.1f} s ({rate:.1f}/s; {held})"]
        told = (
            (self.present, "already there"),
            (self.incomplete, "left out with too few views"),
            (self.leaking, "left out between two splits"),
            (self.unlisted, "left out as no split names them"),
            (len(self.failures), "failed"),
        )
        parts += [f"{count:,} {what}" for count, what in told if count]
        return "; ".join([*parts, f"the store holds {self.samples:,} samples"]) + "."


def import_tiles(
    layout: str,
    path: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    views: Sequence[str] | None = None,
    split: Split | None = None,
    min_views: int | None = None,
    min_valid: float = 0.0,
    progress: ImportProgress | None = None,
) -> ImportSummary:
    """Take the samples of a data set into the store at ``out``; an existing store is added to.

    Nothing is resampled: pixels are stored as the data set holds them, with units and ground resolution declared. A
    sample that cannot be read is listed and the others go on; the same call tries it again. Stopped at any moment,
    the same call goes on from the last acknowledged shard.

    Args:
        layout: one of ``LAYOUTS``.
        path: the data set's folder.
        out: directory of the store, made when there is none.
        options: what the layout asks the user.
        views: names of the views to take; by default the store's, else all there are.
        split: one split for all, names with shares that groups and places are dealt to by hash, or ``OWN``. By
            default ``OWN`` where the data set has splits, else ``"train"``.
        min_views: samples with fewer views are left out; by default what the layout says.
        min_valid: a view with a smaller share of valid pixels counts as missing, as does one without any.
        progress: is told how far the run is.

    Raises:
        StoreError: an unknown layout, a folder that does not hold it, views that do not fit the store, ground of
            another split of the store (when all go into one split), or ``out`` cannot be written.
        AlidadeError: nothing of the data set can be read at all.
    """
    began = clock.perf_counter()
    if layout not in LAYOUTS:
        raise StoreError(
            "layout", got=repr(layout), expected=f"one of {', '.join(LAYOUTS)}", next_step="Name one of these."
        )
    folder = Path(out)
    check_real(folder)
    known = read_header(folder).views if (folder / "store.json").exists() else None
    source = LAYOUTS[layout](str(path), options or Options(), known)
    items, failures = source.items()
    if not items:
        raise _nothing(str(path), layout, failures)
    chosen = _choose(source.views, views if views is not None else None if known is None else list(known))
    needed = min_views if min_views is not None else min(source.least, len(chosen))
    if not 1 <= needed <= len(chosen):
        raise StoreError(
            "views", got=f"{needed} needed of {len(chosen)}", expected=f"1 to {len(chosen)}",
            next_step="Pass another --min-views.",
        )  # fmt: skip
    with StoreWriter(folder, views=chosen, ground_m=None) as writer:
        run = _Run(
            writer=writer, layout=source, split=_check_split(split, items, str(path)), needed=needed,
            min_valid=min_valid, failures=list(failures), progress=progress,
        )  # fmt: skip
        run.execute(items)
        return ImportSummary(
            written=run.written, present=run.counts["present"], incomplete=run.counts["incomplete"],
            leaking=run.counts["leaking"], unlisted=run.counts["unlisted"],
            views={name: run.views[name] for name in chosen}, failures=tuple(run.failures), samples=len(writer),
            seconds=clock.perf_counter() - began, repairs=writer.repairs,
        )  # fmt: skip


@dataclass(kw_only=True)
class _Run:
    """One call of ``import_tiles`` on an open store."""

    writer: StoreWriter
    layout: Layout
    split: Split
    needed: int
    min_valid: float
    failures: list[Failure]
    progress: ImportProgress | None
    waiting: list[Sample] = field(default_factory=list)
    waiting_bytes: int = 0
    fresh: Guard = field(default_factory=Guard)
    last_flush: float = field(default_factory=clock.monotonic)
    written: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)

    def execute(self, items: Sequence[Item]) -> None:
        """Read what the store has not.

        Raises:
            StoreError: a sample would leak to another split, or the disk is full or refuses.
        """
        todo = list(self._missing(items))
        if self.progress is not None:
            self.progress.started(samples=len(todo))
            for failure in self.failures:
                self.progress.failed(failure)
        for item, views in todo:
            sample = self._make(item, views)
            if sample is not None and self._admit(sample):
                self.waiting.append(sample)
                self.waiting_bytes += sample.nbytes
                self.fresh.add(Ground.of(sample))
            if self.progress is not None:
                self.progress.advanced(samples=1)
            if full(len(self.waiting), self.waiting_bytes) or clock.monotonic() - self.last_flush >= SHARD_SECONDS:
                self._flush()
        self._flush()

    def _missing(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[str]]]:
        """The samples to read, and which of their views."""
        for item in items:
            views = [name for name in self.writer.views if name in item.parts]
            have, wanted = self.writer.split_of(item.key), self._split_of(item, None)
            if have is not None:
                if wanted is not None and wanted != have:
                    raise StoreError(
                        f"{item.key}: split", got=f"{wanted!r} now, but the store has it in {have!r}",
                        expected="the split it has", next_step="Pass the --split of the first run.",
                    )  # fmt: skip
                self.counts["present"] += 1
            elif self.split == OWN and item.split is None:
                self.counts["unlisted"] += 1
            elif len(views) < self.needed:
                self.counts["incomplete"] += 1
            else:
                yield item, views

    def _make(self, item: Item, views: Sequence[str]) -> Sample | None:
        try:
            found = self.layout.read(item, views)
            place = place_of(found.grid)
        except AlidadeError as error:
            self._fail(item.key, str(error))
            return None
        good = {n: v for n, v in found.views.items() if v.valid.any() and v.valid.mean() >= self.min_valid}
        if len(good) < self.needed:
            self.counts["incomplete"] += 1
            return None
        split = self._split_of(item, found)
        assert split is not None, "samples without a split are left out before they are read"
        lon, lat, box = place or (None, None, None)
        return Sample(
            sample_id=item.key, square=item.key, split=split, lon=lon, lat=lat, bbox=box,
            views={name: good[name] for name in self.writer.views if name in good},
        )  # fmt: skip

    def _admit(self, sample: Sample) -> bool:
        """Whether the sample shares no ground with another split.

        Raises:
            StoreError: it does, and all samples of this run were meant for one split.
        """
        ground = Ground.of(sample)
        try:
            self.writer.check_ground(ground)
            self.fresh.check(ground, sample.sample_id)
        except StoreError as error:
            if isinstance(self.split, str) and self.split != OWN:
                self._flush()
                raise
            self.counts["leaking"] += 1
            if self.split == OWN:
                self._fail(sample.sample_id, str(error))
            return False
        return True

    def _split_of(self, item: Item, found: Found | None) -> str | None:
        """The split, or ``None`` where the data set does not name it, or where it hangs on the place, not yet known."""
        if not isinstance(self.split, str):
            if item.group is None and found is None:
                return None
            return _draw(item.group or _cell(item, found), self.split)
        return item.split if self.split == OWN else self.split

    def _fail(self, source: str, message: str) -> None:
        failure = Failure(source=source, message=message)
        self.failures.append(failure)
        if self.progress is not None:
            self.progress.failed(failure)

    def _flush(self) -> None:
        self.writer.append(self.waiting)
        self.written += len(self.waiting)
        for sample in self.waiting:
            self.views.update(sample.views.keys())
        self.waiting, self.waiting_bytes, self.fresh = [], 0, Guard()
        self.last_flush = clock.monotonic()


def _cell(item: Item, found: Found | None) -> str:
    """What is dealt to a split: the cell that ``alidade tiles build`` would deal, else the sample and its pieces."""
    place = None if found is None else place_of(found.grid)
    if place is not None:
        try:
            return square_at(place[0], place[1], SPLIT_CELL_LEVEL).key
        except GridError:
            pass  # near the poles the grid has no squares
    return item.key.partition("#")[0]


def _draw(key: str, shares: Mapping[str, float]) -> str:
    """The same draw as ``plan.split_of`` makes for a cell with this key."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2.0**64
    reached = 0.0
    for name, share in shares.items():
        reached += share
        if draw < reached:
            return name
    return [name for name, share in shares.items() if share > 0.0][-1]


def _check_split(split: Split | None, items: Sequence[Item], path: str) -> Split:
    own = any(item.split is not None for item in items)
    if split is None:
        return OWN if own else "train"
    if split == OWN and not own:
        raise StoreError(
            f"{path}: splits", got="none of the data set's own", expected="folders or lists that name splits",
            next_step="Pass a split's name, or shares: --split train=0.8,val=0.1,test=0.1.",
        )  # fmt: skip
    check_split(split)
    return split


def _choose(there: Mapping[str, ViewSpec], wanted: Sequence[str] | None) -> dict[str, ViewSpec]:
    names = list(there) if wanted is None else list(dict.fromkeys(wanted))
    missing = [n for n in names if n not in there]
    if missing or not names:
        raise StoreError(
            "views", got=", ".join(missing) or "none", expected=f"some of {', '.join(there)}",
            next_step="Name views that the data set has with --view, or another --out.",
        )  # fmt: skip
    return {n: there[n] for n in names}


def _nothing(path: str, layout: str, failures: Sequence[Failure]) -> StoreError:
    first = f"; the first of {len(failures)} faults: {failures[0].message}" if failures else ""
    return StoreError(
        f"{path}: samples", got=f"none{first}", expected=f"a folder in the layout {layout}",
        next_step="Check the path and the layout (docs/guides/import.md shows each).",
    )  # fmt: skip
