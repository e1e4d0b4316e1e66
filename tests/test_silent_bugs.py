"""Bugs that give no error, only worse numbers. Each was found here or in published code; each has its test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine

import alidade
from alidade.errors import ModelError
from alidade.imagery.files import Declared
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.positions import PositionConfig
from alidade.models.tokens import grid_places
from alidade.training.augment import View, coarser
from make_fixtures import L1C, meadow, write_tif

SAMPLES = Path(__file__).parents[1] / "samples"
RIVER = SAMPLES / "sentinel-2" / "eurosat_River_2354.tif"
NAIP = SAMPLES / "naip" / "m_4709963_se_14_20200831.tif"


@pytest.fixture(scope="module")
def model() -> Model:
    return alidade.load()


def reordered(raster: Raster, order: list[int]) -> Raster:
    return replace(
        raster,
        pixels=raster.pixels[order],
        bands=tuple(raster.bands[i] for i in order),
        encodings=tuple(raster.encodings[i] for i in order),
    )


def test_band_order_of_the_file_is_no_input_of_the_model(model: Model) -> None:
    """EuroSAT keeps B8A last; code that takes bands by position feeds B8A to B12's weights."""
    raster = alidade.read(RIVER)
    assert [b.name for b in raster.bands][-1] == "B8A"
    shuffled = reordered(raster, list(reversed(range(13))))
    assert np.array_equal(model.embed(raster), model.embed(shuffled))


def test_same_ground_in_both_sentinel_2_baselines_is_the_same_picture(tmp_path: Path, model: Model) -> None:
    """Numbers of baseline 04.00 are 1000 higher; unshifted they move every band by a whole deviation."""
    old = write_tif(tmp_path / "old.tif", meadow(), names=L1C, nodata=0)
    new = write_tif(tmp_path / "new.tif", meadow(added=1000), names=L1C, nodata=0)
    a, b = (alidade.read(p, Declared(sensor="sentinel-2-l1c")) for p in (old, new))
    assert [a.encodings[0].offset, b.encodings[0].offset] == pytest.approx([0.0, -0.1])
    assert np.allclose(model.embed(a), model.embed(b), atol=1e-5)


def test_nodata_is_not_shifted_into_data(tmp_path: Path) -> None:
    """Zero is nodata before and after the offset; dark water is data, though its reflectance is below zero."""
    pixels = meadow(added=1000)
    pixels[:, :8, :8] = 0
    pixels[:, 20, 20] = 990
    raster = alidade.read(
        write_tif(tmp_path / "n.tif", pixels, names=L1C, nodata=0), Declared(sensor="sentinel-2-l1c", offset=-0.1)
    )
    values, valid = Normalization.for_sensor(sensor("sentinel-2-l1c"), L1C).apply(raster)
    assert not valid[:8, :8].any()
    assert (values[:, :8, :8] == 0).all()
    assert valid[20, 20]
    assert valid.sum() == valid.size - 64


def test_near_infrared_tagged_as_alpha_does_not_mask_water() -> None:
    """Most NAIP files say that band 4 is alpha; water, dark in near infrared, would be thrown away."""
    raster = alidade.read(NAIP)
    assert [b.common_name for b in raster.bands] == ["red", "green", "blue", "nir"]
    dark = raster.pixels[3] < 10
    assert dark.any()
    assert raster.valid[dark].all()


def test_ground_resolution_is_measured_not_read_from_the_projection(tmp_path: Path) -> None:
    """Web Mercator's 10 m are 7.6 m on the ground at 40° north; the embedding must be told so."""
    y = 4_865_942.0  # 40° north
    pixels = meadow(("B04", "B03", "B02"))
    path = write_tif(
        tmp_path / "m.tif", pixels, crs="EPSG:3857", transform=Affine(10, 0, 0, 0, -10, y), names=("B04", "B03", "B02")
    )
    raster = alidade.read(path, Declared(sensor="sentinel-2-l2a", offset=0.0))
    assert raster.gsd_m == pytest.approx(7.66, abs=0.03)


def test_a_new_resolution_does_not_meet_the_last_ones_bias(model: Model) -> None:
    """The bias table of the latest batch is kept; another GSD or mask must not be served from it."""
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    half = torch.ones(1, 64, 64, dtype=torch.bool)
    half[:, :32] = False
    first = model.encode_normalised({"rgb": pixels}, gsd_m=0.3).pooled["rgb"]
    coarse = model.encode_normalised({"rgb": pixels}, gsd_m=30.0).pooled["rgb"]
    masked = model.encode_normalised({"rgb": pixels}, gsd_m=0.3, valid={"rgb": half}).pooled["rgb"]
    again = model.encode_normalised({"rgb": pixels}, gsd_m=0.3).pooled["rgb"]
    assert torch.equal(first, again)
    assert not torch.allclose(first, coarse, atol=1e-4)
    assert not torch.allclose(first, masked, atol=1e-4)


def test_a_tile_has_one_embedding_whatever_shares_its_batch(model: Model) -> None:
    raster = alidade.read(NAIP)
    tiles = [raster.crop(Window(row=r, col=c, height=128, width=128)) for r in (0, 128) for c in (0, 128, 256)]
    together = model.embed(tiles)
    alone = np.concatenate([model.embed(t) for t in tiles])
    assert np.allclose(together, alone, atol=1e-5)


def test_padding_of_an_edge_tile_is_not_imagery(model: Model) -> None:
    """An edge tile padded to the tile side and the same pixels cropped bare must nearly agree."""
    raster = alidade.read(NAIP)
    height, width = raster.pixels.shape[1:]
    bare = raster.crop(Window(row=height - 64, col=width - 64, height=64, width=64))
    padded = raster.crop(Window(row=height - 64, col=width - 64, height=128, width=128))
    assert float(model.embed(bare)[0] @ model.embed(padded)[0]) > 0.9999


def test_radar_in_power_and_in_decibels_is_one_picture(model: Model) -> None:
    raster = alidade.read(SAMPLES / "sentinel-1" / "bigearthnet_29UPU_4_55.tif")
    linear = replace(
        raster,
        pixels=(10.0 ** (raster.pixels / 10.0)).astype(np.float32),
        encodings=tuple(replace(e, unit=alidade.imagery.bands.Unit.POWER) for e in raster.encodings),
    )
    assert np.allclose(model.embed(raster), model.embed(linear), atol=1e-4)


def test_bfloat16_finds_the_same_neighbours(model: Model) -> None:
    """Heads magnify rounding: pooled in bfloat16, vectors of one identity had cosines down to 0.94."""
    coarse = alidade.load(dtype=torch.bfloat16)
    assert coarse.identity == model.identity
    paths = [
        RIVER,
        *sorted((SAMPLES / "sentinel-1").glob("bigearthnet*"))[:2],
        *sorted((SAMPLES / "ucmerced").glob("*"))[:1],
    ]
    tiles = [alidade.read(p).crop(Window(row=0, col=0, height=64, width=64)) for p in paths]
    assert (model.embed(tiles) * coarse.embed(tiles)).sum(1).min() > 0.99


def test_a_sliver_with_real_pixels_is_embedded(model: Model) -> None:
    """A scene 130 px wide leaves a strip of 2 px, less than half a patch: it is imagery all the same."""
    raster = alidade.read(NAIP)
    sliver = raster.crop(Window(row=0, col=0, height=128, width=2))
    padded = raster.crop(Window(row=0, col=raster.grid.width - 2, height=128, width=128))
    assert np.isfinite(model.embed([sliver, padded])).all()
    assert model.encode(padded).places.valid.sum() == 16


def test_a_hole_in_one_tile_costs_the_others_nothing(model: Model) -> None:
    """One masked token used to give every sample of the batch a bias table of its own, and the tables were kept."""
    raster = alidade.read(NAIP)
    tiles = [raster.crop(Window(row=0, col=c, height=128, width=128)) for c in (0, 128, 256)]
    holed = replace(tiles[1], valid=tiles[1].valid.copy())
    holed.valid[:64, :64] = False
    mixed = model.embed([tiles[0], holed, tiles[2]])
    assert np.allclose(mixed[[0, 2]], model.embed([tiles[0], tiles[2]]), atol=1e-5)
    assert np.allclose(mixed[1], model.embed(holed)[0], atol=1e-5)
    kept = model.network._latest
    assert kept is None or kept[3].bias is None or kept[3].bias.shape[0] == 1


def test_gradients_flow_after_an_embedding_of_the_same_size() -> None:
    """A bias table made in inference mode cannot be saved for a backward pass."""
    fresh = alidade.load()
    fresh.network.requires_grad_(True)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fresh.encode_normalised({"rgb": pixels}, gsd_m=5.0)
    tokens = fresh.network.embed_patches(
        "rgb", pixels, torch.ones(1, 32, 32, dtype=torch.bool), (5.0, 5.0), torch.zeros(1, dtype=torch.float64)
    )
    fresh.network.run(tokens).features.square().mean().backward()
    assert fresh.network.patches["rgb"].weight.grad is not None


def test_variants_blind_to_gsd_are_blind_on_pixels_that_are_not_square() -> None:
    square, oblong = (grid_places(3, 3, 8, g) for g in ((10.0, 10.0), (1.0, 11.0)))
    for kind in ("patches", "half-patches"):
        positions = PositionConfig(kind=kind).build(4)
        a, b = positions.bias(square, square), positions.bias(oblong, oblong)
        assert a is not None
        assert b is not None
        assert torch.allclose(a[:, 0], b[:, 0], atol=1e-6)
    rope = PositionConfig(kind="rope").build(4)
    assert torch.allclose(rope.angles(square, 16), rope.angles(oblong, 16), atol=1e-6)


def test_coarsening_never_moves_the_ground() -> None:
    """What is left of 30 pixels by 4 was cut off at the right and below: the centre moved by one pixel."""
    valid = torch.ones(1, 30, 30, dtype=torch.bool)
    view = View(
        pixels=torch.zeros(1, 3, 30, 30),
        valid=valid,
        gsd_m=(10.0, 10.0),
        present=valid[:, 0, 0],
        days=torch.zeros(1, dtype=torch.float64),
    )
    with pytest.raises(ModelError, match="got 30 x 30 px by 4, expected sides that the factor divides"):
        coarser(view, 4)
    for factor in (1, 2, 3, 5):
        coarse = coarser(view, factor)
        assert coarse.valid.shape[-1] * coarse.gsd_m[0] == pytest.approx(300.0)
