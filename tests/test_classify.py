"""Open-vocabulary classification from the command to the map: known ground gets its name, and lies where it lay."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from torch.nn import functional as F

from alidade.cli import main
from alidade.errors import AlidadeError, ArchiveError, ModelError
from alidade.imagery.files import open_raster
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.registry import load
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.text.bank import Bank
from alidade.models.text.encoder import TextError
from alidade.models.tokens import Tokens
from alidade.models.weights import identity, save_model
from alidade.models.words import TextHead, Words, WordsConfig
from alidade.search import class_map
from alidade.search.class_export import colours, write, write_map, write_probabilities
from alidade.search.class_map import coarser, map_classes, near, pool_sets, starts
from alidade.search.classify import class_names, classify, make_classes
from make_fixtures import display, write_tif
from search_scenes import make_raster, make_scene, tiny_model

PATCH, TEXT_DIM = 8, 16
GROUND = {"water": (40, 60, 110), "field": (170, 150, 60), "forest": (30, 90, 40)}
PROMPT = "ground that shows {}"
Run = Callable[..., tuple[int, str, str]]


def ground(name: str, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 ``[3, height, width]`` of one kind of ground."""
    rng = np.random.default_rng(seed)
    level = np.array(GROUND[name])[:, None, None] + rng.integers(-8, 9, (3, 1, 1))
    return (level + rng.integers(-12, 13, (3, height, width))).clip(1, 255).astype(np.uint8)


def speak(folder: Path) -> Path:
    """A model with random weights whose text head was set so that each kind of ground has its word."""
    save_model(tiny_model().network, folder)
    silent = load(folder, dtype=torch.float32)
    shown = [[as_raster(ground(n, 32, 32, seed)) for seed in range(6)] for n in GROUND]
    means = np.stack([silent.embed(rasters).mean(0) for rasters in shown])
    target = F.normalize(torch.from_numpy(means - means.mean(0)), dim=-1)
    torch.manual_seed(1)
    bank = Bank(
        identity="made-1",
        words=tuple(PROMPT.format(n) for n in GROUND),
        vectors=np.random.default_rng(0).normal(size=(len(GROUND), TEXT_DIM)).astype(np.float32),
    )
    head = TextHead(TEXT_DIM, 0, silent.dim)
    with torch.no_grad():
        inputs = head.norm(torch.from_numpy(bank.vectors.astype(np.float32)))
        # fewer words than numbers of a text vector: a linear layer meets every target exactly
        head.layers.weight.copy_(torch.linalg.lstsq(inputs, target).solution.T)
        head.layers.bias.zero_()
        head.log_scale.fill_(math.log(15.0))
    config = WordsConfig(
        encoder="nobody/nothing", text_identity="made-1", image_identity=identity(silent.network),
        text_dim=TEXT_DIM, hidden=0, dim=silent.dim, prompt=PROMPT,
    )  # fmt: skip
    Words(config, head, bank).save(folder)
    return folder


def as_raster(pixels: np.ndarray, seed: int = 0) -> Raster:
    raster = make_raster(seed, *pixels.shape[1:])
    return Raster(**{**vars(raster), "pixels": pixels})


def at(transform: Affine, col: float, row: float) -> tuple[float, float]:
    """CRS coordinates of continuous pixel coordinates."""
    a, b, c, d, e, f = transform[:6]
    return a * col + b * row + c, d * col + e * row + f


def scene(path: Path, pixels: np.ndarray, **how: object) -> Path:
    return write_tif(path, pixels, colours=("red", "green", "blue"), **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speak(tmp_path_factory.mktemp("models") / "speaking")


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder, dtype=torch.float32)


@pytest.fixture
def coast(tmp_path: Path) -> Path:
    """Water on the left, field on the right, 96 x 128 pixels, the border at pixel 64."""
    pixels = np.concatenate([ground("water", 96, 64, 1), ground("field", 96, 64, 2)], axis=2)
    return scene(tmp_path / "coast.tif", pixels)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    """``alidade classify`` with arguments and the speaking model: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        given = list(map(str, arguments))
        chosen = [] if "--model" in given else ["--model", str(folder)]
        monkeypatch.setattr(sys, "argv", ["alidade", "classify", *given, *chosen])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


# --- classes ---------------------------------------------------------------------------------------------------------


def test_names_are_read_as_they_are_written() -> None:
    assert class_names(" river,dense  forest ,Airport") == ("river", "dense forest", "Airport")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("river,,forest", "an empty name, number 2 of 3"),
        ("river,forest,", "an empty name, number 3 of 3"),
        ("river, River ,forest", "'river' 2 times"),
        ("open  water,Open Water", "'open water' 2 times"),
        ("river", "got 1 name, expected 2 to 255 different names"),
        (" ", "got no name"),
        (",".join(f"c{i}" for i in range(256)), "got 256 names"),
    ],
)
def test_lists_of_names_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(AlidadeError) as refused:
        class_names(text)
    assert message in str(refused.value)


def test_probabilities_are_a_softmax_of_scaled_cosines(model: Model) -> None:
    classes = make_classes(model, ("water", "field"))
    images = model.embed([as_raster(ground("water", 32, 32, 9)), as_raster(ground("field", 32, 32, 9))])
    cosines = torch.from_numpy(images) @ torch.from_numpy(model.embed_text(["ground that shows water"] * 1)).T
    assert classes.sentences == ("ground that shows water", "ground that shows field")
    assert (images @ classes.vectors.T)[:, :1] == pytest.approx(cosines.numpy(), abs=1e-6)
    expected = torch.softmax(15.0 * torch.from_numpy(images @ classes.vectors.T), dim=1)
    # the scale is stored in half precision
    assert classes.probabilities(images) == pytest.approx(expected.numpy(), abs=2e-3)
    assert classes.probabilities(images).sum(axis=1) == pytest.approx([1, 1])
    assert np.isfinite(classes.probabilities(1e4 * images)).all()


# --- files -----------------------------------------------------------------------------------------------------------


def test_one_image_pass_a_tile_and_one_text_pass_a_class(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [scene(tmp_path / f"{n}.tif", ground(n, 64, 64, 3)) for n in GROUND]
    images, texts = [], []
    encode, read = Model._encode, Bank.encode
    monkeypatch.setattr(Model, "_encode", lambda self, items: images.extend(items) or encode(self, items))
    monkeypatch.setattr(Bank, "encode", lambda self, given: texts.extend(given) or read(self, given))
    found = classify(paths, model, tuple(GROUND))
    assert [found.classes.names[f.best] for f in found.files] == list(GROUND)
    assert (len(images), len(texts)) == (3 * 4, 3)


def test_a_file_is_the_mean_of_its_tiles_by_their_pixels(model: Model, tmp_path: Path) -> None:
    pixels = np.concatenate([ground("water", 40, 32, 1), ground("field", 40, 32, 2)], axis=2)
    file = classify([scene(tmp_path / "a.tif", pixels)], model, ("water", "field")).files[0]
    assert [(t.window.row, t.window.col) for t in file.tiles] == [(0, 0), (0, 32), (32, 0), (32, 32)]
    assert [t.valid for t in file.tiles] == [1024, 1024, 256, 256]
    expected = sum(t.valid * t.probabilities for t in file.tiles) / 2560
    assert file.probabilities == pytest.approx(expected)
    assert file.shares.tolist() == [0.5, 0.5]


def test_tiles_without_data_and_files_without_any(model: Model, tmp_path: Path) -> None:
    pixels = ground("field", 32, 64, 1)
    pixels[:, :, 32:] = 0
    half = scene(tmp_path / "half.tif", pixels, nodata=0)
    none = scene(tmp_path / "none.tif", np.zeros((3, 32, 32), np.uint8), nodata=0)
    found = classify([half, none, tmp_path / "missing.tif"], model, tuple(GROUND))
    assert [(len(f.tiles), f.nodata_tiles) for f in found.files] == [(1, 1)]
    told = {Path(f.source).name: f.message for f in found.failures}
    assert "no valid pixel in any of its 1 tiles" in told["none.tif"]
    assert set(told) == {"none.tif", "missing.tif"}


def test_command_tells_each_file_in_one_line(run: Run, coast: Path, tmp_path: Path) -> None:
    wood = scene(tmp_path / "wood.tif", ground("forest", 64, 64, 4))
    code, out, err = run(wood, coast, "--classes", "water, field,forest")
    assert code == 0
    lines = out.strip().splitlines()
    assert lines[0].split()[:2] == ["file", "class"]
    assert lines[1].split()[:2] == ["wood.tif", "forest"]
    assert lines[1].rstrip().endswith("forest 100%")
    assert "water 50%" in lines[2]
    assert "field 50%" in lines[2]
    assert "read as: ground that shows water, ground that shows field" in err


def test_command_as_json_and_every_file_of_results(run: Run, coast: Path, tmp_path: Path) -> None:
    for name in ("tiles.geojson", "tiles.csv"):
        # an existing file is replaced, as export does
        (tmp_path / name).write_text("old")
        code, out, _ = run(coast, "--classes", "water,field", "--out", tmp_path / name, "--json")
        assert code == 0
    told = json.loads(out)
    assert told["classes"] == ["water", "field"]
    assert told["files"][0]["shares"] == {"water": 0.5, "field": 0.5}
    assert told["files"][0]["tiles"] == 12
    assert told["map"] is None
    features = json.loads((tmp_path / "tiles.geojson").read_text())["features"]
    table = list(csv.DictReader((tmp_path / "tiles.csv").open()))
    assert len(features) == len(table) == 12
    with open_raster(coast) as file:
        for feature, row in zip(features, table, strict=True):
            told = feature["properties"]
            assert told["class"] == row["class"] == ("water" if told["col"] < 64 else "field")
            assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-3)
            assert float(row["water"]) == told["probabilities"]["water"]
            outline = file.grid.window(told["row"], told["col"], told["height"], told["width"]).footprint()
            assert outline is not None
            assert feature["geometry"] == json.loads(json.dumps(outline.geojson()))
            assert (float(row["lon"]), float(row["lat"])) == pytest.approx(outline.centre(), abs=1e-6)


def test_one_bad_file_does_not_stop_the_others(run: Run, coast: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no image")
    radar = make_scene(tmp_path / "radar.tif", 3, sensor_id="sentinel-1-grd", height=32, width=32)
    one = write_tif(tmp_path / "one.tif", display(1), tags={"ALIDADE_SENSOR": "naip-rgb"}, names=["red"])
    code, out, err = run(tmp_path / "text.tif", coast, one, radar, "--classes", "water,field")
    assert code == 2
    assert "coast.tif" in out
    assert "radar.tif" in out
    failures = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2
    assert "no tower for this imagery: got naip-rgb with bands" in "".join(failures), failures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "water,Water"), "'water' 2 times"),
        (("--classes", "water"), "got 1 name"),
        (("--classes", "water,lava"), "'ground that shows lava' (nearest: ground that shows "),
        (("--classes", "water,field", "--out", "x.shp"), "got 'shp', expected a name that ends with .geojson or .csv"),
        (("--classes", "water,field", "--out", "nowhere/x.csv"), "No such file or directory"),
        (("--classes", "water,field", "--map", "nowhere/x.tif"), "No such file or directory"),
        (("--classes", "water,field", "--map", "COAST"), "which is the file"),
        (("--classes", "water,field", "--map", "a.tif", "--probabilities", "./a.tif"), "a.tif, which is --map"),
        (("--classes", "water,field", "--probabilities", "a.tif"), "got no --map, expected both"),
        (("--classes", "water,field", "--tile", "4"), "tile side: got 4 px"),
        (("--classes", "water,field", "--map", "a.tif", "--window", "4"), "map: got windows of 4 px"),
        (("SAMPLES", "--classes", "water,field", "--map", "a.tif"), "--map: got 9 files, expected one file"),
    ],
)
def test_wrong_requests_say_what_to_do(
    run: Run, coast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = Path(__file__).parents[1] / "samples" / "sentinel-1"
    given = [str(coast) if a == "COAST" else str(samples) if a == "SAMPLES" else a for a in arguments]
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, err = run(coast, *given) if arguments[0] != "SAMPLES" else run(*given)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_model_without_words_names_one_that_has_them(run: Run, coast: Path, tmp_path: Path) -> None:
    save_model(tiny_model().network, tmp_path / "silent")
    code, _, err = run(coast, "--classes", "water,field", "--model", tmp_path / "silent")
    assert code == 2
    assert "got a model without words" in err
    assert "Use alidade-tiny, or align this model with `alidade train align`." in err


def test_an_unknown_word_in_python(model: Model, coast: Path) -> None:
    with pytest.raises(TextError, match="nearest"):
        classify([coast], model, ("water", "lava"))


# --- the map ---------------------------------------------------------------------------------------------------------


def test_map_lies_on_the_scene(run: Run, coast: Path, tmp_path: Path) -> None:
    place, more = tmp_path / "map.tif", tmp_path / "more.tif"
    code, _, err = run(coast, "--classes", "water,field", "--map", place, "--probabilities", more)
    assert code == 0
    assert f"map: {place}, 16 x 12 px of 80 m: " in err
    with rasterio.open(coast) as source, rasterio.open(place) as found, rasterio.open(more) as shares:
        for made in (found, shares):
            assert made.crs == source.crs
            assert made.bounds == source.bounds
            assert at(made.transform, 5, 7) == at(source.transform, 5 * PATCH, 7 * PATCH)
            assert made.shape == (12, 16)
        assert found.dtypes == ("uint8",)
        assert found.nodata == 0
        numbers = found.read(1)
        assert (numbers[:, :6] == 1).all()
        assert (numbers[:, -6:] == 2).all()
        assert found.descriptions == ("class: 1 water, 2 field",)
        assert (found.tags(1)["CLASS_1"], found.tags(1)["CLASS_2"]) == ("water", "field")
        assert json.loads(found.tags()["ALIDADE_CLASSES"]) == ["water", "field"]
        table = found.colormap(1)
        assert table[0][3] == 0
        assert table[1] != table[2]
        assert shares.descriptions == ("water", "field")
        assert (shares.read_masks(1) == 255).all()
        values = shares.read().astype(int)
        assert (np.abs(values.sum(axis=0) - 255) <= 1).all()
        assert np.array_equal(values.argmax(axis=0) + 1, numbers)
    assert len({*colours(40)}) == 40


def test_grids_of_any_kind(model: Model, tmp_path: Path) -> None:
    """Rotated, not a multiple of the patch, bottom-up, and without a place."""
    classes = make_classes(model, ("water", "field"))
    turned = Affine(9.4, 3.4, 500_000, 3.4, -9.4, 5_300_000)
    rotated = scene(tmp_path / "r.tif", ground("field", 45, 51, 1), transform=turned)
    write_map(map_classes(rotated, model, classes), tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as found:
        assert found.shape == (6, 7)
        assert (found.read(1) == 2).all()
        for col, row in ((0, 0), (3, 2), (6, 5)):
            assert at(found.transform, col, row) == pytest.approx(at(turned, PATCH * col, PATCH * row), abs=1e-6)
    up = Affine(10, 0, 500_000, 0, 10, 5_300_000)
    pixels = np.concatenate([ground("water", 32, 32, 1), ground("field", 32, 32, 2)], axis=1)
    write_map(map_classes(scene(tmp_path / "u.tif", pixels, transform=up), model, classes), tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as found:
        # water has the first rows in the file, and so the lowest northings
        assert [int(v[0]) for v in found.sample([(500_100, 5_300_020), (500_100, 5_300_620)])] == [1, 2]
    loose = scene(tmp_path / "l.tif", ground("water", 32, 32, 1), crs=None, transform=None, tags={"ALIDADE_GSD": "10"})
    found_loose = map_classes(loose, model, classes)
    assert found_loose.grid.mean_gsd_m() == 80
    write_map(found_loose, tmp_path / "m.tif")
    with pytest.warns(NotGeoreferencedWarning):
        found = rasterio.open(tmp_path / "m.tif")
    with found:
        assert found.crs is None
        assert found.transform == Affine.identity()


def test_holes_are_holes(model: Model, tmp_path: Path) -> None:
    pixels = ground("water", 96, 96, 1)
    pixels[:, 16:72, 24:64] = 0
    # a patch that is partly data, beside data
    pixels[:, 16:19, 24:32] = 90
    found = map_classes(
        scene(tmp_path / "a.tif", pixels, nodata=0), model, make_classes(model, ("water", "field")), probabilities=True
    )
    expected = np.ones((12, 12), bool)
    expected[2:9, 3:8] = False
    expected[2, 3] = True
    assert np.array_equal(found.numbers != 0, expected)
    write_probabilities(found, tmp_path / "p.tif")
    with rasterio.open(tmp_path / "p.tif") as shares:
        assert np.array_equal(shares.read_masks(1) != 0, expected)
    empty = scene(tmp_path / "e.tif", np.zeros((3, 32, 32), np.uint8), nodata=0)
    with pytest.raises(AlidadeError, match="no valid pixel"):
        map_classes(empty, model, found.classes)


@pytest.mark.parametrize("pooling", ["mean", "mean-std"])
def test_what_a_patch_shows_is_pooled_as_an_image_is(pooling: str) -> None:
    """The same as masking all other tokens, which is how cells are pooled."""
    config = replace(tiny_model().network.config, pooling=pooling, mlp_head=pooling == "mean")
    network = ScaleAlibi(config)
    initialise(network, seed=3)
    model = Model(network, dtype=torch.float32)
    raster = make_raster(4, 40, 56)
    valid = raster.valid.copy()
    valid[:16, 24:] = False
    tokens = model.encode(Raster(**{**vars(raster), "valid": valid}))
    sets = near((5, 7), 1)
    vectors, some = pool_sets(model, tokens, sets)
    assert not some.all()
    for number, (row, has) in enumerate(zip(sets, some, strict=True)):
        masked = tokens.places._replace(valid=tokens.places.valid & row)
        assert has == bool(masked.valid.any())
        alone = F.normalize(model.network.pool(Tokens(**{**vars(tokens), "places": masked})), dim=-1).detach().numpy()
        assert vectors[number] == pytest.approx(alone[0] if has else 0 * alone[0], abs=1e-5)
    every = torch.ones(1, 35, dtype=torch.bool)
    whole, _ = pool_sets(model, model.encode(raster), every)
    assert whole == pytest.approx(model.embed(raster), abs=1e-5)


def test_patches_that_are_near() -> None:
    assert near((3, 3), 1).sum(dim=1).tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]
    assert near((2, 3), 1)[0].tolist() == [True, True, False, True, True, False]
    assert near((2, 2), 0).tolist() == torch.eye(4, dtype=torch.bool).tolist()


@given(total=st.integers(1, 300), side=st.integers(1, 40), overlap=st.integers(1, 8))
def test_windows_overlap_and_cover_all(total: int, side: int, overlap: int) -> None:
    found = starts(total, side, overlap)
    width = min(side, total)
    assert found[0] == 0
    assert found[-1] + width == total
    assert all(0 < b - a <= max(side // overlap, 1) for a, b in pairwise(found))


def test_reading_in_pieces_changes_nothing(model: Model, coast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = make_classes(model, tuple(GROUND))
    whole = map_classes(coast, model, classes, radius=1, probabilities=True)
    read = class_map.RasterFile.read
    largest = []

    def seen(self: object, window: object = None, bands: object = None) -> Raster:
        raster = read(self, window, bands)  # type: ignore[arg-type]
        largest.append(raster.valid.size)
        return raster

    monkeypatch.setattr(class_map.RasterFile, "read", seen)
    monkeypatch.setattr(class_map, "MAX_PIXELS", 48 * 48)
    pieces = map_classes(coast, model, classes, radius=1, probabilities=True)
    assert max(largest) <= 48 * 48
    assert len(largest) > 6
    assert np.array_equal(whole.numbers, pieces.numbers)
    assert whole.probabilities is not None
    assert pieces.probabilities is not None
    assert np.array_equal(whole.probabilities, pieces.probabilities)


def test_windows_meet_without_seams(model: Model, tmp_path: Path) -> None:
    """Where windows begin is no property of the ground: moved by one patch, the map moves with the scene."""
    pixels = np.concatenate([ground("water", 96, 76, 1), ground("forest", 96, 60, 2)], axis=2)
    classes = make_classes(model, tuple(GROUND))
    first = map_classes(scene(tmp_path / "a.tif", pixels), model, classes, probabilities=True, radius=1)
    moved = map_classes(
        scene(tmp_path / "b.tif", pixels[:, PATCH:, PATCH:]), model, classes, probabilities=True, radius=1
    )
    assert first.probabilities is not None
    assert moved.probabilities is not None
    off = np.abs(first.probabilities[:, 1:, 1:].astype(int) - moved.probabilities).max(axis=(0, 1))
    # the border between both kinds of ground lies in column 9 of the first
    assert off[[*range(6), *range(11, 16)]].max() <= 12
    assert (first.numbers[1:, 1:] != moved.numbers).mean() <= 0.05


def test_probabilities_are_means_over_the_windows_that_saw_a_patch(model: Model, tmp_path: Path) -> None:
    """By hand: a row of windows of 4 patches that begin at 0, 2 and 3 of 7, weighted towards their middles."""
    path = scene(tmp_path / "a.tif", np.concatenate([ground("water", 8, 24, 1), ground("field", 8, 32, 2)], axis=2))
    classes = make_classes(model, tuple(GROUND))
    found = map_classes(path, model, classes, probabilities=True, window=32, overlap=2)
    expected, weights = np.zeros((3, 7)), np.zeros(7)
    with open_raster(path) as file:
        for start in (0, 2, 3):
            tokens = model.encode(file.read(Window(row=0, col=8 * start, height=8, width=32)))
            shares = classes.probabilities(pool_sets(model, tokens, near((1, 4), 4))[0]).T
            weight = np.array([0.5, 1.5, 1.5, 0.5])
            expected[:, start : start + 4] += shares * weight
            weights[start : start + 4] += weight
    assert found.probabilities is not None
    assert found.probabilities[:, 0] == pytest.approx(255 * expected / weights, abs=0.51)
    assert np.array_equal(found.numbers[0], (expected / weights).argmax(axis=0) + 1)


@pytest.mark.parametrize("settings", [{"radius": -1}, {"overlap": 0}, {"window": 4}, {"window": 10_000}])
def test_windows_that_cannot_be(model: Model, coast: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="map: got windows of"):
        map_classes(coast, model, make_classes(model, ("water", "field")), **settings)


def test_probabilities_that_were_not_asked_for(model: Model, coast: Path) -> None:
    with pytest.raises(ArchiveError, match="a map made without them"):
        write_probabilities(map_classes(coast, model, make_classes(model, ("water", "field"))), coast.parent / "p.tif")


def test_coarser_grid_keeps_the_corner() -> None:
    grid = make_raster(1, 45, 51).grid
    found = coarser(grid, 8)
    assert (found.height, found.width) == (6, 7)
    assert (found.transform.c, found.transform.f) == (grid.transform.c, grid.transform.f)
    assert found.mean_gsd_m() == pytest.approx(8 * grid.mean_gsd_m(), rel=1e-4)


# --- faults while writing --------------------------------------------------------------------------------------------


def test_killed_half_way_leaves_no_map(folder: Path, coast: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from alidade.imagery import atomic
from alidade.models.registry import load
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.search.class_export import write_map
from alidade.search.class_map import map_classes
from alidade.search.classify import make_classes

def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)

class Dies:
    def started(self, **told): pass
    advanced = die if sys.argv[4] == "computing" else started

if sys.argv[4] == "writing":
    atomic._sync = die
model = load(sys.argv[1])
found = map_classes(sys.argv[2], model, make_classes(model, ("water", "field")), progress=Dies())
write_map(found, Path(sys.argv[3]))
"""
    for moment in ("computing", "writing"):
        place = tmp_path / moment / "map.tif"
        place.parent.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(coast), str(place), moment], check=False, timeout=200
        )
        assert done.returncode == -signal.SIGKILL
        assert not place.exists()
        assert all(p.name.endswith(".alidade-part") for p in place.parent.iterdir())


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_full_disk_leaves_the_old_files(model: Model, coast: Path, tmp_path: Path) -> None:
    classes = make_classes(model, ("water", "field"))
    found = classify([coast], model, classes.names)
    mapped = map_classes(coast, model, classes, probabilities=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for name, save in (
            ("m.tif", lambda path: write_map(mapped, path)),
            ("p.tif", lambda path: write_probabilities(mapped, path)),
            ("t.csv", lambda path: write(found, path)),
        ):
            place = tmp_path / "full" / name
            place.parent.mkdir(exist_ok=True)
            place.write_text("old")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
            with pytest.raises(ArchiveError, match=os.strerror(27)):
                save(place)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert place.read_text() == "old"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert len(list((tmp_path / "full").iterdir())) == 3
