"""What a training sample's views go through, the same way on every machine: all randomness comes from a generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class View:
    """Normalised images of one tower, some of them absent.

    Attributes:
        pixels: ``[B, C, S, S]`` float32; zeros where absent.
        valid: ``[B, S, S]`` bool.
        gsd_m: true ground metres per pixel ``(x, y)``, of all of them, or of each: ``[B, 2]`` float32.
        present: ``[B]`` bool.
        days: ``[B]`` float64, days since 2000-01-01 UTC or NaN.
    """

    pixels: Tensor
    valid: Tensor
    gsd_m: tuple[float, float] | Tensor
    present: Tensor
    days: Tensor


def turn(views: dict[str, View], rng: np.random.Generator) -> dict[str, View]:
    """Quarter turns and mirrors, each sample's own, the same for all its views: they show one ground."""
    count = len(next(iter(views.values())).present)
    turns, mirrors = rng.integers(4, size=count), rng.integers(2, size=count).astype(bool)
    if any(isinstance(v.gsd_m, tuple) and v.gsd_m[0] != v.gsd_m[1] for v in views.values()):
        # a quarter turn would swap axes of different ground length, and one pair of numbers is told for all
        turns = 2 * (turns // 2)
    return {name: _turned(view, turns, mirrors) for name, view in views.items()}


def _turned(view: View, turns: NDArray[np.int64], mirrors: NDArray[np.bool_]) -> View:
    pixels, valid = view.pixels.clone(), view.valid.clone()
    for quarter in range(4):
        for mirror in (False, True):
            ids = torch.from_numpy(np.flatnonzero((turns == quarter) & (mirrors == mirror)))
            if len(ids) and (quarter or mirror):
                for store in (pixels, valid):
                    part = torch.rot90(store[ids], quarter, dims=(-2, -1))
                    store[ids] = part.flip(-1) if mirror else part
    gsd = view.gsd_m
    if isinstance(gsd, Tensor):
        gsd = torch.where(torch.from_numpy(turns % 2 == 1)[:, None], gsd.flip(-1), gsd)
    return View(pixels=pixels, valid=valid, gsd_m=gsd, present=view.present, days=view.days)


def crop(view: View, side: int, rng: np.random.Generator) -> View:
    """A random square of ``side`` pixels, one place for the whole batch so that places stay shared.

    Raises:
        ModelError: the view is smaller.
    """
    height, width = view.valid.shape[1:]
    if side > min(height, width):
        raise ModelError(
            "crop of a training view",
            got=f"{side} px of {height} x {width} px",
            expected="a side that fits",
            next_step="Choose a smaller crop in the recipe.",
        )
    row, col = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    window = np.s_[..., row : row + side, col : col + side]
    return View(
        pixels=view.pixels[window],
        valid=view.valid[window],
        gsd_m=view.gsd_m,
        present=view.present,
        days=view.days,
    )


def coarser(view: View, factor: int) -> View:
    """The view area-averaged by a whole factor; its GSD is told truthfully."""
    if factor == 1:
        return view
    pixels, valid = coarsen(view.pixels, view.valid, factor)
    gsd = view.gsd_m
    scaled = gsd * factor if isinstance(gsd, Tensor) else (gsd[0] * factor, gsd[1] * factor)
    return View(pixels=pixels, valid=valid, gsd_m=scaled, present=view.present, days=view.days)


def coarsen(pixels: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Area average over valid pixels: ``[B, C, H, W]`` and ``[B, H, W]`` to a ``factor``-th of the sides.

    A coarse pixel is valid when at least half of its fine pixels are; pixels that are not are 0.

    Raises:
        ModelError: a side that the factor does not divide. A remainder cut off would move the image's centre, which
            all views of a sample share as their origin.
    """
    height, width = valid.shape[-2:]
    if height % factor or width % factor:
        raise ModelError(
            "coarser training view",
            got=f"{height} x {width} px by {factor}",
            expected="sides that the factor divides",
            next_step="Crop first, or choose another factor.",
        )
    share = F.avg_pool2d(valid.float().unsqueeze(1), factor)
    mean = F.avg_pool2d(pixels * valid.unsqueeze(1), factor) / share.clamp(min=1e-6)
    kept = share >= 0.5
    return mean * kept, kept.squeeze(1)


def jitter(view: View, strength: float, rng: np.random.Generator) -> View:
    """Each image's bands scaled and shifted at random by up to ``strength`` deviations: light and haze."""
    if strength == 0:
        return view
    shape = (*view.pixels.shape[:2], 1, 1)
    scale = torch.from_numpy(np.exp(rng.uniform(-strength, strength, shape)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-strength, strength, shape).astype(np.float32))
    pixels = (view.pixels * scale + shift) * view.valid.unsqueeze(1)
    return View(pixels=pixels, valid=view.valid, gsd_m=view.gsd_m, present=view.present, days=view.days)
