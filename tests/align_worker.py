"""A small alignment of made images with made sentences; run by test_align.py in processes of its own."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alidade.imagery.raster import Raster
from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.text.encoder import EncodedText, TextEncoder
from alidade.models.words import Words
from alidade.training.align import AlignConfig, align
from alidade.training.align_batches import Pairs, make_pairs
from alidade.training.captions.pictures import display_raster
from alidade.training.loop import Report
from pretrain_worker import MODEL

COLOURS = {"river": (40, 60, 190), "forest": (30, 120, 40), "field": (200, 180, 60), "town": (150, 60, 60)}
NAMES = tuple(COLOURS)
SIDE = 32
CONFIG = AlignConfig(
    image_tower="full", steps=4, batch=8, warm_up=1, checkpoint_every=2, hidden=16, clip=1e6, weight_decay=0.0
)


class Hashed:
    """A text is the mean of its words' random vectors; more than twelve words are cut."""

    dim = 24

    def __init__(self, identity: str = "hashed words") -> None:
        self.identity = identity

    def encode(self, texts: Sequence[str]) -> EncodedText:
        words = [text.split() for text in texts]
        rows = [
            np.mean([np.random.default_rng(zlib.crc32(w.encode())).normal(size=self.dim) for w in own[:12]], axis=0)
            for own in words
        ]
        cut = tuple(i for i, own in enumerate(words) if len(own) > 12)
        return EncodedText(vectors=np.array(rows, dtype=np.float32), cut=cut)


def model(seed: int = 0) -> Model:
    network = ScaleAlibi(replace(MODEL, decoder=None, pooling="mean-std", dim=32))
    initialise(network, seed)
    return Model(network, dtype=torch.float32)


def pictures(count: int, seed: int = 0, side: int = SIDE) -> list[Raster]:
    """Picture ``i`` is of the colour ``i`` modulo four."""
    rng = np.random.default_rng(seed)
    flat = [np.array(COLOURS[NAMES[i % 4]])[:, None, None] for i in range(count)]
    pixels = [(colour + rng.normal(scale=20, size=(3, side, side))).clip(0, 255).astype(np.uint8) for colour in flat]
    return [display_raster(p, gsd_m=1.0, source=f"picture {i}") for i, p in enumerate(pixels)]


def captions(count: int) -> list[list[str]]:
    """Two sentences an image; with four colours many images have the same."""
    return [[f"a {NAMES[i % 4]}", f"the image of a {NAMES[i % 4]}"] for i in range(count)]


def pairs(config: AlignConfig = CONFIG, *, text: TextEncoder | None = None, count: int = 24, cuts: int = 0) -> Pairs:
    return make_pairs(
        captions(count),
        pictures(count),
        image=model(),
        text=text or Hashed(),
        image_learns=config.image_tower != "frozen",
        text_learns=config.text_tower != "frozen",
        cuts=cuts,
        sizes=((16, 1),),
    )


def run(
    folder: Path,
    config: AlignConfig = CONFIG,
    *,
    text: TextEncoder | None = None,
    encoder: str = "hashed",
    report: Callable[[Report], None] | None = None,
) -> Words:
    data = pairs(config, text=text)
    return align(config, data, folder, image=model(), text=text or Hashed(), encoder=encoder, report=report)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), replace(CONFIG, chunk=int(sys.argv[2])))
