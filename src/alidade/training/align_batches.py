"""Batches for alignment: images, each with one of its sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alidade.imagery.raster import Raster
from alidade.models.model import Model
from alidade.models.text.encoder import TextEncoder
from alidade.models.vision import VisionEncoder
from alidade.training.align_images import AlignError, ImageCuts, ImageEncoder, ImageVectors, Progress, Sizes
from alidade.training.aligner import CAPTION, IMAGE, TEXT
from alidade.training.augment import View


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentences:
    """The different sentences of a data set, and which an image has.

    Attributes:
        texts: each once.
        of_image: numbers of each image's sentences, with their repeats: those are drawn so much the more.
        vectors: ``[M, T]`` float32 of the texts.
        identity: of the text encoder that made them.
        cut: how many texts were longer than that encoder reads, and were cut.
    """

    texts: tuple[str, ...]
    of_image: tuple[NDArray[np.int64], ...]
    vectors: NDArray[np.float32]
    identity: str
    cut: int

    @classmethod
    def read(cls, captions: Sequence[Sequence[str]], encoder: TextEncoder) -> Sentences:
        """The sentences of images, ``captions[i]`` those of image ``i``, with a vector for each that differs.

        Raises:
            AlignError: an image without a sentence.
            TextError: an empty sentence, or one that the encoder has no vector for.
        """
        lacking = [i for i, own in enumerate(captions) if not own]
        if lacking or not captions:
            raise AlignError(
                "captions",
                got=f"none for image {lacking[0] + 1} of {len(captions)}" if captions else "no image",
                expected="at least one sentence for each image",
                next_step="Leave out images without a caption.",
            )
        numbers: dict[str, int] = {}
        rows = tuple(np.array([numbers.setdefault(s, len(numbers)) for s in own]) for own in captions)
        found = encoder.encode(list(numbers))
        return cls(
            texts=tuple(numbers),
            of_image=rows,
            vectors=found.vectors,
            identity=encoder.identity,
            cut=len(found.cut),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Images, each with one of its sentences drawn at random; see ``loop.Data``.

    Attributes:
        images: ``ImageVectors`` for a frozen image tower, ``ImageCuts`` for one that learns.
        sentences: of the same images.
        text_vectors: whether batches bring text vectors, as a frozen text tower needs, or only the sentences' numbers.

    Raises:
        AlignError: as many images and lists of sentences are needed.
    """

    images: ImageVectors | ImageCuts
    sentences: Sentences
    text_vectors: bool

    def __post_init__(self) -> None:
        """See that there are as many."""
        if len(self.images) != len(self.sentences.of_image):
            raise AlignError(
                "images and sentences",
                got=f"{len(self.images)} images and sentences of {len(self.sentences.of_image)}",
                expected="as many",
                next_step="Read both from one data set.",
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def identity(self) -> str:
        """See ``loop.Data``: pixels, sentences, and which image has which."""
        told = [self.sentences.identity, list(self.sentences.texts), [row.tolist() for row in self.sentences.of_image]]
        said = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
        return f"{len(self)} images ({self.images.identity}) with {len(self.sentences.texts)} sentences ({said})"

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View | Tensor]:
        """A batch as ``Aligner`` takes it."""
        own = [self.sentences.of_image[i] for i in ids]
        caption = torch.from_numpy(np.array([row[int(rng.integers(len(row)))] for row in own]))
        out: dict[str, View | Tensor] = {IMAGE: self.images.draw(ids, rng), CAPTION: caption}
        return out | {TEXT: torch.from_numpy(self.sentences.vectors[caption])} if self.text_vectors else out


def make_pairs(
    captions: Sequence[Sequence[str]],
    rasters: Iterable[Raster],
    *,
    image: ImageEncoder,
    text: TextEncoder,
    image_learns: bool = False,
    text_learns: bool = False,
    cuts: int = 0,
    sizes: Sizes = (),
    jitter: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pairs:
    """The data of an alignment. Sentences are encoded first: what is wrong with them is told before images are read.

    Args:
        captions: sentences of each image.
        rasters: the images, in the same order.
        image: the image tower.
        text: the text encoder.
        image_learns: whether the image tower does.
        text_learns: whether the text tower does.
        cuts: random parts of each image that a frozen image tower sees besides the whole; see ``ImageVectors``.
        sizes: of those cuts, or of the parts that an image tower that learns sees: (side in pixels, factor).
        jitter: see ``ImageCuts``; an image tower that learns only.
        seed: of the cuts for a frozen image tower.
        progress: told how many images are done.

    Raises:
        AlignError: see ``Sentences`` and ``ImageCuts``; an image tower that cannot learn.
        TextError: a sentence without a vector.
        AlidadeError: an image that cannot be read or used.
    """
    sentences = Sentences.read(captions, text)
    images: ImageVectors | ImageCuts
    if not image_learns:
        images = ImageVectors.read(image, rasters, cuts=cuts, sizes=sizes, seed=seed, progress=progress)
    elif isinstance(image, Model | VisionEncoder):
        images = ImageCuts.read(image, rasters, sizes=sizes, jitter=jitter, progress=progress)
    else:
        raise AlignError(
            "image tower that learns",
            got=f"{image!r}",
            expected="a Model or a VisionEncoder",
            next_step="Leave it frozen.",
        )
    return Pairs(images=images, sentences=sentences, text_vectors=not text_learns)
