"""What is measured of a network or a trivial encoder: one score per image of each validation part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alidade.ablation.config import REFERENCE, AblationConfig
from alidade.ablation.hidden import POINTS, Hidden, hide, patch_mean, reconstruction_errors
from alidade.evaluation.baselines import band_statistics, random_convolution
from alidade.evaluation.crosssensor import choose_bridge, ranks
from alidade.evaluation.curves import Point, resolution_curve, size_curve
from alidade.evaluation.datasets import Images, Pairs, eurosat100, eurosat_rgb, split_hash, ucmerced
from alidade.evaluation.features import Encoder, Features, features, model_encoder
from alidade.evaluation.knn import knn_predict
from alidade.evaluation.pairs import california_texas
from alidade.evaluation.probe import choose_probe, fit_probe, hold_out
from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi

GSD_CURVE, SIZE_CURVE = "5-NN against relative GSD", "5-NN against image size"
RETRIEVAL, RECONSTRUCTION, KNN, PROBE = "cross-sensor retrieval", "masked reconstruction", "5-NN", "linear probe"
SIDES = (64, 128, 256)
"""Of UC Merced's centre cuts; training saw at most 64 px at once."""
DEPTHS = (1, 10)
BLIND = ("none", "sincos", "rope", "patches")
"""Variants that do not know the ground sample distance: telling it wrongly changes nothing."""
DRAW = 0
"""Seed of what is reported on: all variants and seeds are asked the same."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number before it is averaged.

    Attributes:
        protocol, point, dataset, split_hash, metric: see ``results.Result``; ``point`` is its condition.
        scores: ``[N]``, one per image or window.
        groups: ``[N]``, images that are drawn together in a bootstrap; None where each is drawn by itself.
    """

    protocol: str
    point: str
    dataset: str
    split_hash: str
    metric: str
    scores: Scores
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A classified data set: what has labels, what is reported on, and the curve that is drawn of it."""

    train: Images
    queries: Images
    curve: str | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """All that is measured on; ``aligned`` are the training pairs, for the maps of trivial encoders."""

    classified: tuple[Part, ...]
    hidden: Hidden
    pairs: Pairs
    aligned: Pairs


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        label: in the results, a variant's name or a trivial row's.
        identity: of the weights, or the trivial encoder's name.
        encoder: an encoder for images like the given ones.
        network: for reconstruction, which needs one.
        mapped: whether retrieval first maps the sensors onto each other by canonical correlation, fitted to the
            training pairs: trivial features of different sensors cannot be compared as they are.
    """

    label: str
    identity: str
    encoder: Callable[[Images], Encoder]
    network: ScaleAlibi | None = None
    mapped: bool = False


def load_held_out(data: Path, config: AblationConfig) -> HeldOut:
    """Validation parts of the pack, and the labelled training images.

    Raises:
        AlidadeError: a file is missing or damaged (of the kinds that the readers raise).
    """
    aerial = ucmerced(data, "val")
    return HeldOut(
        classified=(
            Part(
                train=_some(eurosat_rgb(data, "train"), config.labels),
                queries=_some(eurosat_rgb(data, "val"), config.queries),
                curve=GSD_CURVE,
            ),
            Part(train=_some(ucmerced(data, "train"), config.aerial_labels), queries=aerial, curve=SIZE_CURVE),
            Part(train=eurosat100(data, "train"), queries=eurosat100(data, "val")),
        ),
        hidden=hide(aerial, config.model(REFERENCE), config.keep),
        pairs=california_texas(data, "val"),
        aligned=california_texas(data, "train"),
    )


def of_network(label: str, network: ScaleAlibi) -> Subject:
    """A network as a subject; in float32."""
    model = Model(network, dtype=torch.float32)
    reads = network.config.position.kind not in BLIND

    def encoder(images: Images) -> Encoder:
        return replace(model_encoder(model, images), reads_gsd=reads)

    return Subject(label=label, identity=model.identity, encoder=encoder, network=network)


def trivial_subjects() -> tuple[Subject, ...]:
    """Encoders that nothing has trained."""
    return (
        Subject(label="band statistics", identity="band mean/std", encoder=band_statistics, mapped=True),
        Subject(
            label="random convolution",
            identity="random convolution, Gaussian",
            encoder=lambda images: random_convolution(images, DRAW),
            mapped=True,
        ),
    )


def measure(subject: Subject, held: HeldOut) -> Iterator[Measured]:
    """Everything about one subject, each number as soon as it is there."""
    yield from retrieval(subject, held)
    if subject.network is not None:
        for point, errors in reconstruction_errors(subject.network, held.hidden).items():
            yield _error(held.hidden, point, errors)
    for part in held.classified:
        encoder = remembering(subject.encoder(part.train))
        yield from classification(encoder, part)
        for drawn in curve(encoder, part):
            yield _accuracy(part, part.curve or "", drawn.condition, drawn.correct)


def curve(encoder: Encoder, part: Part) -> Iterator[Point]:
    """The points of the part's curve, if it has one."""
    if part.curve == GSD_CURVE:
        yield from resolution_curve(encoder, part.train, part.queries)
    elif part.curve == SIZE_CURVE:
        yield from size_curve(encoder, part.train, part.queries, sides=SIDES)


def chance(measured: Measured, held: HeldOut) -> Measured:
    """What blind guessing gets where ``measured`` was measured: recall or accuracy."""
    if measured.protocol == RETRIEVAL:
        depth = int(measured.metric.removeprefix("R@"))
        share = min(1.0, depth / len(measured.scores))
        return replace(measured, scores=np.full(len(measured.scores), share))
    part = next(p for p in held.classified if p.queries.name == measured.dataset)
    most = int(np.bincount(part.train.labels).argmax())
    return replace(measured, scores=(part.queries.labels == most).astype(np.float64))


def told_means(held: HeldOut) -> Iterator[Measured]:
    """The reconstruction error of predicting each hidden patch's own mean."""
    for point in POINTS:
        yield _error(held.hidden, point, patch_mean(held.hidden))


def classification(encoder: Encoder, part: Part) -> Iterator[Measured]:
    """Nearest neighbours and linear probe. The probe's strength is chosen on a fifth of the training labels."""
    x, asked, labels = features(encoder, part.train), features(encoder, part.queries), part.train.labels
    yield _accuracy(part, KNN, "as is", knn_predict(x, labels, asked) == part.queries.labels)
    fit, choose = hold_out(labels, share=0.2, seed=DRAW)
    classes = len(part.train.classes)
    chosen = choose_probe((x[fit], labels[fit]), (x[choose], labels[choose]), classes=classes)
    probe = fit_probe(x, labels, c=chosen.c, classes=classes)
    yield _accuracy(part, PROBE, "as is", probe.predict(asked) == part.queries.labels)


def retrieval(subject: Subject, held: HeldOut) -> Iterator[Measured]:
    """Recall at 1 and 10 between radar and optical windows; a window's score is the mean of both directions."""
    encoders = subject.encoder(held.pairs.sar), subject.encoder(held.pairs.optical)

    def both(pairs: Pairs) -> tuple[Features, Features]:
        return features(encoders[0], pairs.sar), features(encoders[1], pairs.optical)

    sar, optical = both(held.pairs)
    if subject.mapped:
        bridge = choose_bridge(*both(held.aligned), held.aligned.sar.labels, seed=DRAW)
        sar, optical = bridge.apply(sar, optical)
    there, back = ranks(sar, optical), ranks(optical, sar)
    for depth in DEPTHS:
        yield Measured(
            protocol=RETRIEVAL,
            point="as is",
            dataset=held.pairs.sar.name,
            split_hash=split_hash(held.pairs.sar),
            metric=f"R@{depth}",
            scores=((there <= depth) * 0.5 + (back <= depth) * 0.5),
            groups=held.pairs.sar.labels,
        )


def _error(hidden: Hidden, point: str, errors: Scores) -> Measured:
    return Measured(
        protocol=RECONSTRUCTION,
        point=point,
        dataset=hidden.dataset,
        split_hash=hidden.split_hash,
        metric="error",
        scores=errors,
    )


def _accuracy(part: Part, protocol: str, point: str, correct: NDArray[np.bool_]) -> Measured:
    return Measured(
        protocol=protocol,
        point=point,
        dataset=part.queries.name,
        split_hash=split_hash(part.train, part.queries),
        metric="accuracy",
        scores=correct.astype(np.float64),
    )


def remembering(encoder: Encoder) -> Encoder:
    """The same encoder, which computes each batch once: the curves end where nearest neighbours began."""
    known: dict[bytes, Features] = {}

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        key = hashlib.blake2b(f"{pixels.shape}".encode())
        key.update(np.ascontiguousarray(pixels).data)
        if encoder.reads_gsd:
            key.update(np.ascontiguousarray(gsd_m).data)
        if key.digest() not in known:
            known[key.digest()] = encoder.embed(pixels, gsd_m)
        return known[key.digest()]

    return replace(encoder, embed=embed)


def _some(images: Images, count: int) -> Images:
    return images if count >= len(images) else images.sample(count, DRAW)
