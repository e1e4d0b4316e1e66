"""Retrieval across sensors: does the radar window find the optical window over the same ground, and the reverse?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import Interval, interval
from alidade.evaluation.features import Features
from alidade.evaluation.knn import unit_rows

TO_OPTICAL, TO_SAR = "SAR→optical", "optical→SAR"
DEPTHS = (1, 10)
RIDGES = (0.01, 0.1, 1.0)
DIRECTIONS = 32


def ranks(queries: Features, gallery: Features) -> NDArray[np.int64]:
    """Place ``[N]``, from 1, of gallery row ``i`` among all by cosine to query ``i``.

    A tie counts against: equal features must not look like a find.

    Raises:
        AlidadeError: shapes that differ.
    """
    if queries.shape != gallery.shape or queries.ndim != 2:
        raise _refuse(f"queries {queries.shape}, gallery {gallery.shape}", "two equal shapes [N, D]")
    keys, wanted = unit_rows(gallery), unit_rows(queries)
    out = np.empty(len(keys), dtype=np.int64)
    for i, query in enumerate(wanted):
        similarity = keys @ query
        out[i] = (similarity >= similarity[i]).sum()
    return out


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The share of windows whose counterpart is among the first ``depth``, in one direction."""

    direction: str
    depth: int
    interval: Interval


def recalls(sar: Features, optical: Features, scenes: NDArray[np.int64], *, seed: int) -> list[Recall]:
    """Recall at 1 and 10 in both directions, over all windows at once.

    Args:
        sar: ``[N, D]``, window by window.
        optical: ``[N, D]`` of the same windows.
        scenes: ``[N]``, the pair that a window was cut from. The bootstrap draws whole pairs, as windows of one scene
            are alike; the gallery stays whole.
        seed: of the bootstrap.
    """
    out = []
    for direction, places in ((TO_OPTICAL, ranks(sar, optical)), (TO_SAR, ranks(optical, sar))):
        for depth in DEPTHS:
            found = interval(places <= depth, seed=seed, groups=scenes)
            out.append(Recall(direction=direction, depth=depth, interval=found))
    return out


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Two linear maps into one space, one per sensor: the strongest thing that fixed features can be given."""

    means: tuple[NDArray[np.float64], NDArray[np.float64]]
    maps: tuple[NDArray[np.float64], NDArray[np.float64]]
    ridge: float

    def apply(self, sar: Features, optical: Features) -> tuple[Features, Features]:
        """Both sensors' features in the common space, ``[N, K]`` float32."""
        first, second = (
            ((values.astype(np.float64) - mean) @ projection).astype(np.float32)
            for values, mean, projection in zip((sar, optical), self.means, self.maps, strict=True)
        )
        return first, second


def fit_bridge(sar: Features, optical: Features, *, ridge: float, directions: int = DIRECTIONS) -> Bridge:
    """Canonical correlation analysis (Hotelling 1936) of paired features, with a ridge.

    Args:
        sar: ``[N, D1]``.
        optical: ``[N, D2]`` of the same ground.
        ridge: added to both covariances, as a share of their mean variance.
        directions: how many pairs of directions to keep, at most ``min(D1, D2)``.

    Raises:
        AlidadeError: other numbers of rows, or fewer than two.
    """
    if len(sar) != len(optical) or len(sar) < 2:
        raise _refuse(f"{len(sar)} radar and {len(optical)} optical rows", "the same windows, two or more")
    wide = [values.astype(np.float64) for values in (sar, optical)]
    means = [values.mean(axis=0) for values in wide]
    centred = [values - mean for values, mean in zip(wide, means, strict=True)]
    whitening = [_inverse_root(values.T @ values / len(values), ridge) for values in centred]
    cross = whitening[0] @ (centred[0].T @ centred[1] / len(sar)) @ whitening[1]
    left, strength, right = np.linalg.svd(cross, full_matrices=False)
    keep = min(directions, len(strength))
    # directions that agree more count more
    weight = np.sqrt(strength[:keep])
    maps = whitening[0] @ left[:, :keep] * weight, whitening[1] @ right[:keep].T * weight
    return Bridge(means=(means[0], means[1]), maps=maps, ridge=ridge)


def choose_bridge(
    sar: Features, optical: Features, scenes: NDArray[np.int64], *, share: float = 0.2, seed: int = 0
) -> Bridge:
    """The bridge fitted to all rows with the ridge that finds most windows of a share of the scenes held out.

    Args:
        sar: ``[N, D1]``.
        optical: ``[N, D2]`` of the same windows.
        scenes: ``[N]``, the pair that a window was cut from; two or more. Whole pairs are held out.
        share: of the scenes held out, at least one.
        seed: draws them.
    """
    known = np.random.default_rng(seed).permutation(np.unique(scenes))
    out = np.isin(scenes, known[: max(1, round(share * len(known)))])

    def found(ridge: float) -> float:
        bridge = fit_bridge(sar[~out], optical[~out], ridge=ridge)
        first, second = bridge.apply(sar[out], optical[out])
        return float((ranks(first, second) == 1).mean() + (ranks(second, first) == 1).mean())

    return fit_bridge(sar, optical, ridge=max(RIDGES, key=found))


def _inverse_root(covariance: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    shift = ridge * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh(covariance + shift * np.eye(len(covariance)))
    out: NDArray[np.float64] = vectors / np.sqrt(values) @ vectors.T
    return out


def _refuse(got: str, expected: str) -> AlidadeError:
    return AlidadeError(
        "retrieval across sensors", got=got, expected=expected, next_step="Pass both sensors' features of one place."
    )
