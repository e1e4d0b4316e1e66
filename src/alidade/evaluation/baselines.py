"""Trivial features that every model has to beat. None of them has been trained; chance is in the protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError
from alidade.evaluation.datasets import Images
from alidade.evaluation.features import Encoder, Features, normalise
from alidade.imagery.normalize import Normalization

FEATURES, KERNEL, BIAS = 512, 3, -1.0
"""Random convolution as torchgeo sets it up: 3 x 3 kernels and a bias of -1. 512 features are 256 kernels."""
CELLS = 2**23
GREY_BINS, COLOUR_LEVELS, ANGLES, SCALES = 32, 4, 9, (1, 2, 4)


def band_statistics(images: Images, seed: int = 0) -> Encoder:
    """Mean and standard deviation of each band over the image: ``2·C`` numbers."""
    inputs = _inputs(images)

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        values = inputs(pixels)
        return torch.cat([values.mean(dim=(2, 3)), values.std(dim=(2, 3), correction=0)], dim=1).numpy()

    return Encoder(identity="band mean/std", config=_config(images, "band mean/std"), embed=embed)


def random_convolution(images: Images, seed: int = 0) -> Encoder:
    """Random convolution features (Rolf et al. 2021, MOSAIKS) with Gaussian kernels drawn by ``seed``.

    Means over the image of ``relu(k * x + b)`` and ``relu(-(k * x + b))``: 512 numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(FEATURES // 2, len(images.bands), KERNEL, KERNEL, generator=generator)
    return _convolution(images, kernels, "random convolution, Gaussian", seed)


def random_patches(images: Images, seed: int = 0) -> Encoder:
    """Random convolution features whose kernels are whitened patches of ``images``, which should be the train part.

    Patches have their mean taken off, are brought to unit length and ZCA-whitened (Coates and Ng 2012), as MOSAIKS
    and torchgeo's empirical mode do.

    Raises:
        ModelError: images smaller than a kernel.
    """
    rng = np.random.default_rng(seed)
    n, _, h, w = images.pixels.shape
    if min(h, w) < KERNEL:
        raise ModelError(
            "random convolution", got=f"{h} x {w} px", expected=f"at least {KERNEL} px", next_step="Take larger images."
        )
    inputs = _inputs(images)
    # more patches than kernels: the whitening needs a covariance of full rank
    count = 16 * FEATURES
    where = zip(rng.integers(n, size=count), rng.integers(h - KERNEL + 1, size=count),
                rng.integers(w - KERNEL + 1, size=count), strict=True)  # fmt: skip
    drawn = np.stack([images.pixels[i, :, r : r + KERNEL, c : c + KERNEL] for i, r, c in where])
    rows = inputs(drawn).flatten(1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    whitening = vectors @ torch.diag((values.clamp(min=0) + 1e-3).rsqrt()) @ vectors.T
    kernels = ((rows[: FEATURES // 2] - rows.mean(dim=0)) @ whitening).float()
    shape = (FEATURES // 2, len(images.bands), KERNEL, KERNEL)
    return _convolution(images, kernels.reshape(shape), f"random convolution, patches of {images.name}", seed)


def colour_texture(images: Images, seed: int = 0) -> Encoder:
    """Histograms of colour and of gradient direction; square roots, so that the cosine compares distributions.

    Of each band 16 levels, of the first three bands together 4 x 4 x 4 colours, and of the grey image 9 directions
    of the gradient, weighted by its length, at full, half and quarter resolution.
    """

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        values = _unit_range(images, pixels)
        parts = [_levels(values[:, band], 16) for band in range(values.shape[1])]
        if values.shape[1] >= 3:
            steps = (values[:, :3] * COLOUR_LEVELS).long().clamp(0, COLOUR_LEVELS - 1)
            codes = (steps[:, 0] * COLOUR_LEVELS + steps[:, 1]) * COLOUR_LEVELS + steps[:, 2]
            parts.append(_counts(codes, torch.ones_like(values[:, 0]), COLOUR_LEVELS**3))
        parts += _directions(values.mean(dim=1))
        return torch.cat(parts, dim=1).sqrt().numpy()

    return Encoder(identity="colour/texture histogram", config=_config(images, "colour/texture"), embed=embed)


def grey_texture(images: Images, seed: int = 0) -> Encoder:
    """The same of the grey image alone, so that sensors with different bands have the same columns."""

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        grey = _unit_range(images, pixels).mean(dim=1)
        return torch.cat([_levels(grey, GREY_BINS), *_directions(grey)], dim=1).sqrt().numpy()

    return Encoder(identity="grey/texture histogram", config=_config(images, "grey/texture"), embed=embed)


BASELINES: dict[str, Callable[[Images, int], Encoder]] = {
    "band-statistics": band_statistics,
    "random-convolution": random_convolution,
    "random-patches": random_patches,
    "colour-texture": colour_texture,
    "grey-texture": grey_texture,
}
"""Baselines by the name that the command line takes. Each is made from the train part and a seed."""


def _convolution(images: Images, kernels: Tensor, name: str, seed: int) -> Encoder:
    inputs = _inputs(images)

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        values, parts = inputs(pixels), []
        # the answers of a whole batch of large images would fill gigabytes
        at_once = max(1, CELLS // (len(kernels) * values.shape[2] * values.shape[3]))
        with torch.inference_mode():
            for part in values.split(at_once):  # type: ignore[no-untyped-call]
                answer = F.conv2d(part, kernels) + BIAS
                above = answer.relu().mean(dim=(2, 3))
                # relu(-a) = relu(a) - a
                parts.append(torch.cat([above, above - answer.mean(dim=(2, 3))], dim=1))
        return torch.cat(parts).numpy()

    return Encoder(identity=name, config=_config(images, f"{name}, seed {seed}"), embed=embed)


def _inputs(images: Images) -> Callable[[NDArray[Any]], Tensor]:
    fixed = Normalization.for_sensor(images.sensor, [b.name for b in images.bands])
    return lambda pixels: torch.from_numpy(normalise(fixed, images, pixels))


def _unit_range(images: Images, pixels: NDArray[Any]) -> Tensor:
    """Two deviations either side of the sensor's mean, brought to 0..1; 8-bit pictures as they are, over 255."""
    if pixels.dtype == np.uint8:
        return torch.from_numpy(pixels.astype(np.float32) / 255)
    fixed = Normalization.for_sensor(images.sensor, [b.name for b in images.bands], "two-sigma")
    return torch.from_numpy(normalise(fixed, images, pixels))


def _levels(values: Tensor, bins: int) -> Tensor:
    codes = (values * bins).long().clamp(0, bins - 1)
    return _counts(codes, torch.ones_like(values), bins)


def _counts(codes: Tensor, weights: Tensor, bins: int) -> Tensor:
    """Shares ``[N, bins]`` of the weight that falls on each code ``[N, H, W]``; zeros where there is none."""
    out = torch.zeros(len(codes), bins)
    out.scatter_add_(1, codes.flatten(1), weights.flatten(1))
    return out / out.sum(dim=1, keepdim=True).clamp(min=1e-12)


def _directions(grey: Tensor) -> list[Tensor]:
    out = []
    for scale in SCALES:
        image = F.avg_pool2d(grey.unsqueeze(1), scale).squeeze(1) if min(grey.shape[1:]) >= 3 * scale else grey
        dx = image[:, 1:-1, 2:] - image[:, 1:-1, :-2]
        dy = image[:, 2:, 1:-1] - image[:, :-2, 1:-1]
        # directions repeat after half a turn: an edge has no front
        angle = torch.remainder(torch.atan2(dy, dx), torch.pi) / torch.pi
        out.append(_counts((angle * ANGLES).long().clamp(0, ANGLES - 1), torch.hypot(dx, dy), ANGLES))
    return out


def _config(images: Images, what: str) -> str:
    return json.dumps({"baseline": what, "sensor": images.sensor.id, "features": FEATURES}, sort_keys=True)
