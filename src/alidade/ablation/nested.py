"""Two ground resolutions of the same ground at once: what cross-scale attention needs and two separate cuts lack.

A view of 64 px at the images' own resolution lies in the middle of a wider and coarser one. Both share their centre,
which is the origin of their places, so the distance from a fine token to a coarse one is the one on the ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alidade.errors import ModelError
from alidade.training.augment import View, coarser, jitter, turn
from alidade.training.image_batches import ImageBatches, Stack, cut_out

INNER, OUTER = "inner", "outer"
SIDE = 64
"""Pixels of both views."""
FACTORS = (2, 4)
"""How many times coarser the outer view is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NestedBatches:
    """Batches of other sources, and now and then one of nested views; see ``pretrain.Batches``.

    Attributes:
        others: where the other batches come from.
        images: for the nested views, at least ``SIDE * max(FACTORS)`` px a side.
        share: of the batches that are nested, 0 to 1.

    Raises:
        ModelError: images that are too small.
    """

    others: ImageBatches
    images: Stack
    share: float

    def __post_init__(self) -> None:
        need, have = SIDE * max(FACTORS), min(self.images.pixels.shape[2:])
        if have < need:
            raise ModelError(
                "nested views", got=f"images of {have} px", expected=f"at least {need} px", next_step="Use larger ones."
            )

    def __len__(self) -> int:
        return len(self.others)

    @property
    def identity(self) -> str:
        """See ``loop.Data``."""
        return f"{self.others.identity}; nested views of {self.images.identity}, share {self.share}"

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """One batch of ``len(ids)`` samples, drawn with ``rng``."""
        if rng.random() >= self.share:
            return self.others.views(ids, rng)
        count = len(self.images.pixels)
        chosen = rng.choice(count, size=len(ids), replace=count < len(ids))
        found = turn(nested(self.images, chosen, int(rng.choice(FACTORS)), rng), rng)
        return {name: jitter(view, 0.15, rng) for name, view in found.items()}


def nested(
    images: Stack, chosen: NDArray[np.int64], factor: int, rng: np.random.Generator | None = None
) -> dict[str, View]:
    """``INNER``: ``SIDE`` px at the images' resolution; ``OUTER``: the same middle, ``factor`` times wider and coarser.

    Args:
        images: normalised.
        chosen: ``[B]``, which of them.
        factor: how many times wider and coarser the outer view is.
        rng: draws where the views lie; in the middle of the images without it.
    """
    wide = SIDE * factor
    room = np.array(images.valid.shape[1:]) - wide
    corners = (
        np.broadcast_to(room // 2, (len(chosen), 2)) if rng is None else rng.integers(room + 1, size=(len(chosen), 2))
    )
    outer = coarser(cut_out(images, chosen, corners, wide), factor)
    inner = cut_out(images, chosen, corners + (wide - SIDE) // 2, SIDE)
    return {INNER: inner, OUTER: outer}
