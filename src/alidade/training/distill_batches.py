"""Batches for spectral distillation: whole squares for teachers, crops of their RGB for the student."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alidade.imagery.normalize import Normalization
from alidade.training.augment import View, coarser, jitter, turn
from alidade.training.image_batches import Source, cut_out, draw_corners
from alidade.training.teachers import DistillError, Teacher, reading
from alidade.training.tiles.schema import Header, ViewSpec
from alidade.training.tiles.store import TileStore, ViewBatch

STUDENT = "student"
GLOBAL, LOCAL = "student global", "student local"
"""Names in a batch, beside the teachers' names."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Views of one square of ground. Sides are drawn once a batch, places, turns and light for each crop.

    Crops keep their ground resolution, and the student is told it: nothing is blown up to one size.

    Attributes:
        global_views, local_views: crops of a square's RGB that the student sees.
        global_share, local_share: of the square's area, from least to most.
        teacher_views: whole squares that a teacher sees, differently turned.
        factors: area-averaging factors of the student's crops, to draw from.
        jitter: largest change of the student's brightness and contrast, in deviations. Teachers see light as it is.

    Raises:
        DistillError: numbers out of their range.
    """

    global_views: int = 2
    local_views: int = 4
    global_share: tuple[float, float] = (0.32, 1.0)
    local_share: tuple[float, float] = (0.05, 0.32)
    teacher_views: int = 2
    factors: tuple[int, ...] = (1,)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        """Check every field; see the class for what is refused."""
        shares = all(0 < low <= high <= 1 for low, high in (self.global_share, self.local_share))
        counts = self.global_views >= 1 and self.local_views >= 0 and self.teacher_views >= 1
        if not (shares and counts and self.jitter >= 0 and self.factors and min(self.factors) >= 1):
            raise DistillError(
                "crops",
                got=self,
                expected="a global and a teacher's view, shares above 0 to 1 from least to most, factors from 1",
                next_step="Choose other numbers.",
            )


class Squares(Protocol):
    """Squares of ground, each seen by the student's sensor and by teachers'."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def weight(self) -> float:
        """How often a batch is drawn from here, relative to others."""

    @property
    def identity(self) -> str:
        """Changes with the squares, and with how they are read."""

    @property
    def teachers(self) -> frozenset[str]:
        """Names of the teachers that see some of these squares."""

    def __len__(self) -> int:
        """How many there are to choose from."""

    def draw(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """Whole squares of the same ground: ``STUDENT`` and each teacher's name."""


class SourceSquares:
    """Squares cut from images in memory.

    Args:
        source: its stacks are named after the teachers, and one after the student; its views are not used.
        student: name of the student's stack.
        side: of the squares in pixels; the whole images when not given.

    Raises:
        DistillError: no such stack, no other one, or a side that does not fit.
    """

    def __init__(self, source: Source, *, student: str = "rgb", side: int | None = None) -> None:
        height, width = next(iter(source.stacks.values())).valid.shape[1:]
        self._source, self._student, self._side = source, student, min(height, width) if side is None else side
        self.name, self.weight = source.name, source.weight
        self.teachers = frozenset(source.stacks) - {student}
        if student not in source.stacks or not self.teachers or not 0 < self._side <= min(height, width):
            raise DistillError(
                f"source {source.name}",
                got=f"stacks {', '.join(source.stacks)} of {height} x {width} px, squares of {self._side} px",
                expected=f"the student's stack {student!r}, one or more of teachers, and squares that fit",
                next_step="Name stacks after the teachers, and choose a smaller square.",
            )

    @property
    def identity(self) -> str:
        """See ``Squares``."""
        stacks = {name: stack.identity for name, stack in sorted(self._source.stacks.items())}
        return f"{self.name} {self.weight} {self._student} {self._side} {stacks}"

    def __len__(self) -> int:
        return len(self._source)

    def draw(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """See ``Squares``."""
        corners = draw_corners(self._source, len(ids), self._side, rng)
        stacks = self._source.stacks
        return {
            STUDENT if name == self._student else name: cut_out(stacks[name], ids, corners, self._side)
            for name in sorted(stacks)
        }


class StoreSquares:
    """The samples of one split of a tile store; each view goes to those who can read it.

    Args:
        store: aligned tiles.
        split: which samples.
        student: how the student reads sensors, ``TowerConfig.normalizations``.
        teachers: each reads the first view of a sensor that it takes.
        student_view: name of the student's view, where several would do.

    Raises:
        DistillError: a view for the student or a teacher is missing or lacks bands, several would do for the student,
            or the split has no samples.
    """

    weight = 1.0

    def __init__(
        self,
        store: TileStore,
        *,
        split: str,
        student: Mapping[str, Normalization],
        teachers: Sequence[Teacher],
        student_view: str | None = None,
    ) -> None:
        self.name, self._store, self._split = str(store.path), store, split
        fitting = [name for name, spec in store.views.items() if _can_read(student, spec)]
        if student_view is None and len(fitting) > 1:
            raise DistillError(
                f"{store.path}: views for the student",
                got=", ".join(fitting),
                expected="one",
                next_step="Name the one that it shall learn from.",
            )
        own = student_view if student_view in store.views else _view_for("student", student, store, student_view)
        readers: dict[str, tuple[str, Mapping[str, Normalization]]] = {STUDENT: (own, student)}
        for teacher in teachers:
            view = _view_for(f"teacher {teacher.name}", teacher.normalizations, store, None)
            readers[teacher.name] = view, teacher.normalizations
        self._readings = {
            who: (view, reading(who, how, store.views[view].sensor, store.views[view].bands))
            for who, (view, how) in readers.items()
        }
        self.teachers = frozenset(readers) - {STUDENT}
        self._ids = store.select(split=split, require=(own,))
        if not len(self._ids):
            raise DistillError(
                f"{store.path}: samples to train on",
                got=f"none in split {split!r} that the student sees",
                expected="some",
                next_step="Look at `alidade tiles info`, and name a split with --split.",
            )

    @property
    def identity(self) -> str:
        """See ``Squares``."""
        header = Header(views=self._store.views, ground_m=self._store.ground_m).to_json()
        files = [[*shard.files.items()] for shard in self._store.shards]
        told = {who: (view, how.to_json()) for who, (view, how) in self._readings.items()}
        return json.dumps([header, files, self._split, told], sort_keys=True)

    def __len__(self) -> int:
        return len(self._ids)

    def draw(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """See ``Squares``."""
        found = self._store.__getitems__(self._ids[ids]).views
        return {
            who: _normalised(self._store.views[view], how, found[view]) for who, (view, how) in self._readings.items()
        }


class CropBatches:
    """Batches of several sets of squares; see ``loop.Data``.

    A batch comes from one set. With several, which one and which squares are drawn from the step's generator: an epoch
    over sets of very different sizes would be an epoch over the largest.

    Args:
        squares: one or more sets.
        crops: what the student and its teachers see of a square.
        patch: of the student's tower: sides of crops are multiples of it.

    Raises:
        DistillError: none.
    """

    def __init__(self, squares: Sequence[Squares], crops: Crops, *, patch: int) -> None:
        if not squares:
            raise DistillError("squares to learn from", got="none", expected="one set or more", next_step="Name some.")
        self.squares, self.crops, self._patch = tuple(squares), crops, patch
        total = sum(s.weight for s in squares)
        self._shares = [s.weight / total for s in squares]

    @property
    def teachers(self) -> frozenset[str]:
        """Names of the teachers that see some of the squares."""
        return frozenset().union(*(s.teachers for s in self.squares))

    def __len__(self) -> int:
        """Number of squares in all sets."""
        return sum(map(len, self.squares))

    @property
    def identity(self) -> str:
        """See ``loop.Data``: every set's squares and share, and the crops."""
        told = json.dumps([[s.identity, s.weight] for s in self.squares]) + repr(self.crops) + str(self._patch)
        names = ", ".join(s.name for s in self.squares)
        return f"{len(self)} squares of {names}: {hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """A batch: ``GLOBAL``, ``LOCAL`` and each teacher's views; all crops of the first kind, then of the next.

        Row ``v * B + i`` of a view is crop ``v`` of sample ``i``. A crop without a valid pixel is not present.
        """
        chosen = self.squares[0]
        if len(self.squares) > 1:
            chosen = self.squares[int(rng.choice(len(self.squares), p=self._shares))]
            ids = rng.choice(len(chosen), size=len(ids), replace=len(chosen) < len(ids))
        found = chosen.draw(ids, rng)
        own, crops = found.pop(STUDENT), self.crops
        views = {GLOBAL: self._cut(own, crops.global_views, crops.global_share, rng)}
        if crops.local_views:
            views[LOCAL] = self._cut(own, crops.local_views, crops.local_share, rng)
        for name in sorted(found):
            rows = np.tile(np.arange(len(ids)), crops.teacher_views)
            views[name] = _known(turn({name: _rows(found[name], rows)}, rng)[name])
        return views

    def _cut(self, view: View, number: int, share: tuple[float, float], rng: np.random.Generator) -> View:
        """``number`` crops of each square ``[B, ...]``, as ``[number * B, ...]``."""
        count, height, width = view.valid.shape
        wanted = math.sqrt(rng.uniform(*share) * height * width) / self._patch
        most = min(height, width) // self._patch
        # a square smaller than a patch is seen whole
        side = self._patch * min(max(1, round(wanted)), most) or min(height, width)
        rows = np.tile(np.arange(count), number)
        corners = rng.integers((height - side + 1, width - side + 1), size=(len(rows), 2))
        where = list(zip(rows, corners[:, 0], corners[:, 1], strict=True))
        cut = View(
            pixels=torch.stack([view.pixels[i, :, r : r + side, c : c + side] for i, r, c in where]),
            valid=torch.stack([view.valid[i, r : r + side, c : c + side] for i, r, c in where]),
            gsd_m=_gsd(view, rows),
            present=view.present[rows],
            days=view.days[rows],
        )
        factors = [f for f in self.crops.factors if side % f == 0 and side // f >= 2 * self._patch] or [1]
        turned = coarser(turn({"": cut}, rng)[""], int(rng.choice(factors)))
        return _known(jitter(turned, self.crops.jitter, rng))


def _rows(view: View, rows: NDArray[np.int64]) -> View:
    return View(
        pixels=view.pixels[rows],
        valid=view.valid[rows],
        gsd_m=_gsd(view, rows),
        present=view.present[rows],
        days=view.days[rows],
    )


def _gsd(view: View, rows: NDArray[np.int64]) -> tuple[float, float] | Tensor:
    return view.gsd_m[rows] if isinstance(view.gsd_m, Tensor) else view.gsd_m


def _known(view: View) -> View:
    return replace(view, present=view.present & view.valid.flatten(1).any(dim=1))


def _can_read(normalizations: Mapping[str, Normalization], spec: ViewSpec) -> bool:
    return spec.sensor in normalizations and set(normalizations[spec.sensor].bands) <= set(spec.bands)


def _view_for(who: str, normalizations: Mapping[str, Normalization], store: TileStore, named: str | None) -> str:
    """The first view that can be read; where there is none, the nearest one's lack is told."""
    views = store.views if named is None else {}
    for name, spec in views.items():
        if _can_read(normalizations, spec):
            return name
    for spec in views.values():
        if spec.sensor in normalizations:
            reading(who, normalizations, spec.sensor, spec.bands)
    raise DistillError(
        f"{store.path}: view for the {who}",
        got=", ".join(f"{name} ({spec.sensor})" for name, spec in store.views.items())
        + ("" if named is None else f", but no {named}"),
        expected=f"a view of {', '.join(normalizations)}",
        next_step="Build the store with such a view, or choose another teacher.",
    )


def _normalised(spec: ViewSpec, how: Normalization, batch: ViewBatch) -> View:
    at = [spec.bands.index(band) for band in how.bands]
    pixels, valid = how.apply_batch(
        batch.pixels[:, at], batch.valid, [spec.encodings[i] for i in at], source=f"view of {spec.sensor}"
    )
    # squares at other latitudes have other true GSDs; a sample that is absent has none, and needs a number
    gsd = np.where(batch.present[:, None], batch.gsd_m, 1.0).astype(np.float32)
    return View(
        pixels=torch.from_numpy(pixels),
        valid=torch.from_numpy(valid),
        # one pair for all lets a batch share one table of distances
        gsd_m=(float(gsd[0, 0]), float(gsd[0, 1])) if (gsd == gsd[0]).all() else torch.from_numpy(gsd),
        present=torch.from_numpy(batch.present),
        days=torch.from_numpy(batch.days),
    )
