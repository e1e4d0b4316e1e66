"""Readers of image-text data sets: right pixels beside the right sentences, and every fault told in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from PIL import Image

from alidade.errors import AlidadeError, GridError
from alidade.imagery.files import Declared, read
from alidade.training.captions import pictures
from alidade.training.captions.captioned import Captioned, CaptionError, Held, Overlap
from alidade.training.captions.lists import Options
from alidade.training.captions.loading import LAYOUTS, read_captions

SIDE = 16
SAMPLES = Path(__file__).resolve().parents[1] / "samples"


def colour(seed: int) -> tuple[int, int, int]:
    return (40 + 7 * seed, 200 - 5 * seed, 90 + seed)


def picture(seed: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    """A flat picture whose colour tells its number."""
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour(seed)).convert(mode).save(out, form)
    return out.getvalue()


def check(data: Captioned, index: int, seed: int, *, atol: int = 3) -> None:
    pixels = data.images[index].read().pixels
    assert (pixels.shape, pixels.dtype) == ((3, SIDE, SIDE), np.uint8)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), colour(seed), atol=atol)


def write(path: Path, content: bytes | str | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_zip(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def five(i: int) -> list[str]:
    return [f"Sentence {n} about picture {i} ." for n in range(1, 6)]


# --- layouts, made by code ---------------------------------------------------------------------------------------


def json_entries(ending: str = "png") -> list[dict]:
    return [
        {
            "filename": f"scene_{i}.{ending}", "imgid": i, "split": ("train", "val", "test")[i % 3],
            "sentids": [5 * i + k for k in range(5)],
            "sentences": [{"raw": t, "tokens": t.split(), "imgid": i, "sentid": 5 * i + k}
                          for k, t in enumerate(five(i))],
        }
        for i in range(6)
    ]  # fmt: skip


def rsicd(root: Path, entries: list[dict] | None = None) -> Path:
    entries = json_entries() if entries is None else entries
    write(root / "dataset_rsicd.json", {"dataset": "rsicd", "images": entries})
    for i in range(6):
        write(root / "RSICD_images" / f"scene_{i}.png", picture(i))
    return root


def precomp(root: Path, *, repeated: bool) -> Path:
    root = root / "ucm_precomp"
    for split, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
        names = [f"{i}.png" for i in numbers for _ in range(5 if repeated else 1)]
        write(root / f"{split}_filename.txt", "\n".join(names) + "\n")
        write(root / f"{split}_caps.txt", "\n".join(t for i in numbers for t in five(i)) + "\n")
    for i in range(1, 6):
        write(root / "images" / f"{i}.png", picture(i))
    return root


def ucm_pack(root: Path) -> Path:
    rows = []
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        members = {f"beach{i:02}.jpg": picture(i, "JPEG") for i in numbers}
        write_zip(root / f"images_{split}.zip", members)
        for i, name in zip(numbers, members, strict=True):
            sentences = {f"caption_{n}": t for n, t in enumerate(five(i), 1)}
            rows.append({"image_id": i, "file": name, "archive": f"images_{split}.zip", "split": split, **sentences})
    write_csv(root / "index.csv", rows)
    return root


def chatearthnet(root: Path) -> Path:
    lists = root / "json_files"
    write(lists / "ChatEarthNet_caps_35_train.json", [
        {"image_id": "a.png", "caption": "Mostly grass."}, {"image_id": "b.png", "caption": ["Two ponds."]},
    ])  # fmt: skip
    write(lists / "ChatEarthNet_caps_35_val.json", [{"image": "c.png", "caption": "A town."}])
    write(lists / "ChatEarthNet_caps_4v_train.json", [{"image_id": "a.png", "caption": "Green meadows."}])
    write_zip(root / "s2_rgb_images.zip", {f"s2_images/{n}.png": picture(i) for i, n in enumerate("abc")})
    for i, n in enumerate("abc"):
        write(root / "s2_band_5_6_7_images" / f"{n}.png", picture(20 + i))
    return root


def rs5m(root: Path) -> Path:
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        members = [
            (f"{i:07}.{part}", content)
            for i in numbers
            for part, content in (
                ("caption", f"a satellite image of place {i}".encode()),
                ("img_content", picture(i, "JPEG")),
                ("img_name", f"pub11_{i}.jpg".encode()),
            )
        ]
        write_tar(root / split / f"pub11-{split}-0000.tar", members)
    return root


def skyscript(root: Path) -> Path:
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        write_csv(root / f"SkyScript_{split}_top30pct_filtered_by_CLIP_openai.csv", [
            {
                "filepath": f"images2/a{i}_CH_19.jpg", "title": f"a building {i}",
                "title_multi_objects": f"a building {i}, surrounded by trees",
            }
            for i in numbers
        ])  # fmt: skip
    members = {f"images2/a{i}_CH_19.jpg": picture(i, "JPEG") for i in range(3)}
    write_zip(root / "images2.zip", members, zipfile.ZIP_DEFLATED)
    return root


def ssl4eo(root: Path, *, chunks: tuple[int, ...] = (2, 1, 3, SIDE, SIDE), dtype: str = "uint8") -> Path:
    name = "ssl4eos12_val_seasonal_data_000001"
    pixels = np.zeros((3, 4, 3, SIDE, SIDE), dtype=dtype)
    for place in range(3):
        for season in range(4):
            pixels[place, season] = np.array(colour(4 * place + season))[:, None, None]
    target = root / "val" / "S2RGB" / f"{name}.zarr.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), zarr.storage.ZipStore(target, mode="w") as store:
        warnings.simplefilter("ignore")
        group = zarr.group(store, zarr_format=2)
        group.create_array("bands", shape=pixels.shape, chunks=chunks, dtype=dtype)[...] = pixels
        group.create_array("sample", shape=(3,), dtype="<U7")[...] = np.array(["0080717", "0000003", "0179869"])
    rows = [
        {
            "caption": f"A view of place {sample} in season {time}.", "question_1": "?", "question_2": "?",
            "question_3": "?", "file": f"{name}.zarr.zip", "sample_id": sample, "time_id": time, "classes": "land",
            "tags": "land, natural", "names": "",
        }
        for sample in (80717, 3, 179869)
        for time in range(4)
    ]  # fmt: skip
    write_csv(root / "val" / f"{name}.csv", rows)
    return root


def own(root: Path, rows: list[Mapping[str, object]] | None = None) -> Path:
    rows = rows or [
        {"file": "tiles/naip.tif", "caption": "ponds among fields", "split": "train"},
        {"file": "tiles/naip.tif", "caption": "prairie potholes", "split": "train"},
        {"file": "tiles/crop.tif", "caption": "annual crops", "split": "validation"},
    ]
    write_csv(root / "captions.csv", rows)
    write(root / "tiles" / "naip.tif", (SAMPLES / "naip" / "m_4709963_se_14_20180716.tif").read_bytes())
    write(root / "tiles" / "crop.tif", (SAMPLES / "sentinel-2" / "eurosat_AnnualCrop_518.tif").read_bytes())
    return root


# --- the currency ------------------------------------------------------------------------------------------------


def held(i: int) -> Held:
    pixels = np.full((3, 4, 4), i, dtype=np.uint8)
    return Held(id=str(i), raster=pictures.display_raster(pixels, gsd_m=1.0, source=str(i)))


def small(**changes: object) -> Captioned:
    data = Captioned(
        name="small", licence="CC0-1.0", images=tuple(held(i) for i in range(4)),
        captions=(("a", "b", "a"), ("b",), ("a", "c"), ("d", "a", "a")), split=("train", "train", "val", "test"),
    )  # fmt: skip
    return replace(data, **changes)


def test_one_caption_is_drawn_as_often_as_it_stands_there() -> None:
    rng = np.random.default_rng(3)
    drawn = [small().draw(0, rng) for _ in range(3000)]
    assert set(drawn) == {"a", "b"}
    assert abs(drawn.count("a") / 3000 - 2 / 3) < 0.03
    assert [small().draw(0, np.random.default_rng(8)) for _ in range(3)] == [
        small().draw(0, np.random.default_rng(8))
    ] * 3


def test_repeats_stay_and_distinct_sentences_are_at_hand() -> None:
    assert small().captions[0] == ("a", "b", "a")
    assert small().distinct == (("a", "b"), ("b",), ("a", "c"), ("d", "a"))


def test_overlap_counts_sentences_that_stand_in_another_split() -> None:
    assert small().overlap("val", "train") == Overlap(sentences=2, repeated=1, distinct=1)
    assert small().overlap("test", "train") == Overlap(sentences=3, repeated=2, distinct=1)
    assert small().overlap("train", "val") == Overlap(sentences=4, repeated=2, distinct=1)


def test_parts_and_picks_keep_images_beside_their_captions() -> None:
    train = small().part("train")
    assert (train.ids, train.captions, train.split) == (("0", "1"), (("a", "b", "a"), ("b",)), ("train", "train"))
    assert small().pick([3, 0]).ids == ("3", "0")
    with pytest.raises(CaptionError, match="'dev'.*one of train, val, test"):
        small().part("dev")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": (("a",),)}, "4 images, 1 lists of captions, 4 splits"),
        ({"images": (), "captions": (), "split": ()}, "0 images.*at least 1"),
        ({"images": (held(1), held(1), held(2), held(3))}, "'1' twice"),
        ({"captions": (("a",), (" ",), ("b",), ("c",))}, "'1' with.*none of them empty"),
        ({"captions": (("a",), (), ("b",), ("c",))}, "'1' with.*at least one sentence"),
        ({"split": ("train", "train", "dev", "val")}, "'2' in the split 'dev'"),
    ],
)
def test_a_set_that_is_none_is_refused(changes: Mapping[str, object], message: str) -> None:
    with pytest.raises(CaptionError, match=message):
        small(**changes)


def test_images_without_rgb_bands_are_refused_by_name() -> None:
    radar = SAMPLES / "sentinel-1" / "bigearthnet_29UPU_36_85.tif"
    data = small(images=(Held(id="r", raster=read(radar)), held(1), held(2), held(3)))
    with pytest.raises(CaptionError, match="bands: got VV, VH of sentinel-1-grd, expected red, green and blue"):
        data.rgb(0)
    assert [b.common_name for b in data.rgb(1).bands] == ["red", "green", "blue"]


# --- right pixels beside the right sentences ---------------------------------------------------------------------


def test_json_layout_of_rsicd(tmp_path: Path) -> None:
    data = read_captions(rsicd(tmp_path))
    assert (data.name, len(data), data.licence) == ("rsicd", 6, "not stated by the owners")
    assert data.split == ("train", "val", "test") * 2
    assert data.captions[4] == tuple(five(4))
    assert data.ids[4] == "scene_4.png"
    for i in range(6):
        check(data, i, i, atol=0)
    with pytest.raises(GridError, match="none.*ground sample distance"):
        data.images[0].read().gsd_m  # noqa: B018


def test_json_layout_of_rsitmd_reads_tiffs_with_a_declared_distance(tmp_path: Path) -> None:
    write(tmp_path / "dataset_RSITMD.json", {"images": json_entries("tif")[:1]})
    write(tmp_path / "images" / "unused.txt", "no picture")
    pixels = np.full((3, SIDE, SIDE), 7, dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            tmp_path / "images" / "scene_0.tif", "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8"
        ) as file:
            file.write(pixels)
    raster = read_captions(tmp_path, Options(declared=Declared(gsd_m=0.5))).images[0].read()
    assert np.array_equal(raster.pixels, pixels)
    assert raster.gsd_m == 0.5
    with pytest.raises(GridError, match="scene_0.tif"):
        read_captions(tmp_path).images[0].read()


@pytest.mark.parametrize("repeated", [False, True])
def test_precomp_layout_with_a_name_for_each_image_or_for_each_caption(tmp_path: Path, repeated: bool) -> None:
    data = read_captions(precomp(tmp_path, repeated=repeated))
    assert sorted(zip(data.ids, data.split, strict=True)) == [
        ("1.png", "train"), ("2.png", "train"), ("3.png", "train"), ("4.png", "test"), ("5.png", "test"),
    ]  # fmt: skip
    for i, name in enumerate(data.ids):
        number = int(name.removesuffix(".png"))
        assert data.captions[i] == tuple(five(number))
        check(data, i, number, atol=0)
    assert data.images[0].read().gsd_m == 0.3


def test_ucm_pack_reads_jpegs_from_stored_zips(tmp_path: Path) -> None:
    data = read_captions(ucm_pack(tmp_path))
    assert (data.ids, data.split) == (("beach00.jpg", "beach01.jpg", "beach02.jpg"), ("train", "train", "val"))
    for i in range(3):
        check(data, i, i)
    assert data.images[0].read().gsd_m == 0.3
    assert data.rgb(2).sensor.id == "generic-rgb"


def test_chatearthnet_reads_rgb_and_one_model_at_a_time(tmp_path: Path) -> None:
    data = read_captions(chatearthnet(tmp_path))
    assert (data.name, data.licence) == ("chatearthnet-35", "CC-BY-4.0")
    assert data.captions == (("Mostly grass.",), ("Two ponds.",), ("A town.",))
    assert data.split == ("train", "train", "val")
    for i in range(3):
        check(data, i, i, atol=0)
    assert data.images[0].read().gsd_m == 10.0
    assert read_captions(tmp_path, Options(captions="4v")).captions == (("Green meadows.",),)
    with pytest.raises(CaptionError, match="5o asked for, 35, 4v there"):
        read_captions(tmp_path, Options(captions="5o"))


def test_rs5m_shards(tmp_path: Path) -> None:
    data = read_captions(rs5m(tmp_path))
    assert data.name == "rs5m"
    assert data.ids == tuple(f"{s}/pub11-{s}-0000/{i:07}" for s, i in (("train", 0), ("train", 1), ("val", 2)))
    assert data.captions[1] == ("a satellite image of place 1",)
    assert data.split == ("train", "train", "val")
    for i in range(3):
        check(data, i, i)


def test_webdataset_shards_with_txt_and_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [
        ("x/000.png", picture(0)), ("x/000.txt", b"a quarry\n"), ("x/000.json", b'{"caption": "not this one"}'),
        ("x/001.jpg", picture(1, "JPEG")), ("x/001.json", json.dumps({"width": 4, "caption": "a dam"}).encode()),
    ])  # fmt: skip
    data = read_captions(tmp_path)
    assert data.captions == (("a quarry",), ("a dam",))
    assert data.ids == ("00000/x/000", "00000/x/001")
    assert data.split == ("train", "train")
    check(data, 1, 1)


def test_skyscript_reads_deflated_zips_and_the_column_asked_for(tmp_path: Path) -> None:
    data = read_captions(skyscript(tmp_path))
    assert data.captions == (("a building 0",), ("a building 1",), ("a building 2",))
    assert data.split == ("train", "train", "val")
    for i in range(3):
        check(data, i, i)
    rich = read_captions(tmp_path, Options(captions="title_multi_objects", splits=("val",)))
    assert rich.captions == (("a building 2, surrounded by trees",),)


@pytest.mark.parametrize("chunks", [(2, 1, 3, SIDE, SIDE), (1, 4, 1, SIDE, 8), (3, 4, 3, SIDE, SIDE)])
def test_ssl4eo_takes_place_and_season_from_whatever_chunks(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    data = read_captions(ssl4eo(tmp_path, chunks=chunks))
    assert data.ids[:5] == ("0080717_0", "0080717_1", "0080717_2", "0080717_3", "0000003_0")
    assert data.captions[4] == ("A view of place 3 in season 0.",)
    assert set(data.split) == {"val"}
    for i in (0, 3, 6, 11):
        check(data, i, i, atol=0)
    assert data.images[0].read().gsd_m == 10.0


def test_own_geotiffs_keep_bands_type_place_and_all_their_captions(tmp_path: Path) -> None:
    data = read_captions(own(tmp_path))
    assert data.captions == (("ponds among fields", "prairie potholes"), ("annual crops",))
    assert data.split == ("train", "val")
    naip, crop = data.images[0].read(), data.images[1].read()
    assert np.array_equal(naip.pixels, read(SAMPLES / "naip" / "m_4709963_se_14_20180716.tif").pixels)
    assert (naip.sensor.id, len(naip.bands)) == ("naip-rgbn", 4)
    assert (crop.sensor.id, crop.pixels.dtype, len(crop.bands)) == ("sentinel-2-l1c", np.uint16, 13)
    assert [b.name for b in data.rgb(1).bands] == ["B04", "B03", "B02"]
    assert abs(naip.gsd_m - 5.0) < 0.01


def test_own_jsonl_says_the_same(tmp_path: Path) -> None:
    table = read_captions(own(tmp_path / "csv"))
    folder = own(tmp_path / "jsonl")
    (folder / "captions.csv").unlink()
    lines = [
        {"file": "tiles/naip.tif", "caption": ["ponds among fields", "prairie potholes"], "split": "train"},
        {"file": "tiles/crop.tif", "caption": "annual crops", "split": "val"},
    ]
    write(folder / "captions.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    data = read_captions(folder)
    assert (data.ids, data.captions, data.split) == (table.ids, table.captions, table.split)


def test_own_without_splits_is_train(tmp_path: Path) -> None:
    rows = [{"file": "naip.tif", "caption": "fields"}, {"file": "crop.tif", "caption": "crops"}]
    assert read_captions(own(tmp_path, rows)).split == ("train", "train")


# --- layouts are found, and what is missing is named -------------------------------------------------------------

MAKERS: dict[str, Callable[[Path], Path]] = {
    "own": own, "ucm-pack": ucm_pack, "json": rsicd, "precomp": lambda p: precomp(p, repeated=True),
    "chatearthnet": chatearthnet, "skyscript": skyscript, "ssl4eo": ssl4eo, "webdataset": rs5m,
}  # fmt: skip


def test_every_layout_has_a_fixture() -> None:
    assert set(MAKERS) == set(LAYOUTS)


@pytest.mark.parametrize("name", MAKERS)
def test_each_layout_is_found_by_what_lies_there_and_by_no_other(tmp_path: Path, name: str) -> None:
    root = MAKERS[name](tmp_path)
    assert [n for n, layout in LAYOUTS.items() if layout.fits(root)] == [name]


def test_no_layout_and_two_layouts_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a" / "pictures.png", picture(0))
    with pytest.raises(
        CaptionError, match=r"got pictures\.png, expected captions\.csv.*\(own\).*SkyScript.*captions\.csv"
    ):
        read_captions(tmp_path / "a")
    with pytest.raises(CaptionError, match="no such folder"):
        read_captions(tmp_path / "nowhere")
    with pytest.raises(CaptionError, match="'coco'.*one of own"):
        read_captions(tmp_path / "a", layout="coco")
    rsicd(own(tmp_path / "b"))
    with pytest.raises(CaptionError, match="files of own and json"):
        read_captions(tmp_path / "b")
    assert len(read_captions(tmp_path / "b", layout="json")) == 6


def test_missing_images_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    root = rsicd(tmp_path)
    for i in (1, 4):
        (root / "RSICD_images" / f"scene_{i}.png").unlink()
    with pytest.raises(CaptionError, match=r"image 2.*no scene_1\.png in .* and 1 more.*partial=True"):
        read_captions(root)
    data = read_captions(root, Options(partial=True))
    assert (data.left_out, data.ids) == (2, ("scene_0.png", "scene_2.png", "scene_3.png", "scene_5.png"))
    check(data, 1, 2, atol=0)
    for i in (0, 2, 3, 5):
        (root / "RSICD_images" / f"scene_{i}.png").unlink()
    with pytest.raises(CaptionError, match="and 5 more"):
        read_captions(root, Options(partial=True))


def test_splits_that_nothing_is_of_are_told(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match="no image of the splits asked for, expected captions of val"):
        read_captions(precomp(tmp_path, repeated=False), Options(splits=("val",)))


OUTSIDE = "expected a path below"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e[2]["sentences"][3].update(raw="  "),
            r"image 3 \(scene_2\.png\), sentence 4: caption: got an empty",
        ),
        (lambda e: e[2]["sentences"][3].update(raw=None), "sentence 4: caption: got NoneType, expected text"),
        (lambda e: e[1]["sentences"][0].update(raw="x" * 20_000), "20,000 characters"),
        (lambda e: e[3].update(filename="scene_0.png"), r"image 4: image: got 'scene_0\.png' again, after .*image 1"),
        (lambda e: e[3].update(imgid=0), "imgid: got 0 twice"),
        (lambda e: e[3].update(split="dev"), "image 4: split: got 'dev', expected one of train"),
        (lambda e: e[3].pop("split"), "image 4: got filename, imgid, sentences, sentids, expected dataset"),
        (lambda e: e[3].update(sentences=[]), "image 4"),
        (lambda e: e.insert(0, "text"), "image 1: got str"),
        (lambda e: e[0].update(filename="../../etc/passwd.png"), rf"got '\.\./\.\./etc/passwd\.png', {OUTSIDE}"),
        (lambda e: e[0].update(filename="/etc/x.png"), OUTSIDE),
        (lambda e: e[0].update(filename="..\\x.png"), OUTSIDE),
    ],
)
def test_faults_of_a_json_list_are_told_with_their_place(
    tmp_path: Path, change: Callable[[list], object], message: str
) -> None:
    entries = json_entries()
    change(entries)
    with pytest.raises(CaptionError, match=message):
        read_captions(rsicd(tmp_path, entries))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON file"),
        ("[" * 100_000, "expected a JSON file"),
        ({"annotations": [], "info": {}}, r"got annotations, info, expected dataset\*\.json with images"),
        ([], r"got list, expected dataset\*\.json with images"),
    ],
)
def test_another_json_is_told_by_its_keys(tmp_path: Path, content: str | dict | list, message: str) -> None:
    write(tmp_path / "dataset_x.json", content)
    with pytest.raises(CaptionError, match=message):
        read_captions(tmp_path)


def test_an_image_that_two_files_could_be_is_refused(tmp_path: Path) -> None:
    root = rsicd(tmp_path)
    write(root / "more" / "scene_3.png", picture(9))
    with pytest.raises(CaptionError, match=r"'scene_3\.png', which is .* and more/scene_3\.png"):
        read_captions(root)


def test_faults_of_precomp_lists_are_told(tmp_path: Path) -> None:
    root = precomp(tmp_path, repeated=True)
    names, captions = root / "train_filename.txt", root / "train_caps.txt"
    whole, lines = names.read_text(), captions.read_text().splitlines()
    names.write_text(whole.replace("1.png\n2.png", "2.png\n1.png", 1))
    with pytest.raises(CaptionError, match=r"1\.png and 2\.png among the five lines from 1"):
        read_captions(root)
    names.write_text(whole)
    captions.write_text("\n".join([*lines[:7], " ", *lines[8:]]))
    with pytest.raises(CaptionError, match=r"train_caps\.txt, line 8: caption: got an empty one"):
        read_captions(root)
    captions.write_text("\n".join(lines[:13]))
    with pytest.raises(CaptionError, match="15 images and 13 captions, expected 5 captions an image"):
        read_captions(root)
    captions.write_bytes(b"fine\n\xff\xfe broken\n")
    with pytest.raises(CaptionError, match="no UTF-8"):
        read_captions(root)
    captions.unlink()
    with pytest.raises(CaptionError, match=r"train_caps\.txt: got no such file"):
        read_captions(root)
    captions.write_text("\n".join(lines))
    (root / "dev_filename.txt").write_text("9.png\n")
    with pytest.raises(CaptionError, match="'dev'"):
        read_captions(root)
    (root / "dev_filename.txt").unlink()
    for kind in ("filename", "caps"):
        (root / f"val_{kind}.txt").write_bytes((root / f"test_{kind}.txt").read_bytes())
    with pytest.raises(CaptionError, match=r"'4\.png' again.*name the splits to read"):
        read_captions(root)
    assert len(read_captions(root, Options(splits=("train", "test")))) == 5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "file,text\nnaip.tif,x",
            r"columns file, text \(no caption\), expected a CSV file with the columns file, caption",
        ),
        ("file,caption\nnaip.tif,x\ncrop.tif, ", r"captions\.csv, line 3: caption: got an empty one"),
        ("file,caption\ngone.tif,x", r"line 2: image: got no gone\.tif"),
        ("file,caption\n,x", "line 2: file: got ''"),
        ("file,caption,split\nnaip.tif,x,dev", "line 2: split: got 'dev'"),
        ("file,caption,split\nnaip.tif,x,train\nnaip.tif,y,val", "line 3: split: got val after train"),
        ("file,caption\n../../naip.tif,x", OUTSIDE),
        ("file,caption\nnaip.tif,one, two", "line 2: got another number of fields, expected 2"),
        ("", "columns none"),
    ],
)
def test_faults_of_captions_csv_are_told_with_their_line(tmp_path: Path, table: str, message: str) -> None:
    write(own(tmp_path) / "captions.csv", table)
    with pytest.raises(CaptionError, match=message):
        read_captions(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "naip.tif"}', r"captions\.jsonl, line 2: got file, expected file, caption"),
        ('{"file": "naip.tif", "caption": []}', "line 2: caption: got an empty one"),
        ('{"file": 3, "caption": "x"}', "line 2: file: got 3"),
        ('{"file": "naip.tif", "caption": {}}', "line 2: caption: got dict"),
        ("[1]", "line 2: got list"),
        ("{", "line 2.*a JSON object on one line"),
    ],
)
def test_faults_of_captions_jsonl_are_told_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    root = own(tmp_path)
    (root / "captions.csv").unlink()
    write(root / "captions.jsonl", '{"file": "crop.tif", "caption": "x"}\n' + line + "\n")
    with pytest.raises(CaptionError, match=message):
        read_captions(root)


def test_both_lists_of_ones_own_are_refused(tmp_path: Path) -> None:
    root = own(tmp_path)
    write(root / "captions.jsonl", "")
    with pytest.raises(CaptionError, match="captions.csv and captions.jsonl"):
        read_captions(root)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.jpg", b"")], r"k: caption: got only \.jpg"),
        ([("k.jpg", b""), ("k.txt", b" \n")], r"k\.txt: caption: got an empty one"),
        ([("k.jpg", b""), ("k.txt", b"\xff")], "text or JSON in UTF-8"),
        ([("k.jpg", b""), ("k.json", b'{"alt": "x"}')], "no such field, expected one of caption"),
        ([("k.jpg", b""), ("k.txt", bytes(2**20 + 1))], "1,048,577 bytes"),
        ([("k.jpg", b""), ("k.jpg", b""), ("k.txt", b"x")], r"two members \.jpg"),
        ([("k.txt", b"x")], "k: image: got no picture among txt"),
        ([(f"{k}.{part}", b"x") for k in "klk" for part in ("jpg", "txt")], "'s/k' twice"),
    ],
)  # fmt: skip
def test_faults_of_shards_are_told(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(CaptionError, match=message):
        read_captions(tmp_path)


def test_torn_compressed_and_ambiguous_shards_are_refused_and_links_left_out(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [("k.png", picture(1)), ("k.txt", b"a dam")])
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1500])
    with pytest.raises(CaptionError, match=r"s\.tar.*whole, uncompressed"):
        read_captions(tmp_path)
    with tarfile.open(shard, "w:gz") as file:
        file.addfile(tarfile.TarInfo("k.txt"))
    with pytest.raises(CaptionError, match=r"s\.tar.*whole, uncompressed"):
        read_captions(tmp_path)
    with tarfile.open(shard, "w") as file:
        link = tarfile.TarInfo("k.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        text = tarfile.TarInfo("k.txt")
        text.size = 5
        file.addfile(text, io.BytesIO(b"a dam"))
    with pytest.raises(CaptionError, match="no picture among txt"):
        read_captions(tmp_path)
    (tmp_path / "s.tar").unlink()
    write_tar(tmp_path / "train" / "x-val-0.tar", [("k.png", picture(1)), ("k.txt", b"a dam")])
    with pytest.raises(CaptionError, match="a name with train and val"):
        read_captions(tmp_path)


def test_two_lists_of_one_skyscript_split_and_a_column_that_is_not_there(tmp_path: Path) -> None:
    root = skyscript(tmp_path)
    with pytest.raises(CaptionError, match="no title_raw"):
        read_captions(root, Options(captions="title_raw"))
    again = root / "SkyScript_train_unfiltered_5M.csv"
    again.write_bytes((root / "SkyScript_train_top30pct_filtered_by_CLIP_openai.csv").read_bytes())
    with pytest.raises(CaptionError, match="one list a split"):
        read_captions(root)


def test_faults_of_ssl4eo_are_told(tmp_path: Path) -> None:
    root = ssl4eo(tmp_path)
    table = root / "val" / "ssl4eos12_val_seasonal_data_000001.csv"
    whole = table.read_text()
    table.write_text(whole.replace(",80717,0", ",80718,0"))
    with pytest.raises(CaptionError, match="0080718_0: got 0 such places"):
        read_captions(root).images[0].read()
    table.write_text(whole.replace(",80717,0", ",80717,7"))
    with pytest.raises(CaptionError, match="line 2: got sample_id '80717', time_id '7'"):
        read_captions(root)
    table.write_text(whole.replace("ssl4eos12_val", "../ssl4eos12_val"))
    with pytest.raises(CaptionError, match="expected the name of a .zarr.zip without folders"):
        read_captions(root)
    table.write_text(whole.replace("000001.zarr", "000002.zarr"))
    with pytest.raises(CaptionError, match=r"no S2RGB/ssl4eos12_val_seasonal_data_000002\.zarr\.zip.*and 11 more"):
        read_captions(root)
    table.write_text(whole)
    data = read_captions(root)
    archive = root / "val" / "S2RGB" / "ssl4eos12_val_seasonal_data_000001.zarr.zip"
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(CaptionError, match="a whole zipped Zarr group"):
        data.images[0].read()


def rewrite_zarr(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    with zipfile.ZipFile(path) as file:
        members = {n: file.read(n) for n in dict.fromkeys(file.namelist())}
    change(members)
    write_zip(path, members)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dtype": "|O"}, "numbers or text"),
        ({"chunks": [64, 4, 12, 264, 2640]}, "chunks of up to 64 MiB"),
        ({"filters": [{"id": "json2"}]}, "numbers or text"),
        ({"compressor": {"id": "zlib", "level": 1}}, "by 'zlib'"),
        ({"shape": [3]}, "chunks of"),
        ({"shape": "x"}, "description of a Zarr array"),
    ],
)
def test_hostile_zarr_descriptions_are_refused(tmp_path: Path, facts: dict, message: str) -> None:
    root = ssl4eo(tmp_path)
    path = root / "val" / "S2RGB" / "ssl4eos12_val_seasonal_data_000001.zarr.zip"

    def change(members: dict[str, bytes]) -> None:
        members["bands/.zarray"] = json.dumps(json.loads(members["bands/.zarray"]) | facts).encode()

    rewrite_zarr(path, change)
    with pytest.raises(CaptionError, match=message):
        read_captions(root).images[0].read()


def test_a_zarr_chunk_that_claims_another_size_and_another_type_are_refused(tmp_path: Path) -> None:
    root = ssl4eo(tmp_path / "a")
    path = root / "val" / "S2RGB" / "ssl4eos12_val_seasonal_data_000001.zarr.zip"
    with zipfile.ZipFile(path) as file:
        compressor = json.loads(file.read("bands/.zarray"))["compressor"]
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}

    def change(members: dict[str, bytes]) -> None:
        described = json.loads(members["bands/.zarray"])
        members["bands/.zarray"] = json.dumps(described | {"compressor": blosc}).encode()
        members["bands/0.0.0.0.0"] = bytes(4) + struct.pack("<I", 2**31) + bytes(64)

    rewrite_zarr(path, change)
    with pytest.raises(CaptionError, match="a chunk of another size"):
        read_captions(root).images[0].read()
    assert compressor is None or compressor["id"] == "blosc"
    with pytest.raises(CaptionError, match=r"got int16 of shape.*expected uint8"):
        read_captions(ssl4eo(tmp_path / "b", dtype="int16")).images[0].read()


# --- pictures from outside ---------------------------------------------------------------------------------------


def one(tmp_path: Path, content: bytes, name: str = "x.png") -> Captioned:
    write(tmp_path / name, content)
    write_csv(tmp_path / "captions.csv", [{"file": name, "caption": "something"}])
    return read_captions(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture(1)[:60], "a whole JPEG or PNG"),
        (picture(1, "JPEG")[:300], "a whole JPEG or PNG"),
        (b"", "a whole JPEG or PNG"),
        (b"GIF89a" + bytes(50), "a whole JPEG or PNG"),
        (picture(1, "PNG", "L"), "a picture of mode L, expected 8-bit RGB"),
        (picture(1, "JPEG", "CMYK"), "a picture of mode CMYK"),
    ],
)
def test_damaged_foreign_and_grey_pictures_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CaptionError, match=rf"x\.png.*{message}"):
        one(tmp_path, content).images[0].read()


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    whole = picture(1)
    at = whole.index(b"IHDR")
    for n, side in enumerate((5_000, 12_000, 60_000)):
        head = b"IHDR" + struct.pack(">II", side, side) + whole[at + 12 : at + 17]
        huge = whole[:at] + head + struct.pack(">I", zlib.crc32(head)) + whole[at + 21 :]
        with pytest.raises(CaptionError, match=r"x\.png.*expected at most 16,777,216 pixels"):
            one(tmp_path / str(n), huge).images[0].read()
    out = io.BytesIO()
    Image.new("RGB", (4097, 4096)).save(out, "PNG")
    assert len(out.getvalue()) < 200_000
    with pytest.raises(CaptionError, match="4097 x 4096 px, expected at most 16,777,216 pixels"):
        one(tmp_path / "bomb", out.getvalue()).images[0].read()


def test_palettes_become_colours_and_transparency_is_no_data(tmp_path: Path) -> None:
    palette = one(tmp_path / "p", picture(5, "PNG", "P")).images[0].read()
    np.testing.assert_allclose(palette.pixels.mean(axis=(1, 2)), colour(5), atol=30)
    half = Image.new("RGBA", (SIDE, SIDE), (*colour(2), 255))
    half.paste((0, 0, 0, 0), (0, 0, SIDE // 2, SIDE))
    out = io.BytesIO()
    half.save(out, "PNG")
    raster = one(tmp_path / "a", out.getvalue()).images[0].read()
    assert raster.valid_share == 0.5
    assert tuple(raster.pixels[:, 0, -1]) == colour(2)


def test_a_zip_member_that_lies_about_itself_is_refused(tmp_path: Path) -> None:
    root = skyscript(tmp_path)
    archive = root / "images2.zip"
    whole = archive.read_bytes()
    where = whole.index(b"PK\x01\x02")
    bomb = bytearray(whole)
    size = struct.unpack_from("<I", whole, where + 24)[0]
    struct.pack_into("<I", bomb, where + 24, size - 5)
    archive.write_bytes(bytes(bomb))
    with pytest.raises(CaptionError, match="not the ones stated"):
        read_captions(root).images[0].read()
    struct.pack_into("<I", bomb, where + 24, 2**31)
    archive.write_bytes(bytes(bomb))
    with pytest.raises(CaptionError, match="2,147,483,648 bytes, expected at most"):
        read_captions(root).images[0].read()
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    archive.write_bytes(bytes(flipped))
    with pytest.raises(CaptionError, match=r"images2\.zip: images2/a0_CH_19\.jpg"):
        read_captions(root).images[0].read()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptionError, match="a whole zip archive"):
        read_captions(root)


def test_zip_members_equal_what_zipfile_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {f"d/{i}.png": rng.integers(0, 4, 3000 * i, dtype=np.uint8).tobytes() for i in range(5)}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / f"{method}.zip", members, method)
        assert {p.member: p.content() for p in pictures.zip_pieces(path)} == members
    encrypted = bytearray(path.read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(encrypted))
    with pytest.raises(CaptionError, match="encrypted"):
        list(pictures.zip_pieces(path))


def test_a_tiff_in_an_archive_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tiff = (SAMPLES / "sentinel-2" / "eurosat_AnnualCrop_518.tif").read_bytes()
    write_zip(tmp_path / "images.zip", {"x.tif": tiff})
    write_csv(tmp_path / "captions.csv", [{"file": "x.tif", "caption": "crops"}])
    with pytest.raises(CaptionError, match="unpack an archive of TIFFs"):
        read_captions(tmp_path).images[0].read()


def test_a_picture_that_went_away_is_told(tmp_path: Path) -> None:
    data = one(tmp_path, picture(1))
    (tmp_path / "x.png").unlink()
    with pytest.raises(AlidadeError, match=r"x\.png.*No such file"):
        data.images[0].read()


# --- the real set ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack() -> Path:
    if "ALIDADE_PACK" not in os.environ:
        pytest.skip("set ALIDADE_PACK to the data pack")
    return Path(os.environ["ALIDADE_PACK"])


@pytest.mark.pack
def test_ucm_captions_of_the_pack_have_the_published_counts(pack: Path) -> None:
    data = read_captions(pack / "ucm_captions")
    train, val = data.part("train"), data.part("val")
    assert (len(train), len(val)) == (1680, 210)
    assert {len(c) for c in data.captions} == {5}
    assert len({s for c in data.captions for s in c}) == 1827
    assert data.overlap("val", "train") == Overlap(sentences=1050, repeated=662, distinct=199)


@pytest.mark.pack
def test_ucm_pictures_of_the_pack_are_those_that_zipfile_and_pillow_read(pack: Path) -> None:
    val = read_captions(pack / "ucm_captions").part("val")
    with zipfile.ZipFile(pack / "ucm_captions" / "images_val.zip") as archive:
        for i in range(0, 210, 21):
            with Image.open(io.BytesIO(archive.read(val.ids[i]))) as image:
                assert np.array_equal(val.images[i].read().pixels, np.asarray(image).transpose(2, 0, 1))
