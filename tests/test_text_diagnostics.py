"""Diagnostics of vectors against closed forms, and 8-bit encoders against the full one."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alidade
from alidade.errors import AlidadeError, ModelError
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.quantised import (
    agreement,
    flips,
    measure_quantised,
    quantise,
    quantised_model,
)
from alidade.evaluation.retrieval import Captions
from alidade.evaluation.text_diagnostics import (
    alignment,
    hubness,
    measure_vectors,
    modality_gap,
    occurrences,
    shared_sentences,
    uniformity,
)
from alidade.evaluation.zero_shot import Subject
from alidade.imagery.files import read
from alidade.models.encoder import Block

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SUBJECT = Subject(
    dataset="made/val", split_hash="0123456789ab", model="toy", config="{}", stamp=Stamp(commit="abc", seed=0)
)


def vectors(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


# --- alignment, uniformity, gap


def test_alignment_closed_forms() -> None:
    x = np.array([[2.0, 0], [0, 1], [1, 0]], np.float32)
    y = np.array([[5.0, 0], [1, 0], [-3, 0]], np.float32)
    assert alignment(x, y).tolist() == pytest.approx([0, 2, 4])
    a, b = vectors(50, 7, 0), vectors(50, 7, 1)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(alignment(a, b), 2 - 2 * cosine, atol=1e-6)
    with pytest.raises(AlidadeError, match="one text per image"):
        alignment(a, b[:-1])


def test_uniformity_closed_forms() -> None:
    assert uniformity(np.ones((9, 4), np.float32)) == pytest.approx(0)
    assert uniformity(np.array([[1.0, 0], [-2, 0]], np.float32)) == pytest.approx(-8)
    # orthogonal directions are a squared distance of 2 apart, whatever their number
    assert uniformity(np.eye(300, dtype=np.float32)) == pytest.approx(-4)
    # the four corners of a square: two neighbours at squared distance 2 and one opposite at 4
    square = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    assert uniformity(square) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    with pytest.raises(AlidadeError, match="1 row, expected two or more"):
        uniformity(square[:1])


def test_uniformity_is_the_mean_over_distinct_pairs() -> None:
    x = vectors(300, 5, 2).astype(np.float64)
    unit = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log()
    assert uniformity(x.astype(np.float32)) == pytest.approx(float(expected), abs=1e-5)


def test_modality_gap_closed_forms() -> None:
    x, y = np.tile([3.0, 0], (4, 1)), np.tile([0, 0.5], (9, 1))
    assert modality_gap(x, y) == pytest.approx(math.sqrt(2))
    assert modality_gap(x, -x) == pytest.approx(2)
    a = vectors(40, 6, 3)
    assert modality_gap(a, 7 * a[::-1]) == pytest.approx(0, abs=1e-7)
    with pytest.raises(AlidadeError, match="finite vectors"):
        modality_gap(a, a * np.nan)


# --- hubs


def test_occurrences_by_hand() -> None:
    gallery = np.array([[1.0, 0], [0, 1], [-1, 0.1]], np.float32)
    queries = np.array([[1, 0.1], [1, 0.2], [-1, 0]], np.float32)
    assert occurrences(queries, gallery, k=1).tolist() == [2, 0, 1]
    assert occurrences(queries, gallery, k=2).tolist() == [2, 3, 1]
    assert occurrences(queries, gallery, k=3).tolist() == [3, 3, 3]


def test_equal_rows_share_a_place() -> None:
    gallery = np.array([[1.0, 0], [2, 0], [0, 1]], np.float32)
    assert occurrences(gallery[:1], gallery, k=1).tolist() == [0.5, 0.5, 0]
    assert hubness(np.ones((20, 3), np.float32), np.ones((12, 3), np.float32)) == 0


def test_one_hub_has_the_skewness_of_one_outlier() -> None:
    """All queries find row 0: counts are Q once and 0 else, whose skewness is (n - 2) / sqrt(n - 1)."""
    gallery = np.concatenate([np.eye(1, 30), -np.eye(30)[1:]]).astype(np.float32)
    queries = np.eye(1, 30, dtype=np.float32).repeat(600, axis=0)
    assert hubness(queries, gallery, k=1) == pytest.approx(28 / math.sqrt(29))


def test_hubs_come_from_a_crowd_around_one_direction() -> None:
    queries, gallery = vectors(800, 100, 4), vectors(800, 100, 5)
    assert hubness(queries, gallery) < 0.8
    assert hubness(queries + 1, gallery + 1) > 2
    with pytest.raises(AlidadeError, match="k = 10 of 5 rows"):
        hubness(vectors(9, 4, 0), vectors(5, 4, 0))


# --- rows


def test_rows_of_diagnostics() -> None:
    texts = tuple(f"sentence {i % 15}" for i in range(40))
    captions = Captions(texts=texts, owners=np.arange(40) % 20, images=20)
    images, sentences = vectors(20, 8, 6), vectors(40, 8, 7)
    found = {r.metric: r for r in measure_vectors(SUBJECT, images, sentences, captions)}
    assert len(found) == 7
    assert found["alignment"].value == pytest.approx(alignment(images[captions.owners], sentences).mean())
    assert found["alignment"].low < found["alignment"].value < found["alignment"].high
    # repeated sentences are taken once
    assert found["uniformity of sentences"].value == pytest.approx(uniformity(sentences[:15]))
    assert found["uniformity of sentences"].n == 15
    assert found["modality gap"].value == pytest.approx(modality_gap(images, sentences[:15]))
    assert found["hubness text→image (k = 10)"].value == pytest.approx(hubness(sentences[:15], images))
    # tables must not print the others as percent
    assert [metric for metric, row in found.items() if row.unit == "%"] == ["sentences shared with another image"]
    with pytest.raises(AlidadeError, match="19 image and 40 text vectors"):
        list(measure_vectors(SUBJECT, images[1:], sentences, captions))


def test_shared_sentences_are_those_of_another_image_too() -> None:
    captions = Captions(texts=("a", "a", "b", "b", "c"), owners=np.array([0, 1, 1, 1, 2]), images=3)
    assert shared_sentences(captions).tolist() == [True, True, False, False, False]


# --- 8 bits


def test_agreement_and_flips_by_hand() -> None:
    reference = np.array([[2.0, 0], [0, 1], [1, 0.9]], np.float32)
    other = np.array([[1.0, 0], [1, 0], [0.9, 1]], np.float32)
    np.testing.assert_allclose(agreement(reference, other), [1, 0, 1.8 / 1.81], rtol=1e-6)
    assert flips(reference, other, np.eye(2, dtype=np.float32)).tolist() == [False, True, True]
    found = {r.metric: r.value for r in measure_quantised(SUBJECT, reference, other, np.eye(2, dtype=np.float32))}
    assert found["top-1 flips"] == pytest.approx(2 / 3)
    assert found["mean cosine"] == pytest.approx((1 + 1.8 / 1.81) / 3)
    with pytest.raises(ModelError, match="two equal shapes"):
        agreement(reference, other[:2])


def test_quantising_leaves_the_original_and_computes_nearly_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 32)).eval()
    before = copy.deepcopy(network.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        light = quantise(network)
    x = torch.randn(200, 64)
    with torch.inference_mode():
        full, rough = network(x), light(x)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert isinstance(network[0], nn.Linear)
    assert not any(type(m) is nn.Linear for m in light.modules())
    error = float((full - rough).norm() / full.norm())
    # 8-bit arithmetic is near, and not the full one under another name
    assert 1e-4 < error < 0.05


def test_weights_are_the_nearest_of_255_levels_in_each_row() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(32, 8)
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 2, 8)[:, None]
    found = quantise(nn.Sequential(layer))[0].weight().dequantize()
    step = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127.5
    # the bound is per row: one scale for all would lose the small rows entirely
    assert bool(((found - layer.weight.detach()).abs() <= 0.51 * step).all())


def test_bfloat16_encoders_are_quantised_from_float32() -> None:
    light = quantise(nn.Sequential(nn.Linear(16, 16)).bfloat16())
    assert light(torch.randn(3, 16)).dtype == torch.float32


def test_layers_that_are_more_than_linear_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    made = quantise(nn.Sequential(nn.Linear(8, 8), Special(8, 8), nn.Conv2d(3, 3, 1)))
    assert type(made[1]) is Special
    crossing = quantise(nn.ModuleList([Block(16, 2, cross=True)]))
    assert type(crossing[0].cross.qkv) is nn.Linear
    assert type(crossing[0].attention.qkv) is not nn.Linear
    with pytest.raises(ModelError, match="no plain linear layer"):
        quantise(nn.Conv2d(3, 3, 1))
    with pytest.raises(ModelError, match="another device"):
        quantise(nn.Linear(2, 2, device="meta"))


def test_shipped_model_in_8_bits_keeps_its_vectors() -> None:
    """The project's bounds, on the real sample images: mean cosine 0.99 or more, flips 1 % or fewer."""
    model = alidade.load("alidade-tiny", dtype=torch.float32)
    weights = {k: v.clone() for k, v in model.network.state_dict().items()}
    light = quantised_model(model)
    assert light.identity == model.identity + "+int8"
    files = [*sorted(SAMPLES.glob("sentinel-2/eurosat_*.tif")), *sorted(SAMPLES.glob("ucmerced/*.tif"))[:4]]
    rasters = [read(f) for f in files]
    full, rough = model.embed(rasters), light.embed(rasters)
    assert len(full) == 24
    assert all(torch.equal(weights[k], v) for k, v in model.network.state_dict().items())
    assert not np.array_equal(full, rough)
    assert agreement(full, rough).mean() >= 0.99
    assert agreement(full, rough).min() >= 0.98
    # every image is to find itself among all of them, and the nearest of the first ten
    assert flips(full, rough, full).mean() <= 0.01
    assert flips(full[10:], rough[10:], full[:10]).mean() <= 0.01
