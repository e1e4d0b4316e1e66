"""The same images coarser or smaller: block means with the ground told truthfully or wrongly, and centre cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.datasets import Images
from alidade.evaluation.features import Encoder, Features, features
from alidade.evaluation.knn import knn_predict

FACTORS = (8, 4, 2, 1)
"""12.5, 25, 50 and 100 % of the native resolution, as Scale-MAE's curve has them (Reed et al. 2023)."""


def coarser(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    """Block means: ``[N, C, H, W]`` to ``[N, C, H/factor, W/factor]``, rounded to the stored type if that is whole.

    Raises:
        AlidadeError: sides that are no multiple of ``factor``.
    """
    n, c, h, w = pixels.shape
    if factor < 1 or h % factor or w % factor:
        raise AlidadeError(
            "area resampling",
            got=f"{h} x {w} px by {factor}",
            expected="sides that the factor divides",
            next_step="Choose another factor, or cut the images first.",
        )
    blocks = pixels.reshape(n, c, h // factor, factor, w // factor, factor)
    means = blocks.mean(axis=(3, 5), dtype=np.float32)
    whole = pixels.dtype.kind in "ui"
    return np.asarray(np.rint(means) if whole else means, dtype=pixels.dtype)


def coarser_images(images: Images, factor: int) -> Images:
    """The images at ``factor`` times their ground sample distance, which is told truthfully."""
    return replace(images, pixels=coarser(images.pixels, factor), gsd_m=images.gsd_m * factor)


def centre(images: Images, side: int) -> Images:
    """The middle ``side`` pixels of each image.

    Raises:
        AlidadeError: images smaller than that.
    """
    h, w = images.pixels.shape[2:]
    if not 0 < side <= min(h, w):
        raise AlidadeError(
            f"{images.name}: centre",
            got=f"{side} of {h} x {w} px",
            expected="a part",
            next_step="Choose a smaller one.",
        )
    top, left = (h - side) // 2, (w - side) // 2
    return replace(images, pixels=images.pixels[:, :, top : top + side, left : left + side])


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a curve.

    Attributes:
        condition: what was changed, in words.
        correct: ``[Q]`` bool, one per query image.
    """

    condition: str
    correct: NDArray[np.bool_]


def resolution_curve(encoder: Encoder, train: Images, queries: Images, *, k: int = 5) -> Iterator[Point]:
    """Nearest neighbours at 12.5 to 100 % of the native resolution.

    ``gallery native``: only the queries are coarser (Scale-MAE's protocol, which asks whether features hold across
    scales). ``gallery alike``: both are (which asks how much is left to see). Encoders that read the ground sample
    distance are also told the native one, which is wrong for the coarser images.
    """
    native = features(encoder, train)
    for factor in FACTORS:
        there, here = coarser_images(train, factor), coarser_images(queries, factor)
        tellings = ("truthful", "wrong") if encoder.reads_gsd and factor > 1 else ("truthful",)
        for telling in tellings:
            gsd = here.gsd_m if telling == "truthful" else queries.gsd_m
            asked = features(encoder, here, gsd_m=gsd)
            label = f"{100 / factor:g} %, GSD {telling}"
            yield Point(condition=f"{label}, gallery native", correct=_correct(native, train, asked, queries, k))
            if factor > 1:
                told = there.gsd_m if telling == "truthful" else train.gsd_m
                alike = features(encoder, there, gsd_m=told)
                yield Point(condition=f"{label}, gallery alike", correct=_correct(alike, train, asked, queries, k))


def size_curve(
    encoder: Encoder, train: Images, queries: Images, *, sides: tuple[int, ...], k: int = 5
) -> Iterator[Point]:
    """Nearest neighbours on the middle of the images, at their native resolution; gallery and queries are cut alike."""
    for side in sides:
        there, here = centre(train, side), centre(queries, side)
        correct = _correct(features(encoder, there), train, features(encoder, here), queries, k)
        yield Point(condition=f"{side} px", correct=correct)


def _correct(gallery: Features, train: Images, asked: Features, queries: Images, k: int) -> NDArray[np.bool_]:
    return np.asarray(knn_predict(gallery, train.labels, asked, k=k) == queries.labels)
