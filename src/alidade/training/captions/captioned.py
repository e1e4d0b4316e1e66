"""The currency of image-text training: images that are read when asked for, each with its sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from alidade.errors import AlidadeError, SensorError
from alidade.imagery.raster import Raster

SPLITS = ("train", "val", "test")
RGB = ("red", "green", "blue")


class CaptionError(AlidadeError):
    """An image-text data set that is missing, damaged or not in the layout it should be in."""


class Source(Protocol):
    """One image that has not been read yet."""

    @property
    def id(self) -> str:
        """A stable name, unique within the data set."""

    def read(self) -> Raster:
        """Its pixels as they are stored.

        Raises:
            AlidadeError: missing, damaged, of another kind or too large.
        """


@dataclass(frozen=True, kw_only=True)
class Held:
    """An image that is in memory already, such as a tile of a scene or a picture of a labelled data set."""

    id: str
    raster: Raster

    def read(self) -> Raster:
        """The image."""
        return self.raster


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Sentences of one part that stand word for word in another part.

    Attributes:
        sentences: how many sentences the first part has, repeats counted.
        repeated: how many of those the other part has, too.
        distinct: how many different sentences these are.
    """

    sentences: int
    repeated: int
    distinct: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """One image-text data set.

    Attributes:
        name: of the data set, such as ``"rsicd"``.
        licence: of pixels and sentences, as far as their owners state it.
        images: what can be read.
        captions: the sentences of each image, in their order and with their repeats (RSICD fills up to five so).
        split: the part of each image: ``"train"``, ``"val"`` or ``"test"``.
        left_out: how many images have sentences but no file; 0 unless the reader was told to do without them.

    Raises:
        CaptionError: no image, counts that differ, an id that stands twice, an image without a sentence, an empty
            sentence, or an unknown split.
    """

    name: str
    licence: str
    images: tuple[Source, ...]
    captions: tuple[tuple[str, ...], ...]
    split: tuple[str, ...]
    left_out: int = 0

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.captions), len(self.split)
        if len(set(counts)) != 1 or counts[0] == 0:
            raise self._bad("{} images, {} lists of captions, {} splits".format(*counts), "as many of each, at least 1")
        twice = [i for i, n in Counter(self.ids).items() if n > 1]
        if twice:
            raise self._bad(f"{twice[0]!r} twice ({len(twice)} such ids)", "each image once")
        for image, sentences, part in zip(self.images, self.captions, self.split, strict=True):
            if not sentences or not all(s.strip() for s in sentences):
                raise self._bad(f"{image.id!r} with {list(sentences)!r}", "at least one sentence, none of them empty")
            if part not in SPLITS:
                raise self._bad(f"{image.id!r} in the split {part!r}", f"one of {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ids(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(image.id for image in self.images)

    @property
    def distinct(self) -> tuple[tuple[str, ...], ...]:
        """The sentences of each image without repeats, in the order of their first appearance."""
        return tuple(tuple(dict.fromkeys(sentences)) for sentences in self.captions)

    def draw(self, index: int, rng: np.random.Generator) -> str:
        """One sentence of an image; each is equally likely, a repeated one so much the more."""
        sentences = self.captions[index]
        return sentences[int(rng.integers(len(sentences)))]

    def pick(self, where: Sequence[int]) -> Captioned:
        """The images at these places, in this order.

        Raises:
            CaptionError: no place, or one that is named twice.
        """
        return replace(
            self,
            images=tuple(self.images[i] for i in where),
            captions=tuple(self.captions[i] for i in where),
            split=tuple(self.split[i] for i in where),
        )

    def part(self, split: str) -> Captioned:
        """The images of one split.

        Raises:
            CaptionError: the data set has no such split.
        """
        where = [i for i, s in enumerate(self.split) if s == split]
        if not where:
            there = ", ".join(s for s in SPLITS if s in self.split)
            raise CaptionError(
                f"{self.name}: split", got=repr(split), expected=f"one of {there}",
                next_step="Name a split that the data set has.",
            )  # fmt: skip
        return self.pick(where)

    def overlap(self, split: str, other: str) -> Overlap:
        """How many sentences of ``split`` stand word for word in ``other``: retrieval can answer them from memory.

        Raises:
            CaptionError: the data set has no such split.
        """
        mine = [s for sentences in self.part(split).captions for s in sentences]
        theirs = {s for sentences in self.part(other).captions for s in sentences}
        repeated = [s for s in mine if s in theirs]
        return Overlap(sentences=len(mine), repeated=len(repeated), distinct=len(set(repeated)))

    def rgb(self, index: int) -> Raster:
        """Red, green and blue of an image, in this order.

        Raises:
            CaptionError: the image has no such bands, as radar has none.
            AlidadeError: it cannot be read.
        """
        raster = self.images[index].read()
        try:
            return raster.select(RGB)
        except SensorError:
            bands = ", ".join(b.name for b in raster.bands)
            raise CaptionError(
                f"{raster.source}: bands", got=f"{bands} of {raster.sensor.id}", expected="red, green and blue",
                next_step="Leave the image out, or declare its bands if they are named wrongly.",
            ) from None  # fmt: skip

    def _bad(self, got: str, expected: str) -> CaptionError:
        return CaptionError(f"{self.name}: captions", got=got, expected=expected, next_step="Repair the data set.")
