"""Rasters in, aligned tiles out: every sensor over one ground square at its own resolution."""

from __future__ import annotations

import hashlib
import json
import time as clock
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alidade.imagery.files import Declared
from alidade.imagery.remote import Door
from alidade.training.tiles.grid import level_of
from alidade.training.tiles.plan import Split, candidates_of, check_split
from alidade.training.tiles.run import Files, Filters, Progress, Run
from alidade.training.tiles.scenes import Failure, Scene, View, expand, feeds_of, list_scenes, resolve_views
from alidade.training.tiles.schema import StoreError, ViewSpec
from alidade.training.tiles.store import TileStore
from alidade.training.tiles.writer import StoreWriter

FRAME_SLACK = 0.15
"""A scene's frame may look so much emptier than it is, as its share is estimated from 64 points."""


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a run did.

    Attributes:
        written: samples that this run added.
        present: squares that had a sample already.
        rejected: squares that the filters left without a sample, in this run or in an earlier one like it.
        at_seams: squares left out because, across the edge of two UTM zones, they overlap another split.
        views: how many of the new samples hold each view.
        failures: scenes that could not be used, or only in part.
        samples: samples in the store now.
        seconds: duration of the run.
        repairs: what was put right when the store was opened, one sentence each.
    """

    written: int
    present: int
    rejected: int
    at_seams: int
    views: dict[str, int]
    failures: tuple[Failure, ...]
    samples: int
    seconds: float
    repairs: tuple[str, ...]

    def sentence(self) -> str:
        """The run in one line."""
        rate = self.written / self.seconds if self.seconds > 0 else 0.0
        held = ", ".join(f"{name} {count:,}" for name, count in self.views.items())
        parts = [f"{self.written:,} samples made in {self.seconds:.1f} s ({rate:.1f}/s; {held})"]
        if self.present:
            parts.append(f"{self.present:,} squares already there")
        if self.rejected:
            parts.append(f"{self.rejected:,} squares left out by the filters")
        if self.at_seams:
            parts.append(f"{self.at_seams:,} left out between two zones and two splits")
        if self.failures:
            count = len(self.failures)
            parts.append(f"{count:,} scene{'s' * (count != 1)} failed")
        return "; ".join([*parts, f"the store holds {self.samples:,} samples"]) + "."


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The scenes that tiles are to be made of.

    Attributes:
        scenes: those that can be used.
        failures: those that cannot.
        door: which hosts may be asked for their pixels; ``None`` for local files.
    """

    scenes: tuple[Scene, ...]
    failures: tuple[Failure, ...]
    door: Door | None = None

    @classmethod
    def of_files(cls, paths: Iterable[str | Path], declared: Declared) -> Listing:
        """The scenes in files and folders; see ``expand`` for what is raised."""
        scenes, failures = list_scenes(expand(paths), declared)
        return cls(scenes=tuple(scenes), failures=tuple(failures))


def build_tiles(
    paths: Iterable[str | Path] | Listing,
    out: str | Path,
    views: Sequence[View] | None = None,
    *,
    square_m: float = 1280.0,
    split: Split = "train",
    min_views: int | None = None,
    max_date_gap_days: float | None = None,
    max_cloud: float | None = None,
    min_valid: float = 0.9,
    declared: Declared | None = None,
    progress: Progress | None = None,
) -> BuildSummary:
    """Make a sample of every square of the UTM grid that enough views cover; what the store has is left alone.

    A view's side in pixels is ``square_m`` divided by its ground resolution on the grid. Where several scenes of a
    sensor show a square, the dates that lie closest together are taken; a scene that turns out too empty or too cloudy
    there is put aside and the choice made again. Scenes are not mosaicked: a view's pixels come from one scene.
    Stopped at any moment, the same call goes on from the last acknowledged shard.

    Args:
        paths: GeoTIFF files, and folders that are searched for ``*.tif`` and ``*.tiff``; or scenes that a catalogue
            listed (``tiles.stac``).
        out: directory of the store, made when there is none.
        views: what the samples hold; by default the store's own, else one view for each sensor found.
        square_m: side of the squares in metres, 0.625 m times a power of two.
        split: the name of one split, or names with shares that cells of about 10 km are dealt to by hash.
        min_views: how many views a sample needs; by default two, or one where there is just one view.
        max_date_gap_days: see ``Filters``.
        max_cloud: see ``Filters``.
        min_valid: see ``Filters``.
        declared: what the files do not say themselves, the same for all of them.
        progress: is told how far the run is.

    Raises:
        RasterError: ``paths`` hold no GeoTIFF.
        GridError: ``square_m`` is no side of the grid.
        StoreError: no scene is usable, no square is covered by enough views, a square lies in another split of the
            store already (leakage), or ``out`` cannot be written or is something else.
    """
    began = clock.perf_counter()
    level, folder = level_of(square_m), Path(out)
    check_split(split)
    check_real(folder)
    told = declared or Declared()
    listing = paths if isinstance(paths, Listing) else Listing.of_files(paths, told)
    scenes, failures = list(listing.scenes), list(listing.failures)
    if not scenes:
        raise _nothing(failures)
    specs = resolve_views(folder, views, scenes, square_m)
    scenes, feeds = feeds_of(scenes, specs, failures)
    needed = min_views if min_views is not None else min(2, len(specs))
    if not 1 <= needed <= len(specs):
        raise StoreError(
            "views", got=f"{needed} needed of {len(specs)}", expected=f"1 to {len(specs)}",
            next_step="Pass another --min-views.",
        )  # fmt: skip
    filters = Filters(min_views=needed, max_date_gap_days=max_date_gap_days, max_cloud=max_cloud, min_valid=min_valid)
    least = max(0.0, min_valid - FRAME_SLACK)
    found = candidates_of(scenes, feeds, level, least)
    squares = {s: c for s, c in found.items() if len({one.view for one in c}) >= needed}
    if not squares:
        raise _no_overlap(scenes, list(specs), len(found), needed, square_m)
    with StoreWriter(folder, views=specs, ground_m=square_m) as writer, closing(Files(told, listing.door)) as files:
        run = Run(
            writer=writer, scenes=scenes, filters=filters, plan=_plan_hash(scenes, specs, filters, told),
            failures=failures, progress=progress, files=files,
        )  # fmt: skip
        run.execute(squares, split)
        return BuildSummary(
            written=run.written, present=run.present, rejected=run.rejected, at_seams=run.at_seams,
            views={name: run.views[name] for name in specs}, failures=tuple(failures), samples=len(writer),
            seconds=clock.perf_counter() - began, repairs=writer.repairs,
        )  # fmt: skip


def _nothing(failures: Sequence[Failure]) -> StoreError:
    """No scene is left; the first reason is quoted as a sentence of its own, behind this error's."""
    got = "none that can be used"
    if failures:
        got += f"; the first of {len(failures):,} says why at the end of this line"
    return StoreError(
        "scenes", got=got, expected="at least one raster with a place on the ground",
        next_step=failures[0].message if failures else "Ask for other places, dates or collections.",
    )  # fmt: skip


def check_real(folder: Path) -> None:
    """Real samples are not added to made-up ones: what is trained or measured on both would be neither.

    Raises:
        StoreError: the store at ``folder`` holds a made-up sample.
    """
    if (folder / "store.json").exists() and TileStore.open(folder).synthetic:
        raise StoreError(
            f"{folder}: samples", got="made-up ones (alidade tiles synthesize)", expected="a store of real images",
            next_step="Name another --out.",
        )  # fmt: skip


def _plan_hash(scenes: Sequence[Scene], specs: dict[str, ViewSpec], filters: Filters, declared: Declared) -> str:
    """What decides whether a square gives a sample; the same for a run that goes on after a stop."""
    parts = [sorted(s.state for s in scenes), repr(specs), repr(filters), repr(declared)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _no_overlap(scenes: Sequence[Scene], views: list[str], squares: int, needed: int, square_m: float) -> StoreError:
    return StoreError(
        "overlap", got=f"{squares:,} squares that a scene covers, and none that {needed} views cover",
        expected=f"squares of {square_m:g} m that at least {needed} of {', '.join(views)} cover",
        next_step="Check that the sensors' files show the same ground (alidade inspect), or pass a smaller --square, "
        "--min-valid or --min-views.",
    )  # fmt: skip
