"""Masked reconstruction of one sensor at its own grid, and random crops of scenes held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError
from alidade.models.encoder import pad_to_patches, patchify, real_share
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import gather_places
from alidade.training.objectives import random_split, reconstruction_loss


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A normalised scene: pixels ``[C, H, W]`` float32, valid ``[H, W]`` bool, ground metres per pixel ``(x, y)``."""

    tower: str
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    gsd_m: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of one tower, side and GSD: pixels ``[B, C, S, S]``, valid ``[B, S, S]``."""

    tower: str
    pixels: Tensor
    valid: Tensor
    gsd_m: tuple[float, float]


def random_crops(scenes: Sequence[Scene], *, side: int, coarser: int, count: int, rng: np.random.Generator) -> Batch:
    """``count`` random square crops of scenes of one tower and GSD, turned and mirrored at random.

    Args:
        scenes: of one tower and one GSD; larger ones are drawn more often.
        side: of the crops in pixels, after coarsening.
        coarser: whole factor by which the crops are area-averaged; the batch's GSD tells the truth about it.
        count: crops in the batch.
        rng: source of randomness.

    Raises:
        ModelError: no scene is large enough.
    """
    need = side * coarser
    fit = [s for s in scenes if min(s.valid.shape) >= need]
    if not fit:
        raise ModelError(
            "training crops",
            got=f"scenes of at most {max(min(s.valid.shape) for s in scenes)} px",
            expected=f"scenes of at least {need} px",
            next_step="Choose a smaller side or factor.",
        )
    areas = np.array([s.valid.size for s in fit], dtype=np.float64)
    square = fit[0].gsd_m[0] == fit[0].gsd_m[1]
    pixels: list[Tensor] = []
    valid: list[Tensor] = []
    for index in rng.choice(len(fit), size=count, p=areas / areas.sum()):
        scene = fit[index]
        row, col = (int(rng.integers(0, n - need + 1)) for n in scene.valid.shape)
        window = np.s_[row : row + need, col : col + need]
        # a quarter turn swaps the axes: only half turns where a pixel is not square on the ground
        turn, mirror = int(rng.integers(4)) if square else 2 * int(rng.integers(2)), bool(rng.integers(2))
        for store, array in ((pixels, scene.pixels[(..., *window)]), (valid, scene.valid[window])):
            turned = np.rot90(array, turn, axes=(-2, -1))
            store.append(torch.from_numpy((turned[..., ::-1] if mirror else turned).copy()))
    stacked, mask = torch.stack(pixels), torch.stack(valid)
    if coarser > 1:
        stacked, mask = coarsen(stacked, mask, coarser)
    gx, gy = fit[0].gsd_m
    return Batch(tower=fit[0].tower, pixels=stacked, valid=mask, gsd_m=(gx * coarser, gy * coarser))


def coarsen(pixels: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Area average over valid pixels: ``[B, C, H, W]`` and ``[B, H, W]`` to a ``factor``-th of the sides.

    A coarse pixel is valid when at least half of its fine pixels are; pixels that are not are 0.
    """
    share = F.avg_pool2d(valid.float().unsqueeze(1), factor)
    mean = F.avg_pool2d(pixels * valid.unsqueeze(1), factor) / share.clamp(min=1e-6)
    kept = share >= 0.5
    return mean * kept, kept.squeeze(1)


def masked_reconstruction(network: ScaleAlibi, batch: Batch, *, keep: float, generator: torch.Generator) -> Tensor:
    """The loss of one batch: hide ``1 - keep`` of the patches, encode the rest, predict the hidden ones' pixels."""
    days = torch.full((len(batch.pixels),), float("nan"), dtype=torch.float64)
    tokens = network.embed_patches(batch.tower, batch.pixels, batch.valid, batch.gsd_m, days)
    kept, masked = random_split(tokens.places.valid, keep, generator)
    context = network.run(tokens.gather(kept))
    predicted = network.reconstruct(context, gather_places(tokens.places, masked), batch.tower)
    patch = network.tower(batch.tower).patch
    pixels, valid = pad_to_patches(batch.pixels, batch.valid, patch)
    return reconstruction_loss(predicted, patchify(pixels, patch), real_share(valid, patch) == 1, masked)
