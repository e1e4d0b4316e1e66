"""Files that are missing, damaged or made to do harm: one clear line each, no request, no crash."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

sys.path.insert(0, str(Path(__file__).parent))
from alidade.errors import AlidadeError, RasterError
from alidade.imagery.defences import check_size
from alidade.imagery.files import Declared, open_raster, read
from make_fixtures import (
    L1C,
    Canary,
    canary,
    display,
    flipped,
    meadow,
    sparse_tif,
    vrt_of,
    vrt_of_bytes,
    wms_of,
    write_tif,
)

RGB = Declared(sensor="generic-rgb", bands=("R",))


@pytest.fixture
def bird(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with canary() as running:
        yield running


@pytest.fixture
def good(tmp_path: Path) -> Path:
    options = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    return write_tif(tmp_path / "good.tif", meadow(), names=L1C, nodata=0, options=options)


def one_line(error: pytest.ExceptionInfo[AlidadeError], path: Path) -> str:
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert ": got " in text
    assert ", expected " in text
    assert text.endswith((".", ")"))
    assert len(text) < 800
    return text


def refused(path: Path, *words: str, declared: Declared = RGB) -> None:
    with pytest.raises(RasterError) as error:
        read(path, declared)
    text = one_line(error, path)
    for word in words:
        assert word in text


def test_canary_sings_when_gdal_is_left_alone(tmp_path: Path, bird: Canary) -> None:
    """The control: without our defences the very same file does call."""
    hostile = vrt_of(tmp_path / "a.tif", f"/vsicurl/{bird.address}/secret.tif")
    with pytest.raises(rasterio.errors.RasterioIOError), rasterio.open(hostile) as dataset:
        dataset.read()
    assert bird.calls


def test_vrt_to_an_address(tmp_path: Path, bird: Canary) -> None:
    refused(
        vrt_of(tmp_path / "a.tif", f"/vsicurl/{bird.address}/secret.tif"),
        "starts with b'<VRTData",
        "a GeoTIFF",
    )
    assert bird.calls == []


def test_vrt_to_another_raster(tmp_path: Path, good: Path) -> None:
    hostile = vrt_of(tmp_path / "a.tif", str(good))
    with rasterio.open(hostile) as dataset:
        assert dataset.read().any(), "the control: GDAL alone shows the other file"
    refused(hostile, "a GeoTIFF")


def test_vrt_to_raw_bytes(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of 64 bytes or more, which nobody should see as pixels." * 2)
    refused(vrt_of_bytes(tmp_path / "a.tif", str(secret)), "a GeoTIFF")


def test_tile_service(tmp_path: Path, bird: Canary) -> None:
    refused(wms_of(tmp_path / "a.tif", bird.address), "starts with b'<GDAL_WM'")
    assert bird.calls == []


@pytest.mark.parametrize("domain", ["OVERVIEWS", "overviews", "Overviews"])
def test_pointer_to_overviews_elsewhere(tmp_path: Path, bird: Canary, domain: str) -> None:
    pointer = {"OVERVIEW_FILE": f"/vsicurl/{bird.address}/o.tif"}
    hostile = write_tif(tmp_path / "a.tif", display(1), domains={domain: pointer})
    refused(hostile, f"metadata domain {domain}", "-nomd")
    assert bird.calls == []


def test_pointer_to_geolocation_elsewhere(tmp_path: Path, bird: Canary) -> None:
    pointer = {"X_DATASET": f"/vsicurl/{bird.address}/x.tif", "X_BAND": "1"}
    hostile = write_tif(tmp_path / "a.tif", display(1), domains={"GEOLOCATION": pointer})
    refused(hostile, "metadata domain GEOLOCATION")
    assert bird.calls == []


def test_pointer_on_a_band(tmp_path: Path, bird: Canary) -> None:
    hostile = write_tif(tmp_path / "a.tif", display(1))
    with rasterio.open(hostile, "r+") as dataset:
        dataset.update_tags(1, ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{bird.address}/o.tif")
    refused(hostile, "metadata domain OVERVIEWS")
    assert bird.calls == []


@pytest.mark.parametrize("side", ["a.tif.aux.xml", "a.aux.xml"])
def test_side_files_are_not_read(tmp_path: Path, bird: Canary, side: str) -> None:
    path = write_tif(tmp_path / "a.tif", display(3))
    (tmp_path / side).write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f"/vsicurl/{bird.address}/o.tif</MDI></Metadata><Metadata>"
        '<MDI key="ALIDADE_SENSOR">naip-rgb</MDI></Metadata></PAMDataset>'
    )
    (tmp_path / "a.tif.ovr").write_text("no overview")
    (tmp_path / "a.tfw").write_text("99\n0\n0\n-99\n0\n0\n")
    raster = read(path)
    assert raster.sensor.id == "generic-rgb"
    assert raster.gsd_m == pytest.approx(10.0, rel=0.01)
    assert bird.calls == []


@pytest.mark.parametrize("path", ["/vsicurl/http://127.0.0.1:9/a.tif", "https://127.0.0.1:9/a.tif", "/vsimem/a.tif"])
def test_addresses(path: str) -> None:
    with pytest.raises(RasterError, match="a file on this machine"):
        read(path)


def test_missing_folder_device_empty_and_other_formats(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.tif", "got no such file", "Check the path")
    refused(tmp_path, "got a folder")
    os.mkfifo(tmp_path / "pipe.tif")
    refused(tmp_path / "pipe.tif", "got a device")
    (tmp_path / "empty.tif").touch()
    refused(tmp_path / "empty.tif", "got an empty file")
    (tmp_path / "text.tif").write_text("no image at all")
    refused(tmp_path / "text.tif", "starts with b'no image'", "expected a GeoTIFF")
    options = {"driver": "PNG", "compress": None}
    png = write_tif(tmp_path / "a.tif", display(3), crs=None, transform=None, options=options)
    refused(png, "PNG", "expected a GeoTIFF")
    (tmp_path / "magic.tif").write_bytes(b"II*\0" + bytes(100))
    refused(tmp_path / "magic.tif", "can be decoded", "damaged")


def test_unreadable(tmp_path: Path, good: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    good.chmod(0)
    refused(good, "Permission denied")


def test_jpeg_2000_only_on_request(tmp_path: Path) -> None:
    options = {"driver": "JP2OpenJPEG", "compress": None, "reversible": "YES", "quality": "100"}
    path = write_tif(tmp_path / "a.jp2", display(3), options=options)
    refused(path, "expected a GeoTIFF.")
    with open_raster(path, allow_jp2=True) as file:
        np.testing.assert_array_equal(file.read().pixels, display(3))


def test_header_of_300_gigabytes(tmp_path: Path) -> None:
    path = sparse_tif(tmp_path / "a.tif", side=400_000, block=4096)
    assert path.stat().st_size < 2_000_000
    refused(path, "400000 x 400000 pixels x 1 bands, 320.0 GB", "at most 274.9 GB", "-srcwin")


def test_header_out_of_proportion_to_the_file(tmp_path: Path) -> None:
    path = sparse_tif(tmp_path / "a.tif", side=100_000, block=4096)
    refused(path, "20.0 GB", "2000 times the file's size")


def test_a_real_scene_is_in_proportion(tmp_path: Path) -> None:
    """10,980² x 13 bands of uint16, in a file of its usual size."""
    path = sparse_tif(tmp_path / "a.tif", side=10_980, block=256, count=13)
    with rasterio.open(path) as dataset:
        check_size(dataset, str(path), 1_300_000_000)
        check_size(dataset, str(path), 3_100_000_000)
        with pytest.raises(RasterError, match="times the file's size"):
            check_size(dataset, str(path), 1_000_000)


def test_giant_block(tmp_path: Path) -> None:
    path = sparse_tif(tmp_path / "a.tif", side=32_768, block=32_768, dtype="uint8")
    refused(path, "blocks of 32768 x 32768 pixels, 1.1 GB each", "at most 268.4 MB")


def test_giant_block_by_interleaving(tmp_path: Path) -> None:
    """A block of one band is small enough, but all bands lie in one."""
    path = tmp_path / "a.tif"
    options = {
        "tiled": True,
        "blockxsize": 4096,
        "blockysize": 4096,
        "sparse_ok": True,
        "interleave": "pixel",
    }
    profile = {"driver": "GTiff", "count": 20, "height": 4096, "width": 4096, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **options):
        pass
    refused(path, "335.5 MB each")


def test_too_many_bands(tmp_path: Path) -> None:
    refused(write_tif(tmp_path / "a.tif", np.ones((513, 4, 4), np.uint8)), "got 513 bands", "1 to 512")


def test_complex_pixels(tmp_path: Path) -> None:
    refused(write_tif(tmp_path / "a.tif", np.ones((1, 8, 8), np.complex64)), "pixels of type complex64")


def test_reading_too_much_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.setattr("alidade.imagery.files.MAX_READ_BYTES", 10_000)
    refused(good, "one read: got 0.0 GB", "windows", declared=Declared(sensor="sentinel-2-l1c", offset=0))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_truncated(good: Path, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * share)])
    refused(good, "damaged or cut short", declared=Declared(sensor="sentinel-2-l1c"))
    assert capfd.readouterr() == ("", "")


def test_damaged_pixels_name_the_place(tmp_path: Path) -> None:
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    path = write_tif(tmp_path / "a.tif", display(3, side=64), options=options)
    data = bytearray(path.read_bytes())
    data[-60:] = bytes(60)
    path.write_bytes(data)
    with open_raster(path) as file:
        with pytest.raises(RasterError) as error:
            file.read()
        assert ": rows 0 to 63, columns 0 to 63: got " in one_line(error, path)


def test_bit_flips_read_or_say_why(tmp_path: Path, good: Path) -> None:
    rng = np.random.default_rng(20261121)
    plain = write_tif(tmp_path / "plain.tif", display(3), options={"compress": "none"})
    originals = good.read_bytes(), plain.read_bytes()
    path = tmp_path / "flipped.tif"
    outcomes = {"read": 0, "refused": 0}
    for flips in range(200):
        path.write_bytes(flipped(originals[flips % 2], 1 + flips % 4, rng))
        try:
            read(path)
        except AlidadeError as error:
            message = str(error)
            outcomes["refused"] += message.startswith(str(path)) and "\n" not in message
        else:
            outcomes["read"] += 1
    assert sum(outcomes.values()) == 200
    assert min(outcomes.values()) > 20, outcomes


def test_damage_does_not_log_or_change_settings(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hooks = sys.excepthook, sys.unraisablehook
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 255
    good.write_bytes(data)
    root = logging.getLogger()
    handlers = list(root.handlers)
    for handler in handlers:
        root.removeHandler(handler)
    try:
        with pytest.raises(RasterError):
            read(good)
    finally:
        for handler in handlers:
            root.addHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert (sys.excepthook, sys.unraisablehook) == hooks
    assert not rasterio.env.hasenv()
