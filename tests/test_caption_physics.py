"""Captions made from labels, land cover and physics: shares agree with plain numpy, sentences with shares."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from alidade.errors import SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import read
from alidade.imagery.grid import Grid
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.training.captions.captioned import CaptionError
from alidade.training.captions.cover import (
    TERRAMESH,
    TERRAMESH_NO_COVER,
    WORLDCOVER,
    cover_captions,
    cover_sentences,
    cover_shares,
)
from alidade.training.captions.labels import EUROSAT, FORMS, UCMERCED, class_words, label_captions, sentences
from alidade.training.captions.physics import WORDS, indices, physics_captions, surface, surface_shares

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
OPTICAL = sorted([*(SAMPLES / "naip").glob("*.tif"), *(SAMPLES / "sentinel-2").glob("*.tif")])


def plain_shares(path: Path) -> dict[str, float]:
    """Straight from the file, by rasterio and numpy in double precision."""
    with rasterio.open(path) as file:
        names = list(file.descriptions)
        stored = file.read().astype(np.float64)
        valid = file.dataset_mask() > 0
        scale, offset = np.array(file.scales), np.array(file.offsets)
    reflectance = "B08" in names
    green, red, near = (names.index(n) for n in (("B03", "B04", "B08") if reflectance else ("G", "R", "N")))
    values = stored * scale[:, None, None] + offset[:, None, None]
    values = values.clip(0) if (offset < 0).any() else values
    g, r, n = values[green], values[red], values[near]
    valid &= (g + n > 0) & (r + n > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ndwi, ndvi = (g - n) / (g + n), (n - r) / (n + r)
    bright = (g > 0.39) if reflectance else np.zeros_like(valid)
    water = (ndwi > 0) & ~bright
    land = ~water & ~bright
    masks = {
        "open water": water, "dense vegetation": land & (ndvi >= 0.5),
        "sparse vegetation": land & (ndvi >= 0.2) & (ndvi < 0.5), "bare ground": land & (ndvi < 0.2),
        "cloud or snow": bright,
    }  # fmt: skip
    return {word: float((mask & valid).sum() / valid.sum()) for word, mask in masks.items()}


@pytest.mark.parametrize("path", OPTICAL, ids=lambda p: p.stem)
def test_shares_of_real_scenes_agree_with_plain_numpy(path: Path) -> None:
    shares = surface_shares(read(path))
    expected = plain_shares(path)
    assert sum(shares.values()) == pytest.approx(1.0)
    # pixels on a limit may fall to either side of it in single precision
    for word, share in expected.items():
        assert shares.get(word, 0.0) == pytest.approx(share, abs=2e-3), word


def test_what_the_scenes_are_known_to_show_is_said() -> None:
    def first(name: str) -> str:
        return next(iter(surface_shares(read(SAMPLES / "sentinel-2" / f"{name}.tif"))))

    assert first("eurosat_SeaLake_984") == first("eurosat_SeaLake_1399") == "open water"
    assert first("eurosat_Forest_127") == first("eurosat_Pasture_310") == "dense vegetation"
    assert first("terramesh-l2a_609U_541L_3_0") == "cloud or snow"
    water = [surface_shares(read(p)).get("open water", 0.0) for p in sorted((SAMPLES / "naip").glob("*.tif"))]
    assert min(water) > 0.1
    assert max(water) < 0.4


def scene(green: list[float], red: list[float], near: list[float], unit: Unit = Unit.REFLECTANCE) -> Raster:
    """One row of pixels in reflectance x 10,000, or in counts."""
    found = sensor("sentinel-2-l2a" if unit is not Unit.DISPLAY else "naip-rgbn")
    names = ("B03", "B04", "B08") if unit is not Unit.DISPLAY else ("G", "R", "N")
    pixels = np.array([green, red, near], dtype=np.int32)[:, None]
    encoding = Encoding(unit=unit, scale=1e-4 if unit is Unit.REFLECTANCE else 1.0, offset=0.0)
    return Raster(
        pixels=pixels, bands=tuple(found.band(n) for n in names), encodings=(encoding,) * 3,
        valid=np.ones(pixels.shape[1:], dtype=np.bool_), sensor=found, time=None, source="made.tif",
        grid=Grid(crs=None, transform=rasterio.Affine.identity(), width=len(green), height=1, gsd_override_m=10.0),
    )  # fmt: skip


def test_made_pixels_fall_on_the_right_side_of_every_limit() -> None:
    # water, its limit (NDWI 0, NDVI 0), NDVI 0.5 exactly, just below, NDVI 0.2 exactly, just below, snow, cloud
    raster = scene(
        green=[800, 500, 500, 500, 500, 500, 8000, 3901],
        red=[400, 500, 1000, 1001, 2000, 2001, 7800, 3900],
        near=[200, 500, 3000, 3000, 3000, 3000, 6000, 5000],
    )
    assert surface(raster)[0].tolist() == [1, 4, 2, 3, 3, 4, 5, 5]
    found = indices(raster)
    np.testing.assert_allclose(found.ndwi[0, :3], [0.6, 0.0, -2500 / 3500], rtol=1e-6)
    np.testing.assert_allclose(found.ndvi[0, :3], [-200 / 600, 0.0, 0.5], rtol=1e-6)


def test_counts_are_never_taken_for_clouds() -> None:
    raster = scene(green=[250, 200], red=[240, 100], near=[251, 90], unit=Unit.DISPLAY)
    assert surface(raster)[0].tolist() == [4, 1]


def test_invalid_and_undefined_pixels_are_never_counted() -> None:
    raster = scene(green=[800, 500, 0, 500], red=[400, 400, 0, 1000], near=[200, 3000, 0, 3000])
    raster.valid[0, 0] = False
    assert surface(raster)[0].tolist() == [0, 2, 0, 2]
    assert surface_shares(raster) == {"dense vegetation": 1.0}
    found = indices(raster)
    assert np.isnan(found.ndvi[~found.known]).all()
    raster.valid[:] = False
    with pytest.raises(CaptionError, match="made.tif: pixels: got none that tells anything"):
        surface_shares(raster)


def test_the_offset_of_later_sentinel_2_products_is_taken_off() -> None:
    plain = scene(green=[800, 500], red=[400, 1000], near=[200, 3000])
    added = replace(
        plain, pixels=plain.pixels + 1000,
        encodings=tuple(replace(e, offset=-0.1) for e in plain.encodings),
    )  # fmt: skip
    np.testing.assert_allclose(indices(added).ndwi, indices(plain).ndwi, atol=1e-5)
    unknown = replace(plain, encodings=tuple(replace(e, offset=None) for e in plain.encodings))
    with pytest.raises(SensorError, match="offset"):
        surface_shares(unknown)


def test_landsat_reads_its_infrared_by_the_other_name() -> None:
    landsat = sensor("landsat-8")
    raster = replace(
        scene(green=[9000], red=[8500], near=[18000]),
        bands=tuple(landsat.band(n) for n in ("SR_B3", "SR_B4", "SR_B5")),
        encodings=(landsat.native,) * 3, sensor=landsat,
    )  # fmt: skip
    red, near = 8500 * 2.75e-5 - 0.2, 18000 * 2.75e-5 - 0.2
    assert indices(raster).ndvi[0, 0] == pytest.approx((near - red) / (near + red), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ucmerced/river00.tif", "bands: got R, G, B of generic-rgb, expected green, red and near infrared"),
        ("sentinel-1/bigearthnet_29UPU_36_85.tif", "bands: got VV, VH of sentinel-1-grd"),
    ],
)
def test_images_without_the_bands_are_refused(path: str, message: str) -> None:
    with pytest.raises(CaptionError, match=message):
        surface_shares(read(SAMPLES / path))


def test_units_that_are_no_light_or_mixed_are_refused() -> None:
    raster = scene(green=[1], red=[1], near=[1])
    odd = replace(raster.encodings[0], unit=Unit.DISPLAY)
    with pytest.raises(CaptionError, match="units: got display, reflectance"):
        indices(replace(raster, encodings=(odd, *raster.encodings[1:])))
    power = replace(raster.encodings[0], unit=Unit.POWER)
    with pytest.raises(CaptionError, match="units: got power"):
        indices(replace(raster, encodings=(power,) * 3))


def test_physics_captions_come_from_the_generator_alone() -> None:
    raster = read(SAMPLES / "sentinel-2" / "eurosat_River_2491.tif")
    first = physics_captions(raster, np.random.default_rng(4))
    assert first == physics_captions(raster, np.random.default_rng(4))
    assert len(set(first)) == 5
    assert first != physics_captions(raster, np.random.default_rng(5))
    assert all("sparse vegetation" in s for s in first)


def test_how_many_sentences_physics_has_for_the_samples() -> None:
    said = {s for p in OPTICAL for s in cover_sentences(surface_shares(read(p)))}
    assert len(said) == 882
    assert max(map(len, said)) <= 130


# --- land cover --------------------------------------------------------------------------------------------------


def test_the_sentence_of_the_brief() -> None:
    said = cover_sentences({"cropland": 0.7, "trees": 0.22, "water": 0.08})
    assert said[0] == "mostly cropland, with some trees and a little water"
    assert len(said) == len(set(said)) == 35


@pytest.mark.parametrize(
    ("shares", "first"),
    [
        ({"water": 1.0}, "water"),
        ({"water": 0.95, "trees": 0.05}, "water"),
        ({"water": 0.94, "trees": 0.06}, "mostly water, with a few trees"),
        ({"trees": 0.9, "moss and grass": 0.1}, "mostly trees, with a little moss and grass"),
        ({"water": 0.5, "trees": 0.5}, "mostly trees, with some water"),
        ({"water": 0.45, "grassland": 0.35, "cropland": 0.2}, "a mix of water and grassland, with some cropland"),
        ({"water": 0.9, **{f"c{i}": 0.02 for i in range(5)}}, "mostly water"),
        ({"water": 0.42, **{f"c{i}": 0.029 for i in range(20)}}, "water"),
    ],
)
def test_amounts_have_the_words_that_are_stated(shares: dict[str, float], first: str) -> None:
    assert cover_sentences(shares)[0] == first


def test_nothing_below_three_percent_is_named_and_everything_else_is_in_most_sentences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = list(WORLDCOVER.values())
        shares = dict(zip(words, rng.dirichlet(np.full(len(words), 0.3)), strict=True))
        ranked = sorted(words, key=lambda w: -shares[w])
        named = {w for w in words if shares[w] >= 0.03} if shares[ranked[0]] < 0.95 else {ranked[0]}
        said = cover_sentences(shares)
        plain = [s.replace("the ground here", "").replace("land cover", "") for s in said]
        found = [{w for w in words if w in s} for s in plain]
        assert all(f <= named and ranked[0] in f for f in found), (said, shares)
        assert sum(f == named for f in found) >= 0.8 * len(said), (said, shares)


def test_cover_shares_count_valid_land_only() -> None:
    classes = np.array([[10, 10, 40, 0], [80, 255, 40, 40]], dtype=np.uint8)
    assert cover_shares(classes, WORLDCOVER) == pytest.approx({"cropland": 0.5, "trees": 1 / 3, "water": 1 / 6})
    valid = np.array([[True, False, True, True], [False, True, True, False]])
    assert cover_shares(classes, WORLDCOVER, valid=valid) == pytest.approx({"cropland": 2 / 3, "trees": 1 / 3})
    assert list(cover_shares(classes, WORLDCOVER)) == ["cropland", "trees", "water"]


@pytest.mark.parametrize(
    ("classes", "valid", "message"),
    [
        (np.array([[10, 11]]), None, "class 11, expected one of 10 trees"),
        (np.array([[0, 255]]), None, "no pixel with land cover"),
        (np.array([[10.0]]), None, "float64.*whole numbers"),
        (np.array([[10, 20]]), np.array([True]), r"a mask \(1,\)"),
    ],
)
def test_maps_of_other_classes_are_refused(classes: np.ndarray, valid: np.ndarray | None, message: str) -> None:
    with pytest.raises(CaptionError, match=message):
        cover_shares(classes, WORLDCOVER, valid=valid)


@pytest.mark.parametrize("shares", [{}, {"water": 0.5}, {"water": 1.2, "trees": -0.2}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(CaptionError, match="1 together"):
        cover_sentences(shares)


def test_cover_captions_are_drawn_evenly_and_repeatably() -> None:
    shares = {"cropland": 0.7, "trees": 0.22, "water": 0.08}
    rng = np.random.default_rng(1)
    counts = Counter(s for _ in range(700) for s in cover_captions(shares, rng))
    assert len(counts) == 35
    assert max(counts.values()) < 1.5 * 100
    assert min(counts.values()) > 0.5 * 100
    assert cover_captions(shares, np.random.default_rng(2)) == cover_captions(shares, np.random.default_rng(2))
    assert len(cover_captions(shares, rng, count=99)) == 35


@pytest.mark.pack
def test_terramesh_maps_of_the_pack_mean_what_their_pixels_show() -> None:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("set ALIDADE_PACK to the data pack")
    root = Path(os.environ["ALIDADE_PACK"]) / "s1s2" / "terramesh"
    seen: dict[str, dict[str, float]] = {}
    for path in sorted((root / "LULC").glob("*.tif")):
        with rasterio.open(path) as file:
            seen[path.stem] = cover_shares(file.read(1), TERRAMESH, no_cover=TERRAMESH_NO_COVER)
    assert {place: next(iter(shares)) for place, shares in seen.items()} == {
        "282D_485L_3_3": "water", "38D_378R_2_3": "rangeland", "433D_629L_3_1": "cropland",
        "609U_541L_3_0": "snow and ice",
    }  # fmt: skip
    with rasterio.open(root / "LULC" / "282D_485L_3_3.tif") as file:
        classes = file.read(1)
    with rasterio.open(root / "NDVI" / "282D_485L_3_3.tif") as file:
        ndvi = file.read(1)
    there = {word: number for number, word in TERRAMESH.items() if (classes == number).any()}
    medians = {word: float(np.median(ndvi[classes == number])) for word, number in there.items()}
    assert medians["water"] < 0 < medians["bare ground"] < 0.2 < medians["rangeland"] < 0.7 < medians["trees"]


# --- labels ------------------------------------------------------------------------------------------------------

EUROSAT_PRINTED = {
    "AnnualCrop": "annual crop", "Forest": "forest", "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway", "Industrial": "industrial area", "Pasture": "pasture", "PermanentCrop": "permanent crop",
    "Residential": "residential area", "River": "river", "SeaLake": "sea or lake",
}  # fmt: skip


def test_printed_names_of_both_data_sets() -> None:
    assert {n: class_words(n).printed for n in EUROSAT} == EUROSAT_PRINTED
    assert len(UCMERCED) == 21
    assert class_words("mobilehomepark").printed == "mobile home park"
    for table in (EUROSAT, UCMERCED):
        printed = [w.printed for w in table.values()]
        assert len(set(printed)) == len(printed)
        assert not any(c.isupper() or c == "_" for name in printed for c in name)


def test_every_class_has_several_phrases_that_no_other_class_has() -> None:
    for table in (EUROSAT, UCMERCED):
        assert min(len(w.phrases) for w in table.values()) >= 4
        uses = Counter(p for w in table.values() for p in w.phrases)
        assert [p for p, n in uses.items() if n > 1] == []


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("annual_crop", "annual crop"), ("Sea/Lake", "sea or lake"), ("RIVER", "river"), ("SolarPanel", "solar panel"),
        ("solar_panel", "solar panel"), ("wind-turbine", "wind turbine"), ("NPPlant", "np plant"), (" Bog ", "bog"),
    ],
)  # fmt: skip
def test_any_class_name_becomes_words(name: str, printed: str) -> None:
    assert class_words(name).printed == printed


def test_a_class_without_a_name_is_refused_and_so_is_no_caption() -> None:
    with pytest.raises(CaptionError, match="' _ '"):
        class_words(" _ ")
    with pytest.raises(CaptionError, match="got 0"):
        label_captions(["river"], np.random.default_rng(0), count=0)


def test_how_many_sentences_the_grammar_has() -> None:
    counts = {}
    for name, table in (("eurosat", EUROSAT), ("ucmerced", UCMERCED)):
        said = [s for c in table for s in sentences(c)]
        assert len(said) == len(set(said))
        assert max(map(len, said)) <= 80
        counts[name] = len(said)
    assert len(FORMS) == 12
    assert counts == {"eurosat": 600, "ucmerced": 1032}
    assert len(sentences("solar panel")) == 12


def test_label_captions_are_of_the_class_and_from_the_generator_alone() -> None:
    labels = ["River", "Forest", "River", "solar panel"] * 30
    drawn = label_captions(labels, np.random.default_rng(7))
    assert drawn == label_captions(labels, np.random.default_rng(7))
    for label, captions in zip(labels, drawn, strict=True):
        assert len(set(captions)) == 5
        assert set(captions) <= set(sentences(label))
    rivers = Counter(s for label, c in zip(labels, drawn, strict=True) if label == "River" for s in c)
    assert len(rivers) == len(sentences("River"))
    assert len(label_captions(["solar panel"], np.random.default_rng(0), count=50)[0]) == 12


def test_words_cover_all_numbers_of_the_surface() -> None:
    assert sorted(WORDS) == [1, 2, 3, 4, 5]
