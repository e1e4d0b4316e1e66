"""The assembled network: places through masking and fusion, invalid pixels, saving, and what has gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alidade.errors import ModelError, WeightsError
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig, from_json, to_json
from alidade.models.positions import VARIANTS, PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.tokens import Tokens, concatenate, gather_places
from alidade.models.weights import identity, load_model, save_model

GSD = {"sar": 10.0, "low": 10.0, "high": 2.5}


def tower(name: str, sensor_id: str, bands: tuple[str, ...]) -> TowerConfig:
    statistics = {sensor_id: Normalization.for_sensor(sensor(sensor_id), bands)}
    return TowerConfig(name=name, bands=bands, depth=1, patch=8, normalizations=statistics)


CONFIG = ScaleAlibiConfig(
    name="test",
    width=32,
    heads=4,
    towers=(
        tower("sar", "sentinel-1-grd", ("VV", "VH")),
        tower("low", "sentinel-2-l2a", ("red", "green", "blue", "nir")),
        tower("high", "naip-rgb", ("red", "green", "blue")),
    ),
    fusion_depth=1,
    position=PositionConfig(),
    decoder=DecoderConfig(width=32, depth=1, heads=4, wavelength_range_m=(10.0, 5_000.0)),
    tile=64,
)


def build(config: ScaleAlibiConfig = CONFIG) -> ScaleAlibi:
    network = ScaleAlibi(config)
    initialise(network, seed=0)
    return network


def square(network: ScaleAlibi, name: str, batch: int = 2, side_m: float = 320.0, seed: int = 0) -> Tokens:
    """Patch features of one ground square as the named tower sees it at its own GSD."""
    side = round(side_m / GSD[name])
    channels = len(network.tower(name).bands)
    pixels = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(batch, side, side, dtype=torch.bool)
    days = torch.zeros(batch, dtype=torch.float64)
    return network.embed_patches(name, pixels, valid, (GSD[name], GSD[name]), days)


def test_towers_share_one_frame_on_the_ground() -> None:
    network = build()
    low, high = square(network, "low"), square(network, "high")
    assert low.places.centres.shape[1] * 16 == high.places.centres.shape[1]
    assert torch.allclose(low.places.centres.mean(1), high.places.centres.mean(1), atol=1e-4)
    assert low.places.footprint.unique() == 80.0
    assert high.places.footprint.unique() == 20.0


def test_masking_before_the_encoder_keeps_places_and_order() -> None:
    network = build().eval()
    tokens = square(network, "low")
    ids = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(s))[:7] for s in (0, 1)])
    kept = network.run(tokens.gather(ids))
    assert torch.equal(kept.places.centres, gather_places(tokens.places, ids).centres)
    shuffled = network.run(tokens.gather(ids.flip(1)))
    assert torch.allclose(kept.features, shuffled.features.flip(1), atol=1e-5)


def test_fusion_uses_query_distances_for_self_and_pair_distances_for_cross() -> None:
    """With different masks per sensor the two biases differ; a token stays nearest to itself."""
    network = build().eval()
    sar, low = square(network, "sar"), square(network, "low", seed=1)
    kept_sar, kept_low = torch.tensor([[0, 5, 10]] * 2), torch.tensor([[15, 3, 7, 8]] * 2)
    fused = network.fuse([network.run(sar.gather(kept_sar)), network.run(low.gather(kept_low))])
    assert fused.features.shape == (2, 3, 32)
    assert torch.equal(fused.places.centres, sar.places.centres[:, [0, 5, 10]])
    reordered = network.fuse([network.run(sar.gather(kept_sar)), network.run(low.gather(kept_low.flip(1)))])
    assert torch.allclose(fused.features, reordered.features, atol=1e-5)


def test_three_sensors_fuse_one_after_the_other() -> None:
    network = build().eval()
    parts = [network.run(square(network, name, seed=i)) for i, name in enumerate(("sar", "low", "high"))]
    assert not torch.allclose(network.fuse(parts).features, network.fuse(parts[:2]).features, atol=1e-4)


def test_high_resolution_has_its_own_head_and_uses_it() -> None:
    network = build()
    loss = network.pool(network.run(square(network, "high"))).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.heads["high"].parameters())
    assert all(p.grad is None for p in network.heads["low"].parameters())


def test_invalid_pixels_change_nothing() -> None:
    network = build().eval()
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    valid[:, 16:] = False
    changed = pixels.clone()
    changed[:, :, 16:] = 50.0
    days = torch.zeros(1, dtype=torch.float64)
    pooled = [
        network.pool(network.run(network.embed_patches("high", p, valid, (2.5, 2.5), days))) for p in (pixels, changed)
    ]
    assert torch.allclose(*pooled, atol=1e-5)


def test_images_of_any_side_are_padded_to_patches() -> None:
    network = build().eval()
    pixels, valid = torch.randn(1, 3, 21, 35), torch.ones(1, 21, 35, dtype=torch.bool)
    tokens = network.embed_patches("high", pixels, valid, (2.5, 2.5), torch.zeros(1, dtype=torch.float64))
    assert tokens.features.shape == (1, 15, 32)
    # 21 = 2·8 + 5 rows: the third row of patches is 5/8 real; 35 = 4·8 + 3 columns: the fifth is 3/8 real
    assert tokens.places.valid[0].view(3, 5).tolist() == [[True] * 4 + [False]] * 3


def test_reconstruction_is_at_the_sensors_own_grid() -> None:
    network = build()
    tokens = square(network, "high")
    kept, masked = torch.arange(0, 256, 2).expand(2, -1), torch.arange(1, 256, 2).expand(2, -1)
    context = network.run(tokens.gather(kept))
    predicted = network.reconstruct(context, gather_places(tokens.places, masked), "high")
    assert predicted.shape == (2, 128, 3 * 64)


def test_decoder_tells_left_from_right() -> None:
    network = build().eval()
    tokens = network.run(square(network, "low", batch=1))
    middle = tokens.gather(torch.tensor([[5]]))
    around = gather_places(tokens.places, torch.tensor([[4, 6]]))
    left, right = network.reconstruct(middle, around, "low")[0]
    assert not torch.allclose(left, right, atol=1e-4)


def test_shared_trunk_serves_every_tower() -> None:
    network = build(replace(CONFIG, shared_depth=2))
    assert list(network.trunks) == ["shared"]
    for name in ("sar", "low", "high"):
        assert network.run(square(network, name)).features.shape[-1] == 32


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_trains(kind: str) -> None:
    network = build(replace(CONFIG, position=PositionConfig(kind=kind)))
    parts = [network.run(square(network, name)) for name in ("sar", "low")]
    network.fuse(parts).features.square().mean().backward()
    assert network.patches["low"].weight.grad.abs().sum() > 0


def test_concatenated_tokens_keep_their_footprints() -> None:
    network = build()
    joined = concatenate([square(network, "low"), square(network, "high")])
    assert joined.features.shape == (2, 16 + 256, 32)
    assert joined.places.footprint[0].unique().tolist() == [20.0, 80.0]


def test_tokens_refuse_places_that_do_not_fit() -> None:
    tokens = square(build(), "low")
    with pytest.raises(ModelError, match=r"centres \[B,N,2\]"):
        tokens.with_features(tokens.features[:, :3])


def test_fusion_and_reconstruction_need_their_parts() -> None:
    network = build(replace(CONFIG, fusion_depth=0, decoder=None))
    tokens = square(network, "low")
    with pytest.raises(ModelError, match="a model with a fusion encoder"):
        network.fuse([tokens, tokens])
    with pytest.raises(ModelError, match="a model without a decoder"):
        network.reconstruct(tokens, tokens.places, "low")


def test_initialisation_is_seeded() -> None:
    assert identity(build()) == identity(build())
    other = ScaleAlibi(CONFIG)
    initialise(other, seed=1)
    assert identity(other) != identity(build())


def test_saved_model_is_the_same_model(tmp_path: Path) -> None:
    network = build()
    save_model(network, tmp_path, dtype=torch.float32)
    loaded = load_model(tmp_path)
    assert loaded.config == CONFIG
    assert identity(loaded) == identity(network)


def test_half_precision_storage_keeps_three_digits(tmp_path: Path) -> None:
    network = build().eval()
    save_model(network, tmp_path)
    a, b = (n.pool(n.run(square(n, "low"))) for n in (network, load_model(tmp_path)))
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.9999


def test_config_round_trip_refuses_what_it_does_not_know() -> None:
    text = to_json(CONFIG)
    assert from_json(text, "here") == CONFIG
    data = json.loads(text)
    data["dropout"] = 0.1
    with pytest.raises(WeightsError, match="ScaleAlibiConfig keys differ.*dropout"):
        from_json(json.dumps(data), "config.json")
    del data["dropout"], data["tile"]
    with pytest.raises(WeightsError, match="tile"):
        from_json(json.dumps(data), "config.json")
    with pytest.raises(WeightsError, match="JSONDecodeError"):
        from_json("{", "config.json")


def test_damaged_directories_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no config.json"):
        load_model(tmp_path)
    save_model(build(), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    with pytest.raises(WeightsError, match="a damaged file"):
        load_model(tmp_path)
    save_model(build(replace(CONFIG, fusion_depth=2)), tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="do not fit the config"):
        load_model(tmp_path)


def stemmed(name: str) -> TowerConfig:
    return replace(tower(name, "naip-rgb", ("red", "green", "blue")), stem=(6, 12))


def test_a_stem_keeps_each_patch_to_itself() -> None:
    network = build(replace(CONFIG, towers=(stemmed("high"),), fusion_depth=0))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    touched = pixels.clone()
    touched[..., 8:16, 16:24] += 1
    before, after = network.patches["high"](pixels), network.patches["high"](touched)
    changed = (before != after).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_a_stem_is_convolutions_then_the_linear_layer() -> None:
    network = build(replace(CONFIG, towers=(stemmed("high"),), fusion_depth=0))
    embed = network.patches["high"]
    pixels = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    corner = embed.stem(pixels[:, :, 8:16]).flatten(1)
    assert torch.allclose(embed(pixels)[:, 1], torch.nn.functional.linear(corner, embed.weight, embed.bias), atol=1e-6)
    assert embed.weight.shape == (32, 12 * 2 * 2)


def test_a_stem_that_does_not_fit_the_patch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"4 convolutions for patches of 8 px, expected a patch side that halves"):
        build(replace(CONFIG, towers=(replace(stemmed("high"), stem=(2, 2, 2, 2)),), fusion_depth=0))


def test_pooling_of_mean_and_deviation_counts_valid_tokens_only() -> None:
    network = build(replace(CONFIG, mlp_head=False, pooling="mean-std", dim=48))
    tokens = network.run(square(network, "low"))
    half = tokens.gather(torch.arange(8).expand(2, 8))
    masked = replace(tokens, places=tokens.places._replace(valid=torch.arange(16).expand(2, 16) < 8))
    pooled = network.heads["low"].pooled(masked)
    assert torch.allclose(pooled, network.heads["low"].pooled(half), atol=1e-5)
    assert torch.allclose(pooled[:, 32:], half.features.std(dim=1, unbiased=False), atol=1e-2)
    assert network.pool(masked).shape == (2, 48)


def test_deviation_of_equal_tokens_has_finite_gradients() -> None:
    network = build()
    tokens = square(network, "low")
    flat = tokens.with_features(torch.ones_like(tokens.features).requires_grad_())
    flat.std().sum().backward()
    assert flat.features.grad is not None
    assert flat.features.grad.isfinite().all()


@pytest.mark.parametrize("change", [{"pooling": "max"}, {"pooling": "mean-std"}, {"dim": 64}])
def test_heads_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"head of a tower: got pooling .*perceptron True"):
        build(replace(CONFIG, **change))  # type: ignore[arg-type]


def test_cells_share_out_the_tokens_by_the_ground() -> None:
    network = build()
    tokens = square(network, "low")
    cells = tokens.cells(2)
    assert torch.equal(torch.stack([c.places.valid for c in cells]).sum(0), torch.ones(2, 16, dtype=torch.long))
    assert cells[1].places.valid[0].nonzero().flatten().tolist() == [2, 3, 6, 7]
    assert torch.equal(tokens.cells(1)[0].places.valid, tokens.places.valid)


def test_images_of_one_batch_may_differ_in_ground_resolution() -> None:
    network = build().eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    valid, days = torch.ones(2, 32, 32, dtype=torch.bool), torch.zeros(2, dtype=torch.float64)
    each = torch.tensor([[2.5, 2.5], [4.0, 3.0]])
    both = network.run(network.embed_patches("high", pixels, valid, each, days)).features
    for i, (x, y) in enumerate(each.tolist()):
        part = slice(i, i + 1)
        alone = network.run(network.embed_patches("high", pixels[part], valid[part], (x, y), days[part])).features
        assert torch.allclose(both[part], alone, atol=1e-5)


def without(tokens: Tokens, sample: int, seed: int) -> Tokens:
    """The tokens with one sample's sensor not there, and something or other in its place."""
    features, valid = tokens.features.clone(), tokens.places.valid.clone()
    features[sample] = torch.randn(features.shape[1:], generator=torch.Generator().manual_seed(seed))
    valid[sample] = False
    return replace(tokens, features=features, places=tokens.places._replace(valid=valid))


@pytest.mark.parametrize("training", [False, True])
def test_a_sensor_that_is_not_there_changes_nothing_in_fusion(training: bool) -> None:
    network = build().train(training)
    sar, low, high = (network.run(square(network, name, seed=i)) for i, name in enumerate(("sar", "low", "high")))
    fused = [network.fuse([sar, without(low, 1, seed), high]).features for seed in (10, 11)]
    assert torch.equal(fused[0], fused[1]), "what fills the gap counts for nothing"
    assert torch.allclose(fused[0][1], network.fuse([sar, high]).features[1], atol=1e-6), "as if it were not given"
    assert torch.allclose(fused[0][0], network.fuse([sar, low, high]).features[0], atol=1e-6), "others are as they were"
    alone = network.fuse([sar, without(low, 1, 10)]).features
    assert torch.equal(alone[1], sar.features[1]), "a lone sensor keeps its own tokens, as without fusion"
    alone[1].sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())
