"""Batches from images held in memory: for data sets of chips and scenes that are no aligned tiles.

A batch comes from one source, since its images share sensors, sizes and ground resolution. A source gives contrast two
ways: two sensors over the same ground, cut alike; or one sensor twice, cut and coarsened apart, so that the same place
at two ground resolutions takes the part of two sensors and no second sensor is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from alidade.errors import ModelError
from alidade.training.augment import View, coarser, jitter, turn


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Normalised images of one tower.

    Attributes:
        pixels: ``[N, C, H, W]`` float16: normalised 8-bit and 12-bit values are exact enough in it.
        valid: ``[N, H, W]`` bool.
        gsd_m: true ground metres per pixel of all of them.
    """

    pixels: NDArray[np.float16]
    valid: NDArray[np.bool_]
    gsd_m: float

    @cached_property
    def identity(self) -> str:
        """Twelve hex digits over every number. Read once: a gigabyte takes about a second."""
        digest = hashlib.sha256(f"{self.pixels.dtype} {self.pixels.shape} {self.gsd_m}".encode())
        for array in (self.pixels, self.valid):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a view is made from a stack.

    Attributes:
        stack: which one.
        sizes: (side in pixels, area-averaging factor) to draw from, once a batch.
        jitter: largest random change of brightness and contrast, in deviations.
    """

    stack: str
    sizes: tuple[tuple[int, int], ...]
    jitter: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Images over the same ground in one or several stacks, and the views drawn from them.

    Attributes:
        name: for messages.
        weight: how often a batch is drawn from here, relative to the others.
        stacks: by name; all have the same ``N``, ``H`` and ``W``, and image ``i`` of each shows the same ground.
        views: by view name.
        together: whether all views of a sample show the very same pixels' ground (same cut, same turn), as different
            sensors must, or each its own part of the image.

    Raises:
        ModelError: stacks of different images, a cut that does not fit, or one that leaves nothing to learn from.
    """

    name: str
    weight: float
    stacks: Mapping[str, Stack]
    views: Mapping[str, Cut]
    together: bool

    def __post_init__(self) -> None:
        shapes = {s.pixels.shape[:1] + s.pixels.shape[2:] for s in self.stacks.values()}
        masks = {s.valid.shape for s in self.stacks.values()}
        unknown = sorted({c.stack for c in self.views.values()} - set(self.stacks))
        if len(shapes) != 1 or masks != shapes or unknown or len(self.views) < 2:
            raise self._refuse(
                f"images {sorted(shapes)}, masks {sorted(masks)}, views of unknown stacks {unknown}",
                "two or more views of stacks that agree in number and size",
            )
        _, height, width = next(iter(shapes))
        for name, cut in self.views.items():
            bad = [s for s in cut.sizes if s[0] > min(height, width) or s[0] % s[1]]
            if bad or not cut.sizes:
                raise self._refuse(
                    f"view {name} of {bad or 'no'} (side, factor)", f"sides of up to {height} px that factors divide"
                )
        if self.together and len({c.sizes for c in self.views.values()}) != 1:
            raise self._refuse("views of different sizes that show the same ground", "the same sizes for all")

    def __len__(self) -> int:
        return len(next(iter(self.stacks.values())).pixels)

    def _refuse(self, got: str, expected: str) -> ModelError:
        return ModelError(f"source {self.name}", got=got, expected=expected, next_step="Change the recipe.")


class ImageBatches:
    """Batches of several sources; see ``pretrain.Batches``.

    Which source, images and cuts a batch has is drawn from the step's generator, not from the ids: an epoch over
    sources of very different sizes would be an epoch over the largest.

    Args:
        sources: one or more.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        total = sum(s.weight for s in self.sources)
        self._shares = [s.weight / total for s in self.sources]

    def __len__(self) -> int:
        """Number of images in all sources."""
        return sum(map(len, self.sources))

    @property
    def identity(self) -> str:
        """See ``loop.Data``: every source's images, share and cuts."""
        told = []
        for source in self.sources:
            stacks = {name: stack.identity for name, stack in source.stacks.items()}
            told.append((source.name, source.weight, source.together, dict(source.views), stacks))
        names = ", ".join(s.name for s in self.sources)
        return f"{len(self)} images of {names}: {hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """One batch of ``len(ids)`` samples of one source; a source with fewer images gives several cuts of each."""
        source = self.sources[int(rng.choice(len(self.sources), p=self._shares))]
        images = rng.choice(len(source), size=len(ids), replace=len(source) < len(ids))
        return together(source, images, rng) if source.together else apart(source, images, rng)


def together(source: Source, images: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
    """The same cut and turn for all views."""
    first = next(iter(source.views.values()))
    side, factor = first.sizes[int(rng.integers(len(first.sizes)))]
    corners = draw_corners(source, len(images), side, rng)
    views = {n: cut_out(source.stacks[c.stack], images, corners, side) for n, c in source.views.items()}
    return {
        name: jitter(coarser(view, factor), source.views[name].jitter, rng) for name, view in turn(views, rng).items()
    }


def apart(source: Source, images: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
    """Each view its own cut, coarseness, turn and light."""
    out = {}
    for name, cut in source.views.items():
        side, factor = cut.sizes[int(rng.integers(len(cut.sizes)))]
        view = cut_out(source.stacks[cut.stack], images, draw_corners(source, len(images), side, rng), side)
        out[name] = jitter(coarser(turn({name: view}, rng)[name], factor), cut.jitter, rng)
    return out


def draw_corners(source: Source, count: int, side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Upper left corners ``[count, 2]`` (row, column) of squares that lie within the images."""
    height, width = next(iter(source.stacks.values())).valid.shape[1:]
    return rng.integers((height - side + 1, width - side + 1), size=(count, 2))


def cut_out(stack: Stack, images: NDArray[np.int64], corners: NDArray[np.int64], side: int) -> View:
    """Squares of ``side`` pixels, each at its own corner."""
    where = list(zip(images, corners[:, 0], corners[:, 1], strict=True))
    pixels = np.stack([stack.pixels[i, :, r : r + side, c : c + side] for i, r, c in where])
    valid = np.stack([stack.valid[i, r : r + side, c : c + side] for i, r, c in where])
    return View(
        pixels=torch.from_numpy(pixels.astype(np.float32)),
        valid=torch.from_numpy(valid),
        gsd_m=(stack.gsd_m, stack.gsd_m),
        present=torch.ones(len(images), dtype=torch.bool),
        days=torch.full((len(images),), float("nan"), dtype=torch.float64),
    )
