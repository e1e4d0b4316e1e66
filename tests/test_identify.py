"""Sensor, bands, unit and time: who says so, in which order, and what is refused instead of guessed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from alidade.errors import RasterError, SensorError
from alidade.imagery.bands import Unit
from alidade.imagery.files import Declared, RasterFile, open_raster, read
from alidade.imagery.product_names import facts_from_name
from make_fixtures import L1C, L2A, display, meadow, write_tif

RADAR = np.random.default_rng(0).uniform(-25, -5, (2, 32, 32)).astype(np.float32)
SAMPLES = Path(__file__).resolve().parents[1] / "samples"


def opened(path: Path, declared: Declared | None = None) -> RasterFile:
    with open_raster(path, declared or Declared()) as file:
        return file


def names(file: RasterFile) -> tuple[str, ...]:
    return tuple(b.name for b in file.bands)


def test_declared_goes_before_tags_descriptions_and_name(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "m_4709963_se_14_1_20090818.tif",
        display(3),
        names=("R", "G", "B"),
        tags={"ALIDADE_SENSOR": "naip-rgb"},
    )
    file = opened(path, Declared(sensor="generic-rgb", bands=("B", "-", "R")))
    assert (file.sensor.id, names(file)) == ("generic-rgb", ("B", "R"))
    assert file.how["sensor"] == file.how["bands"].replace("them", "it") == "You declared it."
    np.testing.assert_array_equal(read(path, Declared(bands=("B", "-", "R"))).pixels, display(3)[[0, 2]])


def test_tag_goes_before_descriptions_and_name(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "S2A_MSIL2A_20200101T101010_N0214_R022.tif",
        meadow(L2A),
        names=L2A,
        tags={"ALIDADE_SENSOR": "sentinel-2-l1c"},
    )
    assert opened(path).sensor.id == "sentinel-2-l1c"


@pytest.mark.parametrize("labels", [L1C, tuple(n.replace("B0", "B") for n in L1C)])
def test_descriptions_that_only_one_sensor_has(tmp_path: Path, labels: Sequence[str]) -> None:
    file = opened(write_tif(tmp_path / "a.tif", meadow(), names=labels))
    assert (file.sensor.id, names(file)) == ("sentinel-2-l1c", L1C)
    assert file.how["sensor"] == "Only this sensor has bands with these names."


def test_band_order_of_the_file_is_kept(tmp_path: Path) -> None:
    """EuroSAT has B8A last."""
    order = (*(n for n in L1C if n != "B8A"), "B8A")
    raster = read(write_tif(tmp_path / "a.tif", meadow(order), names=order))
    assert tuple(b.name for b in raster.bands) == order
    np.testing.assert_array_equal(raster.select(["B8A"]).pixels[0], meadow(order)[12])


def test_descriptions_that_several_sensors_have(tmp_path: Path) -> None:
    bands = tuple(f"SR_B{i}" for i in range(1, 8))
    path = write_tif(tmp_path / "a.tif", np.full((7, 8, 8), 9000, np.uint16), names=bands)
    with pytest.raises(SensorError, match=r"landsat-8, landsat-9 have.*--sensor landsat-8"):
        opened(path)
    named = path.rename(tmp_path / "LC09_L2SP_190026_20220612_20220614_02_T1.tif")
    assert opened(named).sensor.id == "landsat-9"
    with pytest.raises(SensorError, match="sentinel-2-l1c, sentinel-2-l2a have"):
        opened(write_tif(tmp_path / "b.tif", meadow(("B02", "B03")), names=("B02", "B03")))


def test_name_and_bands_that_disagree(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "S2A_MSIL2A_20200101T101010_N0214_R022.tif", meadow(), names=L1C)
    with pytest.raises(SensorError, match="sentinel-2-l2a by the file name, but bands of sentinel-2-l1c"):
        opened(path)


def test_scene_classes_tell_the_level_and_are_never_scaled(tmp_path: Path) -> None:
    pixels = np.concatenate([meadow(("B03", "B04")), np.full((1, 64, 64), 4, np.uint16)])
    file = opened(write_tif(tmp_path / "a.tif", pixels, names=("B03", "B04", "SCL")))
    assert file.sensor.id == "sentinel-2-l2a"
    assert [e.unit for e in file.encodings] == [Unit.REFLECTANCE, Unit.REFLECTANCE, Unit.CLASS]
    assert (file.encodings[2].scale, file.encodings[2].offset) == (1.0, 0.0)
    assert "SCL" not in file.sensor.band_names


def test_thirteen_bands_without_names_are_not_guessed(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", meadow())
    with pytest.raises(SensorError, match=r"13 bands of uint16.*--sensor sentinel-2-l1c --bands B01,B02,\.\.\."):
        opened(path)
    with pytest.raises(SensorError, match="13 bands without names"):
        opened(path, Declared(sensor="sentinel-2-l1c"))
    assert names(opened(path, Declared(sensor="sentinel-2-l1c", bands=L1C))) == L1C
    assert opened(path, Declared(bands=L1C)).sensor.id == "sentinel-2-l1c"


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        (("B01",) * 13, "B01 more than once"),
        (L1C[:12], "12 names for 13 bands, expected 13 names"),
        ((*L1C[:12], "B13"), "got 'B13'"),
        (("-",) * 13, "at least one"),
        (("alpha", "alpha", *L1C[2:]), "at most one alpha"),
    ],
)
def test_wrong_declared_names(tmp_path: Path, bands: tuple[str, ...], words: str) -> None:
    path = write_tif(tmp_path / "a.tif", meadow())
    with pytest.raises(SensorError, match=words) as error:
        opened(path, Declared(sensor="sentinel-2-l1c", bands=bands))
    assert "--bands B01,B02,B03,..." in str(error.value)


def test_wrong_names_in_the_file(tmp_path: Path) -> None:
    tags = {"ALIDADE_SENSOR": "sentinel-2-l1c"}
    with pytest.raises(SensorError, match="got 'B99'"):
        opened(write_tif(tmp_path / "a.tif", meadow(), names=(*L1C[:12], "B99"), tags=tags))
    with pytest.raises(SensorError, match="B01 more than once"):
        opened(write_tif(tmp_path / "b.tif", meadow(), names=("B01", *L1C[:12]), tags=tags))
    with pytest.raises(SensorError, match="no name for band 13"):
        opened(write_tif(tmp_path / "c.tif", meadow(), names=(*L1C[:12], ""), tags=tags))


def test_labels_that_are_no_names_are_ignored(tmp_path: Path) -> None:
    """TerraMesh calls every band "bands"."""
    path = write_tif(tmp_path / "a.tif", meadow(), names=("bands",) * 13)
    with pytest.raises(SensorError, match="named nothing"):
        opened(path)
    assert opened(write_tif(tmp_path / "b.tif", display(3), names=("bands",) * 3)).sensor.id == "generic-rgb"


def test_unknown_sensor(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="Did you mean 'sentinel-2-l2a'"):
        opened(write_tif(tmp_path / "a.tif", display(3)), Declared(sensor="sentinel-2-l2"))


@pytest.mark.parametrize(("count", "dtype"), [(1, "uint8"), (2, "uint8"), (3, "uint16"), (5, "uint8")])
def test_unknown_files_say_what_to_pass(tmp_path: Path, count: int, dtype: str) -> None:
    options = {"photometric": "minisblack"}
    path = write_tif(tmp_path / "a.tif", display(count, dtype=dtype), options=options)
    with pytest.raises(SensorError, match=f"{count} bands? of {dtype}, named nothing.*--sensor"):
        opened(path)


def test_three_bytes_are_rgb_in_the_order_of_colour_tags(tmp_path: Path) -> None:
    assert names(opened(write_tif(tmp_path / "a.tif", display(3)))) == ("R", "G", "B")
    path = write_tif(tmp_path / "b.tif", display(3), colours=("blue", "green", "red"))
    assert names(opened(path)) == ("B", "G", "R")


def test_alpha_is_believed_only_when_it_looks_like_a_mask(tmp_path: Path) -> None:
    pixels = display(4)
    tagged = {"colours": ("red", "green", "blue", "alpha")}
    path = write_tif(tmp_path / "a.tif", pixels, **tagged)
    with pytest.raises(SensorError, match=r"band 4, tagged alpha.*--sensor naip-rgbn.*--bands R,G,B,alpha"):
        opened(path)
    file = opened(path, Declared(sensor="naip-rgbn"))
    assert (file.sensor.id, names(file)) == ("naip-rgbn", ("R", "G", "B", "N"))
    pixels[3] = 255
    pixels[3, :10] = 0
    raster = read(write_tif(tmp_path / "b.tif", pixels, **tagged))
    assert (raster.sensor.id, len(raster.bands)) == ("generic-rgb", 3)
    np.testing.assert_array_equal(raster.valid, pixels[3] == 255)


def test_naip_by_name_has_near_infrared_even_if_tagged_alpha(tmp_path: Path) -> None:
    colours = ("red", "green", "blue", "alpha")
    path = write_tif(tmp_path / "m_4709963_se_14_060_20180716_20190211.tif", display(4), colours=colours)
    file = opened(path)
    assert (file.sensor.id, names(file)) == ("naip-rgbn", ("R", "G", "B", "N"))
    assert file.time == datetime(2018, 7, 16, tzinfo=UTC)
    assert read(path).valid.all()


def test_four_bytes_without_alpha_tag_are_not_guessed(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(4), options={"photometric": "minisblack"})
    with pytest.raises(SensorError, match="4 bands of uint8"):
        opened(path)
    raster = read(path, Declared(sensor="generic-rgb", bands=("R", "G", "B", "alpha")))
    np.testing.assert_array_equal(raster.valid, display(4)[3] > 127)


def test_generic_multispectral_sensor(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 8, 8)).astype(np.float32)
    path = write_tif(tmp_path / "a.tif", pixels)
    file = opened(path, Declared(sensor="generic:0.490,0.842@10"))
    assert names(file) == ("W0.490", "W0.842")
    with pytest.raises(SensorError, match="2 bands without names, expected 3 bands"):
        opened(path, Declared(sensor="generic:0.490,0.560,0.842@10"))


# Units


def test_radar_unit_has_to_be_told(tmp_path: Path) -> None:
    tags = {"ALIDADE_SENSOR": "sentinel-1-rtc"}
    path = write_tif(tmp_path / "a.tif", RADAR, names=("VV", "VH"), tags=tags)
    with pytest.raises(SensorError, match="expected dB or power. Pass --unit dB or --unit power"):
        opened(path)
    assert {e.unit for e in opened(path, Declared(unit=Unit.POWER)).encodings} == {Unit.POWER}
    for text, unit in {"dB": Unit.DB, "power": Unit.POWER, "Linear": Unit.POWER}.items():
        tagged = write_tif(tmp_path / "b.tif", RADAR, names=("VV", "VH"), tags={**tags, "ALIDADE_UNIT": text})
        assert {e.unit for e in opened(tagged).encodings} == {unit}
    with pytest.raises(SensorError, match="ALIDADE_UNIT='volts'"):
        opened(write_tif(tmp_path / "c.tif", RADAR, names=("VV", "VH"), tags={**tags, "ALIDADE_UNIT": "volts"}))
    with pytest.raises(SensorError, match="got reflectance"):
        opened(path, Declared(unit=Unit.REFLECTANCE))


@pytest.mark.parametrize("labels", [("VV (dB)", "VH (dB)"), ("VV_dB", "vh_db")])
def test_radar_unit_in_descriptions(tmp_path: Path, labels: tuple[str, str]) -> None:
    path = write_tif(tmp_path / "a.tif", RADAR, names=labels)
    file = opened(path, Declared(sensor="sentinel-1-grd"))
    assert (names(file), file.encodings[0].unit) == (("VV", "VH"), Unit.DB)
    mixed = write_tif(tmp_path / "b.tif", RADAR, names=("VV (dB)", "VH (power)"))
    with pytest.raises(SensorError, match="nothing that tells"):
        opened(mixed, Declared(sensor="sentinel-1-grd"))


def test_optical_units_are_those_of_the_sensor(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", meadow(), names=L1C)
    assert opened(path, Declared(unit=Unit.REFLECTANCE)).encodings[0].unit is Unit.REFLECTANCE
    with pytest.raises(SensorError, match="got dB, expected reflectance"):
        opened(path, Declared(unit=Unit.DB))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_reflectance_in_other_types_needs_a_scale(tmp_path: Path, dtype: str) -> None:
    path = write_tif(tmp_path / "a.tif", np.full((13, 8, 8), 99, dtype), names=L1C)
    told = "generic-rgb" if dtype == "uint8" else "--scale"
    with pytest.raises(SensorError, match=f"{dtype} without a scale, expected uint16 or int16.*{told}"):
        opened(path)
    file = opened(path, Declared(scale=0.005, offset=0.0))
    assert (file.encodings[0].scale, file.encodings[0].offset) == (0.005, 0.0)


def test_display_is_eight_bit(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(3, dtype="uint16"), names=("R", "G", "B"))
    with pytest.raises(SensorError, match="uint16 without a scale, expected uint8"):
        opened(path)


def test_landsat_encoding_and_the_older_collection(tmp_path: Path) -> None:
    name = "LC08_L2SP_190026_20220612_20220614_02_T1_SR_B4.TIF"
    file = opened(write_tif(tmp_path / name, np.full((1, 8, 8), 9000, np.uint16)))
    assert (file.sensor.id, names(file)) == ("landsat-8", ("SR_B4",))
    encoding = file.encodings[0]
    assert (encoding.scale, encoding.offset, encoding.nodata) == (2.75e-5, -0.2, 0)
    with pytest.raises(SensorError, match="int16 without a scale"):
        opened(write_tif(tmp_path / name, np.full((1, 8, 8), 900, np.int16)))


def test_scale_and_offset_of_the_file_and_of_the_user(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", display(1, dtype="uint16"), scale_offset=(0.5, -3.0))
    declared = Declared(sensor="landsat-8", bands=("SR_B4",))
    assert (opened(path, declared).encodings[0].scale, opened(path, declared).encodings[0].offset) == (0.5, -3.0)
    declared = Declared(sensor="landsat-8", bands=("SR_B4",), scale=2.0)
    assert (opened(path, declared).encodings[0].scale, opened(path, declared).encodings[0].offset) == (2.0, -3.0)
    with pytest.raises(RasterError, match="scale and offset of band SR_B4: got 0"):
        opened(path, Declared(sensor="landsat-8", bands=("SR_B4",), scale=0.0))


# Time and names


def test_time_in_order_of_trust(tmp_path: Path) -> None:
    name = "naip_20150926.tif"
    tags = {"TIFFTAG_DATETIME": "2021:02:03 04:05:06", "ALIDADE_TIME": "2015-09-26T20:00:00+02:00"}
    file = opened(write_tif(tmp_path / name, display(3), tags=tags))
    assert file.time == datetime(2015, 9, 26, 18, tzinfo=UTC)
    assert file.time.utcoffset() == timedelta(0)
    del tags["ALIDADE_TIME"]
    assert opened(write_tif(tmp_path / name, display(3), tags=tags)).time == datetime(2015, 9, 26, tzinfo=UTC)
    file = opened(write_tif(tmp_path / "a.tif", display(3), tags=tags))
    assert file.time == datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert "may be the time of writing" in file.how["time"]
    zone = timezone(timedelta(hours=-5))
    file = opened(tmp_path / "a.tif", Declared(time=datetime(2020, 1, 1, tzinfo=zone)))
    assert file.time == datetime(2020, 1, 1, 5, tzinfo=UTC)
    file = opened(tmp_path / "a.tif", Declared(time=datetime(2020, 1, 1)))
    assert file.time == datetime(2020, 1, 1, tzinfo=UTC)
    file = opened(write_tif(tmp_path / "b.tif", display(3), tags={"TIFFTAG_DATETIME": "yesterday"}))
    assert (file.time, file.how["time"]) == (None, "Nothing tells it.")
    with pytest.raises(RasterError, match="tag ALIDADE_TIME: got 'noon'"):
        opened(write_tif(tmp_path / "c.tif", display(3), tags={"ALIDADE_TIME": "noon"}))


@pytest.mark.parametrize(
    ("name", "sensor", "band", "time", "baseline"),
    [
        ("S2B_MSIL1C_20220125T101219_N0400_R022_T33UUP_20220125T121027.tif",
         "sentinel-2-l1c", None, "2022-01-25T10:12:19", 400),
        ("S2A_MSIL2A_20170613T101031_87_48_B8A.tif", "sentinel-2-l2a", "B8A", "2017-06-13T10:10:31", None),
        ("S2B_MSIL2A_20170924T93020_69_24_B04.tif", "sentinel-2-l2a", "B04", "2017-09-24T09:30:20", None),
        ("S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48_VH.tif",
         "sentinel-1-grd", "VH", "2017-06-13T16:50:43", None),
        ("S1A_IW_GRDH_1SDV_20210101T000000_20210101T000025_0_rtc.tif",
         "sentinel-1-rtc", None, "2021-01-01T00:00:00", None),
        ("LT05_L2SP_190026_19990612_20200101_02_T1_SR_B7.TIF", "landsat-5", "SR_B7", "1999-06-12T00:00:00", None),
        ("LE07_L2SP_190026_20010612_20200101_02_T1.tif", "landsat-7", None, "2001-06-12T00:00:00", None),
        ("m_4709963_se_14_1_20090818.tif", "naip", None, "2009-08-18T00:00:00", None),
        ("m_4709963_se_14_060_20180716_20190211.tif", "naip", None, "2018-07-16T00:00:00", None),
        ("naip_20150926.tif", "naip", None, "2015-09-26T00:00:00", None),
        ("naip_20159926.tif", "naip", None, None, None),
        ("LC08_L1TP_190026_20220612_20220614_02_T1.tif", None, None, None, None),
        ("S1A_IW_SLC__1SDV_20210101T000000.tif", None, None, None, None),
        ("holiday_20200101.tif", None, None, None, None),
    ],
)  # fmt: skip
def test_product_names(name: str, sensor: str | None, band: str | None, time: str | None, baseline: int | None) -> None:
    facts = facts_from_name(f"/some/S2A_MSIL1C_20200101T000000/{name}")
    moment = datetime.fromisoformat(time).replace(tzinfo=UTC) if time else None
    assert (facts.sensor, facts.band, facts.time, facts.baseline) == (sensor, band, moment, baseline)


def test_real_samples_say_how_they_were_identified() -> None:
    with open_raster(next((SAMPLES / "sentinel-2").glob("eurosat_*.tif"))) as file:
        assert file.how.keys() == {"sensor", "bands", "unit", "offset", "time", "gsd"}
        assert all(text.strip() and "\n" not in text for text in file.how.values())
        assert names(file)[-1] == "B8A"
