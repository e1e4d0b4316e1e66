"""Masked reconstruction of aerial images at their own resolution: the same hidden patches for every network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alidade.ablation.nested import INNER, OUTER, nested
from alidade.ablation.pack_sources import stack
from alidade.evaluation.datasets import Images, split_hash
from alidade.models.config import ScaleAlibiConfig
from alidade.models.encoder import patchify
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Tokens, gather_places, take
from alidade.training.augment import View
from alidade.training.objectives import random_split, standardised_patches

ALONE, IN_CONTEXT = "alone", "within 4 times coarser ground"
POINTS = (ALONE, IN_CONTEXT)
FACTOR = 4
MASKS = 0
"""Seed of the masks."""
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Hidden:
    """The middle of each image, partly hidden, and the wider and coarser ground around it.

    Attributes:
        dataset, split_hash: of the images.
        inner, outer: views of all ``N`` images; see ``nested``.
        kept, kept_outer: ids ``[N, K]`` of the tokens that encoders see.
        masked: ids ``[N, M]`` of the inner tokens to predict.
        targets: ``[N, M, P]``, their pixels, standardised by patch.
    """

    dataset: str
    split_hash: str
    inner: View
    outer: View
    kept: Tensor
    kept_outer: Tensor
    masked: Tensor
    targets: Tensor


def hide(images: Images, model: ScaleAlibiConfig, keep: float) -> Hidden:
    """Hide ``1 - keep`` of the middle patches of images at their own resolution."""
    tower = next(t for t in model.towers if t.name == "rgb")
    views = nested(stack(tower, images), np.arange(len(images)), FACTOR)
    patches = patchify(views[INNER].pixels, tower.patch)
    generator = torch.Generator().manual_seed(MASKS)
    seen = torch.ones(patches.shape[:2], dtype=torch.bool)
    kept, masked = random_split(seen, keep, generator)
    kept_outer, _ = random_split(seen, keep, generator)
    return Hidden(
        dataset=images.name,
        split_hash=split_hash(images),
        inner=views[INNER],
        outer=views[OUTER],
        kept=kept,
        kept_outer=kept_outer,
        masked=masked,
        targets=standardised_patches(take(patches, masked)),
    )


def patch_mean(hidden: Hidden) -> NDArray[np.float64]:
    """Mean squared error ``[N]`` of predicting each hidden patch's mean: 1, or less where patches are flat."""
    return np.asarray(hidden.targets.double().square().mean(dim=(1, 2)).numpy())


@torch.inference_mode()
def reconstruction_errors(network: ScaleAlibi, hidden: Hidden) -> dict[str, NDArray[np.float64]]:
    """Mean squared errors ``[N]`` of the hidden patches, by what they are predicted from.

    ``ALONE``: the inner view's kept tokens. ``IN_CONTEXT``: those after the fusion encoder, which attends across
    scales to the kept tokens of the outer view.
    """
    found: dict[str, list[Tensor]] = {point: [] for point in POINTS}
    for start in range(0, len(hidden.targets), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        tokens = _tokens(network, "rgb", hidden.inner, rows)
        inner = network.run(tokens.gather(hidden.kept[rows]))
        outer = network.run(_tokens(network, "context", hidden.outer, rows).gather(hidden.kept_outer[rows]))
        places = gather_places(tokens.places, hidden.masked[rows])
        for point, context in ((ALONE, inner), (IN_CONTEXT, network.fuse([inner, outer]))):
            predicted = network.reconstruct(context, places, "rgb")
            found[point].append((predicted - hidden.targets[rows]).double().square().mean(dim=(1, 2)))
    return {point: torch.cat(parts).numpy() for point, parts in found.items()}


def _tokens(network: ScaleAlibi, tower: str, view: View, rows: slice) -> Tokens:
    part = replace(view, pixels=view.pixels[rows], valid=view.valid[rows], days=view.days[rows])
    return network.embed_patches(tower, part.pixels, part.valid, part.gsd_m, part.days)
