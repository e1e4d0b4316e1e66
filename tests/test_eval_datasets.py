"""Readers of the data pack: right pixels, labels, bands and ground distances; damage told in one line."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alidade.errors import AlidadeError
from alidade.evaluation.datasets import (
    EUROSAT_BANDS,
    DataError,
    decode,
    eurosat100,
    eurosat_rgb,
    fit,
    split_hash,
    ucmerced,
)
from alidade.evaluation.pairs import california_texas
from alidade.imagery.bands import Unit
from eval_pack import CLASSES, COLOURS, picture, write_pack, write_tar


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack"))


def test_eurosat_rgb_has_the_index_order_labels_and_colours(pack: Path) -> None:
    train = eurosat_rgb(pack, "train")
    assert (train.pixels.shape, train.pixels.dtype) == ((12, 3, 64, 64), np.uint8)
    assert train.classes == CLASSES
    assert train.labels.tolist() == [0, 1, 2] * 4
    assert train.ids[:2] == ("Crop/Crop_train_0.jpg", "Forest/Forest_train_1.jpg")
    for image, label in zip(train.pixels, train.labels, strict=True):
        np.testing.assert_allclose(image.mean(axis=(1, 2)), COLOURS[label], atol=3)
    assert set(train.gsd_m) == {10.0}
    assert [b.name for b in train.bands] == ["R", "G", "B"]
    assert {e.unit for e in train.encodings} == {Unit.DISPLAY}


def test_eurosat_rgb_reads_an_unpacked_folder_alike(pack: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eurosat_rgb"
    folder.mkdir()
    (folder / "index.csv").write_bytes((pack / "eurosat_rgb" / "index.csv").read_bytes())
    with tarfile.open(pack / "eurosat_rgb" / "val.tar.xz") as file:
        file.extractall(folder, filter="data")
    assert np.array_equal(eurosat_rgb(folder, "val").pixels, eurosat_rgb(pack, "val").pixels)


def test_members_that_the_index_does_not_name_are_not_read(pack: Path, tmp_path: Path) -> None:
    data = write_pack(tmp_path)
    archive = data / "eurosat_rgb" / "val.tar.xz"
    with tarfile.open(archive) as file:
        members = [(m.name, file.extractfile(m).read()) for m in file]
    write_tar(archive, [("../outside.jpg", b"no picture"), ("Crop/extra.jpg", b"neither"), *members])
    assert np.array_equal(eurosat_rgb(data, "val").pixels, eurosat_rgb(pack, "val").pixels)
    assert not (data / "outside.jpg").exists()


def test_missing_torn_and_wrong_archives_are_told(tmp_path: Path) -> None:
    data = write_pack(tmp_path)
    archive = data / "eurosat_rgb" / "val.tar.xz"
    whole = archive.read_bytes()
    with tarfile.open(archive) as file:
        members = [(m.name, file.extractfile(m).read()) for m in file]
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"val\.tar\.xz.*a whole file"):
        eurosat_rgb(data, "val")
    archive.write_bytes(b"\xfd7zXZ\x00" + bytes(200))
    with pytest.raises(DataError, match=r"val\.tar\.xz.*a whole file"):
        eurosat_rgb(data, "val")
    write_tar(archive, members[1:])
    with pytest.raises(DataError, match=r"no Crop/Crop_val_0\.jpg"):
        eurosat_rgb(data, "val")
    write_tar(archive, [(members[0][0], members[0][1][:300]), *members[1:]])
    with pytest.raises(DataError, match=r"Crop_val_0\.jpg.*a whole JPEG"):
        eurosat_rgb(data, "val")
    write_tar(archive, [(members[0][0], picture(0, (32, 64), 0)), *members[1:]])
    with pytest.raises(DataError, match=r"64 x 32 px.*RGB of 64 px"):
        eurosat_rgb(data, "val")
    write_tar(archive, [(members[0][0], bytes(2**20 + 1)), *members[1:]])
    with pytest.raises(DataError, match=r"1,048,577 bytes.*at most"):
        eurosat_rgb(data, "val")
    archive.unlink()
    with pytest.raises(DataError, match=r"no such file.*--data"):
        eurosat_rgb(data, "val")
    with pytest.raises(DataError, match="'dev'"):
        eurosat_rgb(data, "dev")


def test_png_in_disguise_is_refused() -> None:
    with pytest.raises(DataError, match="a whole JPEG picture"):
        decode(b"\x89PNG\r\n\x1a\n" + bytes(50), "x.jpg")


def test_fit_cuts_and_continues_about_the_centre() -> None:
    row = np.arange(7, dtype=np.uint8)[None, None].repeat(4, axis=1)
    out = fit(row, 5)
    assert out.shape == (1, 5, 5)
    assert out[0, :, 0].tolist() == [1] * 5
    assert out[0, 0].tolist() == [1, 2, 3, 4, 5]
    assert fit(row[:, :, :3], 5)[0, 0].tolist() == [0, 0, 1, 2, 2]


def test_ucmerced_is_256_px_at_30_cm(pack: Path) -> None:
    val = ucmerced(pack, "val")
    assert val.pixels.shape == (6, 3, 256, 256)
    assert set(val.gsd_m) == {0.3}
    assert val.classes == ("crop", "forest", "water")


def test_eurosat100_has_b8a_last_and_reflectance(pack: Path) -> None:
    val = eurosat100(pack, "val")
    assert tuple(b.name for b in val.bands) == EUROSAT_BANDS
    assert EUROSAT_BANDS[-1] == "B8A"
    assert EUROSAT_BANDS[9] == "B10"
    assert (val.pixels.shape, val.pixels.dtype) == ((3, 13, 64, 64), np.uint16)
    assert {(e.unit, e.scale, e.offset) for e in val.encodings} == {(Unit.REFLECTANCE, 1e-4, 0.0)}
    # UTM: true ground distance is 10 m but for the projection's scale
    assert np.allclose(val.gsd_m, 10, atol=0.01)


def test_pairs_are_the_same_windows_at_true_ground_distance(pack: Path) -> None:
    train = california_texas(pack, "train")
    # one of four scenes is not aligned; 16 windows a scene
    assert (train.sar.pixels.shape, train.optical.pixels.shape) == ((48, 1, 128, 128), (48, 3, 128, 128))
    assert len(california_texas(pack, "train", aligned_only=False).sar) == 64
    assert train.sar.sensor.id == "display-vh"
    assert train.sar.encodings[0].unit is Unit.DISPLAY
    assert (train.sar.classes, np.bincount(train.sar.labels).tolist()) == (("001", "002", "003"), [16] * 3)
    # World Mercator shrinks the ground by the cosine of the latitude (33.8 N there, on the ellipsoid)
    assert np.allclose(train.sar.gsd_m, 8.33, atol=0.03)
    assert np.array_equal(train.sar.gsd_m, train.optical.gsd_m)
    apart = np.corrcoef(train.sar.pixels[5, 0].ravel(), train.optical.pixels[6, 1].ravel())[0, 1]
    same = np.corrcoef(train.sar.pixels[5, 0].ravel(), train.optical.pixels[5, 1].ravel())[0, 1]
    assert same > 0.9 > abs(apart)


def test_pairs_refuse_windows_that_do_not_divide(pack: Path) -> None:
    with pytest.raises(DataError, match="windows of 100 px"):
        california_texas(pack, "train", window=100)


def test_sample_keeps_class_shares_and_the_seed_decides(pack: Path) -> None:
    train = eurosat_rgb(pack, "train")
    few = train.sample(7, seed=0)
    assert sorted(np.bincount(few.labels).tolist()) == [2, 2, 3]
    assert few.ids == train.sample(7, seed=0).ids != train.sample(7, seed=1).ids
    assert train.sample(12, seed=3).ids == train.ids
    with pytest.raises(DataError, match="13 images asked for"):
        train.sample(13, seed=0)


def test_split_hash_changes_with_images_labels_and_parts_only(pack: Path) -> None:
    train, val = eurosat_rgb(pack, "train"), eurosat_rgb(pack, "val")
    base = split_hash(train, val)
    assert base == split_hash(train.pick(np.arange(12)[::-1]), val)
    assert len({base, split_hash(val, train), split_hash(train), split_hash(train.sample(11, 0), val)}) == 4
    assert base != split_hash(replace(train, labels=train.labels[::-1].copy()), val)


def test_an_image_that_stands_twice_is_refused(pack: Path) -> None:
    with pytest.raises(DataError, match="stands twice"):
        eurosat_rgb(pack, "val").pick(np.array([0, 0]))


@pytest.mark.pack
def test_real_pack() -> None:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("ALIDADE_PACK names no data pack")
    data = Path(os.environ["ALIDADE_PACK"])
    val = eurosat_rgb(data, "val")
    assert (len(val), val.classes[9]) == (5400, "SeaLake")
    # SeaLake is darker in red than in blue; the pack's README gives the train means
    assert val.pixels[val.labels == 9, 0].mean() < val.pixels[val.labels == 9, 2].mean()
    np.testing.assert_allclose(val.pixels.mean(axis=(0, 2, 3)) / 255, [0.3441, 0.3801, 0.4076], atol=0.005)
    assert ucmerced(data, "val").pixels.shape == (210, 3, 256, 256)
    chips = eurosat100(data, "train")
    assert len(chips) == 60
    assert chips.pixels[:, 9].mean() < 50 < chips.pixels[:, 12].mean()
    pairs = california_texas(data, "val")
    assert len(pairs.sar) == 48
    assert 8.2 < pairs.sar.gsd_m.min() <= pairs.sar.gsd_m.max() < 8.8


def test_the_pack_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(AlidadeError, match="Pass the folder that holds eurosat_rgb"):
        ucmerced(tmp_path, "train")
