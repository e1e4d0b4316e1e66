"""What is learnt from in the public data pack: one sensor at two resolutions, radar with RGB, all bands with RGB.

Train parts only. Recipes and the ablation read the pack here, so that they mean the same data by the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from alidade.evaluation.datasets import Images, eurosat100, eurosat_rgb, ucmerced
from alidade.evaluation.features import normalise
from alidade.evaluation.pairs import california_texas
from alidade.imagery.files import read
from alidade.models.config import TowerConfig
from alidade.training.image_batches import Cut, Source, Stack

Scalar = TypeVar("Scalar", bound=np.generic)
Sizes = tuple[tuple[int, int], ...]
"""(side in pixels, area-averaging factor) to draw from."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How often a batch is drawn from each source; ``multispectral`` counts for each product level."""

    eurosat: float
    ucmerced: float
    california: float
    multispectral: float


def pack_sources(
    data: Path, towers: Mapping[str, TowerConfig], shares: Shares, *, samples: Path | None = None
) -> list[Source]:
    """The sources, normalised for a model's towers. Views are named ``"rgb fine"``, ``"rgb coarse"``, ``"rgb"``, ...

    Args:
        data: the public data pack.
        towers: ``"sar"`` (VH), ``"optical"`` (12 bands) and ``"rgb"``.
        shares: of the batches.
        samples: folder of sample scenes, whose ``sentinel-2`` part is added to the multispectral sources.

    Raises:
        AlidadeError: a file is missing or damaged (of the kinds that the readers raise).
    """
    sar, optical, rgb = (towers[name] for name in ("sar", "optical", "rgb"))
    pairs = california_texas(data, "train", window=512)
    eurosat, aerial = stack(rgb, eurosat_rgb(data, "train")), stack(rgb, ucmerced(data, "train"))
    levels = multispectral(data, samples, optical, rgb)
    return [
        two_scales("eurosat", shares.eurosat, eurosat, ((40, 1), (48, 1), (64, 1)), ((64, 2), (48, 2), (32, 1))),
        two_scales("ucmerced", shares.ucmerced, aerial, ((64, 1), (128, 2)), ((256, 4), (192, 4), (96, 2))),
        Source(
            name="california",
            weight=shares.california,
            stacks={"sar": stack(sar, pairs.sar), "rgb": stack(rgb, pairs.optical)},
            views={n: Cut(stack=n, sizes=((64, 1), (48, 1), (96, 2)), jitter=0.15) for n in ("sar", "rgb")},
            together=True,
        ),
        *(all_bands(name, shares.multispectral, group) for name, group in levels.items()),
    ]


def two_scales(name: str, weight: float, images: Stack, fine: Sizes, coarse: Sizes) -> Source:
    """Fine and coarse cuts of the same images: one sensor takes the part of two."""
    views = {
        "rgb fine": Cut(stack="rgb", sizes=fine, jitter=0.15),
        "rgb coarse": Cut(stack="rgb", sizes=coarse, jitter=0.15),
    }
    return Source(name=name, weight=weight, stacks={"rgb": images}, views=views, together=False)


def all_bands(name: str, weight: float, images: list[tuple[Stack, Stack]]) -> Source:
    """Twelve bands and their visible three over the same ground, from (optical, RGB) stacks of 10 m."""
    wide, three = (
        Stack(
            pixels=np.concatenate([pair[i].pixels for pair in images]),
            valid=np.concatenate([pair[i].valid for pair in images]),
            gsd_m=10.0,
        )
        for i in (0, 1)
    )
    views = {n: Cut(stack=n, sizes=((48, 1), (32, 1)), jitter=0.1) for n in ("optical", "rgb")}
    return Source(name=name, weight=weight, stacks={"optical": wide, "rgb": three}, views=views, together=True)


def stack(tower: TowerConfig, images: Images) -> Stack:
    """Images of the pack as the tower sees them."""
    normalization = tower.normalizations[images.sensor.id]
    parts = [normalise(normalization, images, images.pixels[i : i + 256]) for i in range(0, len(images), 256)]
    pixels = np.concatenate([part.astype(np.float16) for part in parts])
    gsd = float(np.median(images.gsd_m))
    return Stack(pixels=pixels, valid=np.ones(pixels[:, 0].shape, dtype=np.bool_), gsd_m=gsd)


def multispectral(
    data: Path, samples: Path | None, optical: TowerConfig, rgb: TowerConfig
) -> dict[str, list[tuple[Stack, Stack]]]:
    """64 px chips of 12 bands and of their visible three, by product level: EuroSAT100's train part and the samples."""
    chips = eurosat100(data, "train")
    found = {"sentinel-2-l1c": [(stack(optical, chips), stack(rgb, chips))]}
    for path in sorted((samples / "sentinel-2").glob("*.tif")) if samples else ():
        raster = read(path)
        both = [t.normalizations[raster.sensor.id].apply(raster) for t in (optical, rgb)]
        first, second = (
            Stack(pixels=chipped(pixels).astype(np.float16), valid=chipped(valid[None])[:, 0], gsd_m=10.0)
            for pixels, valid in both
        )
        found.setdefault(raster.sensor.id, []).append((first, second))
    return found


def chipped(image: NDArray[Scalar], side: int = 64) -> NDArray[Scalar]:
    """``[C, H, W]`` cut into chips ``[N, C, side, side]`` that cover it; the last of a row overlaps the one before."""
    height, width = image.shape[1:]
    rows, cols = (sorted({*range(0, n - side, side), n - side}) for n in (height, width))
    return np.stack([image[:, r : r + side, c : c + side] for r in rows for c in cols])
