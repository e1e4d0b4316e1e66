"""The weights that come with alidade: small, described, and better than what needs no training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from alidade.evaluation.baselines import BASELINES
from alidade.evaluation.crosssensor import ranks
from alidade.evaluation.datasets import eurosat_rgb
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.knn import knn_predict
from alidade.evaluation.pairs import california_texas
from alidade.models.registry import DEFAULT, SHIPPED, load
from alidade.models.weights import WEIGHTS

PACK = os.environ.get("ALIDADE_PACK")


def test_weights_are_small_and_their_card_says_what_they_are() -> None:
    directory = SHIPPED / DEFAULT
    assert (directory / WEIGHTS).stat().st_size <= 16e6
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert load().identity in card
    for section in ("## Data", "## Licences", "## Measured", "## Limits"):
        assert section in card


@pytest.mark.pack
@pytest.mark.slow
@pytest.mark.skipif(PACK is None, reason="needs the data pack")
def test_neighbours_are_better_than_a_histograms() -> None:
    data = Path(PACK or "")
    train, val = eurosat_rgb(data, "train").sample(2000, 0), eurosat_rgb(data, "val").sample(1000, 0)
    right = {}
    for encoder in (model_encoder(load(), train), BASELINES["colour-texture"](train, 0)):
        found = knn_predict(features(encoder, train), train.labels, features(encoder, val), k=5)
        right[encoder.identity] = float((found == val.labels).mean())
    model, histogram = right.values()
    assert model > histogram + 0.02, right


@pytest.mark.pack
@pytest.mark.slow
@pytest.mark.skipif(PACK is None, reason="needs the data pack")
def test_radar_finds_the_same_ground_far_better_than_by_chance() -> None:
    pairs = california_texas(Path(PACK or ""), "val")
    model = load()
    halves = (pairs.sar, pairs.optical)
    sar, optical = (features(model_encoder(model, half, cells=8, shared=True), half) for half in halves)
    assert np.mean(ranks(sar, optical) == 1) > 20 / len(sar)
