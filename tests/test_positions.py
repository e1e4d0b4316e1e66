"""Scale-ALiBi as its definition says: the tests that the faults of published code would have failed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alidade.errors import ModelError
from alidade.models.positions import VARIANTS, PositionConfig, alibi_slopes, head_lengths
from alidade.models.tokens import Places, gather_places, grid_places

HEADS = 16
METRES = PositionConfig(kind="metres", unit_m=80.0).build(HEADS)
DISTANCE_VARIANTS = ["metres", "patches", "half-patches", "log-metres", "squared-metres", "metres-and-scale"]


def dense(kind: str, query: Places, key: Places) -> torch.Tensor:
    bias = PositionConfig(kind=kind).build(HEADS).bias(query, key)
    assert bias is not None
    return bias


def test_slopes_are_alibis() -> None:
    assert torch.allclose(alibi_slopes(16)[[0, 1, 7, 15]], torch.tensor([0.70711, 0.5, 0.0625, 0.00391]), atol=1e-5)
    assert torch.allclose(alibi_slopes(8), 2.0 ** -torch.arange(1, 9).float())
    twelve = alibi_slopes(12)
    assert torch.allclose(twelve[:8], alibi_slopes(8))
    assert torch.allclose(twelve[8:], alibi_slopes(16)[0:8:2])


def test_lengths_spread_over_their_range() -> None:
    lengths = head_lengths(PositionConfig(length_range_m=(5.0, 20_000.0)), 6)
    assert lengths[0] == pytest.approx(5.0)
    assert lengths[-1] == pytest.approx(20_000.0, rel=1e-5)
    ratios = lengths[1:] / lengths[:-1]
    assert torch.allclose(ratios, ratios[:1].expand(5), rtol=1e-4)


def test_metres_is_cromas_bias_at_ten_metres_and_eight_pixels() -> None:
    places = grid_places(15, 15, 8, (10.0, 10.0))
    index = torch.cartesian_prod(torch.arange(15.0), torch.arange(15.0))
    expected = -alibi_slopes(HEADS)[:, None, None] * torch.cdist(
        index, index, compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert torch.allclose(dense("metres", places, places)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", DISTANCE_VARIANTS)
def test_cross_bias_equals_self_bias_at_ratio_one(kind: str) -> None:
    sar, optical = grid_places(6, 9, 8, (10.0, 10.0)), grid_places(6, 9, 8, (10.0, 10.0))
    assert torch.equal(dense(kind, sar, optical), dense(kind, sar, sar))


def test_four_children_are_equidistant_at_root_two_quarters_of_a_patch() -> None:
    low, high = grid_places(8, 8, 8, (10.0, 10.0)), grid_places(16, 16, 8, (5.0, 5.0))
    bias = dense("metres", low, high)[0]
    slopes = alibi_slopes(HEADS)
    for row, col in [(0, 0), (3, 5), (7, 7)]:
        children = [(2 * row + i) * 16 + 2 * col + j for i in (0, 1) for j in (0, 1)]
        to_children = bias[:, row * 8 + col, children]
        assert torch.allclose(to_children, -slopes[:, None] * math.sqrt(2) / 4, atol=1e-5)
        others = [i for i in range(256) if i not in children]
        assert (bias[:, row * 8 + col, others] < to_children.min(-1, keepdim=True).values).all()


def test_cross_scale_bias_is_the_true_distance_on_the_grid_that_was_trained() -> None:
    low, high = grid_places(16, 16, 8, (10.0, 10.0)), grid_places(32, 32, 8, (5.0, 5.0))
    u = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)) + 0.5
    v = (torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0)) + 0.5) / 2
    true = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    distance = -dense("metres", low, high)[0, 0] / alibi_slopes(HEADS)[0]
    assert torch.allclose(distance, true, atol=1e-4)


@pytest.mark.parametrize("kind", ["metres", "log-metres", "squared-metres", "metres-and-scale"])
@settings(max_examples=20, deadline=None)
@given(dx=st.floats(-5e3, 5e3), dy=st.floats(-5e3, 5e3))
def test_translation_changes_nothing(kind: str, dx: float, dy: float) -> None:
    places = grid_places(5, 7, 16, (2.5, 3.0))
    moved = places._replace(centres=places.centres + torch.tensor([dx, dy]))
    assert torch.allclose(dense(kind, moved, moved), dense(kind, places, places), atol=2e-3)


@pytest.mark.parametrize("kind", DISTANCE_VARIANTS)
def test_order_of_tokens_is_only_an_order(kind: str) -> None:
    places = grid_places(4, 6, 8, (10.0, 10.0))
    ids = torch.randperm(24, generator=torch.Generator().manual_seed(3)).unsqueeze(0)
    shuffled = gather_places(places, ids)
    assert torch.equal(dense(kind, shuffled, shuffled)[0], dense(kind, places, places)[0][:, ids[0]][:, :, ids[0]])


@pytest.mark.parametrize("kind", DISTANCE_VARIANTS)
def test_masked_bias_is_the_dense_bias_at_the_kept_rows(kind: str) -> None:
    low, high = grid_places(4, 4, 8, (10.0, 10.0), batch=3), grid_places(8, 8, 8, (5.0, 5.0), batch=3)
    generator = torch.Generator().manual_seed(0)
    kept_low = torch.stack([torch.randperm(16, generator=generator)[:9] for _ in range(3)])
    kept_high = torch.stack([torch.randperm(64, generator=generator)[:20] for _ in range(3)])
    whole = dense(kind, low, high)
    masked = dense(kind, gather_places(low, kept_low), gather_places(high, kept_high))
    assert masked.shape == (3, HEADS, 9, 20)
    for b in range(3):
        assert torch.equal(masked[b], whole[0][:, kept_low[b]][:, :, kept_high[b]])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), patch=st.sampled_from([4, 8, 16]), gsd=st.floats(0.3, 60))
def test_rectangular_grids(rows: int, cols: int, patch: int, gsd: float) -> None:
    bias = dense("metres", grid_places(rows, cols, patch, (gsd, gsd)), grid_places(cols, rows, patch, (gsd, gsd)))
    assert bias.shape == (1, HEADS, rows * cols, rows * cols)
    square = dense("metres", grid_places(rows, cols, patch, (gsd, gsd)), grid_places(rows, cols, patch, (gsd, gsd)))
    assert torch.equal(square, square.transpose(-1, -2))
    assert (square.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_a_crop_of_a_larger_image_has_the_same_bias() -> None:
    large, small = grid_places(12, 10, 8, (10.0, 10.0)), grid_places(4, 5, 8, (10.0, 10.0))
    inside = torch.tensor([[(3 + r) * 10 + 2 + c for r in range(4) for c in range(5)]])
    crop = gather_places(large, inside)
    assert torch.allclose(dense("metres", crop, crop), dense("metres", small, small), atol=1e-5)


def test_pixels_that_are_not_square_on_the_ground() -> None:
    places = grid_places(2, 2, 8, (5.0, 10.0))
    bias = dense("metres", places, places)[0, 0] / -alibi_slopes(HEADS)[0] * 80.0
    assert bias[0, 1] == pytest.approx(40.0)
    assert bias[0, 2] == pytest.approx(80.0)


def test_metres_sees_gsd_and_patches_does_not() -> None:
    fine, coarse = grid_places(4, 4, 8, (1.0, 1.0)), grid_places(4, 4, 8, (10.0, 10.0))
    assert torch.allclose(dense("patches", fine, fine), dense("patches", coarse, coarse), atol=1e-5)
    assert torch.allclose(10 * dense("metres", fine, fine), dense("metres", coarse, coarse), atol=1e-4)


def test_scale_gap_term_is_zero_between_equal_footprints() -> None:
    low, high = grid_places(4, 4, 8, (10.0, 10.0)), grid_places(8, 8, 8, (5.0, 5.0))
    assert torch.equal(dense("metres-and-scale", low, low), dense("metres", low, low))
    gap = dense("metres", low, high) - dense("metres-and-scale", low, high)
    expected = alibi_slopes(HEADS)[:, None, None] * math.log(2.0)
    assert torch.allclose(gap[0], expected.expand_as(gap[0]), atol=1e-4)


def test_half_of_the_heads_are_blind_to_gsd() -> None:
    fine, coarse = grid_places(4, 4, 8, (1.0, 1.0)), grid_places(4, 4, 8, (10.0, 10.0))
    a, b = dense("half-patches", fine, fine)[0], dense("half-patches", coarse, coarse)[0]
    assert torch.allclose(a[0::2], b[0::2], atol=1e-5)
    assert torch.allclose(10 * a[1::2], b[1::2], atol=1e-4)


def test_batches_with_equal_places_share_one_table() -> None:
    places = grid_places(5, 5, 8, (10.0, 10.0), batch=32)
    assert dense("metres", places, places).shape[0] == 1


def test_log_never_underflows_where_the_linear_bias_does() -> None:
    places = grid_places(1, 200, 8, (10.0, 10.0))
    assert dense("metres", places, places)[0, 0].softmax(-1)[0, -1] == 0
    assert dense("log-metres", places, places)[0, 0].softmax(-1)[0, -1] > 1e-4


def test_every_variant_is_a_set_function_or_knows_its_places() -> None:
    places = grid_places(3, 3, 8, (10.0, 10.0))
    for kind in VARIANTS:
        built = PositionConfig(kind=kind).build(4)
        used = [
            built.bias(places, places) is not None,
            built.input_embedding(places, 16) is not None,
            built.angles(places, 16) is not None,
        ]
        assert sum(used) == (0 if kind == "none" else 1), kind


def test_sincos_gsd_scales_with_the_ground() -> None:
    build = PositionConfig(kind="sincos-gsd", unit_m=80.0).build(4)
    plain = PositionConfig(kind="sincos").build(4)
    ten, five = grid_places(4, 4, 8, (10.0, 10.0)), grid_places(4, 4, 8, (5.0, 5.0))
    assert torch.allclose(build.input_embedding(ten, 16), plain.input_embedding(ten, 16), atol=1e-5)
    assert torch.allclose(plain.input_embedding(ten, 16), plain.input_embedding(five, 16), atol=1e-5)
    assert not torch.allclose(build.input_embedding(ten, 16), build.input_embedding(five, 16), atol=1e-2)


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"got 'alibi', expected one of none, sincos.*metres"):
        PositionConfig(kind="alibi").build(4)


def test_lengths_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ModelError, match="shortest before longest"):
        PositionConfig(length_range_m=(100.0, 5.0)).build(4)
