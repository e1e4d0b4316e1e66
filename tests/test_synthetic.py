"""The made-up world: the same for everybody who asks, one ground for all sensors, and never taken for data."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score
from typer.testing import CliRunner

from alidade.cli import tiles, tiles_synthetic, train
from alidade.imagery.sensors import SENSORS
from alidade.training.synthetic import make
from alidade.training.synthetic.land import CELL_M, Cells, Cover, is_water, land_of
from alidade.training.synthetic.make import DEALT, sample_of, squares, synthesize
from alidade.training.synthetic.noise import key, normal, smooth, speckle, uniform
from alidade.training.synthetic.render import BANDS, LOOKS, OPTICAL, PICTURE, RADAR, Scene
from alidade.training.tiles.build import build_tiles
from alidade.training.tiles.grid import Square
from alidade.training.tiles.schema import StoreError
from alidade.training.tiles.store import TileStore, normalise

WIDE = Cells(col=286_200, row=400, width=640, height=640)
"""1,600 m of the world 0 with every class in it."""


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(0, WIDE)


# --- chance by coordinates


@given(st.integers(0, 2**64 - 1), st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_chance_belongs_to_a_place(stream: int, x: int, y: int) -> None:
    one = uniform(stream, np.array([x]), np.array([y]))[0]
    window = uniform(stream, np.arange(x - 2, x + 3)[None, :], np.arange(y - 1, y + 4)[:, None])
    assert 0.0 < one < 1.0
    assert window[1, 2] == one


def test_chance_is_uniform_and_neighbours_know_nothing_of_each_other() -> None:
    drawn = uniform(key(0, "x"), np.arange(600)[None, :], np.arange(600)[:, None])
    share = np.histogram(drawn, 20, (0, 1))[0] / drawn.size
    assert np.abs(share - 0.05).max() < 0.0015
    for other in (drawn[1:, :-1], drawn[:-1, 1:], uniform(key(1, "x"), np.arange(599)[None], np.arange(599)[:, None])):
        assert abs(np.corrcoef(drawn[:-1, :-1].ravel(), other.ravel())[0, 1]) < 0.01
    bell = normal(key(0, "n"), np.arange(600)[None, :], np.arange(600)[:, None])
    assert (abs(bell.mean()), bell.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))


@pytest.mark.parametrize("looks", [1, 3, LOOKS, 20])
def test_speckle_has_the_looks_it_is_said_to_have(looks: int) -> None:
    drawn = speckle(key(3, "s"), np.arange(400)[None, :], np.arange(400)[:, None], looks)
    assert drawn.mean() == pytest.approx(1.0, abs=0.01)
    assert drawn.mean() ** 2 / drawn.var() == pytest.approx(looks, rel=0.03), "the equivalent number of looks"
    # a gamma distribution's third moment: skewness 2 / sqrt(looks)
    assert ((drawn - 1) ** 3).mean() / drawn.std() ** 3 == pytest.approx(2 / looks**0.5, rel=0.1)


def test_smooth_fields_are_smooth_and_have_their_size() -> None:
    steps = np.arange(0.0, 60_000.0, 50.0)
    field = smooth(key(0, "f"), steps, steps, 2000.0, 4)
    assert (abs(field.mean()) < 0.1, field.std()) == (True, pytest.approx(1.0, abs=0.1))
    assert np.abs(np.diff(field, axis=0)).max() < 0.5


# --- one world


@settings(max_examples=10)
@given(st.integers(0, 80), st.integers(0, 80), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1))
def test_any_window_shows_what_any_other_shows(x: int, y: int, width: int, height: int, seed: int) -> None:
    outer = Cells(col=80_000, row=-600, width=480, height=480)
    inner = Cells(col=80_000 + 4 * x, row=-600 + 4 * y, width=4 * width, height=4 * height)
    whole, part = _seen(seed, outer), Scene(seed, inner)
    for sensor, factor in ((RADAR, 4), (OPTICAL, 4), (PICTURE, 1)):
        top = (480 - 4 * y - 4 * height) // factor
        rows, cols = slice(top, top + 4 * height // factor), slice(4 * x // factor, 4 * (x + width) // factor)
        assert np.array_equal(part.see(sensor), whole[sensor][:, rows, cols]), sensor


_SEEN: dict[tuple[int, Cells], dict[str, NDArray[np.generic]]] = {}


def _seen(seed: int, cells: Cells) -> dict[str, NDArray[np.generic]]:
    if (seed, cells) not in _SEEN:
        made = Scene(seed, cells)
        _SEEN[seed, cells] = {s: made.see(s) for s in (RADAR, OPTICAL, PICTURE)}
    return _SEEN[seed, cells]


DIGEST = """
import hashlib
from itertools import islice
from alidade.training.synthetic.make import sample_of, squares
square, split = next(iter(islice(squares(7, 9, "train"), 5, 6)))
sample = sample_of(7, square, split)
print(hashlib.sha256(b"".join(v.pixels.tobytes() for v in sample.views.values())).hexdigest())
"""


def test_another_process_sees_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True, timeout=120)
    square, split = next(islice(squares(7, 9, "train"), 5, 6))
    sample, other = sample_of(7, square, split), sample_of(8, square, split)
    ours = hashlib.sha256(b"".join(v.pixels.tobytes() for v in sample.views.values())).hexdigest()
    assert done.stdout.strip() == ours
    assert not np.array_equal(sample.views["hr"].pixels, other.views["hr"].pixels), "another seed, another world"


@pytest.mark.parametrize(("level", "split"), [(11, "train"), (11, "val"), (11, "test"), (9, "train"), (13, "train")])
def test_a_first_run_shows_land(level: int, split: str) -> None:
    for seed in range(5):
        watery = 0
        for square, _ in islice(squares(seed, level, split), 6):
            west, south, _, _ = square.bounds()
            steps = np.linspace(0.0, square.side_m, 65)
            watery += bool(is_water(seed, west + steps, south + steps).mean() > 0.5)
        assert watery <= 1, seed


@settings(max_examples=5)
@given(st.integers(0, 9), st.integers(100_000, 400_000), st.integers(0, 4000))
def test_water_is_told_as_the_land_has_it(seed: int, col: int, row: int) -> None:
    cells = Cells(col=col, row=row, width=700, height=60)
    xs, ys = (cells.columns[0] + 0.5) * CELL_M, (cells.rows[:, 0] + 0.5) * CELL_M
    painted = land_of(seed, cells).cover == Cover.WATER
    assert np.array_equal(is_water(seed, xs, ys), painted)
    assert np.array_equal(is_water(seed, xs[3::50], ys[::7]), painted[::7, 3::50]), "wherever it is asked"


def test_a_world_begins_on_land_and_goes_on_as_it_is() -> None:
    everywhere = [s for s, _ in islice(make._all_squares(11, "train"), 520)]
    drawn = [s for s, _ in islice(squares(0, 11, "train"), 400)]
    begin = everywhere.index(drawn[0])
    assert begin > 0, "this world's first squares are a lake"
    assert drawn == everywhere[begin : begin + 400], "nothing is left out later"
    shares = np.array([make.water_share(0, s) for s in everywhere])
    assert (shares[begin : begin + make.FIRST] < make.LITTLE_WATER).all()
    assert shares[begin : begin + 400].mean() == pytest.approx(shares.mean(), abs=0.04)
    assert (shares[begin : begin + 400] > 0.5).sum() > 10, "lakes are there, later"


# --- what sensors see of it


def majority(cover: NDArray[np.int8], factor: int) -> NDArray[np.int64]:
    """The class that most cells of each pixel have, ``-1`` where the pixel is mixed."""
    rows, cols = cover.shape[0] // factor, cover.shape[1] // factor
    blocks = cover.reshape(rows, factor, cols, factor).swapaxes(1, 2).reshape(rows, cols, -1)
    return np.where(blocks.min(-1) == blocks.max(-1), blocks[..., 0], -1)


def test_every_class_is_there(scene: Scene) -> None:
    shares = np.bincount(scene.land().cover.ravel(), minlength=5) / WIDE.width**2
    assert (shares > 0).all(), dict(zip(Cover, shares.tolist(), strict=True))
    many = [Scene(5, Cells(col=4000 * n, row=9000 * n, width=64, height=64)).land().cover for n in range(60)]
    overall = np.bincount(np.concatenate([m.ravel() for m in many]), minlength=5) / sum(m.size for m in many)
    assert (overall > 0.03).all()
    assert (overall < 0.6).all()


def test_spectra_are_plausible(scene: Scene) -> None:
    bands = dict(zip(BANDS[OPTICAL], scene.see(OPTICAL).astype(np.float64) * 1e-4, strict=True))
    cover = majority(scene.land().cover, 4)
    ndvi = (bands["B08"] - bands["B04"]) / (bands["B08"] + bands["B04"])
    assert np.median(ndvi[cover == Cover.FOREST]) > 0.6
    assert np.percentile(ndvi[cover == Cover.FOREST], 10) > 0.6
    assert np.percentile(ndvi[cover == Cover.WATER], 90) < 0.0
    assert np.median(ndvi[cover == Cover.BARE]) < 0.2
    crops = ndvi[cover == Cover.CROPS]
    assert np.percentile(crops, 85) - np.percentile(crops, 15) > 0.3, "fields are in all stages"
    for name, values in bands.items():
        assert 0.0 < values.min() < values.max() < 1.0, name
    # the brightness of the world is that of the sensor's statistics, to a factor of three
    for band in SENSORS[OPTICAL].bands:
        assert band.mean / 3 < bands[band.name].mean() < band.mean * 3, band.name


def test_bands_have_their_own_resolution(scene: Scene) -> None:
    bands = dict(zip(BANDS[OPTICAL], scene.see(OPTICAL), strict=True))
    top = (WIDE.row + WIDE.height) // 4
    for name, step in (("B11", 2), ("B8A", 2), ("B01", 6), ("B09", 6)):
        first_row, first_col = top % step, -(WIDE.col // 4) % step
        image = bands[name][first_row:, first_col:].astype(int)
        image = image[: image.shape[0] // step * step, : image.shape[1] // step * step]
        corners = np.kron(image[::step, ::step], np.ones((step, step), dtype=int))
        assert np.array_equal(image, corners), name
    assert len(np.unique(bands["B02"][:2, :2])) > 1


def test_radar_is_sentinel_1_like(scene: Scene) -> None:
    vv, vh = scene.see(RADAR)
    cover = majority(scene.land().cover, 4)
    medians = {c: float(np.median(vv[cover == c])) for c in Cover if (cover == c).sum() > 50}
    assert medians[Cover.WATER] < -17 < medians[Cover.CROPS] < medians[Cover.FOREST]
    assert np.mean(vv - vh) == pytest.approx(7.0, abs=2.5)
    forest = 10 ** (vv[cover == Cover.FOREST] / 10)
    assert forest.mean() ** 2 / forest.var() == pytest.approx(LOOKS, rel=0.2)
    many = 10 ** (Scene(0, WIDE).see(RADAR, looks=50)[0][cover == Cover.FOREST] / 10)
    assert many.mean() ** 2 / many.var() > 3 * LOOKS


def test_radar_and_optics_show_the_same_ground(scene: Scene) -> None:
    radar, optical = scene.see(RADAR), scene.see(OPTICAL)
    vv, ndvi_like = radar[0], optical[7].astype(float) - optical[3]

    def bins(values: NDArray[np.generic]) -> NDArray[np.int64]:
        return np.digitize(values.ravel(), np.quantile(values, np.linspace(0, 1, 9)[1:-1]))

    a, b = bins(vv), bins(ndvi_like)
    together = mutual_info_score(a, b)
    shuffled = [mutual_info_score(np.random.default_rng(n).permutation(a), b) for n in range(5)]
    turned = mutual_info_score(bins(vv[::-1].T), b)
    assert together > 20 * max(shuffled)
    assert together > 3 * turned
    picture = scene.see(PICTURE).astype(float)
    side = WIDE.width // 4
    coarse = picture.reshape(4, side, 4, side, 4).mean(axis=(2, 4))
    for colour, band in enumerate((3, 2, 1, 7)):
        assert np.corrcoef(coarse[colour].ravel(), optical[band].ravel())[0, 1] > 0.9


# --- the store


def test_a_store_is_made_resumed_and_marked(tmp_path: Path) -> None:
    out = tmp_path / "w"
    made = synthesize(out, 6, seed=3, square_m=320.0)
    again = synthesize(out, 8, seed=3, square_m=320.0)
    assert (made.written, again.written, again.present) == (6, 2, 6)
    val = synthesize(out, 3, seed=3, split="val", square_m=320.0)
    assert val.splits == {"val": 3}
    store = TileStore.open(out)
    store.verify()
    assert store.synthetic
    assert store.sources() == {"synthetic:3"}
    rows = store.index.to_pylist()
    assert {r["split"] for r in rows} == {"train", "val"}
    cells = [{s.parent(14) for r in rows if r["split"] == n and (s := Square.from_key(r["square"]))} for n in DEALT]
    assert not cells[0] & cells[1], "whole cells of 10 km belong to one split"
    assert all(r["date_gap_days"] <= 3.0 for r in rows)
    assert {r["s2.cloud_share"] for r in rows} == {0.0}
    for name, spec in store.views.items():
        batch = store.__getitems__(range(len(store))).views[name]
        values, good = normalise(spec, batch.pixels, batch.valid)
        assert good.all()
        assert abs(values.mean()) < 3, name
    square, split = next(squares(3, 9, "train"))
    assert np.array_equal(sample_of(3, square, split).views["s1"].pixels, store[0].views["s1"].pixels[0])


def test_what_is_made_up_is_mixed_with_nothing(tmp_path: Path) -> None:
    out = tmp_path / "w"
    synthesize(out, 1, seed=3, square_m=320.0)
    with pytest.raises(StoreError, match="some of synthetic:3, expected none but those of synthetic:4"):
        synthesize(out, 2, seed=4, square_m=320.0)
    samples = Path(__file__).parents[1] / "samples"
    pair = [samples / s / "bigearthnet_33UUP_87_48.tif" for s in ("sentinel-1", "sentinel-2")]
    with pytest.raises(StoreError, match="got made-up ones"):
        build_tiles(pair, out, square_m=640.0)
    build_tiles(pair, tmp_path / "real", square_m=640.0)
    assert not TileStore.open(tmp_path / "real").synthetic
    with pytest.raises(StoreError, match="mixed with"):
        synthesize(tmp_path / "real", 2, square_m=640.0)


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"samples": 0}, "samples: got 0"),
        ({"samples": 1, "split": "holdout"}, "split: got 'holdout'"),
        ({"samples": 1, "split": {"train": 0.5}}, "shares that add up to 1"),
        ({"samples": 1, "square_m": 80.0}, "square: got 80 m"),
    ):
        with pytest.raises(StoreError, match=message):
            synthesize(tmp_path / "w", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "w").exists()


def test_the_squares_never_run_out_and_none_comes_twice() -> None:
    for split in ("test", {"train": 0.7, "val": 0.3}):
        drawn = [s.key for s, _ in islice(squares(0, 11, split), 3000)]  # type: ignore[arg-type]
        assert len(set(drawn)) == 3000
    assert make.VIEWS == {"s1": RADAR, "s2": OPTICAL, "hr": PICTURE}


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.callback()(lambda: None)
    tiles_synthetic.register_synthetic(tiles.register(made))
    train.register(made)
    return made


def test_the_command_and_three_steps_of_training(tmp_path: Path, app: typer.Typer) -> None:
    run, store = CliRunner(), str(tmp_path / "w")
    made = run.invoke(app, ["tiles", "synthesize", "--out", store, "-n", "4", "--square", "320", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["written"] == 4
    told = json.loads(run.invoke(app, ["tiles", "info", store, "--json"]).stdout)
    assert (told["synthetic"], told["samples"]) == (True, 4)
    assert "not for results" in run.invoke(app, ["tiles", "info", store]).stdout
    trained = run.invoke(
        app, ["train", "pretrain", store, "--out", str(tmp_path / "run"), "--steps", "3", "--batch", "2"]
    )
    assert trained.exit_code == 0, (trained.output, trained.exception)
    assert (tmp_path / "run" / "model").is_dir()
