"""The catalogue: complete, sourced, in the provider's order, and equal to its page and to the pack."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alidade.errors import SensorError
from alidade.imagery.bands import Band, Unit
from alidade.imagery.sensors import (
    SENSORS,
    SOURCES,
    generic_multispectral,
    nearest_band,
    sensor,
    stac_common_name,
)

ROOT = Path(__file__).parents[1]
ALL_BANDS = [(s.id, b) for s in SENSORS.values() for b in s.bands]
WAVELENGTHS = st.lists(st.integers(350, 2500), min_size=1, max_size=20, unique=True)


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sensor_statistics", ROOT / "scripts/sensor_statistics.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_sensors_are_listed() -> None:
    assert set(SENSORS) == {
        "sentinel-1-grd",
        "sentinel-1-rtc",
        "sentinel-2-l1c",
        "sentinel-2-l2a",
        "landsat-5",
        "landsat-7",
        "landsat-8",
        "landsat-9",
        "naip-rgb",
        "naip-rgbn",
        "generic-rgb",
        "display-vh",
        "display-sar",
    }
    assert all(key == s.id for key, s in SENSORS.items())


def test_sentinel_2_bands_are_in_the_providers_order() -> None:
    l1c = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    assert SENSORS["sentinel-2-l1c"].band_names == l1c
    assert SENSORS["sentinel-2-l2a"].band_names == tuple(b for b in l1c if b != "B10")


@pytest.mark.parametrize(("identifier", "band"), ALL_BANDS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_figure_is_finite_and_has_a_source(identifier: str, band: Band) -> None:
    assert SENSORS[identifier].band(band.name) is band
    assert len(SOURCES[band.source]) > 40
    assert len(SOURCES[band.statistics_source]) > 40
    assert math.isfinite(band.mean)
    assert band.std > 0
    assert band.gsd_m > 0
    assert band.wavelength_um > 0


def test_every_source_is_used() -> None:
    made = generic_multispectral([0.5], 10)
    used = {k for s in (*SENSORS.values(), made) for b in s.bands for k in (b.source, b.statistics_source)}
    assert used == set(SOURCES)


@pytest.mark.parametrize(
    ("unit", "low", "high"), [(Unit.REFLECTANCE, 0, 1), (Unit.DB, -40, 5), (Unit.DISPLAY, 10, 245)]
)
def test_statistics_lie_in_the_range_of_their_unit(unit: Unit, low: float, high: float) -> None:
    means = [b.mean for s in SENSORS.values() if s.unit is unit for b in s.bands]
    assert means
    assert all(low < m < high for m in means)


def test_common_names_are_unique_within_a_sensor() -> None:
    for s in SENSORS.values():
        named = [b.common_name for b in s.bands if b.common_name]
        assert len(named) == len(set(named)), s.id


def test_optical_bands_lie_in_the_range_of_their_common_name() -> None:
    for identifier, band in ALL_BANDS:
        if band.common_name not in (None, "nir"):
            assert stac_common_name(band.wavelength_um) == band.common_name, (identifier, band.name)


def test_sentinel_1_knows_what_it_does_not_know() -> None:
    for identifier in ("sentinel-1-grd", "sentinel-1-rtc"):
        radar = SENSORS[identifier]
        assert radar.unit is Unit.DB
        assert radar.band("VV").wavelength_um == pytest.approx(55_465.76)
        for copied, like in (("HH", "VV"), ("HV", "VH")):
            assert radar.band(copied).mean == radar.band(like).mean
            assert SOURCES[radar.band(copied).statistics_source].startswith("Not measured")


def test_landsat_takes_sentinel_2_statistics_and_says_so() -> None:
    near, like = SENSORS["landsat-8"].band("nir08"), SENSORS["sentinel-2-l2a"].band("B8A")
    assert (near.mean, near.std) == (like.mean, like.std)
    assert "Sentinel-2 L2A" in SOURCES[near.statistics_source]
    encoding = SENSORS["landsat-9"].native
    assert (encoding.scale, encoding.offset, encoding.nodata) == (2.75e-5, -0.2, 0)


def test_sentinel_2_offset_is_left_to_the_file() -> None:
    native = SENSORS["sentinel-2-l2a"].native
    assert (native.scale, native.offset, native.nodata) == (1e-4, None, 0)


def test_unknown_sensor_names_the_known_and_the_nearest() -> None:
    with pytest.raises(SensorError) as caught:
        sensor("sentinel2-l2a")
    text = str(caught.value)
    assert text.startswith("sensor: got 'sentinel2-l2a', expected one of sentinel-1-grd, ")
    assert text.endswith("Did you mean 'sentinel-2-l2a'? Name it with --sensor.")
    with pytest.raises(SensorError, match=r"generic:WAVELENGTHS@GSD\. Name it with --sensor\.$"):
        sensor("?")


def test_sensor_names_ignore_case_and_blanks() -> None:
    assert sensor(" Sentinel-2-L2A ") is SENSORS["sentinel-2-l2a"]


@given(WAVELENGTHS, st.floats(0.01, 10_000))
def test_generic_sensor_is_described_in_full_by_its_id(nanometres: list[int], gsd_m: float) -> None:
    made = generic_multispectral([n / 1000 for n in nanometres], gsd_m)
    assert sensor(made.id) == made
    assert len(made.bands) == len(nanometres)


@given(WAVELENGTHS)
def test_generic_bands_take_the_nearest_sentinel_2_statistics(nanometres: list[int]) -> None:
    surface = SENSORS["sentinel-2-l2a"]
    for n, band in zip(nanometres, generic_multispectral([n / 1000 for n in nanometres], 10).bands, strict=True):
        assert band.name == f"W{n / 1000:.3f}"
        like = nearest_band(surface.bands, n / 1000)
        assert all(
            abs(like.wavelength_um - band.wavelength_um) <= abs(b.wavelength_um - band.wavelength_um)
            for b in surface.bands
        )
        assert (band.mean, band.std) == (like.mean, like.std)
        assert "nearest centre wavelength" in SOURCES[band.statistics_source]


def test_generic_common_names() -> None:
    names = [0.443, 0.49, 0.515, 0.525, 0.56, 0.61, 0.665, 0.705, 0.74, 0.783, 0.842, 0.945, 1.2, 1.61, 2.2]
    visible = "coastal blue blue green green None red rededge071 rededge075 rededge078"
    expected = f"{visible} nir08 nir09 None swir16 swir22"
    assert [str(b.common_name) for b in generic_multispectral(names, 5).bands] == expected.split()


@pytest.mark.parametrize(
    ("wavelengths", "got"),
    [([], "none"), ([490, 560], "490, 560"), ([0.49, 0.4901], "0.49, 0.49"), ([math.nan], "nan")],
)
def test_generic_refuses_wavelengths(wavelengths: list[float], got: str) -> None:
    with pytest.raises(SensorError) as caught:
        generic_multispectral(wavelengths, 10)
    assert str(caught.value) == (
        f"generic multispectral sensor: wavelengths: got {got}, expected different centre wavelengths in "
        "micrometres, 0.35 to 2.5, at least 1 nm apart. Give one wavelength per band in file order; divide "
        "nanometres by 1000."
    )


@pytest.mark.parametrize("gsd_m", [0.0, -1.0, 20_000.0, math.nan])
def test_generic_refuses_absurd_gsd(gsd_m: float) -> None:
    with pytest.raises(SensorError, match=r"ground sample distance: got .* m, expected 0\.01 to 10000 m"):
        generic_multispectral([0.5], gsd_m)


@pytest.mark.parametrize("text", ["generic:", "generic:0.5", "generic:red@10", "generic:0.5,@10"])
def test_generic_description_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SensorError, match=r"expected generic:WAVELENGTHS@GSD, such as generic:0\.490"):
        sensor(text)


def test_page_equals_catalogue() -> None:
    page = (ROOT / "docs/sensors.md").read_text(encoding="utf-8")
    assert page == load_script().catalogue_page()
    for identifier, band in ALL_BANDS:
        assert f"`{identifier}`" in page
        assert f"| {band.name} |" in page


def pack() -> Path:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("set ALIDADE_PACK to the data pack")
    return Path(os.environ["ALIDADE_PACK"])


@pytest.mark.pack
def test_generic_rgb_is_what_the_pack_gives() -> None:
    script = load_script()
    count, mean, std = script.statistics(script.generic_rgb(pack()))
    bands = SENSORS["generic-rgb"].bands
    assert count == 110_033_289
    # decoders of JPEG differ in the last bit
    assert mean == pytest.approx([b.mean for b in bands], abs=0.05)
    assert std == pytest.approx([b.std for b in bands], abs=0.05)


@pytest.mark.pack
@pytest.mark.parametrize(
    "identifier", ["sentinel-1-grd", "sentinel-1-rtc", "sentinel-2-l1c", "sentinel-2-l2a", "naip-rgbn"]
)
def test_published_statistics_fit_the_pack(identifier: str) -> None:
    """A slip of unit, offset or band order moves a mean by far more than the pack's few places do."""
    script = load_script()
    count, mean, std = script.statistics(script.COMPUTED[identifier](pack()))
    assert count > 100_000
    for band, m, s in zip(SENSORS[identifier].bands, mean, std, strict=False):
        assert abs(m - band.mean) < 1.2 * band.std, band.name
        assert 0.35 < s / band.std < 2.6, band.name


@pytest.mark.pack
def test_cirrus_and_narrow_infrared_are_not_swapped_in_eurosat() -> None:
    script = load_script()
    _, mean, _ = script.statistics(script.sentinel_2_l1c(pack()))
    by_name = dict(zip(script.L1C, mean, strict=True))
    assert by_name["B10"] < 0.01
    assert by_name["B8A"] > 0.2
