"""The picture of an answer, and the colours that rasters are shown in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from PIL import Image
from pyproj import CRS

from alidade.errors import ArchiveError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.files import Declared, open_raster, write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.quicklook import NO_DATA_COLOUR, chip, of_raster, overview, shown_bands, stretch_of
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import tile_windows
from alidade.search.archive import Archive
from alidade.search.manifest import Coverage
from alidade.search.picture import RAMP, bar_labels, draw_result, ramp, row_colours
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow
from alidade.search.writer import ArchiveWriter

TILE = 50
EMPTY, INK, PAPER = (243, 244, 246), (17, 24, 39), (255, 255, 255)
BOX = (slice(152, 376), slice(48, 272))
"""Where the query stands in a picture."""


def make(sensor_id: str, pixels: np.ndarray, unit: Unit | None = None, bands: tuple[str, ...] = ()) -> Raster:
    found = sensor(sensor_id)
    shown = tuple(found.band(b) for b in bands) or found.bands[: len(pixels)]
    scale = 1e-4 if found.unit is Unit.REFLECTANCE else 1.0
    height, width = pixels.shape[1:]
    crs, transform = CRS.from_epsg(32632), Affine(10, 0, 500_000, 0, -10, 5_200_000)
    return Raster(
        pixels=pixels,
        bands=shown,
        encodings=(Encoding(unit=unit or found.unit, scale=scale),) * len(shown),
        valid=np.ones((height, width), dtype=bool),
        grid=Grid(crs=crs, transform=transform, width=width, height=height),
        sensor=found,
        time=datetime(2021, 6, 1, tzinfo=UTC),
        source="made",
    )


def gradient(height: int = 150, width: int = 200) -> np.ndarray:
    """Red grows to the right, green downwards, blue is even: 8 bits."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([right, down, np.full_like(right, 90)]).astype(np.uint8)


def add(archive: ArchiveWriter, folder: Path, name: str, pixels: np.ndarray, *, angle: float = 0.0) -> None:
    """A scene whose tiles' embeddings turn from the query's direction away, tile by tile, from ``angle`` on."""
    write_geotiff(folder / f"{name}.tif", make("naip-rgb", pixels))
    path = str(folder / f"{name}.tif")
    rows = [
        TileRow(
            id=f"{name}-{i:02d}",
            footprint=None,
            time=None,
            sensor="naip-rgb",
            gsd_m=10.0,
            valid_share=1.0,
            cloud_share=None,
            source=path,
            source_id=name,
            row=w.row,
            col=w.col,
            height=w.height,
            width=w.width,
            embedding=np.array([np.cos(angle + i / 8), np.sin(angle + i / 8)]),
        )
        for i, w in enumerate(tile_windows(*pixels.shape[1:], TILE))
    ]
    told = Coverage(
        source=path, relative=f"../{name}.tif", source_id=name, total=len(rows), tiles=((0, len(rows)),), empty=()
    )
    archive.append(rows, [told])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of 3 x 4 tiles."""
    folder = tmp_path_factory.mktemp("picture")
    with ArchiveWriter(folder / "a", model="tiny-01", dim=2, tile=TILE) as w:
        add(w, folder, "scene", gradient())
    return folder / "a"


@pytest.fixture(scope="module")
def scanner(archive: Path) -> Scanner:
    return Scanner(Archive.open(archive))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def near(picture: np.ndarray, colour: tuple[int, int, int], within: int = 1) -> np.ndarray:
    """Which pixels ``[H, W]`` have a colour; a saved level may lie one beside."""
    return np.abs(picture.astype(int) - colour).max(axis=2) <= within


def contains(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(near(picture, colour, within=2).any())


def test_the_picture_shows_query_hits_scene_and_similarity(scanner: Scanner, tmp_path: Path) -> None:
    hits = scanner.search([1, 0], 7)
    magenta = np.full((40, 40, 3), (255, 0, 255), np.uint8)
    draw_result(hits, scanner, tmp_path / "out.png", query=magenta)
    picture = pixels_of(tmp_path / "out.png")
    assert 1200 <= picture.shape[1] <= 1800
    assert (picture == (255, 0, 255)).all(axis=2).sum() >= 150 * 150, "the query fills its box"
    for corner in (picture[:20, :20], picture[-20:, -20:], picture[:20, -20:]):
        assert (corner == 255).all(), "clean margins"
    assert contains(picture, RAMP[0])
    assert contains(picture, RAMP[-1]), "the colour bar runs over the whole ramp"
    # every hit and the scene itself are drawn from the file: its bluish greens occur nowhere else
    blue = np.abs(picture[..., 2].astype(int) - 90) <= 1
    assert (blue & (picture[..., 0] < 200)).sum() > 7 * 100 * 100
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_more_hits_make_a_second_row_and_no_hits_a_sentence(scanner: Scanner, tmp_path: Path) -> None:
    heights = {}
    for name, hits in {
        "five": scanner.search([1, 0], 5),
        "ten": scanner.search([1, 0], 10),
        "none": scanner.search([1, 0], 5, bbox=(0, 0, 1, 1)),
    }.items():
        draw_result(hits, scanner, tmp_path / f"{name}.png")
        heights[name] = pixels_of(tmp_path / f"{name}.png").shape[0]
    assert heights["ten"] > heights["five"] > heights["none"]


def test_a_source_that_is_gone_becomes_an_empty_box(archive: Path, scanner: Scanner, tmp_path: Path) -> None:
    hits = scanner.search([1, 0], 3)
    scene = archive.parent / "scene.tif"
    away = scene.rename(archive.parent / "away.bin")
    try:
        draw_result(hits, scanner, tmp_path / "gone.png")
    finally:
        away.rename(scene)
    draw_result(hits, scanner, tmp_path / "there.png")
    gone, there = pixels_of(tmp_path / "gone.png"), pixels_of(tmp_path / "there.png")
    assert gone.shape[0] < there.shape[0], "no scene without its file"
    assert near(gone, EMPTY).sum() > 3 * 150 * 150


def test_the_scene_is_one_of_several_tiles(tmp_path: Path) -> None:
    """Of a tile that is a scene of its own the chip tells all: a scene below would be one even colour."""
    with ArchiveWriter(tmp_path / "a", model="tiny-01", dim=2, tile=TILE) as w:
        add(w, tmp_path, "alone", np.full((3, TILE, TILE), 240, np.uint8))
        add(w, tmp_path, "scene", gradient(), angle=0.05)
    scanner = Scanner(Archive.open(tmp_path / "a"))
    for name, k in (("best", 1), ("both", 2)):
        draw_result(scanner.search([1, 0], k), scanner, tmp_path / f"{name}.png")
    best, both = (pixels_of(tmp_path / f"{name}.png") for name in ("best", "both"))
    assert [row["source_id"] for row in scanner.search([1, 0], 2).table.to_pylist()] == ["alone", "scene"]
    assert best.shape[0] < 600, "no scene"
    assert both.shape[0] > 900
    # the gradient of the second hit's scene, and nothing of the white first one
    lower = both[600:]
    assert (np.abs(lower[..., 2].astype(int) - 90) <= 1).sum() > 300_000


def test_a_picture_that_cannot_be_written_is_one_error(scanner: Scanner, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="writing the picture: got No such file or directory"):
        draw_result(scanner.search([1, 0], 1), scanner, tmp_path / "none" / "out.png")


def drawn(scanner: Scanner, folder: Path, asked: str, query: np.ndarray | None = None) -> np.ndarray:
    """The picture of an answer to ``asked``."""
    draw_result(scanner.search([1, 0], 3, describe=asked), scanner, folder / "out.png", query=query)
    return pixels_of(folder / "out.png")


@pytest.fixture(scope="module")
def otherwise(scanner: Scanner, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return drawn(scanner, tmp_path_factory.mktemp("otherwise"), '"something else"')


LONG = '"' + "a river with sand banks between two towns and " * 40 + '"'


@pytest.mark.parametrize(
    "asked",
    [
        '"sea"',
        '"open water", not "ships"',
        '"sea" and 2 liked tiles',
        '"a dense residential area with a swimming pool"',
        f'"{"w" * 90}"',
        LONG,
    ],
)
def test_words_stand_in_the_place_of_the_query(
    scanner: Scanner, tmp_path: Path, otherwise: np.ndarray, asked: str
) -> None:
    picture = drawn(scanner, tmp_path, asked)
    box = picture[BOX]
    ink = near(box, INK, within=60)
    assert ink.sum() > 60, "words"
    assert near(box, PAPER).sum() > 0.6 * box[..., 0].size, "on white: no empty grey box, no line through it"
    rows, cols = np.nonzero(ink)
    for at in (rows, cols):
        assert at.min() >= 12, "a clean margin"
        assert at.max() < 212
        assert abs(at.min() + at.max() - 223) < 24, "in the middle"
    changed = (picture != otherwise).any(axis=2)
    assert changed[BOX].any(), "other words look otherwise"
    changed[BOX] = False
    changed[: BOX[0].start] = False
    assert not changed.any(), "beside the words and the heading all is as it was"


def test_words_are_as_large_as_they_fit(scanner: Scanner, tmp_path: Path) -> None:
    heights = []
    # no letter that goes below the line
    for asked in ('"houses"', '"houses beside a wide road and a wide field and the houses of a hamlet behind them"'):
        rows = np.flatnonzero(near(drawn(scanner, tmp_path, asked)[BOX], INK, within=60).any(axis=1))
        heights.append(np.diff(np.flatnonzero(np.diff(rows, prepend=-9) > 1), append=len(rows)).max())
    assert heights[0] > 1.2 * heights[1]


def test_a_query_without_words_and_picture_says_so(scanner: Scanner, tmp_path: Path) -> None:
    said = drawn(scanner, tmp_path, "the tile at -74.5,-8.4")[BOX]
    assert near(said, EMPTY).sum() > 0.8 * said[..., 0].size
    other = drawn(scanner, tmp_path, "the tile at 11.5,48.1")[BOX]
    assert (said != other).any(), "it names the place"
    magenta = np.full((40, 40, 3), (255, 0, 255), np.uint8)
    assert near(drawn(scanner, tmp_path, '"sea"', magenta)[BOX], (255, 0, 255)).sum() > 200 * 200, "a picture wins"


def test_a_long_heading_ends_within_the_picture(scanner: Scanner, tmp_path: Path) -> None:
    head = drawn(scanner, tmp_path, LONG)[:90]
    ink = np.flatnonzero(near(head, INK, within=60).any(axis=0))
    assert head.shape[1] - 48 - 40 < ink.max() < head.shape[1] - 48


def test_what_is_saved_differs_by_one_level_at_most_and_is_smaller(
    scanner: Scanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).normal(120, 5, (224, 224, 3)).round().astype(np.uint8)
    saved = drawn(scanner, tmp_path, "x", noise)
    size = (tmp_path / "out.png").stat().st_size
    monkeypatch.setattr("alidade.search.picture._LEVELS", list(range(256)))
    exact = drawn(scanner, tmp_path, "x", noise)
    assert (exact[BOX] == noise).all()
    assert np.abs(saved.astype(int) - exact).max() == 1
    assert size < 0.85 * (tmp_path / "out.png").stat().st_size


@pytest.mark.parametrize(
    ("limits", "clipped", "expected"),
    [
        ((0.0, 1.0), False, ("1.00", "0.75", "0.50", "0.25", "0.00")),
        ((-0.004, 0.4), True, ("0.40", "0.30", "0.20", "0.10", "< 0.00")),
        ((-0.05, 0.05), False, ("0.05", "0.03", "0.00", "-0.03", "-0.05")),
        ((0.99001, 0.99003), False, ("0.9900",) * 5),
        ((-0.00004, 0.00004), True, ("0.0000",) * 4 + ("< 0.0000",)),
    ],
)
def test_the_bars_labels_have_no_negative_zero(
    limits: tuple[float, float], clipped: bool, expected: tuple[str, ...]
) -> None:
    assert bar_labels(limits, clipped=clipped) == expected


def test_a_row_is_shown_from_its_own_window(scanner: Scanner) -> None:
    row = scanner.table.slice(6, 1).to_pylist()[0]
    assert (row["row"], row["col"]) == (50, 100)
    expected = np.moveaxis(gradient()[:, 50:100, 100:150], 0, -1)
    np.testing.assert_array_equal(row_colours(scanner, row, Declared()), expected)


def test_the_ramp_rises_in_lightness() -> None:
    colours = ramp(np.linspace(0, 1, 50)).astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert tuple(ramp(0.0)) == RAMP[0]
    assert tuple(ramp([2.0])[0]) == RAMP[-1]


def test_which_bands_are_shown() -> None:
    s2, s1, naip = sensor("sentinel-2-l2a"), sensor("sentinel-1-rtc"), sensor("naip-rgbn")
    assert shown_bands(s2, s2.bands) == ("B04", "B03", "B02")
    assert shown_bands(s2, [s2.band(n) for n in ("B03", "B08", "B04")]) == ("B08", "B04", "B03")
    assert shown_bands(s2, [s2.band("B11")]) == ("B11",)
    assert shown_bands(naip, naip.bands[::-1]) == ("R", "G", "B")
    assert shown_bands(s1, [s1.band("VH"), s1.band("VV")]) == ("VV", "VH")
    assert shown_bands(s1, [s1.band("HH")]) == ("HH",)


def test_eight_bit_imagery_is_shown_as_it_is_and_invalid_pixels_in_grey() -> None:
    raster = make("naip-rgb", gradient())
    raster.valid[:10] = False
    shown = of_raster(raster)
    np.testing.assert_array_equal(shown[10:], np.moveaxis(gradient(), 0, -1)[10:])
    assert (shown[:10] == NO_DATA_COLOUR).all()


def test_reflectance_is_stretched_but_even_surfaces_are_not_blown_up() -> None:
    rng = np.random.default_rng(0)
    contrast = rng.integers(200, 3000, (3, 64, 64)).astype(np.uint16)
    bands = ("red", "green", "blue")
    shown = of_raster(make("sentinel-2-l2a", contrast, bands=bands))
    assert shown.min() == 0
    assert shown.max() == 255
    even = (1000 + rng.normal(0, 5, (3, 64, 64))).astype(np.uint16)
    assert of_raster(make("sentinel-2-l2a", even, bands=bands)).std() < 20


@pytest.mark.parametrize("unit", [Unit.DB, Unit.POWER])
def test_radar_in_db_and_in_power_look_the_same(unit: Unit) -> None:
    rng = np.random.default_rng(0)
    decibel = rng.uniform(-20, 0, (2, 32, 32)).astype(np.float32)
    stored = decibel if unit is Unit.DB else 10 ** (decibel / 10)
    shown = of_raster(make("sentinel-1-rtc", stored, unit=unit, bands=("VV", "VH")))
    np.testing.assert_allclose(shown, of_raster(make("sentinel-1-rtc", decibel, bands=("VV", "VH"))), atol=1)
    assert len({tuple(c) for c in shown.reshape(-1, 3)}) > 100


def test_an_all_nodata_raster_is_grey() -> None:
    raster = make("sentinel-2-l2a", np.ones((3, 8, 8), np.uint16), bands=("red", "green", "blue"))
    assert (of_raster(replace(raster, valid=np.zeros((8, 8), bool))) == NO_DATA_COLOUR).all()


@pytest.mark.parametrize("max_side", [2000, 150, 37])
def test_an_overview_is_the_scene_averaged(tmp_path: Path, max_side: int) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (3, 700, 430)).astype(np.uint8)
    write_geotiff(tmp_path / "scene.tif", make("naip-rgb", scene))
    with open_raster(tmp_path / "scene.tif") as file:
        shown = overview(file, stretch_of(file), max_side)
        whole = chip(file, stretch_of(file))
    step = -(-700 // max_side)
    assert shown.shape == (-(-700 // step), -(-430 // step), 3)
    for row, col in ((0, 0), (shown.shape[0] - 1, shown.shape[1] - 1), (shown.shape[0] // 2, 3)):
        block = whole[row * step : (row + 1) * step, col * step : (col + 1) * step].reshape(-1, 3)
        np.testing.assert_allclose(shown[row, col], block.mean(axis=0), atol=0.51)
