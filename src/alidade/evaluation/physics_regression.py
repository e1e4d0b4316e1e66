"""What RGB tells of near infrared: NDVI and NDWI of NAIP tiles, by ridge regression in other years and places.

Indices need the near-infrared band; features are given red, green and blue alone. The scenes of one place and several
years are cut into the same tiles, so that a fit to some years can be tried on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import DRAWS, Interval
from alidade.evaluation.datasets import DataError, Images, split_hash
from alidade.evaluation.features import Encoder, Features, digest, features
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result, now
from alidade.imagery.files import read
from alidade.imagery.raster import Raster

Scalar = TypeVar("Scalar", bound=np.generic)
Reals = NDArray[np.float64]
Numbers = NDArray[np.int64]

STRENGTHS = tuple(10.0**p for p in range(-4, 4))
"""Penalties that are tried: of standardised features, a sample."""
PROTOCOL = "ridge regression of RGB features"
OTHER_YEARS, OTHER_PLACES, OTHER_BOTH = "other years", "other places", "other years and places"
CONDITIONS = {OTHER_YEARS: (True, False), OTHER_PLACES: (False, True), OTHER_BOTH: (True, True)}
"""Whether years, and whether places are left out of the fit."""
STRIPS = 4
"""Parts, from west to east, that are kept apart where places are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PhysicsTiles:
    """Tiles of one place in several years.

    Attributes:
        images: red, green and blue ``[N, 3, S, S]``; labels number the years.
        places: ``[N]``, equal for tiles of the same ground.
        strips: ``[N]``, columns of tiles from west to east.
        targets: ``[N]`` by name: mean of the index over the tile's pixels, -1 to 1.
    """

    images: Images
    places: Numbers
    strips: Numbers
    targets: Mapping[str, Reals]

    @property
    def years(self) -> Numbers:
        """``[N]``, number of each tile's year."""
        return self.images.labels


def naip_tiles(folder: Path, *, side: int = 64) -> PhysicsTiles:
    """Tiles of all NAIP scenes in a folder that have a near-infrared band.

    Scenes are cut on their own pixel grids, from their first pixel: those of one place start within a pixel of each
    other. A tile counts when all of its pixels are valid in every year. Values are 8-bit display numbers without a
    calibration, so that the indices of two years differ by more than vegetation and water.

    Args:
        folder: ``samples/naip``, or any folder with such scenes.
        side: of the tiles in pixels.

    Raises:
        DataError: fewer than two years, scenes of several sizes or places, or no tile.
        AlidadeError: a file that cannot be read.
    """
    paths = sorted(path for path in folder.glob("*.tif") if path.name.startswith(("naip", "m_")))
    scenes = [raster for raster in map(read, paths) if raster.sensor.id == "naip-rgbn"]
    if len(scenes) < 2 or any(scene.time is None for scene in scenes):
        raise _bad(folder, f"{len(scenes)} scenes with near infrared", "two or more of known times")
    rows, cols = (min(scene.valid.shape[axis] // side for scene in scenes) for axis in (0, 1))
    first = [scene.grid.transform for scene in scenes]
    far = max(abs(a.c - first[0].c) + abs(a.f - first[0].f) for a in first)
    if {scene.grid.crs for scene in scenes} != {scenes[0].grid.crs} or far > 2 * abs(first[0].a):
        raise _bad(folder, f"scenes whose corners lie up to {far:g} apart", "scenes of one place on one grid")
    whole = np.stack([_tiled(s.valid[None], rows, cols, side).all(axis=(1, 2, 3)) for s in scenes]).all(axis=0)
    kept = np.flatnonzero(whole)
    if not len(kept):
        raise _bad(folder, f"no tile of {side} px that is whole in every year", "some: choose a smaller side")
    return _assemble(scenes, kept, rows, cols, side)


def _assemble(scenes: Sequence[Raster], kept: Numbers, rows: int, cols: int, side: int) -> PhysicsTiles:
    colours = [scene.select(("red", "green", "blue")) for scene in scenes]
    times = [str(scene.time.date()) for scene in scenes if scene.time is not None]
    found = {"NDVI": list[Reals](), "NDWI": list[Reals]()}
    for scene in scenes:
        red, green, near = (
            _tiled(scene.select((band,)).pixels.astype(np.float64), rows, cols, side)[kept, 0]
            for band in ("red", "green", "nir")
        )
        found["NDVI"].append(_index(near, red))
        found["NDWI"].append(_index(green, near))
    images = Images(
        name=f"naip/{len(scenes)} years, {side} px",
        ids=tuple(f"{time}/{place // cols}-{place % cols}" for time in times for place in kept),
        pixels=np.concatenate([_tiled(colour.pixels, rows, cols, side)[kept] for colour in colours]),
        labels=np.repeat(np.arange(len(scenes)), len(kept)),
        classes=tuple(times),
        gsd_m=np.repeat([scene.grid.mean_gsd_m() for scene in scenes], len(kept)),
        sensor=scenes[0].sensor,
        bands=colours[0].bands,
        encodings=colours[0].encodings,
    )
    return PhysicsTiles(
        images=images,
        places=np.tile(kept, len(scenes)),
        strips=np.tile(kept % cols, len(scenes)),
        targets={name: np.concatenate(parts) for name, parts in found.items()},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A fitted regression to ``T`` targets: ``(x - mean) / scale @ weight + offset``."""

    mean: Reals
    scale: Reals
    weight: Reals
    offset: Reals

    def predict(self, x: Reals) -> Reals:
        """``[N, T]`` of features ``[N, D]``."""
        return np.asarray((x - self.mean) / self.scale @ self.weight + self.offset)


def fit_ridge(x: Reals, y: Reals, strengths: Sequence[float]) -> list[Ridge]:
    """Minimises ``mean squared error + strength · ‖w‖²`` over standardised features, once for each strength.

    Args:
        x: features ``[N, D]``; one that is constant counts for nothing.
        y: ``[N, T]``.
        strengths: above 0.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    z, off = (x - mean) / scale, y - y.mean(axis=0)
    # the smaller of both sides: z'(zz' + s)⁻¹ = (z'z + s)⁻¹z'
    tall = z.shape[0] >= z.shape[1]
    values, vectors = np.linalg.eigh(z.T @ z if tall else z @ z.T)
    along = vectors.T @ (z.T @ off if tall else off)
    weights = [vectors @ (along / (values.clip(min=0) + s * len(z))[:, None]) for s in strengths]
    offset = np.asarray(y.mean(axis=0))
    return [Ridge(mean=mean, scale=scale, weight=w if tall else z.T @ w, offset=offset) for w in weights]


def choose_strengths(x: Reals, y: Reals, groups: Numbers, strengths: Sequence[float] = STRENGTHS) -> list[float]:
    """For each target the strength with the least squared error in groups (years, strips) left out one by one.

    Of equal ones the strongest.

    Raises:
        AlidadeError: fewer than two groups.
    """
    if len(np.unique(groups)) < 2:
        raise AlidadeError(
            "strength of a ridge regression",
            got="tiles of one year, or one strip, to fit to",
            expected="two or more: the strength is chosen on one that was not fitted to",
            next_step="Test on fewer years, or on smaller tiles.",
        )
    ordered = sorted(strengths, reverse=True)
    errors = np.zeros((len(ordered), y.shape[1]))
    for group in np.unique(groups):
        out = groups == group
        fits = fit_ridge(x[~out], y[~out], ordered)
        errors += [np.square(fit.predict(x[out]) - y[out]).sum(axis=0) for fit in fits]
    return [ordered[best] for best in errors.argmin(axis=0)]


def predict_apart(
    x: Reals, y: Reals, tiles: PhysicsTiles, folds: Sequence[Sequence[int]], *, years: bool, places: bool
) -> Reals:
    """Predictions ``[N, T]`` for the tiles of each fold's years by a fit to others; NaN for years in no fold.

    Args:
        x: features ``[N, D]``.
        y: ``[N, T]``.
        tiles: whose they are.
        folds: numbers of the years that are left out together.
        years: whether they are left out of the fit. The penalty is chosen on years, too, and else on strips.
        places: whether the ground is left out: strips from west to east, with the tiles beside them.
    """
    out = np.full(y.shape, np.nan)
    parts = np.array_split(np.arange(tiles.strips.max() + 1), STRIPS) if places else [np.arange(0)]
    for fold in folds if years else [sum(map(list, folds), list[int]())]:
        tested = np.isin(tiles.years, list(fold))
        for strips in parts:
            here = tested & (np.isin(tiles.strips, strips) | (not places))
            fit = ~(tested & years) & ~np.isin(tiles.strips, [*strips, *(strips - 1), *(strips + 1)])
            groups = tiles.years if years else np.select([np.isin(tiles.strips, p) for p in parts], range(len(parts)))
            chosen = choose_strengths(x[fit], y[fit], groups[fit])
            for target, ridge in enumerate(fit_ridge(x[fit], y[fit], chosen)):
                out[here, target] = ridge.predict(x[here])[:, target]
    return out


def same_place(y: Reals, tiles: PhysicsTiles, folds: Sequence[Sequence[int]]) -> Reals:
    """The place's mean over the years fitted to: what knowing where a tile lies is worth, without looking at it."""
    out = np.full(y.shape, np.nan)
    for fold in folds:
        tested = np.isin(tiles.years, list(fold))
        for place in np.unique(tiles.places):
            here = tiles.places == place
            out[tested & here] = y[~tested & here].mean(axis=0)
    return out


def r_squared(sums: Reals) -> Reals:
    """``1 - squared error / squared deviation from the mean``; below 0 for what is worse than the mean.

    Args:
        sums: of ``_sums``, ``[..., K, 6]``; the result has the leading shape.
    """
    n, y, _, yy, pp, py = np.moveaxis(sums.sum(axis=-2), -1, 0)
    return np.asarray(1 - (yy - 2 * py + pp) / (yy - y**2 / n))


def correlation(sums: Reals) -> Reals:
    """Pearson's correlation after each year's means are taken off both: blind to what shifts a whole year.

    0 where all predictions of a year are alike. See ``r_squared`` for ``sums``.
    """
    n, y, p, yy, pp, py = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1)
    together, own, told = ((a - b * c / n).sum(axis=-1) for a, b, c in ((py, p, y), (yy, y, y), (pp, p, p)))
    # what rounding leaves of equal predictions is no spread
    some = told > 1e-12 * own
    return np.asarray(np.where(some, together / np.sqrt(np.where(some, own * told, 1.0)), 0.0))


METRICS = {"R²": r_squared, "r within a year": correlation}


def bootstrap(
    metric: Callable[[Reals], Reals],
    y: Reals,
    predicted: Sequence[Reals],
    years: Numbers,
    places: Numbers,
    *,
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """A metric of the first prediction, less that of the second where there are two, with its 95 % interval.

    Places are drawn with replacement, each with all of its years: those are alike.

    Args:
        metric: one of ``METRICS``.
        y: ``[N]``.
        predicted: one or two of ``[N]``; two are judged on the same draws.
        years: ``[N]``.
        places: ``[N]``.
        seed: of the draws.
        draws: how many times.
    """
    found, scores = list[float](), list[Reals]()
    for p in predicted:
        sums = _sums(y, p, years, places)
        found.append(float(metric(sums.sum(axis=0))))
        rng = np.random.default_rng(seed)
        drawn = [metric(sums[rng.integers(len(sums), size=(50, len(sums)))].sum(axis=1)) for _ in range(draws // 50)]
        scores.append(np.concatenate(drawn))
    value, score = (found[0], scores[0]) if len(found) == 1 else (found[0] - found[1], scores[0] - scores[1])
    low, high = np.quantile(score, (0.025, 0.975))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value), n=len(y))


def _sums(y: Reals, predicted: Reals, years: Numbers, places: Numbers) -> Reals:
    """By place and year ``[G, K, 6]``: number, and sums of y, p, y², p² and y·p."""
    year, place = (np.unique(values, return_inverse=True)[1] for values in (years, places))
    out = np.zeros((place.max() + 1, year.max() + 1, 6))
    # around the mean: a difference of large sums would lose its digits
    y, p = y - y.mean(), predicted - y.mean()
    np.add.at(out, (place, year), np.stack([np.ones_like(y), y, p, y * y, p * p, y * p], axis=1))
    return out


def measure_physics(
    encoders: Sequence[Encoder],
    tiles: PhysicsTiles,
    stamp: Stamp,
    *,
    test_years: Sequence[int] = (),
    against: Encoder | None = None,
) -> Iterator[Result]:
    """Each of ``METRICS`` of each index, in each of ``CONDITIONS``.

    Rows that look at nothing come first: the mean of the years fitted to, and the same place's mean.

    Args:
        encoders: models and baselines.
        tiles: of one place.
        stamp: of the run.
        test_years: calendar years that are left out together; each by itself when not given.
        against: also tell how much better each encoder is than this one, on the same draws.

    Raises:
        DataError: a test year that there is not.
    """
    folds = _folds(tiles, test_years)
    names, y = list(tiles.targets), np.stack(list(tiles.targets.values()), axis=1)
    only = f" ({', '.join(map(str, sorted(test_years)))})" if test_years else ""
    settings = {"folds": folds, "strengths": STRENGTHS, "strips": STRIPS}
    mean = Encoder(identity="mean of the years fitted to", config="{}", embed=_nothing)
    place = Encoder(identity="same place in the years fitted to", config="{}", embed=_nothing)

    def rows(encoder: Encoder, condition: str, predicted: Reals, before: Reals | None) -> Iterator[Result]:
        config = digest(json.dumps({"encoder": encoder.config, "settings": settings}, sort_keys=True))
        tested = np.isfinite(predicted).all(axis=1)
        years, places = tiles.years[tested], tiles.places[tested]
        for target, name in enumerate(names):
            for metric, score in METRICS.items():
                both = [p[tested, target] for p in (predicted, before) if p is not None]
                found = bootstrap(score, y[tested, target], both, years, places, seed=stamp.seed)
                more = "" if before is None or against is None else f" above {against.identity}"
                yield Result(
                    protocol=PROTOCOL,
                    condition=condition + only,
                    dataset=tiles.images.name,
                    split_hash=split_hash(tiles.images),
                    model=encoder.identity,
                    config_hash=config,
                    commit=stamp.commit,
                    seed=stamp.seed,
                    n=found.n,
                    metric=f"{name} {metric}{more}",
                    value=found.value,
                    low=found.low,
                    high=found.high,
                    time=now(),
                )

    blank = np.zeros((len(y), 1))
    yield from rows(mean, OTHER_YEARS, predict_apart(blank, y, tiles, folds, years=True, places=False), None)
    yield from rows(place, OTHER_YEARS, same_place(y, tiles, folds), None)
    first = dict[str, Reals]()
    for encoder in [*([] if against is None else [against]), *encoders]:
        x = features(encoder, tiles.images).astype(np.float64)
        for condition, (years, places) in CONDITIONS.items():
            predicted = predict_apart(x, y, tiles, folds, years=years, places=places)
            yield from rows(encoder, condition, predicted, None)
            if encoder is against:
                first[condition] = predicted
            elif against is not None:
                yield from rows(encoder, condition, predicted, first[condition])


def _folds(tiles: PhysicsTiles, test_years: Sequence[int]) -> list[list[int]]:
    years = [int(name[:4]) for name in tiles.images.classes]
    if unknown := sorted(set(test_years) - set(years)):
        raise _bad(Path(tiles.images.name), f"test years {unknown}", f"years among {years}")
    if not test_years:
        return [[number] for number in range(len(years))]
    return [[number for number, year in enumerate(years) if year in test_years]]


def _nothing(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
    return np.zeros((len(pixels), 1), dtype=np.float32)


def _tiled(pixels: NDArray[Scalar], rows: int, cols: int, side: int) -> NDArray[Scalar]:
    """``[C, H, W]`` as ``[rows · cols, C, side, side]`` from the first pixel, row by row."""
    cut = pixels[:, : rows * side, : cols * side].reshape(len(pixels), rows, side, cols, side)
    return cut.transpose(1, 3, 0, 2, 4).reshape(rows * cols, len(pixels), side, side)


def _index(plus: NDArray[np.float64], minus: NDArray[np.float64]) -> Reals:
    """Mean over each tile of ``(plus - minus) / (plus + minus)``; 0 where both are 0."""
    total = plus + minus
    return np.asarray(((plus - minus) / np.where(total > 0, total, 1)).mean(axis=(1, 2)))


def _bad(folder: Path, got: str, expected: str) -> DataError:
    return DataError(f"{folder}: scenes", got=got, expected=expected, next_step="Name a folder such as samples/naip.")
