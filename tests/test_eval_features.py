"""Features of models and baselines on one path; curves over resolution and size; the commands end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from affine import Affine
from typer.testing import CliRunner

from alidade.cli import evaluate
from alidade.errors import AlidadeError, ModelError, SensorError
from alidade.evaluation.baselines import (
    BASELINES,
    band_statistics,
    colour_texture,
    grey_texture,
    random_convolution,
    random_patches,
)
from alidade.evaluation.curves import centre, coarser, coarser_images, resolution_curve
from alidade.evaluation.datasets import Images, eurosat100, eurosat_rgb, split_hash
from alidade.evaluation.features import Encoder, digest, features, in_cells, model_encoder, normalise
from alidade.evaluation.pairs import california_texas
from alidade.evaluation.protocols import Stamp, measure_chance, measure_probe
from alidade.evaluation.results import Result, load
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.model import Model
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import save_model
from eval_pack import write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


def network(images: Images, *also: Images) -> ScaleAlibi:
    towers = tuple(
        TowerConfig(
            name=part.sensor.kind,
            bands=tuple(b.name for b in part.bands),
            depth=1,
            patch=8,
            normalizations={part.sensor.id: Normalization.for_sensor(part.sensor, [b.name for b in part.bands])},
        )
        for part in (images, *also)
    )
    config = ScaleAlibiConfig(
        name="small", width=16, heads=2, towers=towers, position=PositionConfig(kind="metres"), tile=64
    )
    out = ScaleAlibi(config)
    initialise(out, 0)
    with torch.no_grad():
        # as drawn, weights are so small that attention hardly counts, and with it the ground
        for parameter in (*out.patches.parameters(), *out.trunks.parameters(), *out.heads.parameters()):
            parameter.mul_(8)
    return out


def model(images: Images) -> Model:
    return Model(network(images), dtype=torch.float32)


def raster(images: Images, i: int) -> Raster:
    _, h, w = images.pixels[i].shape
    return Raster(
        pixels=images.pixels[i],
        bands=images.bands,
        encodings=images.encodings,
        valid=np.ones((h, w), dtype=np.bool_),
        grid=Grid(crs=None, transform=Affine.identity(), width=w, height=h, gsd_override_m=float(images.gsd_m[i])),
        sensor=images.sensor,
        time=None,
        source="x",
    )


def test_batches_are_normalised_as_single_rasters_are(pack: Path) -> None:
    for images in (eurosat_rgb(pack, "val"), eurosat100(pack, "val")):
        fixed = Normalization.for_sensor(images.sensor, [b.name for b in images.bands[::-1]])
        batch = normalise(fixed, images, images.pixels)
        alone = np.stack([fixed.apply(raster(images, i))[0] for i in range(len(images))])
        assert np.array_equal(batch, alone)


def test_model_features_are_those_of_embed(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    measured = model(images)
    found = features(model_encoder(measured, images), images, batch=4)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, measured.embed([raster(images, i) for i in range(len(images))]), atol=1e-5)


def test_cells_of_a_model_are_those_of_embed_and_one_cell_is_the_whole(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    measured = model(images)
    rasters = [raster(images, i) for i in range(len(images))]
    found = features(model_encoder(measured, images, cells=2), images, batch=4)
    np.testing.assert_allclose(found, measured.embed(rasters, cells=2), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.shape[1] == 4 * measured.dim
    measured.network.config = replace(measured.network.config, shared=5)
    first = features(model_encoder(measured, images, shared=True), images)
    np.testing.assert_allclose(first, measured.embed(rasters, shared=True), atol=1e-5)
    whole = features(model_encoder(measured, images), images)[:, :5]
    np.testing.assert_allclose(first, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(ModelError, match="cells: got 0, expected 1 or more"):
        measured.embed(rasters, cells=0)


def test_cells_tell_where_in_the_image_something_is(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    measured = model(images)
    one = raster(images, 0)
    mirrored = replace(one, pixels=np.ascontiguousarray(one.pixels[..., ::-1]))
    cells = measured.embed([one, mirrored], cells=2).reshape(2, 4, -1)
    # mirrored left to right, the cells change places but for what a patch looks like mirrored
    swapped = (cells[0][[1, 0, 3, 2]] * cells[1]).sum(-1).mean()
    assert swapped > (cells[0] * cells[1]).sum(-1).mean()


@pytest.mark.parametrize("name", ["band-statistics", "colour-texture"])
def test_cells_of_a_baseline_are_its_features_of_the_parts(pack: Path, name: str) -> None:
    images = eurosat_rgb(pack, "val")
    encoder = BASELINES[name](images, 0)
    found = features(in_cells(encoder, 2), images).reshape(len(images), 4, -1)
    part = replace(images, pixels=images.pixels[:, :, 32:, :32])
    alone = features(encoder, part)
    np.testing.assert_allclose(found[:, 2], alone / np.linalg.norm(alone, axis=1, keepdims=True), atol=1e-5)


def test_each_image_is_told_its_own_ground_distance(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    mixed = replace(images, gsd_m=np.array([10.0, 1.0] * 3))
    encoder = model_encoder(model(images), images)
    at_10, at_1, found = (features(encoder, mixed, gsd_m=g) for g in (np.full(6, 10.0), np.full(6, 1.0), mixed.gsd_m))
    np.testing.assert_allclose(found[::2], at_10[::2], atol=1e-6)
    np.testing.assert_allclose(found[1::2], at_1[1::2], atol=1e-6)
    assert np.abs(at_10 - at_1).max() > 1e-4


def test_a_model_without_the_sensor_is_refused(pack: Path) -> None:
    rgb = eurosat_rgb(pack, "val")
    with pytest.raises(SensorError, match=r"display-vh with bands VH, expected optical: generic-rgb"):
        model_encoder(model(rgb), california_texas(pack, "val").sar)


def test_features_that_are_not_finite_are_refused(pack: Path) -> None:
    broken = Encoder(identity="broken", config="{}", embed=lambda p, g: np.full((len(p), 2), np.nan, np.float32))
    with pytest.raises(ModelError, match=r"6 of 6 rows with NaN"):
        features(broken, eurosat_rgb(pack, "val"))


def test_band_statistics_by_hand(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    found = features(band_statistics(images), images)
    stored = images.pixels.astype(np.float64)
    mean = np.array([b.mean for b in images.bands])
    std = np.array([b.std for b in images.bands])
    np.testing.assert_allclose(found[:, :3], (stored.mean(axis=(2, 3)) - mean) / std, atol=1e-5)
    np.testing.assert_allclose(found[:, 3:], stored.std(axis=(2, 3)) / std, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_take_any_sensor_and_repeat(pack: Path, name: str) -> None:
    for whole in (eurosat_rgb(pack, "val"), eurosat100(pack, "val"), california_texas(pack, "val").sar):
        images = whole.pick(np.arange(3))
        found = features(BASELINES[name](images, 0), images)
        again = features(BASELINES[name](images, 0), images, batch=1)
        np.testing.assert_allclose(found, again, atol=1e-4)
        assert found.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("make", [random_convolution, random_patches])
def test_random_convolution_is_seeded_and_has_both_signs(pack: Path, make: Callable[[Images, int], Encoder]) -> None:
    images = eurosat_rgb(pack, "val")
    first, second = (features(make(images, seed), images) for seed in (0, 1))
    assert first.shape == (6, 512)
    assert first.min() >= -1e-6
    assert np.abs(first - second).max() > 0.1


def test_random_convolution_against_a_plain_loop(pack: Path) -> None:
    images = replace(eurosat_rgb(pack, "val").pick(np.array([0])))
    small = replace(images, pixels=images.pixels[:, :, :6, :5])
    found = features(random_convolution(small, 7), small)[0]
    kernels = torch.randn(256, 3, 3, 3, generator=torch.Generator().manual_seed(7)).numpy()
    fixed = Normalization.for_sensor(small.sensor, ["R", "G", "B"])
    values = normalise(fixed, small, small.pixels)[0]
    answers = np.array(
        [
            [(values[:, r : r + 3, c : c + 3] * kernels[k]).sum() - 1 for r in range(4) for c in range(3)]
            for k in (0, 100)
        ]
    )
    np.testing.assert_allclose(found[[0, 100]], np.maximum(answers, 0).mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(found[[256, 356]], np.maximum(-answers, 0).mean(axis=1), atol=1e-4)


def test_histograms_have_unit_mass_and_see_direction(pack: Path) -> None:
    images = eurosat_rgb(pack, "val").pick(np.array([0, 1]))
    rows = np.zeros((2, 3, 64, 64), dtype=np.uint8)
    rows[0, :, np.arange(64) % 8 < 4] = 200
    rows[1] = rows[0].transpose(0, 2, 1)
    striped = replace(images, pixels=rows)
    for make, parts in ((colour_texture, 3 + 1 + 3), (grey_texture, 1 + 3)):
        found = features(make(striped), striped).astype(np.float64)
        # at quarter resolution stripes of period 8 alternate, so that central differences are 0: no direction
        assert np.allclose((found**2).sum(axis=1), parts - 1)
        assert np.abs(found[0] - found[1]).max() > 0.9
        assert np.allclose(found[0, :32], found[1, :32])


def test_coarser_is_the_block_mean() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert coarser(pixels, 2)[0, 0].tolist() == [[2, 4], [10, 12]]  # 2.5 and 4.5 go to the even number
    assert coarser(pixels.astype(np.float32), 4).item() == 7.5
    assert coarser(pixels, 1).dtype == np.uint8
    with pytest.raises(AlidadeError, match="4 x 4 px by 3"):
        coarser(pixels, 3)


def test_coarser_images_tell_their_ground_distance(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    out = coarser_images(images, 8)
    assert out.pixels.shape[2:] == (8, 8)
    assert set(out.gsd_m) == {80.0}
    assert np.abs(out.pixels.mean() - images.pixels.mean()) < 0.5


def test_centre_is_the_middle(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    assert np.array_equal(centre(images, 62).pixels, images.pixels[:, :, 1:63, 1:63])
    with pytest.raises(AlidadeError, match="65 of 64 x 64"):
        centre(images, 65)


def test_resolution_curve_tells_truthfully_and_wrongly(pack: Path) -> None:
    told: list[tuple[int, float]] = []

    def embed(pixels: np.ndarray, gsd_m: np.ndarray, /) -> np.ndarray:
        told.append((pixels.shape[2], float(gsd_m[0])))
        return pixels.mean(axis=(2, 3)).astype(np.float32)

    spy = Encoder(identity="spy", config="{}", embed=embed, reads_gsd=True)
    train, val = eurosat_rgb(pack, "train"), eurosat_rgb(pack, "val")
    points = list(resolution_curve(spy, train, val, k=3))
    assert set(told) == {(8, 80.0), (8, 10.0), (16, 40.0), (16, 10.0), (32, 20.0), (32, 10.0), (64, 10.0)}
    assert len(points) == 3 * 4 + 1
    # the mean colour is the same at any resolution and tells the classes apart
    assert all(p.correct.all() for p in points)
    blind = list(resolution_curve(replace(spy, reads_gsd=False), train, val, k=3))
    assert [p.condition for p in blind] == [p.condition for p in points if "wrong" not in p.condition]


def test_probe_on_val_chooses_nothing_there(pack: Path) -> None:
    """Labels of the part reported on change the score, never the fit: wrong ones give exactly the complement."""
    train, val = eurosat_rgb(pack, "train"), eurosat_rgb(pack, "val")
    encoder, stamp = band_statistics(train), Stamp(commit="c", seed=0)
    right = measure_probe(encoder, train, val, stamp)
    shifted = replace(val, labels=(val.labels + 1) % 3)
    assert (right.value, measure_probe(encoder, train, shifted, stamp).value) == (1.0, 0.0)


def test_probe_on_test_chooses_on_val(pack: Path) -> None:
    train, val, last = (eurosat_rgb(pack, part) for part in ("train", "val", "test"))
    encoder, stamp = band_statistics(train), Stamp(commit="c", seed=0)
    final = measure_probe(encoder, train, last, stamp, validation=val)
    assert (final.dataset, final.n) == ("eurosat-rgb/test", 3)
    assert final.split_hash == split_hash(train, val, last)


def test_chance_says_the_most_frequent_class(pack: Path) -> None:
    train, val = eurosat_rgb(pack, "train").pick(np.array([0, 1, 4])), eurosat_rgb(pack, "val")
    assert measure_chance(train, val, Stamp(commit="c", seed=0), "5-NN").value == pytest.approx(1 / 3)


def app() -> typer.Typer:
    out = typer.Typer()
    out.callback()(lambda: None)
    evaluate.register(out)
    return out


def call(*words: str) -> str:
    done = CliRunner().invoke(app(), ["eval", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_commands_measure_and_tabulate(pack: Path, tmp_path: Path) -> None:
    results, saved = tmp_path / "r.jsonl", tmp_path / "small"
    save_model(network(eurosat_rgb(pack, "val"), california_texas(pack, "val").sar), saved)
    common = ("--data", str(pack), "--results", str(results), "--commit", "abc")
    call("knn", "eurosat-rgb", *common, "--labels", "9", "--baseline", "band-statistics", "--model", str(saved))
    call("probe", "ucmerced", *common, "--baseline", "colour-texture")
    call("curves", "eurosat-rgb", *common, "--model", str(saved))
    cross_sensor = ("--cells", "4", "--baseline", "grey-texture", "--model", str(saved), "--on", "test")
    call("cross-sensor", *common, *cross_sensor)
    rows = load(results)
    by_protocol = {p: [r for r in rows if r.protocol == p] for p in dict.fromkeys(r.protocol for r in rows)}
    assert [len(v) for v in by_protocol.values()] == [3, 2, 13, 4, 4 + 2 * (8 + 8) + 4]
    knn = {r.model: r for r in by_protocol["5-NN"]}
    assert knn["band mean/std"].value == 1.0
    assert knn["chance (most frequent class)"].value == pytest.approx(1 / 3)
    assert {r.commit for r in rows} == {"abc"}
    cross = {(r.model, r.condition, r.metric): r for r in by_protocol["cross-sensor retrieval"]}
    chance = cross["chance", "as is", "SAR→optical R@1"]
    mapped = cross["grey/texture histogram + canonical correlation", "as is", "SAR→optical R@1"]
    assert chance.value == 1 / 32
    assert mapped.value > 10 * chance.value
    conditions = {condition for _, condition, _ in cross}
    assert conditions == {
        "as is",
        "GSD told as 10 m",
        "4 x 4 cells",
        "4 x 4 cells, relative",
        "4 x 4 cells, GSD told as 10 m",
    }
    page = tmp_path / "page.md"
    call("table", str(results), "--out", str(page), "--title", "All")
    text = page.read_text()
    assert text.startswith("# All\n")
    assert "| grey/texture histogram + canonical correlation | " in text
    assert "## eurosat-rgb/val, 5-NN against image size" in text


def test_commands_print_json(pack: Path, tmp_path: Path) -> None:
    output = call(
        "knn", "ucmerced", "--data", str(pack), "--results", str(tmp_path / "r.jsonl"), "--commit", "abc",
        "--baseline", "band-statistics", "--json",
    )  # fmt: skip
    rows = [Result(**row) for row in json.loads(output[output.index("[") :])]
    assert [r.dataset for r in rows] == ["ucmerced/val"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("knn", "eurosat"), "data set: got 'eurosat', expected one of eurosat-rgb"),
        (("knn", "eurosat-rgb", "--on", "train"), "--on: got 'train', expected one of val, test"),
        (("cross-sensor", "--on", "train"), "--on: got 'train'"),
        (("probe", "eurosat-rgb", "--baseline", "best"), "--baseline: got 'best', expected one of band-statistics"),
    ],
)
def test_wrong_names_are_told(pack: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(AlidadeError) as told:
        call(*words, "--data", str(pack), "--results", str(tmp_path / "r.jsonl"), "--commit", "abc")
    assert message in str(told.value)


def test_digest_is_of_the_text() -> None:
    assert digest("a") != digest("b")
    assert len(digest("a")) == 12


def test_between_sensors_only_what_sets_cells_apart_within_their_image_counts(pack: Path) -> None:
    images = eurosat_rgb(pack, "val")
    measured = model(images)
    one = raster(images, 0)
    tokens = measured.encode(one)
    cells, whole = measured.pool_cells(tokens, 2, shared=True), measured.pool_cells(tokens, 1, shared=True)
    with torch.no_grad():
        for head in measured.network.heads.values():
            last = list(head.parameters())[-1]
            last += 10 * torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(measured.pool_cells(tokens, 2, shared=True), cells, atol=1e-5)
    assert not torch.allclose(measured.pool_cells(tokens, 1, shared=True), whole, atol=1e-2)
