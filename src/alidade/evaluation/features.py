"""One way from pixels to features for all that is measured: models and trivial baselines alike."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray

from alidade.errors import ModelError, SensorError
from alidade.evaluation.datasets import Images
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.models.config import TowerConfig, to_json
from alidade.models.model import Model, three_digits

Features = NDArray[np.float32]


class Embed(Protocol):
    """Features ``[N, D]`` float32 of stored pixels ``[N, C, H, W]``, told the ground metres per pixel ``[N]``."""

    def __call__(self, pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        """Features of a batch; each row depends on its own image only."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Something that gives features, with what a row of results has to say about it.

    Attributes:
        identity: a model's identity (name and hash of its weights), or a baseline's name.
        config: everything that its features depend on besides weights and pixels, as JSON.
        embed: the function itself.
        reads_gsd: whether what it is told about the ground changes its features.
    """

    identity: str
    config: str
    embed: Embed
    reads_gsd: bool = False


def features(
    encoder: Encoder, images: Images, *, gsd_m: NDArray[np.float64] | None = None, batch: int = 64
) -> Features:
    """Features ``[N, D]`` of all images, in batches.

    Args:
        encoder: a model or a baseline.
        images: what to encode.
        gsd_m: ``[N]`` to tell instead of the true ground sample distance, for the rows that tell it wrongly.
        batch: images at once.

    Raises:
        ModelError: features that are not finite.
    """
    told = images.gsd_m if gsd_m is None else gsd_m
    parts = [encoder.embed(images.pixels[i : i + batch], told[i : i + batch]) for i in range(0, len(images), batch)]
    out = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(out).all():
        raise ModelError(
            f"{encoder.identity}: features of {images.name}",
            got=f"{int((~np.isfinite(out).all(axis=1)).sum())} of {len(out)} rows with NaN or infinity",
            expected="finite numbers",
            next_step="Check the weights (a diverged training run gives such), and the sensor's statistics.",
        )
    return out


def normalise(normalization: Normalization, images: Images, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Model inputs ``[N, C', H, W]`` for stored pixels like those of ``images``, by the one sealed normalisation."""
    n, c, h, w = pixels.shape
    # one tall raster: the statistics are fixed, so no pixel's value depends on its neighbours
    stacked = pixels.transpose(1, 0, 2, 3).reshape(c, n * h, w)
    tall = Raster(
        pixels=stacked,
        bands=images.bands,
        encodings=images.encodings,
        valid=np.ones((n * h, w), dtype=np.bool_),
        grid=Grid(crs=None, transform=Affine.identity(), width=w, height=n * h, gsd_override_m=1.0),
        sensor=images.sensor,
        time=None,
        source=images.name,
    )
    values, _ = normalization.apply(tall)
    return np.ascontiguousarray(values.reshape(-1, n, h, w).transpose(1, 0, 2, 3))


def model_encoder(model: Model, images: Images, *, cells: int = 1, shared: bool = False) -> Encoder:
    """The model's pooled features of imagery of one kind: sensor, bands and encodings of ``images``.

    The features are the head's output before it is brought to unit length; kNN and retrieval take the cosine anyway.

    Args:
        model: what to measure.
        images: what the imagery is.
        cells: above 1, each image's cells across and down are pooled apart, as ``Model.embed`` does.
        shared: only what sensors share, as in ``Model.embed``; of unit length.

    Raises:
        SensorError: no tower of the model takes this sensor with these bands.
    """
    tower, normalization = _tower(model, images)

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        values = torch.from_numpy(normalise(normalization, images, pixels))
        told = np.array([three_digits(float(g)) for g in gsd_m])
        out: list[NDArray[np.float32]] = []
        order: list[NDArray[np.int64]] = []
        whole = cells == 1 and not shared
        for gsd in np.unique(told):
            order.append(np.flatnonzero(told == gsd))
            found = model.encode_normalised({tower.name: values[order[-1]]}, gsd_m=float(gsd))
            tokens = found.tokens[tower.name]
            pooled = found.pooled[tower.name] if whole else model.pool_cells(tokens, cells, shared)
            out.append(pooled.float().cpu().numpy())
        return np.concatenate(out)[np.argsort(np.concatenate(order))]

    config = {
        "model": json.loads(to_json(model.network.config)),
        "tower": tower.name,
        "sensor": images.sensor.id,
        "dtype": str(model.precision.dtype),
    } | ({} if cells == 1 and not shared else {"cells": cells, "shared": shared})
    return Encoder(identity=model.identity, config=json.dumps(config, sort_keys=True), embed=embed, reads_gsd=True)


def in_cells(encoder: Encoder, cells: int) -> Encoder:
    """The features of each of an image's cells, each of unit length, one after the other: ``[N, cells²·D]``.

    For encoders that know nothing of cells, so that they are compared with those that do on equal terms. The sides of
    the images must be multiples of ``cells``.
    """

    def embed(pixels: NDArray[Any], gsd_m: NDArray[np.float64], /) -> Features:
        n, c, h, w = pixels.shape
        cut = pixels.reshape(n, c, cells, h // cells, cells, w // cells).transpose(0, 2, 4, 1, 3, 5)
        apart = encoder.embed(cut.reshape(-1, c, h // cells, w // cells), np.repeat(gsd_m, cells * cells))
        length = np.linalg.norm(apart, axis=1, keepdims=True)
        return np.asarray(apart / np.maximum(length, 1e-12), dtype=np.float32).reshape(n, -1)

    config = json.dumps({"cells": cells, "of": encoder.config}, sort_keys=True)
    return Encoder(identity=encoder.identity, config=config, embed=embed, reads_gsd=encoder.reads_gsd)


def digest(text: str) -> str:
    """Twelve hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tower(model: Model, images: Images) -> tuple[TowerConfig, Normalization]:
    names = [b.name for b in images.bands]
    for tower in model.towers:
        normalization = tower.normalizations.get(images.sensor.id)
        if normalization is not None and set(normalization.bands) <= set(names):
            return tower, normalization
    takes = "; ".join(f"{t.name}: {', '.join(t.normalizations)}" for t in model.towers)
    raise SensorError(
        f"{model.identity}: no tower for {images.name}",
        got=f"{images.sensor.id} with bands {', '.join(names)}",
        expected=takes,
        next_step="Measure a model that was trained with this sensor, or a baseline with --baseline.",
    )
