"""The protocols end to end: images and an encoder in, complete results out. Models and baselines take the same path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.evaluation.bootstrap import Interval, interval
from alidade.evaluation.crosssensor import DEPTHS, TO_OPTICAL, TO_SAR, choose_bridge, recalls
from alidade.evaluation.curves import Point, resolution_curve, size_curve
from alidade.evaluation.datasets import Images, Pairs, split_hash
from alidade.evaluation.features import Encoder, Features, digest, features
from alidade.evaluation.knn import knn_predict
from alidade.evaluation.probe import STRENGTHS, choose_probe, fit_probe, hold_out
from alidade.evaluation.results import Result, now

HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What every result of one run shares."""

    commit: str
    seed: int


def measure_knn(encoder: Encoder, train: Images, queries: Images, stamp: Stamp, *, k: int = 5) -> Result:
    """Accuracy of ``k`` nearest neighbours by cosine."""
    found = knn_predict(features(encoder, train), train.labels, features(encoder, queries), k=k)
    return _result(found == queries.labels, stamp, encoder, (train, queries), f"{k}-NN", "as is", "accuracy", {"k": k})


def measure_probe(
    encoder: Encoder, train: Images, queries: Images, stamp: Stamp, *, validation: Images | None = None
) -> Result:
    """Accuracy of the linear probe.

    The strength is chosen on ``validation``; without it on a fifth of the training labels, after which the probe is
    fitted to all of them. ``queries`` choose nothing.
    """
    x, classes = features(encoder, train), len(train.classes)
    if validation is not None:
        probe = choose_probe((x, train.labels), (features(encoder, validation), validation.labels), classes=classes)
        parts: tuple[Images, ...] = (train, validation, queries)
    else:
        fit, choose = hold_out(train.labels, share=HELD_OUT, seed=stamp.seed)
        chosen = choose_probe((x[fit], train.labels[fit]), (x[choose], train.labels[choose]), classes=classes)
        probe, parts = fit_probe(x, train.labels, c=chosen.c, classes=classes), (train, queries)
    settings = {"strengths": STRENGTHS, "chosen on": "train" if validation is None else validation.name}
    correct = probe.predict(features(encoder, queries)) == queries.labels
    return _result(correct, stamp, encoder, parts, "linear probe", "as is", "accuracy", settings)


def measure_chance(train: Images, queries: Images, stamp: Stamp, protocol: str) -> Result:
    """Accuracy of always saying the class that is most frequent in the training part."""
    most = int(np.bincount(train.labels).argmax())
    chance = Encoder(identity="chance (most frequent class)", config="{}", embed=_nothing)
    return _result(queries.labels == most, stamp, chance, (train, queries), protocol, "as is", "accuracy", {})


def measure_curves(
    encoder: Encoder, train: Images, queries: Images, stamp: Stamp, *, sides: tuple[int, ...], k: int = 5
) -> Iterator[Result]:
    """5-NN against relative resolution, then against image size; see ``curves``."""

    def result(point: Point, protocol: str) -> Result:
        return _result(point.correct, stamp, encoder, (train, queries), protocol, point.condition, "accuracy", {"k": k})

    for point in resolution_curve(encoder, train, queries, k=k):
        yield result(point, f"{k}-NN against relative GSD")
    for point in size_curve(encoder, train, queries, sides=sides, k=k):
        yield result(point, f"{k}-NN against image size")


def measure_retrieval(
    encoders: tuple[Encoder, Encoder],
    pairs: Pairs,
    stamp: Stamp,
    *,
    fitted_on: Pairs | None = None,
    told_gsd_m: float | None = None,
    cells: int = 1,
    relative: bool = False,
) -> Iterator[Result]:
    """Recall at 1 and 10 from radar to optical windows and back, over all windows of ``pairs``.

    Args:
        encoders: of the radar and of the optical windows.
        pairs: what is reported on.
        stamp: of the run.
        fitted_on: training pairs, to map fixed features of both sensors into one space by canonical correlation
            first; without them the features are compared as they are.
        told_gsd_m: a ground sample distance to tell instead of the true one.
        cells: what the encoders pool apart across and down, for the condition's name.
        relative: with ``fitted_on``, each cell's features less the mean of its window's, as models compare cells
            between sensors.
    """

    def both(of: Pairs) -> tuple[Features, Features]:
        told = None if told_gsd_m is None else np.full(len(of.sar), told_gsd_m)
        found = (
            features(encoders[0], of.sar, gsd_m=told),
            features(encoders[1], of.optical, gsd_m=told),
        )
        return (_less_mean(found[0], cells), _less_mean(found[1], cells)) if relative else found

    sar, optical = both(pairs)
    conditions = [f"{cells} x {cells} cells"] if cells > 1 else []
    conditions += ["relative"] if relative else []
    conditions += [] if told_gsd_m is None else [f"GSD told as {told_gsd_m:g} m"]
    condition = ", ".join(conditions) or "as is"
    settings: dict[str, object] = {"told": told_gsd_m}
    name = encoders[1].identity
    if fitted_on is not None:
        # one map for all cells: they are so many more windows of the same kinds of ground
        known = [values.reshape(len(values) * cells**2, -1) for values in both(fitted_on)]
        scenes = np.repeat(fitted_on.sar.labels, cells**2)
        bridge = choose_bridge(known[0], known[1], scenes, share=HELD_OUT, seed=stamp.seed)
        mapped = bridge.apply(*(values.reshape(len(values) * cells**2, -1) for values in (sar, optical)))
        sar, optical = (values.reshape(len(pairs.sar), -1) for values in mapped)
        settings["ridge"] = bridge.ridge
        # the split is what is reported on, the same for all rows; what a map was fitted to is part of its config
        settings["fitted on"] = split_hash(fitted_on.sar)
        name = f"{name} + canonical correlation"
    encoder = Encoder(identity=name, config=f"[{encoders[0].config}, {encoders[1].config}]", embed=_nothing)
    for recall in recalls(sar, optical, pairs.sar.labels, seed=stamp.seed):
        metric = f"{recall.direction} R@{recall.depth}"
        yield _row(recall.interval, stamp, encoder, [pairs.sar], "cross-sensor retrieval", condition, metric, settings)


def measure_retrieval_chance(pairs: Pairs, stamp: Stamp) -> Iterator[Result]:
    """What blind drawing finds, exactly: depth over the number of windows."""
    n = len(pairs.sar)
    chance = Encoder(identity="chance", config="{}", embed=_nothing)
    for direction in (TO_OPTICAL, TO_SAR):
        for depth in DEPTHS:
            share = min(1.0, depth / n)
            exact = Interval(value=share, low=share, high=share, n=n)
            metric = f"{direction} R@{depth}"
            yield _row(exact, stamp, chance, [pairs.sar], "cross-sensor retrieval", "as is", metric, {})


def _result(
    correct: NDArray[np.bool_],
    stamp: Stamp,
    encoder: Encoder,
    parts: Sequence[Images],
    protocol: str,
    condition: str,
    metric: str,
    settings: Mapping[str, object],
) -> Result:
    return _row(interval(correct, seed=stamp.seed), stamp, encoder, parts, protocol, condition, metric, settings)


def _row(
    found: Interval,
    stamp: Stamp,
    encoder: Encoder,
    parts: Sequence[Images],
    protocol: str,
    condition: str,
    metric: str,
    settings: Mapping[str, object],
) -> Result:
    config = json.dumps({"encoder": encoder.config, "settings": settings}, sort_keys=True)
    return Result(
        protocol=protocol,
        condition=condition,
        dataset=parts[-1].name,
        split_hash=split_hash(*parts),
        model=encoder.identity,
        config_hash=digest(config),
        commit=stamp.commit,
        seed=stamp.seed,
        n=found.n,
        metric=metric,
        value=found.value,
        low=found.low,
        high=found.high,
        time=now(),
    )


def _less_mean(values: Features, cells: int) -> Features:
    """Features ``[N, cells²·D]`` less the mean over each image's cells."""
    apart = values.reshape(len(values), cells**2, -1)
    return np.asarray(apart - apart.mean(axis=1, keepdims=True)).reshape(values.shape)


def _nothing(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
    return np.zeros((len(pixels), 1), dtype=np.float32)
