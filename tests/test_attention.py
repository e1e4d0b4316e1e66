"""All attention backends give one result, masked keys have no say, and memory does not grow with the batch."""

from __future__ import annotations

import pytest
import torch

from alidade.errors import ModelError
from alidade.models.attention import BACKENDS, Attention, attend, choose_backend, make_geometry
from alidade.models.positions import VARIANTS, PositionConfig
from alidade.models.tokens import Places, grid_places

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def random_qkv(b: int, h: int, nq: int, nk: int, d: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(b, h, n, d, generator=generator) for n in (nq, nk, nk))


def some_invalid(places: Places) -> Places:
    valid = torch.rand(places.valid.shape, generator=torch.Generator().manual_seed(5)) > 0.3
    return places._replace(valid=valid)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    logits = (q.double() @ k.double().transpose(-1, -2)) / q.shape[-1] ** 0.5 + bias.double()
    logits = logits.masked_fill(~valid[:, None, None], -torch.inf)
    return (logits.softmax(-1) @ v.double()).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_backends_agree_with_the_definition(backend: str, kind: str, masked: bool) -> None:
    low, high = grid_places(4, 4, 8, (10.0, 10.0), batch=2), grid_places(8, 8, 8, (5.0, 5.0), batch=2)
    high = some_invalid(high) if masked else high
    positions = PositionConfig(kind=kind).build(4)
    q, k, v = random_qkv(2, 4, 16, 64, 16)
    geometry = make_geometry(positions, low, high, head_dim=16, dtype=torch.float32, training=False, backend=backend)
    out = attend(q, k, v, geometry)
    if kind == "rope":
        reference = make_geometry(
            positions, low, high, head_dim=16, dtype=torch.float32, training=False, backend="sdpa"
        )
        expected = attend(q, k, v, reference)
    else:
        bias = positions.bias(low, high)
        bias = torch.zeros(1) if bias is None else bias
        expected = by_hand(q, k, v, bias, high.valid)
    assert torch.allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("backend", ["sdpa", "baddbmm"])
def test_gradients_agree(backend: str) -> None:
    places = grid_places(4, 4, 8, (10.0, 10.0), batch=2)
    positions = PositionConfig().build(4)
    gradients = []
    for name in (backend, "sdpa"):
        q, k, v = (t.requires_grad_() for t in random_qkv(2, 4, 16, 16, 16))
        geometry = make_geometry(
            positions, places, places, head_dim=16, dtype=torch.float32, training=True, backend=name
        )
        attend(q, k, v, geometry).square().sum().backward()
        gradients.append([t.grad for t in (q, k, v)])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_row_without_any_valid_key_stays_finite() -> None:
    places = grid_places(2, 2, 8, (10.0, 10.0))
    empty = places._replace(valid=torch.zeros(1, 4, dtype=torch.bool))
    for backend in ("sdpa", "baddbmm"):
        geometry = make_geometry(
            PositionConfig().build(2),
            places,
            empty,
            head_dim=8,
            dtype=torch.float32,
            training=False,
            backend=backend,
        )
        assert torch.isfinite(attend(*random_qkv(1, 2, 4, 4, 8), geometry)).all()


def test_invalid_tokens_do_not_change_the_others() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4)
    places = grid_places(3, 3, 8, (10.0, 10.0))
    places = places._replace(valid=torch.tensor([[True] * 6 + [False] * 3]))
    x = torch.randn(1, 9, 32)
    other = x.clone()
    other[:, 6:] = 1e3
    geometry = make_geometry(PositionConfig().build(4), places, places, head_dim=8, dtype=torch.float32, training=False)
    with torch.no_grad():
        assert torch.allclose(attention(x, geometry)[:, :6], attention(other, geometry)[:, :6], atol=1e-6)


def test_cross_attention_of_a_sequence_with_itself_is_self_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4)
    places = grid_places(3, 3, 8, (10.0, 10.0))
    geometry = make_geometry(PositionConfig().build(4), places, places, head_dim=8, dtype=torch.float32, training=False)
    x = torch.randn(1, 9, 32)
    assert torch.allclose(attention(x, geometry), attention(x, geometry, x), atol=1e-6)


def test_rotary_logits_depend_on_offsets_only() -> None:
    positions = PositionConfig(kind="rope").build(2)
    places = grid_places(4, 4, 8, (10.0, 10.0))
    moved = places._replace(centres=places.centres + torch.tensor([240.0, -80.0]))
    q, k, v = random_qkv(1, 2, 16, 16, 8)
    results = [
        attend(q, k, v, make_geometry(positions, p, p, head_dim=8, dtype=torch.float32, training=False))
        for p in (places, moved)
    ]
    assert torch.allclose(*results, atol=1e-5)


def test_choice_of_backend() -> None:
    cpu = torch.device("cpu")
    assert choose_backend(cpu, torch.float32, 225, True) == "sdpa"
    assert choose_backend(cpu, torch.bfloat16, 225, True) == "baddbmm"
    assert choose_backend(cpu, torch.bfloat16, 2048, True) == "sdpa"
    assert choose_backend(torch.device("cuda"), torch.bfloat16, 225, True) == "flex"


def test_unknown_backend_is_refused() -> None:
    places = grid_places(2, 2, 8, (10.0, 10.0))
    with pytest.raises(ModelError, match="got 'xformers', expected one of sdpa, baddbmm, flex"):
        make_geometry(
            PositionConfig().build(2),
            places,
            places,
            head_dim=8,
            dtype=torch.float32,
            training=False,
            backend="xformers",
        )
