"""All attention backends give one result, masked keys have no say, and a step keeps no more than it was told to."""

from __future__ import annotations

import gc

import pytest
import torch

from alidade.errors import ModelError
from alidade.models.attention import BACKENDS, Attention, Geometry, Table, attend, choose_backend, make_geometry
from alidade.models.encoder import RECOMPUTE, Trunk, set_recompute
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


# --- what is kept for the backward pass


class Counted:
    """Makes tables and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> torch.Tensor:
        self.count += 1
        return torch.zeros(1, 4, 9, 9)


def test_a_table_is_made_when_asked_for_and_kept_as_long_as_somebody_holds_it() -> None:
    lasting, passing = Counted(), Counted()
    kept, lent = Table(lasting, keep=True), Table(passing, keep=False)
    assert lasting.count == passing.count == 0
    kept.get()
    assert kept.get() is kept.get()
    assert lasting.count == 1
    held = lent.get()
    assert lent.get() is held
    del held
    lent.get()
    assert passing.count == 2


def test_a_graph_holds_the_table_until_its_backward_pass() -> None:
    passing = Counted()
    geometry = Geometry("sdpa", Table(passing, keep=False), None, None, None)
    q, k, v = (t.requires_grad_() for t in random_qkv(1, 4, 9, 9, 8))
    out = attend(q, k, v, geometry)
    gc.collect()
    assert geometry.bias is not None
    assert passing.count == 1
    out.sum().backward()
    del out
    assert geometry.bias is not None
    assert passing.count == 2


def crossing(what: str, depth: int = 2) -> tuple[Trunk, torch.Tensor, torch.Tensor, Geometry, Geometry, list[Counted]]:
    """A trunk of cross blocks with its input, its context and counted tables."""
    torch.manual_seed(0)
    trunk = Trunk(32, 4, depth, cross=True)
    set_recompute(trunk, what)
    x, context = (torch.randn(2, 9, 32).requires_grad_() for _ in range(2))
    made = [Counted(), Counted()]
    own, across = (Geometry("sdpa", Table(make, keep=False), None, None, None) for make in made)
    return trunk, x, context, own, across, made


def test_recomputing_changes_no_bit_of_results_and_gradients() -> None:
    found = {}
    for what in RECOMPUTE:
        trunk, x, context, own, across, _ = crossing(what)
        out = trunk(x, own, context, across)
        out.square().sum().backward()
        found[what] = [out.detach(), x.grad, context.grad, *(p.grad for p in trunk.parameters())]
    for what in RECOMPUTE[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[what], found["nothing"], strict=True)), what


def test_recomputing_keeps_less() -> None:
    """Bytes that are saved outside of recomputed parts, weights apart; those parts keep their inputs alone."""
    kept = {}
    for what in RECOMPUTE:
        trunk, x, context, own, across, _ = crossing(what)
        weights = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
        saved: dict[int, int] = {}

        def pack(value: torch.Tensor, saved: dict[int, int] = saved, weights: set[int] = weights) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out = trunk(x, own, context, across)
        assert out.requires_grad
        kept[what] = sum(saved.values())
    assert kept["perceptrons"] < 0.7 * kept["nothing"]
    assert kept["layers"] < 0.1 * kept["nothing"]


@pytest.mark.parametrize("what", RECOMPUTE)
def test_layers_share_a_table_and_recomputed_layers_make_it_again(what: str) -> None:
    trunk, x, context, own, across, made = crossing(what, depth=3)
    out = trunk(x, own, context, across)
    assert [make.count for make in made] == [1, 1]
    out.sum().backward()
    # layer by layer: no two layers' tables are there at a time
    again = 3 if what == "layers" else 0
    assert [make.count for make in made] == [1 + again, 1 + again]


def test_nothing_is_recomputed_without_gradients() -> None:
    trunk, x, context, own, across, _ = crossing("layers")
    with torch.no_grad():
        out = trunk(x, own, context, across)
    assert not out.requires_grad
    assert torch.equal(out, crossing("nothing")[0](x, own, context, across))


def test_what_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(ModelError, match="got 'heads', expected one of nothing, perceptrons, layers"):
        set_recompute(Trunk(32, 4, 1), "heads")
