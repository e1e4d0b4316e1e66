"""Ridge regression of what RGB does not show: equal to plain formulas, and no tile judges its own fit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from affine import Affine
from rasterio.crs import CRS
from typer.testing import CliRunner

from alidade.cli.eval_physics import parse_years, register_physics
from alidade.errors import AlidadeError
from alidade.evaluation.baselines import band_statistics
from alidade.evaluation.datasets import DataError
from alidade.evaluation.features import Encoder
from alidade.evaluation.physics_regression import (
    CONDITIONS,
    METRICS,
    OTHER_YEARS,
    PhysicsTiles,
    bootstrap,
    choose_strengths,
    fit_ridge,
    measure_physics,
    naip_tiles,
    predict_apart,
    same_place,
)
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import load
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import read, write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor

SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "naip"
YEARS = (2009, 2012, 2015)
SIDE, ROWS, COLS = 8, 4, 12


def scene(year: int, pixels: np.ndarray[Any, Any], shift: float = 0.0, hole: bool = False) -> Raster:
    found = sensor("naip-rgbn")
    height, width = pixels.shape[1:]
    valid = np.ones((height, width), dtype=np.bool_)
    valid[:1, :1] = not hole
    return Raster(
        pixels=pixels,
        bands=found.bands,
        encodings=(Encoding(unit=Unit.DISPLAY),) * 4,
        valid=valid,
        grid=Grid(
            crs=CRS.from_epsg(26914),
            transform=Affine(5.0, 0, 500_000.0 + shift, 0, -5.0, 5_200_000.0),
            width=width,
            height=height,
        ),
        sensor=found,
        time=datetime(year, 7, 1, tzinfo=UTC),
        source=f"naip_{year}0701.tif",
    )


def make_scenes(folder: Path, *, hole: bool = False, shift: float = 0.0) -> Path:
    """Near infrared is red and a half more where blue is bright: RGB tells it, the mean of a band does not."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, year in enumerate(YEARS):
        # more than a tile high and wide, so that there are rests to leave out
        pixels = rng.integers(40, 120, size=(4, SIDE * ROWS + 3, SIDE * COLS + 5))
        tilt = np.kron(rng.uniform(0, 1, (ROWS + 1, COLS + 1)), np.ones((SIDE, SIDE)))[
            : pixels.shape[1], : pixels.shape[2]
        ]
        pixels[2] = 40 + 80 * tilt
        pixels[3] = pixels[0] * (1 + tilt / 2)
        made = scene(year, pixels.astype(np.uint8), shift=shift * number, hole=hole and number == 1)
        write_geotiff(folder / made.source, made)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("naip"))


@pytest.fixture(scope="module")
def tiles(scenes: Path) -> PhysicsTiles:
    return naip_tiles(scenes, side=SIDE)


def targets(tiles: PhysicsTiles) -> np.ndarray[Any, Any]:
    return np.stack(list(tiles.targets.values()), axis=1)


def test_tiles_are_the_scenes_cut_alike_with_the_mean_of_each_index(scenes: Path, tiles: PhysicsTiles) -> None:
    assert len(tiles.images) == len(YEARS) * ROWS * COLS
    assert [b.common_name for b in tiles.images.bands] == ["red", "green", "blue"]
    assert [name[:4] for name in tiles.images.classes] == [str(y) for y in YEARS]
    for number in (0, 17, 100, 143):
        year, row, col = number // 48, number % 48 // COLS, number % COLS
        raster = read(scenes / f"naip_{YEARS[year]}0701.tif")
        part = raster.pixels[:, row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE]
        assert np.array_equal(tiles.images.pixels[number], part[:3])
        red, green, _, near = part.astype(float)
        assert tiles.targets["NDVI"][number] == pytest.approx(((near - red) / (near + red)).mean())
        assert tiles.targets["NDWI"][number] == pytest.approx(((green - near) / (green + near)).mean())
        assert (tiles.years[number], tiles.places[number], tiles.strips[number]) == (year, number % 48, col)
        assert tiles.images.ids[number] == f"{YEARS[year]}-07-01/{row}-{col}"
    assert tiles.images.gsd_m == pytest.approx(np.full(144, 5.0), rel=0.01)


def test_tiles_with_a_hole_in_any_year_are_left_out_of_all(tmp_path: Path) -> None:
    found = naip_tiles(make_scenes(tmp_path / "holes", hole=True), side=SIDE)
    assert len(found.images) == len(YEARS) * (ROWS * COLS - 1)
    assert 0 not in found.places


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": 40.0}, "scenes whose corners lie up to 80 apart"),
        ({"only": 1}, "1 scenes with near infrared"),
        ({"side": 64}, "no tile of 64 px"),
    ],
)
def test_scenes_that_cannot_be_compared_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = make_scenes(tmp_path / "x", shift=change.get("shift", 0.0))
    for extra in sorted(folder.iterdir())[change.get("only", 9) :]:
        extra.unlink()
    with pytest.raises(DataError, match=message):
        naip_tiles(folder, side=change.get("side", SIDE))


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_ridge_is_the_solution_of_the_normal_equations(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = 5 + 3 * rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    x[:, 2] = 7.0
    for strength, fit in zip((0.01, 2.0), fit_ridge(x, y, (0.01, 2.0)), strict=True):
        z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), np.inf)
        inner = z.T @ z + strength * len(x) * np.eye(shape[1])
        expected = z @ np.linalg.solve(inner, z.T @ (y - y.mean(0))) + y.mean(0)
        assert np.allclose(fit.predict(x), expected, atol=1e-9)


def test_strength_is_chosen_on_years_that_were_not_fitted_to() -> None:
    rng = np.random.default_rng(0)
    years = np.repeat([0, 1, 2], 20)
    signal, noise = rng.normal(size=60), rng.normal(size=(60, 50))
    x = np.column_stack([signal, noise])
    # the first target is in the features, the second is noise: the least it can do is the strongest penalty
    y = np.column_stack([signal, rng.normal(size=60)])
    first, second = choose_strengths(x, y, years, (1e-4, 1e-2, 1.0, 1e3))
    assert first < 1.0
    assert second == 1e3
    with pytest.raises(AlidadeError, match="tiles of one year"):
        choose_strengths(x, y, np.zeros(60, dtype=np.int64))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_no_tile_has_a_part_in_its_own_prediction(tiles: PhysicsTiles, condition: str) -> None:
    years, places = CONDITIONS[condition]
    rng = np.random.default_rng(0)
    x, y, folds = rng.normal(size=(len(tiles.images), 5)), targets(tiles), [[0], [1], [2]]
    before = predict_apart(x, y, tiles, folds, years=years, places=places)
    assert np.isfinite(before).all()
    # strips 6 to 8 are one part of four; with those beside them they are left out of its fit
    own_year, own_place = tiles.years == 1, np.isin(tiles.strips, (6, 7, 8))
    touched = (own_year & years) | (np.isin(tiles.strips, range(5, 10)) & places)
    own = (own_year | (not years)) & (own_place | (not places))
    changed = np.where(touched[:, None], 9.0, y)
    after = predict_apart(x, changed, tiles, folds, years=years, places=places)
    assert np.array_equal(after[own], before[own])
    # and what is left does have a part
    changed = np.where(touched[:, None], y, y + rng.normal(size=y.shape))
    after = predict_apart(x, changed, tiles, folds, years=years, places=places)
    assert not np.isclose(after[own], before[own]).any(axis=1).all()


def test_same_place_is_the_mean_of_its_other_years(tiles: PhysicsTiles) -> None:
    y = targets(tiles)
    found = same_place(y, tiles, [[0], [2]])
    assert np.allclose(found[:48], (y[48:96] + y[96:]) / 2)
    assert np.isnan(found[48:96]).all()


def test_metrics_are_their_definitions_and_differences_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    years, places = np.repeat([0, 1, 2], 40), np.tile(np.arange(40), 3)
    y = rng.normal(size=120) + years
    good, poor = y + 0.3 * rng.normal(size=120) + 2.0 * (years == 1), rng.normal(size=120)
    r2 = 1 - np.square(y - good).sum() / np.square(y - y.mean()).sum()

    def centred(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([part - part.mean() for part in v.reshape(3, 40)])

    within = np.corrcoef(centred(y), centred(good))[0, 1]
    for metric, expected in (("R²", r2), ("r within a year", within)):
        score = METRICS[metric]
        alone = bootstrap(score, y, [good], years, places, seed=0)
        assert alone.value == pytest.approx(expected, abs=1e-12)
        assert alone.low < alone.value < alone.high
        assert alone.n == 120
        more = bootstrap(score, y, [good, poor], years, places, seed=0)
        other = bootstrap(score, y, [poor], years, places, seed=0)
        assert more.value == pytest.approx(alone.value - other.value)
        assert more.low > 0
        nothing = bootstrap(score, y, [good, good], years, places, seed=0)
        assert (nothing.low, nothing.value, nothing.high) == (0, 0, 0)
    assert bootstrap(METRICS["r within a year"], y, [years * 1.0], years, places, seed=0).value == 0.0


def test_bootstrap_draws_places_with_all_their_years() -> None:
    rng = np.random.default_rng(0)
    place = rng.normal(size=50)
    # the same numbers four times: four years say no more than one
    intervals = []
    for copies in (1, 4):
        y, p = np.tile(place, copies), np.tile(place + rng.normal(size=50) * 0, copies) * 0.5
        years, places = np.repeat(np.arange(copies), 50), np.tile(np.arange(50), copies)
        intervals.append(bootstrap(METRICS["R²"], y, [p], years, places, seed=0))
    assert intervals[0].low == pytest.approx(intervals[1].low)
    assert intervals[0].high == pytest.approx(intervals[1].high)


def knowing(tiles: PhysicsTiles, *, name: str = "knowing") -> Encoder:
    """Features with the answer among them, found again by the blue band that tells it."""

    def embed(pixels: np.ndarray[Any, Any], gsd_m: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
        return pixels[:, 2].mean(axis=(1, 2)).astype(np.float32)[:, None]

    return Encoder(identity=name, config="{}", embed=embed)


def test_rows_are_whole_and_tell_knowing_from_guessing(tiles: PhysicsTiles) -> None:
    blind = Encoder(
        identity="blind", config="{}", embed=lambda pixels, gsd_m, /: pixels[:, 0, :1, 0].astype(np.float32)
    )
    rows = list(measure_physics([knowing(tiles)], tiles, Stamp(commit="c", seed=0), against=blind))
    found = {(r.model, r.condition, r.metric): r for r in rows}
    assert len(found) == len(rows) == 4 + 4 + 12 + 24
    for condition in CONDITIONS:
        assert found["knowing", condition, "NDVI R²"].value > 0.95
        assert found["blind", condition, "NDVI R²"].value < 0.1
        more = found["knowing", condition, "NDVI R² above blind"]
        assert more.low > 0.5
        difference = found["knowing", condition, "NDVI R²"].value - found["blind", condition, "NDVI R²"].value
        assert more.value == pytest.approx(difference)
    mean = found["mean of the years fitted to", OTHER_YEARS, "NDVI R²"]
    assert mean.value <= 0
    # these places change at random from year to year
    assert found["same place in the years fitted to", OTHER_YEARS, "NDVI R²"].value < 0.1
    assert {r.n for r in rows} == {144}


def test_years_may_be_left_out_together(tiles: PhysicsTiles) -> None:
    rows = list(measure_physics([knowing(tiles)], tiles, Stamp(commit="c", seed=0), test_years=[2015]))
    assert {r.n for r in rows} == {48}
    assert {r.condition for r in rows} == {f"{c} (2015)" for c in CONDITIONS}
    with pytest.raises(DataError, match="test years \\[2014\\]"):
        next(measure_physics([], tiles, Stamp(commit="c", seed=0), test_years=[2014]))
    with pytest.raises(AlidadeError, match="tiles of one year, or one strip, to fit to"):
        list(measure_physics([], tiles, Stamp(commit="c", seed=0), test_years=[2012, 2015]))


def test_command_writes_rows(scenes: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register_physics(app)
    app.callback()(lambda: None)
    results = tmp_path / "results.jsonl"
    options = ["--side", SIDE, "--results", results, "--commit", "c", "--json", "--baseline", "band-statistics"]
    done = CliRunner().invoke(app, [str(part) for part in ["physics", scenes, *options]])
    assert done.exit_code == 0, done.output
    rows = load(results)
    assert [r.model for r in rows[-12:]] == ["band mean/std"] * 12
    assert {r.dataset for r in rows} == {"naip/3 years, 8 px"}
    assert json.loads(done.stdout)[0]["protocol"] == "ridge regression of RGB features"


def test_years_are_read() -> None:
    assert parse_years(None) == ()
    assert parse_years("2018, 2020") == (2018, 2020)
    for wrong in ("18", "2018,", "all"):
        with pytest.raises(AlidadeError, match="--test-years"):
            parse_years(wrong)


def test_sample_scenes_can_be_measured() -> None:
    found = naip_tiles(SAMPLES, side=128)
    assert len(found.images) == 5 * 5 * 7
    assert band_statistics(found.images).embed(found.images.pixels[:2], found.images.gsd_m[:2]).shape == (2, 6)
    assert all(np.abs(values).max() < 1 for values in found.targets.values())
