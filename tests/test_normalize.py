"""Normalisation: declared units only, bands by name, nothing invalid reaches a logarithm or a statistic."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pyproj import CRS

from alidade.errors import SensorError, WeightsError
from alidade.imagery.bands import Band, Encoding, Unit
from alidade.imagery.clouds import reflectance_cloud_share
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import DB_FLOOR, METHODS, Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import SENSORS

S1, S2, RGB = SENSORS["sentinel-1-grd"], SENSORS["sentinel-2-l2a"], SENSORS["generic-rgb"]
DB, POWER = Encoding(unit=Unit.DB), Encoding(unit=Unit.POWER)
REFLECTANCE = Encoding(unit=Unit.REFLECTANCE)
RNG = np.random.default_rng(20261121)


def make(
    pixels: NDArray[np.generic],
    names: tuple[str, ...],
    encoding: Encoding,
    valid: NDArray[np.bool_] | None = None,
    sensor: str = "sentinel-2-l2a",
) -> Raster:
    height, width = pixels.shape[1:]
    return Raster(
        pixels=pixels,
        bands=tuple(SENSORS[sensor].band(n) for n in names),
        encodings=(encoding,) * len(names),
        valid=np.ones((height, width), dtype=np.bool_) if valid is None else valid,
        grid=Grid(crs=CRS(32632), transform=Affine(10, 0, 5e5, 0, -10, 5e6), width=width, height=height),
        sensor=SENSORS[sensor],
        time=None,
        source="made.tif",
    )


def radar(pixels: NDArray[np.generic], encoding: Encoding, valid: NDArray[np.bool_] | None = None) -> Raster:
    return make(pixels, ("VV", "VH"), encoding, valid, sensor="sentinel-1-grd")


REFLECTANCES = hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1.5, width=32))
MASKS = hnp.arrays(np.bool_, (4, 5))
POWERS = hnp.arrays(np.float32, (2, 4, 5), elements=st.floats(2**-16, 8, width=32))


def test_standard_is_what_it_says() -> None:
    norm = Normalization.for_sensor(S2, ["red", "B8A"])
    assert norm.bands == ("B04", "B8A")
    red = S2.band("B04")
    pixels = np.full((2, 1, 1), red.mean + 2 * red.std, dtype=np.float32)
    values, good = norm.apply(make(pixels, ("B04", "B8A"), REFLECTANCE))
    assert values[0, 0, 0] == pytest.approx(2, abs=1e-5)
    assert values.dtype == np.float32
    assert good.dtype == np.bool_
    assert good.all()


def test_two_sigma_is_what_it_says() -> None:
    norm = Normalization(bands=("B04",), unit=Unit.REFLECTANCE, mean=(0.5,), std=(0.1,), method="two-sigma")
    pixels = np.array([[[0.0, 0.3, 0.5, 0.7, 9.0]]], dtype=np.float32)
    values, _ = norm.apply(make(pixels, ("B04",), REFLECTANCE))
    assert values[0, 0] == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)


@given(REFLECTANCES)
def test_undo_gives_the_reflectance_back(pixels: NDArray[np.float32]) -> None:
    norm = Normalization.for_sensor(S2, ["B02", "B03", "B04"])
    values, _ = norm.apply(make(pixels, norm.bands, REFLECTANCE))
    assert norm.undo(values) == pytest.approx(pixels, abs=1e-6)


@given(hnp.arrays(np.float32, (1, 4, 5), elements=st.floats(0, 0.375, width=32)))
def test_undo_gives_two_sigma_back_between_its_bounds(pixels: NDArray[np.float32]) -> None:
    norm = Normalization.for_sensor(S2, ["B04"], "two-sigma")
    values, _ = norm.apply(make(pixels, norm.bands, REFLECTANCE))
    assert norm.undo(values) == pytest.approx(pixels, abs=1e-6)


@given(st.permutations(S2.band_names))
def test_band_order_of_the_file_changes_nothing(order: list[str]) -> None:
    norm = Normalization.for_sensor(S2, S2.band_names)
    pixels = RNG.integers(1, 8000, (12, 3, 4), dtype=np.uint16)
    encoding = replace(S2.native, offset=0.0)
    straight = make(pixels, S2.band_names, encoding)
    shuffled = make(pixels[[S2.band_names.index(n) for n in order]], tuple(order), encoding)
    assert np.array_equal(norm.apply(straight)[0], norm.apply(shuffled)[0])


@pytest.mark.parametrize("method", METHODS)
@given(pixels=REFLECTANCES, valid=MASKS)
def test_invalid_pixels_are_zero_and_alter_no_other(
    method: str, pixels: NDArray[np.float32], valid: NDArray[np.bool_]
) -> None:
    norm = Normalization.for_sensor(S2, ["B02", "B03", "B04"], method)
    whole, _ = norm.apply(make(pixels, norm.bands, REFLECTANCE))
    spoilt = np.where(valid, pixels, np.float32(np.nan))
    values, good = norm.apply(make(spoilt, norm.bands, REFLECTANCE, valid))
    assert np.array_equal(good, valid)
    assert np.array_equal(values[:, valid], whole[:, valid])
    assert not values[:, ~valid].any()


def test_one_bad_band_makes_the_pixel_bad_in_all() -> None:
    pixels = np.full((2, 1, 3), 0.3, dtype=np.float32)
    pixels[0, 0, 0], pixels[1, 0, 1] = np.nan, np.inf
    values, good = Normalization.for_sensor(S2, ["B03", "B04"]).apply(make(pixels, ("B03", "B04"), REFLECTANCE))
    assert good.tolist() == [[False, False, True]]
    assert not values[:, 0, :2].any()
    assert np.isfinite(values).all()


def test_sentinel_2_offset_touches_no_nodata_and_keeps_dark_water_at_zero() -> None:
    pixels = np.array([[[0, 900, 1000, 2000]]], dtype=np.uint16)
    encoding = replace(S2.native, offset=-0.1)
    norm = Normalization.for_sensor(S2, ["B02"])
    values, good = norm.apply(make(pixels, ("B02",), encoding, pixels[0] != 0))
    assert good.tolist() == [[False, True, True, True]]
    assert values[0, 0, 0] == 0
    assert norm.undo(values)[0, 0, 1:] == pytest.approx([0, 0, 0.1], abs=1e-6)


@given(REFLECTANCES)
def test_both_baselines_give_the_same_values(pixels: NDArray[np.float32]) -> None:
    stored = np.round(pixels * 10_000).astype(np.uint16)
    norm = Normalization.for_sensor(S2, ["B02", "B03", "B04"])
    old, _ = norm.apply(make(stored, norm.bands, replace(S2.native, offset=0.0)))
    new, _ = norm.apply(make(stored + np.uint16(1000), norm.bands, replace(S2.native, offset=-0.1)))
    assert old == pytest.approx(new, abs=1e-5)


@given(POWERS)
def test_power_and_db_of_the_same_ground_agree(power: NDArray[np.float32]) -> None:
    norm = Normalization.for_sensor(S1, ["VV", "VH"])
    from_power, _ = norm.apply(radar(power, POWER))
    from_db, _ = norm.apply(radar((10 * np.log10(power)).astype(np.float32), DB))
    assert from_power == pytest.approx(from_db, abs=1e-4)


@given(POWERS, MASKS)
def test_power_without_logarithm_is_masked_and_alters_no_other(
    power: NDArray[np.float32], hit: NDArray[np.bool_]
) -> None:
    norm = Normalization.for_sensor(S1, ["VV", "VH"])
    whole, _ = norm.apply(radar(power, POWER))
    for bad in (0.0, -1.0, np.nan, np.inf, -np.inf):
        spoilt = power.copy()
        spoilt[1, hit] = bad
        values, good = norm.apply(radar(spoilt, POWER))
        assert np.array_equal(good, ~hit)
        assert np.array_equal(values[:, ~hit], whole[:, ~hit])
        assert not values[:, hit].any()


def test_backscatter_below_the_floor_is_raised_to_it_in_both_units() -> None:
    norm = Normalization.for_sensor(S1, ["VV", "VH"])
    for stored, encoding in ((-57.0, DB), (10**-5.7, POWER)):
        values, good = norm.apply(radar(np.full((2, 1, 1), stored, dtype=np.float32), encoding))
        assert good.all()
        assert norm.undo(values) == pytest.approx(DB_FLOOR, abs=1e-4)


def test_a_raster_may_mix_power_and_db() -> None:
    norm = Normalization.for_sensor(S1, ["VV", "VH"])
    mixed = replace(radar(np.array([[[0.1]], [[-20.0]]], dtype=np.float32), DB), encodings=(POWER, DB))
    values, _ = norm.apply(mixed)
    assert norm.undo(values).ravel() == pytest.approx([-10, -20], abs=1e-4)


@pytest.mark.parametrize(
    ("norm", "unit", "expected"),
    [
        (Normalization.for_sensor(S2, ["B04"]), Unit.DISPLAY, "reflectance"),
        (Normalization.for_sensor(S2, ["B04"]), Unit.DB, "reflectance"),
        (Normalization.for_sensor(S2, ["B04"]), Unit.CLASS, "reflectance"),
        (replace(Normalization.for_sensor(RGB, ["R"]), bands=("B04",)), Unit.REFLECTANCE, "display"),
        (replace(Normalization.for_sensor(S1, ["VV"]), bands=("B04",)), Unit.REFLECTANCE, "dB or power"),
    ],
)
def test_units_are_never_mixed(norm: Normalization, unit: Unit, expected: str) -> None:
    raster = make(np.full((1, 2, 2), 0.5, dtype=np.float32), ("B04",), Encoding(unit=unit))
    with pytest.raises(SensorError) as caught:
        norm.apply(raster)
    assert str(caught.value) == (
        f"made.tif: unit of band B04: got {unit}, expected {expected}. Units are never guessed or mixed: "
        "declare another with --unit if this one is wrong; if it is right, use a model made for it."
    )


def test_magnitude_is_never_looked_at() -> None:
    """Reflectance that looks like 8-bit display values is still reflectance."""
    norm = Normalization.for_sensor(S2, ["B04"])
    raster = make(np.full((1, 1, 1), 200.0, dtype=np.float32), ("B04",), REFLECTANCE)
    assert norm.undo(norm.apply(raster)[0])[0, 0, 0] == pytest.approx(200)


def test_unresolved_offset_and_missing_band_are_refused() -> None:
    pixels = np.ones((1, 2, 2), dtype=np.uint16)
    with pytest.raises(SensorError, match="offset of band B04"):
        Normalization.for_sensor(S2, ["B04"]).apply(make(pixels, ("B04",), S2.native))
    with pytest.raises(SensorError, match=r"made\.tif: band: got 'B03', expected one of B04"):
        Normalization.for_sensor(S2, ["B03"]).apply(make(pixels, ("B04",), REFLECTANCE))


def test_applying_leaves_the_raster_alone() -> None:
    raster = radar(np.full((2, 3, 3), 0.2, dtype=np.float32), POWER)
    before = raster.pixels.copy()
    Normalization.for_sensor(S1, ["VV", "VH"]).apply(raster)
    assert np.array_equal(raster.pixels, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("identifier", SENSORS)
def test_json_round_trip_is_exact(identifier: str, method: str) -> None:
    norm = Normalization.for_sensor(SENSORS[identifier], SENSORS[identifier].band_names, method)
    assert Normalization.from_json(norm.to_json()) == norm


GOOD = json.loads(Normalization.for_sensor(S2, ["B04"]).to_json())


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "got text that is no JSON"),
        ("[]", "got keys none"),
        (json.dumps({**GOOD, "extra": 1}), "got keys bands, extra, mean, method, std, unit"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "std"}), "got keys bands, mean, method, unit"),
        (json.dumps({**GOOD, "bands": "B04"}), "got bands 'B04'"),
        (json.dumps({**GOOD, "mean": ["0.1"]}), r"got mean \['0\.1'\]"),
        (json.dumps({**GOOD, "std": [True]}), r"got std \[True\]"),
        (json.dumps({**GOOD, "unit": "percent"}), "unit 'percent'"),
        (json.dumps({**GOOD, "unit": ["dB"]}), r"unit \['dB'\]"),
        (json.dumps({**GOOD, "method": 1}), "got method 1"),
    ],
)
def test_damaged_json_is_refused(text: str, got: str) -> None:
    with pytest.raises(WeightsError, match=got) as caught:
        Normalization.from_json(text)
    assert "expected JSON with exactly bands, unit, mean, std and method. Save the weights" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": ()}, "got 0 bands, 1 means, 1 deviations, expected at least one band"),
        ({"mean": (0.1, 0.2)}, "got 1 bands, 2 means, 1 deviations"),
        (
            {"bands": ("B04", "b04"), "mean": (0.1, 0.1), "std": (1.0, 1.0)},
            "got bands B04, b04, expected each",
        ),
        ({"std": (0.0,)}, "expected finite means and finite, positive deviations"),
        ({"mean": (float("nan"),)}, "expected finite means"),
        ({"method": "min-max"}, "got method 'min-max', expected one of standard, two-sigma"),
        ({"unit": Unit.POWER}, "got unit power, expected one of dB, reflectance, display"),
    ],
)
def test_unusable_statistics_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SensorError, match=message) as caught:
        replace(Normalization.for_sensor(S2, ["B04"]), **change)
    assert str(caught.value).endswith("Build it with Normalization.for_sensor.")


def test_for_sensor_refuses_a_band_named_twice() -> None:
    with pytest.raises(SensorError, match="expected each band once"):
        Normalization.for_sensor(S2, ["B04", "red"])


SCL = Band(
    name="SCL",
    common_name=None,
    wavelength_um=0.0,
    bandwidth_um=None,
    gsd_m=20.0,
    mean=0.0,
    std=1.0,
    source="esa-s2-msi",
    statistics_source="esa-s2-msi",
)


def classified(classes: list[int], valid: list[bool]) -> Raster:
    raster = make(np.array([[classes]], dtype=np.uint8), ("B04",), REFLECTANCE, np.array([valid]))
    return replace(raster, bands=(SCL,), encodings=(Encoding(unit=Unit.CLASS),))


def test_scene_classification_is_counted_over_valid_pixels() -> None:
    classes = [3, 8, 9, 10, 4, 5, 6, 7, 0, 9]
    assert reflectance_cloud_share(classified(classes, [True] * 9 + [False])) == pytest.approx(4 / 8)
    assert reflectance_cloud_share(classified([0, 4], [True, False])) is None


@pytest.mark.parametrize(
    ("green", "red", "cloud"),
    [
        (0.18, 0.17, True),
        (0.18, 0.19, False),
        (0.17, 0.10, False),
        (0.40, 0.60, True),
        (0.38, 0.60, False),
        (0.20, -0.20, False),
        (0.20, -0.30, False),
    ],
)
def test_bright_and_green_is_cloud(green: float, red: float, cloud: bool) -> None:
    pixels = np.array([[[red]], [[green]]], dtype=np.float32)
    assert reflectance_cloud_share(make(pixels, ("B04", "B03"), REFLECTANCE)) == float(cloud)


@given(REFLECTANCES, MASKS)
def test_cloud_share_looks_at_valid_pixels_only(pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    names = ("B02", "B03", "B04")
    share = reflectance_cloud_share(make(pixels, names, REFLECTANCE, valid))
    other = reflectance_cloud_share(make(np.where(valid, pixels, 9), names, REFLECTANCE, valid))
    assert share == other
    assert share is None if not valid.any() else share is not None and 0 <= share <= 1


def test_cloud_share_is_not_told_where_it_cannot_be() -> None:
    assert reflectance_cloud_share(radar(np.full((2, 2, 2), -10.0), DB)) is None
    display = make(np.full((3, 2, 2), 255, dtype=np.uint8), ("R", "G", "B"), RGB.native, sensor="generic-rgb")
    assert reflectance_cloud_share(display) is None
    assert reflectance_cloud_share(make(np.ones((1, 2, 2)), ("B03",), REFLECTANCE)) is None


@pytest.mark.pack
@pytest.mark.parametrize(
    ("place", "low", "high"),
    [("609U_541L_3_0", 0.5, 1.0), ("38D_378R_2_3", 0.0, 0.05), ("282D_485L_3_3", 0.0, 0.2)],
)
def test_clouds_in_the_pack(place: str, low: float, high: float) -> None:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("set ALIDADE_PACK to the data pack")
    with rasterio.open(Path(os.environ["ALIDADE_PACK"]) / f"s1s2/terramesh/S2L2A/{place}.tif") as file:
        raster = make(file.read(), S2.band_names, replace(S2.native, offset=0.0))
    share = reflectance_cloud_share(raster)
    assert share is not None
    assert low <= share <= high
