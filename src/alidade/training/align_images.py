"""Images for alignment: vectors of a frozen image tower, computed once, or cuts for one that learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.models.config import TowerConfig
from alidade.models.model import Model, three_digits
from alidade.models.vision import VisionEncoder
from alidade.models.vision_input import rgb
from alidade.models.words import tower_of
from alidade.training.augment import View, coarsen, coarser, jitter, turn

Sizes = tuple[tuple[int, int], ...]
"""(Side in pixels, area-averaging factor) of cuts, to draw from."""
Progress = Callable[[int], None]
"""Told how many images are done."""
Prepare = Callable[[Raster], tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""A cut as the tower's input ``[C, H, W]``, and where it is good ``[H, W]``."""
_GROUP = 64
"""Images read before they are embedded together."""


class AlignError(AlidadeError):
    """Images and sentences that cannot be aligned as they were asked to be."""


class ImageEncoder(Protocol):
    """Anything that gives images vectors: ``Model``, and ``VisionEncoder`` for models of Hugging Face."""

    @property
    def identity(self) -> str:
        """Changes with everything that changes a vector."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def embed(self, rasters: Sequence[Raster], /) -> NDArray[np.float32]:
        """``[N, D]``, of any length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageVectors:
    """Vectors of a frozen image tower.

    Attributes:
        vectors: ``[C, N, D]`` float32 of ``C`` cuts of each image; one is drawn for each sample of a batch.
        encoder: identity of the tower.
        identity: of the pixels, the tower and the cuts.
        towers: names of the towers of a ``Model`` that the images passed, sorted; empty where not known.
    """

    vectors: Tensor
    encoder: str
    identity: str
    towers: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        encoder: ImageEncoder,
        rasters: Iterable[Raster],
        *,
        cuts: int = 0,
        sizes: Sizes = (),
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ImageVectors:
        """Vectors of each image as it is, and of ``cuts`` random parts of it.

        Args:
            encoder: the frozen tower.
            rasters: read one by one; none is kept.
            cuts: squares at random places, turned, mirrored and coarsened at random.
            sizes: of the cuts.
            seed: of their places.
            progress: told after each group of images.

        Raises:
            AlignError: no image, or cuts without sizes that can be cut.
            AlidadeError: an image that cannot be read or that the tower does not take.
        """
        if cuts:
            check_sizes(sizes)
        digest = hashlib.sha256(repr((encoder.identity, cuts, sizes, seed)).encode())
        found, done, towers = list[NDArray[np.float32]](), 0, set[str]()
        for group in _groups(rasters):
            for raster in group:
                digest.update(digest_of(raster))
                towers |= _read_by(encoder, raster)
            # generators of their own: what the cuts of an image are does not hang on how images are grouped
            draws = [np.random.default_rng((seed, done + i)) for i in range(len(group))]
            made = [group]
            for _ in range(cuts):
                made.append([_altered(r, sizes, rng) for r, rng in zip(group, draws, strict=True)])
            found.append(np.stack([encoder.embed(part) for part in made]))
            done += len(group)
            if progress is not None:
                progress(done)
        if not found:
            raise AlignError("images", got="none", expected="at least one", next_step="Name another split.")
        return cls(
            vectors=torch.from_numpy(np.concatenate(found, axis=1)),
            encoder=encoder.identity,
            identity=digest.hexdigest()[:12],
            towers=tuple(sorted(towers)),
        )

    def __len__(self) -> int:
        return self.vectors.shape[1]

    def draw(self, ids: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """``[B, D]``."""
        return self.vectors[torch.from_numpy(rng.integers(len(self.vectors), size=len(ids))), torch.from_numpy(ids)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCuts:
    """Images held in memory in their stored type, for a tower that learns.

    Attributes:
        encoder: identity of the model they are for.
        tower: name of the network's tower for all of them; empty for a model of Hugging Face.
        rasters: with the tower's bands only.
        prepare: of each.
        gsd_m: true ground metres per pixel ``(x, y)`` of each, to three digits.
        sizes: one is drawn for a batch. Where an image is smaller than the side, what is missing is marked invalid.
        jitter: largest random change of brightness and contrast, in deviations of the tower's input.
        identity: of the pixels, the model and the cuts.
    """

    encoder: str
    tower: str
    rasters: tuple[Raster, ...]
    prepare: tuple[Prepare, ...]
    gsd_m: tuple[tuple[float, float], ...]
    sizes: Sizes
    jitter: float
    identity: str

    @classmethod
    def read(
        cls,
        encoder: Model | VisionEncoder,
        rasters: Iterable[Raster],
        *,
        sizes: Sizes,
        jitter: float = 0.1,
        progress: Progress | None = None,
    ) -> ImageCuts:
        """Images for the tower that takes them all.

        Raises:
            AlignError: no such tower, no image, images of several towers, or sizes that cannot be cut or that a model
                cannot take.
            RasterError: an image without a valid pixel.
            GridError: an image whose ground resolution cannot be told.
            SensorError: an image without the bands or the units that the tower takes.
        """
        check_sizes(sizes)
        if isinstance(encoder, Model):
            _check_range(encoder, sizes)
        kept, how, gsd, towers = list[Raster](), list[Prepare](), list[tuple[float, float]](), set[str]()
        digest = hashlib.sha256(repr((encoder.identity, sizes, jitter)).encode())
        for number, raster in enumerate(rasters, start=1):
            own, prepare, tower = _prepared(encoder, raster)
            # what is wrong with an image is told now, not in the middle of training
            if not prepare(own)[1].any():
                raise RasterError(
                    f"{raster.source}: pixels", got="no valid pixel", expected="some", next_step="Leave it out."
                )
            kept.append(own)
            # models of Hugging Face know nothing of the ground
            x, y = own.grid.gsd_m() if tower else (1.0, 1.0)
            gsd.append((three_digits(x), three_digits(y)))
            how.append(prepare)
            towers.add(tower)
            digest.update(digest_of(own))
            if progress is not None:
                progress(number)
        if len(towers) != 1:
            raise AlignError(
                "images of an image tower that learns",
                got=f"images of the towers {', '.join(sorted(towers))}" if towers else "no image",
                expected="images that one tower takes",
                next_step="Align one kind of imagery at a time, read only red, green and blue of all (--bands rgb), or "
                "keep the image tower frozen.",
            )
        return cls(
            encoder=encoder.identity,
            tower=towers.pop(),
            rasters=tuple(kept),
            prepare=tuple(how),
            gsd_m=tuple(gsd),
            sizes=sizes,
            jitter=jitter,
            identity=digest.hexdigest()[:12],
        )

    def __len__(self) -> int:
        return len(self.rasters)

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of the towers of a ``Model`` that the images pass: one, or none of a model of Hugging Face."""
        return (self.tower,) if self.tower else ()

    @property
    def padded(self) -> int:
        """How many images are smaller than the largest cut, so that some of it has no data."""
        side = max(side for side, _ in self.sizes)
        return sum(min(raster.valid.shape) < side for raster in self.rasters)

    def draw(self, ids: NDArray[np.int64], rng: np.random.Generator) -> View:
        """Cuts of one size, each at a place, in an orientation and under a light of its own."""
        side, factor = self.sizes[int(rng.integers(len(self.sizes)))]
        made = [self.prepare[i](random_cut(self.rasters[i], side, rng)) for i in ids]
        gsd = [self.gsd_m[i] for i in ids]
        view = View(
            pixels=torch.from_numpy(np.stack([pixels for pixels, _ in made])),
            valid=torch.from_numpy(np.stack([valid for _, valid in made])),
            # one pair for all lets a batch share one table of distances
            gsd_m=gsd[0] if len(set(gsd)) == 1 else torch.tensor(gsd, dtype=torch.float32),
            present=torch.ones(len(ids), dtype=torch.bool),
            days=torch.full((len(ids),), float("nan"), dtype=torch.float64),
        )
        return jitter(coarser(turn({"": view}, rng)[""], factor), self.jitter, rng)


def random_cut(raster: Raster, side: int, rng: np.random.Generator) -> Raster:
    """A square of ``side`` pixels at a random place, with a valid pixel in it when the image has one.

    An image that is smaller is padded below and at the right.
    """
    height, width = raster.valid.shape
    row, col = (int(rng.integers(max(extent - side, 0) + 1)) for extent in (height, width))
    if not raster.valid[row : row + side, col : col + side].any() and raster.valid.any():
        rows, cols = raster.valid.nonzero()
        chosen = int(rng.integers(len(rows)))
        # around a valid pixel, moved in from the edges
        row, col = (
            int(np.clip(at[chosen] - side // 2, 0, max(extent - side, 0)))
            for at, extent in ((rows, height), (cols, width))
        )
    return raster.crop(Window(row=row, col=col, height=side, width=side))


def check_sizes(sizes: Sizes) -> None:
    """See that there is a size, and that each factor divides its side.

    Raises:
        AlignError: it does not.
    """
    wrong = [size for size in sizes if min(size) < 1 or size[0] % size[1]]
    if wrong or not sizes:
        raise AlignError(
            "cuts of images",
            got=f"(side, factor) {wrong[0]}" if wrong else "no size",
            expected="sides in pixels that their factors divide",
            next_step="Choose other sides.",
        )


def _check_range(model: Model, sizes: Sizes) -> None:
    least, most = model.tile_range
    wrong = [size for size in sizes if not least <= size[0] // size[1] <= most]
    if wrong:
        side, factor = wrong[0]
        raise AlignError(
            "cuts of images",
            got=f"{side} px" + (f" averaged to {side // factor}" if factor > 1 else ""),
            expected=f"{least} to {most} px that {model.identity} sees at once",
            next_step="Choose other sides.",
        )


def digest_of(raster: Raster) -> bytes:
    """Over an image's stored numbers and all that says what they mean."""
    grid = raster.grid
    told = [raster.sensor.id, [b.name for b in raster.bands], raster.encodings, raster.pixels.dtype.str]
    place = [str(grid.crs), grid.transform[:6], grid.gsd_override_m, raster.pixels.shape]
    digest = hashlib.sha256(repr((told, place)).encode())
    for array in (raster.pixels, raster.valid):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def tower_for(model: Model, raster: Raster) -> tuple[TowerConfig, Normalization]:
    """The tower of a model that takes an image, and how its numbers become inputs.

    Raises:
        AlignError: there is none.
    """
    names = {b.name for b in raster.bands}
    for tower in model.towers:
        normalization = tower.normalizations.get(raster.sensor.id)
        if normalization is not None and set(normalization.bands) <= names:
            return tower, normalization
    takes = "; ".join(f"{t.name}: {', '.join(t.normalizations)}" for t in model.towers)
    raise AlignError(
        f"{raster.source}: no tower of {model.identity} for it",
        got=f"{raster.sensor.id} with bands {', '.join(sorted(names))}",
        expected=takes,
        next_step="Choose a model that was trained with this sensor.",
    )


def _read_by(encoder: ImageEncoder, raster: Raster) -> set[str]:
    """The name of the tower that reads the image, as ``alidade embed`` would read its file."""
    if not isinstance(encoder, Model):
        return set()
    found = tower_of(encoder.towers, raster.sensor, encoder.bands_for(raster.sensor, [b.name for b in raster.bands]))
    return set() if found is None else {found.name}


def _prepared(encoder: Model | VisionEncoder, raster: Raster) -> tuple[Raster, Prepare, str]:
    if isinstance(encoder, Model):
        tower, normalization = tower_for(encoder, raster)
        return raster.select(normalization.bands), normalization.apply, tower.name
    return raster.select(("red", "green", "blue")), _shown, ""


def _shown(raster: Raster) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return rgb(raster), raster.valid


def _groups(rasters: Iterable[Raster]) -> Iterator[list[Raster]]:
    left = iter(rasters)
    while group := list(islice(left, _GROUP)):
        yield group


def _altered(raster: Raster, sizes: Sizes, rng: np.random.Generator) -> Raster:
    """A cut, turned, mirrored and area-averaged, that still says truly how large its pixels are."""
    side, factor = sizes[int(rng.integers(len(sizes)))]
    cut = random_cut(raster, side, rng)
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        found = np.rot90(array, turns, axes=(-2, -1))
        return np.ascontiguousarray(found[..., ::-1] if mirrored else found)

    pixels, valid = turned(cut.pixels), turned(cut.valid)
    if factor > 1:
        values = torch.from_numpy(np.where(valid, pixels, 0).astype(np.float32))
        mean, kept = coarsen(values[None], torch.from_numpy(valid)[None], factor)
        pixels, valid = mean[0].numpy(), kept[0].numpy()
    extent = side // factor
    known = raster.grid.crs is not None or raster.grid.gsd_override_m is not None
    gsd = raster.grid.mean_gsd_m() * factor if known else None
    place = Grid(crs=None, transform=Affine.identity(), width=extent, height=extent, gsd_override_m=gsd)
    return replace(cut, pixels=pixels, valid=valid, grid=place)
