"""The training bench: its reference computes the same by another way, and its rows measure what they say."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from alidade.cli.bench_train import GSD_M, SIDES, TrainingStep, released_config, waiting_row
from alidade.errors import ModelError
from alidade.evaluation.bench_train import AGREE, OURS, RELEASED, bench_train, compare, peak_memory
from alidade.evaluation.bench_train_reference import ReleasedWay, gathered, unfused
from alidade.models.attention import Attention, make_geometry
from alidade.models.config import DecoderConfig, ScaleAlibiConfig
from alidade.models.encoder import RECOMPUTE, set_recompute
from alidade.models.positions import PositionConfig, Positions
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Places, Tokens, gather_places, grid_places
from alidade.training.objectives import random_split
from greedy_step import Greedy


def small() -> ScaleAlibiConfig:
    """The released make-up at a sixteenth of its width."""
    decoder = DecoderConfig(width=32, depth=1, heads=4, wavelength_range_m=(1.0, 20_000.0))
    return replace(released_config(2), width=48, heads=4, decoder=decoder)


def test_gathering_is_indexing() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 3, 5, 7, generator=generator)
    rows, columns = torch.tensor([[4, 0], [1, 1]]), torch.tensor([[6, 2, 3], [0, 5, 1]])
    found = gathered(table, rows, columns)
    assert found.shape == (2, 3, 2, 3)
    for b in range(2):
        assert torch.equal(found[b], table[0][:, rows[b]][:, :, columns[b]])


@pytest.mark.parametrize("crossed", [False, True])
def test_unfused_attention_is_attention_at_the_kept_places(crossed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    positions = PositionConfig().build(4)
    low, high = grid_places(4, 4, 8, (10.0, 10.0), 2), grid_places(8, 8, 8, (5.0, 5.0), 2)
    mine, _ = random_split(low.valid, 0.6, generator)
    theirs, _ = random_split(high.valid, 0.6, generator) if crossed else (mine, mine)
    grid = high if crossed else low
    query, key = gather_places(low, mine), gather_places(grid, theirs)
    torch.manual_seed(2)
    attention = Attention(32, 4)
    x = torch.randn(2, mine.shape[1], 32, generator=generator)
    context = torch.randn(2, theirs.shape[1], 32, generator=generator) if crossed else None
    geometry = make_geometry(positions, query, key, head_dim=8, dtype=torch.float32, training=True)
    table = positions.bias(low.first(), grid.first())
    assert table is not None
    assert torch.allclose(
        unfused(attention, x, context, gathered(table, mine, theirs)), attention(x, geometry, context), atol=1e-5
    )


def test_both_ways_have_the_same_losses_and_gradients() -> None:
    steps = [TrainingStep(small(), 3, way) for way in (OURS, RELEASED)]
    kinds = [type(step.trainer.network) for step in steps]
    assert kinds == [ScaleAlibi, ReleasedWay]
    assert compare(steps[0].losses(), steps[1].losses()) < AGREE
    names = {"contrast sar-low", "contrast sar-high", "contrast low-high", "total"}
    assert set(steps[0].losses()) == names | {f"reconstruction {name}" for name in SIDES}
    for step in steps:
        step.trainer(step.views, seed=0).total.backward()
    for (name, ours), theirs in zip(steps[0].trainer.named_parameters(), steps[1].trainer.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5), name


class Counted:
    """The positions of a network, counting the tables that are made."""

    def __init__(self, positions: Positions) -> None:
        self.positions, self.count = positions, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.positions, name)

    def bias(self, query: Places, key: Places) -> torch.Tensor | None:
        self.count += 1
        return self.positions.bias(query, key)


def test_a_step_makes_each_table_once_and_leaves_none() -> None:
    """Three among a tower's own tokens, which fusion shares, and six between two towers'."""
    step = TrainingStep(small(), 2, OURS)
    network = step.trainer.network
    counted = network.positions = Counted(network.positions)
    total = step.trainer(step.views, seed=0).total
    total.backward()
    assert counted.count == 9
    del total
    for _, _, geometry in network._own:
        assert geometry.bias is not None
    assert counted.count == 12, "the graph held the tables, and nothing else"


def test_the_table_of_a_step_is_not_taken_for_other_tokens_at_the_same_places() -> None:
    network = TrainingStep(small(), 2, OURS).trainer.network
    places = grid_places(3, 3, 8, (10.0, 10.0), 2)
    holed = places._replace(valid=torch.arange(9).expand(2, -1) > 2)
    whole = network._geometry(places, places)
    assert network._geometry(places, places) is whole
    masked = network._geometry(holed, holed)
    assert torch.equal(masked.bias[:, :, :, 3:], whole.bias.expand(2, -1, -1, -1)[:, :, :, 3:])
    assert (masked.bias[:, :, :, :3] < -1e3).all()
    with torch.no_grad():
        assert network._geometry(places, places) is not whole


@pytest.mark.parametrize("what", RECOMPUTE[1:])
def test_a_recomputed_step_has_the_same_losses_and_gradients_bit_for_bit(what: str) -> None:
    steps = [TrainingStep(small(), 2, OURS) for _ in range(2)]
    set_recompute(steps[1].trainer.network, what)
    totals = [step.trainer(step.views, seed=0).total for step in steps]
    assert torch.equal(*totals)
    for total in totals:
        total.backward()
    for (name, a), b in zip(steps[0].trainer.named_parameters(), steps[1].trainer.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_the_reference_lets_go_of_its_tables_when_the_forward_pass_ends() -> None:
    step = TrainingStep(small(), 2, RELEASED)
    network = step.trainer.network
    made: list[weakref.ref[torch.Tensor]] = []
    masked = network._masked

    def remembering(query: Tokens, key: Tokens) -> torch.Tensor:
        table = masked(query, key)
        made.append(weakref.ref(table))
        return table

    network._masked = remembering
    total = step.trainer(step.views, seed=0).total
    assert len(made) == 9
    assert all(ref() is None for ref in made)
    total.backward()


def test_the_step_is_the_one_that_was_released() -> None:
    config = released_config(12)
    assert (config.width, config.heads, config.fusion_depth) == (768, 16, 6)
    assert [tower.depth for tower in config.towers] == [6, 12, 12]
    step = TrainingStep(small(), 2, OURS)
    assert [(side // 8) ** 2 for side in SIDES.values()] == [256, 256, 1024]
    assert {side * GSD_M[name] for name, side in SIDES.items()} == {1280.0}, "one ground square"
    assert step.tokens == 2 * (154 + 154 + 614)
    before = [p.clone() for p in step.trainer.parameters()]
    step()
    assert not all(torch.equal(a, b) for a, b in zip(before, step.trainer.parameters(), strict=True))


def test_a_reference_that_computes_something_else_is_refused() -> None:
    assert compare({"a": 1.0}, {"a": 1.0 + AGREE / 2}) == pytest.approx(AGREE / 2)
    with pytest.raises(ModelError, match="losses that differ by 0.01"):
        compare({"a": 1.0}, {"a": 1.01})
    with pytest.raises(ModelError, match="losses that differ by nan"):
        compare({"a": 1.0}, {"a": float("nan")})
    with pytest.raises(ModelError, match=r"losses \['b'\]"):
        compare({"a": 1.0}, {"b": 1.0})


def test_memory_is_what_a_step_needs_above_the_model() -> None:
    for megabytes in (100, 300):
        assert peak_memory(Greedy, str(megabytes)) / 2**20 == pytest.approx(megabytes, abs=15)


def test_a_child_that_dies_is_one_error() -> None:
    with pytest.raises(ModelError, match=r"a process that died while it measured memory \(exit code 3\)"):
        peak_memory(Greedy, "-1")


def test_rows_come_with_their_targets() -> None:
    rows = {row.name: row for row in bench_train(partial(TrainingStep, small(), 2), batch=2, rounds=3)}
    assert rows["step against the released way"].target == ">= 2 x"
    assert rows["step against the released way"].ok == (rows["step against the released way"].value >= 2)
    memory = rows["memory against the released way"]
    ours, theirs = (rows[f"memory of a step{name}"].value for name in (", above the weights", " the released way"))
    assert memory.value == pytest.approx(ours / theirs)
    assert 0 < ours < theirs
    assert rows["memory against the released way, layers computed again"].value < memory.value
    assert rows["step against the released way, layers computed again"].value > 0
    assert rows["tokens"].value > 0
    assert rows["arithmetic of a step"].value > 0


def test_waiting_is_measured_on_a_real_store() -> None:
    row = waiting_row(samples=6, steps=3, batch=2)
    assert 0 <= row.value <= 100
    assert row.ok == (row.value <= 2)
