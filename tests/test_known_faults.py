"""Every known fault of the published code, one named test each; docs/known-faults.md says which test guards what.

Where it is cheap, the faulty way is built beside ours, and the same check rejects it.
"""

from __future__ import annotations

import ast
import math
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.attention import Geometry, make_geometry
from alidade.models.positions import PositionConfig, alibi_slopes
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.tokens import Places, Tokens, gather_places, grid_places
from alidade.models.weights import load_model
from alidade.training.augment import View, coarser
from alidade.training.objectives import contrastive_losses, random_split, standardised_patches
from alidade.training.pretrain import build, pretrain
from alidade.training.pretrainer import Pretrainer
from alidade.training.store_batches import StoreBatches
from alidade.training.tiles.build import build_tiles
from alidade.training.tiles.scenes import View as BuiltView
from alidade.training.tiles.schema import Sample, SampleView
from alidade.training.tiles.store import TileStore
from alidade.training.tiles.writer import StoreWriter
from make_fixtures import write_tif
from pretrain_worker import CONFIG, Made
from test_scale_alibi import CONFIG as SENSORS_CONFIG
from test_scale_alibi import GSD, square
from test_tile_store import RGB, SAR, make_view
from test_train_cli import run

ROOT = Path(__file__).resolve().parents[1]
HEADS = 4
METRES = PositionConfig().build(HEADS)


# --- the bias between scales


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of a table ``[256 low, 1024 high]`` of distances in low-resolution patches with the true one."""

    correlation: float
    error: float
    children: float


TRUE_LOW = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)) + 0.5
TRUE_HIGH = (torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0)) + 0.5) / 2
CHILDREN = torch.tensor(
    [[(2 * r + i) * 32 + 2 * c + j for i in (0, 1) for j in (0, 1)] for r in range(16) for c in range(16)]
)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def agreement(table: torch.Tensor) -> Agreement:
    true = distances(TRUE_LOW, TRUE_HIGH)
    nearest = table.topk(4, largest=False).indices
    found = (nearest[:, :, None] == CHILDREN[:, None, :]).any(-1)
    return Agreement(
        correlation=float(torch.corrcoef(torch.stack([table.flatten(), true.flatten()]))[0, 1]),
        error=float((table - true).abs().mean()),
        children=float(found.float().mean()),
    )


def is_true(table: torch.Tensor) -> bool:
    found = agreement(table)
    return found.correlation > 0.9999 and found.error < 1e-3 and found.children == 1.0


def our_table() -> torch.Tensor:
    bias = METRES.bias(grid_places(16, 16, 8, (10.0, 10.0)), grid_places(32, 32, 8, (5.0, 5.0)))
    assert bias is not None
    return -bias[0, 0] / alibi_slopes(HEADS)[0]


def high_self_table() -> torch.Tensor:
    corner = torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0)) / 2
    return distances(corner, corner)


def test_cross_scale_bias_is_no_slice_of_the_high_resolution_table() -> None:
    """Every fourth column puts all low-resolution patches on the left edge."""
    sliced = high_self_table()[:, ::4].T
    assert agreement(sliced).correlation == pytest.approx(0.721, abs=0.002)
    assert agreement(sliced).error == pytest.approx(2.29, abs=0.01)
    assert not is_true(sliced)
    assert is_true(our_table())


def test_cross_scale_bias_survives_the_gather() -> None:
    """Gathered with row stride N while key ids run to 4N - 1, ids spill into later rows."""
    query, key = torch.arange(256)[:, None], torch.arange(1024)[None]
    spilt = high_self_table()[query + key // 256, 4 * (key % 256)]
    assert abs(agreement(spilt).correlation) < 0.05
    assert agreement(spilt).children < 0.01
    assert not is_true(spilt)
    low, high = grid_places(16, 16, 8, (10.0, 10.0)), grid_places(32, 32, 8, (5.0, 5.0))
    ids = torch.randperm(1024, generator=torch.Generator().manual_seed(0))
    gathered = METRES.bias(low, gather_places(high, ids[None]))
    assert gathered is not None
    back = torch.empty_like(gathered[0, 0])
    back[:, ids] = -gathered[0, 0] / alibi_slopes(HEADS)[0]
    assert is_true(back)


def test_distances_are_between_centres_not_corners() -> None:
    """Corners agree within one grid; between scales they put a patch on one of its children and off the others."""
    corners = distances(TRUE_LOW - 0.5, TRUE_HIGH - 0.25)
    for table, right in ((corners, False), (our_table(), True)):
        children = table.gather(1, CHILDREN)
        assert bool((children - math.sqrt(2) / 4).abs().max() < 1e-4) == right


def test_gather_of_a_rectangular_table_is_not_transposed() -> None:
    low, high = grid_places(4, 4, 8, (10.0, 10.0)), grid_places(8, 8, 8, (5.0, 5.0))
    some_low, some_high = torch.tensor([[3, 9, 14]]), torch.tensor([[60, 2, 33, 5, 18]])
    whole = METRES.bias(low, high)
    ours = METRES.bias(gather_places(low, some_low), gather_places(high, some_high))
    assert whole is not None
    assert ours is not None
    expected = whole[0][:, some_low[0]][:, :, some_high[0]]
    # flat index key * N + query instead of query * M + key: the same only where the table is square and symmetric
    flat = some_high[0][None, :] * 16 + some_low[0][:, None]
    transposed = whole[0].flatten(1)[:, flat]
    assert torch.equal(ours[0], expected)
    assert transposed.shape == expected.shape
    assert not torch.allclose(transposed, expected, atol=0.1)


# --- the fusion encoder


def fused_by_hand(network: ScaleAlibi, parts: list[Tokens], *, own: str) -> torch.Tensor:
    """Fusion block by block; self-attention takes the distances among its own tokens, or those to the ``own`` ones."""
    query, x = parts[0], parts[0].features
    assert network.fusion is not None

    def table(a: Places, b: Places) -> Geometry:
        return make_geometry(network.positions, a, b, head_dim=8, dtype=torch.float32, training=False, backend="sdpa")

    for other in parts[1:]:
        own_places = {"queries": query.places, "context": other.places}[own]
        among, across = table(query.places, own_places), table(query.places, other.places)
        for block in network.fusion.blocks:
            x = x + block.attention(x, among)
            x = x + block.cross(x, across, other.features)
            x = x + block.feed_forward(x)
        x = network.fusion.norm(x)
    return x


def masked_parts(network: ScaleAlibi, names: tuple[str, ...], keep: int = 6) -> list[Tokens]:
    generator = torch.Generator().manual_seed(3)
    parts = []
    for name in names:
        tokens = square(network, name)
        ids, _ = random_split(tokens.places.valid, keep / tokens.places.valid.shape[1], generator)
        parts.append(network.run(tokens.gather(ids)))
    return parts


@torch.no_grad()
def test_fusion_self_attention_never_sees_the_cross_bias() -> None:
    """With as many kept tokens on both sides the wrong table fits, and without masks it is even the right one."""
    network = sensors_network().eval()
    parts = masked_parts(network, ("sar", "low"))
    fused = network.fuse(parts).features
    assert torch.allclose(fused, fused_by_hand(network, parts, own="queries"), atol=1e-5)
    assert not torch.allclose(fused, fused_by_hand(network, parts, own="context"), atol=1e-4)
    whole = [network.run(square(network, name)) for name in ("sar", "low")]
    assert torch.allclose(network.fuse(whole).features, fused_by_hand(network, whole, own="context"), atol=1e-5)


@torch.no_grad()
def test_second_fusion_step_measures_from_the_radar_tokens_that_ask() -> None:
    """The released code built step two's bias from optical ids although radar tokens are the queries."""
    network = sensors_network().eval()
    sar, low, high = masked_parts(network, ("sar", "low", "high"))
    fused = network.fuse([sar, low, high]).features
    assert torch.allclose(fused, fused_by_hand(network, [sar, low, high], own="queries"), atol=1e-5)
    first = network.fuse([sar, low])
    from_optical = replace(first, places=low.places, sensor="sar")
    assert not torch.allclose(fused, network.fuse([from_optical, high]).features, atol=1e-4)


# --- heads and parameters


class OneHead(ScaleAlibi):
    """The fault: the high-resolution tower goes through the low-resolution head."""

    def pool(self, tokens: Tokens) -> torch.Tensor:
        return super().pool(replace(tokens, sensor="low") if tokens.sensor == "high" else tokens)


def sensors_network(kind: type[ScaleAlibi] = ScaleAlibi) -> ScaleAlibi:
    network = kind(SENSORS_CONFIG)
    initialise(network, seed=0)
    return network


def three_sensors(kind: type[ScaleAlibi] = ScaleAlibi, *, keep: float = 0.6) -> Pretrainer:
    towers = {name: name for name in GSD}
    return Pretrainer(sensors_network(kind), towers, keep=keep, contrast_weight=1.0, reconstruct_weight=1.0).train()


def three_views(batch: int = 4, side_m: float = 320.0) -> dict[str, View]:
    generator, views = torch.Generator().manual_seed(0), {}
    for tower in SENSORS_CONFIG.towers:
        side = round(side_m / GSD[tower.name])
        views[tower.name] = View(
            pixels=torch.randn(batch, len(tower.bands), side, side, generator=generator),
            valid=torch.ones(batch, side, side, dtype=torch.bool),
            gsd_m=(GSD[tower.name], GSD[tower.name]),
            present=torch.ones(batch, dtype=torch.bool),
            days=torch.zeros(batch, dtype=torch.float64),
        )
    return views


def losses(trainer: Pretrainer, views: dict[str, View], seed: int = 0) -> dict[str, float]:
    return {name: loss.item() for name, loss in trainer(views, seed=seed).by_name.items()}


def without(view: View, sample: int, *, present: bool) -> View:
    """The view with one sample's pixels gone; marked as missing, or ``present`` and all nodata."""
    pixels, valid, there = view.pixels.clone(), view.valid.clone(), view.present.clone()
    pixels[sample], valid[sample], there[sample] = 0.0, False, present
    return replace(view, pixels=pixels, valid=valid, present=there)


def idle(trainer: Pretrainer) -> list[str]:
    """Parameters that a whole step with all sensors does not move."""
    trainer(three_views(), seed=1).total.backward()
    return [name for name, p in trainer.named_parameters() if p.grad is None or not p.grad.any()]


def test_every_parameter_learns_in_a_step_with_all_sensors() -> None:
    """The released model carried a high-resolution head of 4.7 M parameters that nothing ever reached."""
    assert idle(three_sensors()) == []
    assert {name.split(".")[2] for name in idle(three_sensors(OneHead))} == {"high"}


def test_no_table_hangs_on_a_module_outside_its_parameters_and_buffers() -> None:
    """A bias kept as a plain attribute stays on the CPU and is copied to the device on every step."""

    def strays(module: nn.Module) -> list[str]:
        held = [(type(m).__name__, name, value) for m in module.modules() for name, value in vars(m).items()]
        return [f"{kind}.{name}" for kind, name, value in held if isinstance(value, torch.Tensor | Geometry)]

    trainer = three_sensors()
    trainer(three_views(), seed=1).total.backward()
    assert strays(trainer) == []
    assert trainer.network._latest is None
    trainer.network.bias = torch.zeros(1, 4, 16, 16)
    assert strays(trainer) == ["ScaleAlibi.bias"]


class Largest(TorchDispatchMode):
    """Counts the bytes of everything that is computed, and of the largest single tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.indices = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            # what expand() returns occupies no more than what it was made from
            nbytes = min(out.nbytes, out.untyped_storage().nbytes())
            self.largest = max(self.largest, nbytes)
            self.indices = max(self.indices, nbytes if out.dtype == torch.int64 else 0)
        return out


def test_masked_bias_costs_no_more_than_itself() -> None:
    """Repeating the table over the batch and gathering it with int64 ids took 4 GiB to make half a GiB."""
    batch, kept = 4, 100
    places = grid_places(16, 16, 8, (10.0, 10.0), batch=batch)
    noise = torch.rand(batch, 256, generator=torch.Generator().manual_seed(0))
    ids = noise.argsort(1)[:, :kept]
    result = batch * HEADS * kept * kept * 4
    with Largest() as ours:
        table = METRES.bias(gather_places(places, ids), gather_places(places, ids))
    assert table is not None
    assert table.nbytes == result
    assert ours.largest <= result
    assert ours.indices <= ids.nbytes
    with Largest() as theirs:
        whole = METRES.bias(places, places)
        assert whole is not None
        repeated = whole.repeat(batch, 1, 1, 1)
        rows = repeated.gather(2, ids[:, None, :, None].repeat(1, HEADS, 1, 256))
        gathered = rows.gather(3, ids[:, None, None, :].repeat(1, HEADS, kept, 1))
    assert torch.allclose(gathered, table, atol=1e-5)
    assert theirs.largest > 5 * result
    assert theirs.indices > result


# --- the objectives


def test_a_sensor_contrasted_with_itself_is_solved_from_the_start() -> None:
    """1.7e-5 at random with a batch of 24: such a pair teaches nothing, and we have none."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(24, 768, generator=generator) for _ in range(2))
    log_scale = torch.tensor(math.log(1 / 0.07))
    with_itself = contrastive_losses({"high": a, "again": a}, log_scale)["high", "again"]
    assert with_itself == pytest.approx(1.7e-5, rel=0.3)
    assert contrastive_losses({"high": a, "low": b}, log_scale)["high", "low"] > 1.0
    found = losses(three_sensors(), three_views())
    assert {n for n in found if n.startswith("contrast")} == {
        "contrast sar-low",
        "contrast sar-high",
        "contrast low-high",
    }
    assert all(value > 0.1 for name, value in found.items() if name.startswith("contrast"))


def test_a_gather_without_gradients_gives_other_gradients() -> None:
    """What two processes would compute, each seeing the other's features as constants."""

    def gradient(*, through: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        features = {s: torch.randn(6, 16, generator=generator) for s in ("sar", "low")}
        weight = nn.Parameter(torch.randn(16, 16, generator=generator))
        for rank in range(2):
            mine = torch.arange(6) // 3 == rank
            pooled = {s: x @ weight for s, x in features.items()}
            seen = {s: x if through else torch.where(mine[:, None], x, x.detach()) for s, x in pooled.items()}
            units = [nn.functional.normalize(x, dim=-1) for x in seen.values()]
            logits = units[0] @ units[1].T / 0.07
            target = torch.arange(6)[mine]
            rows = nn.functional.cross_entropy(logits[mine], target)
            columns = nn.functional.cross_entropy(logits.T[mine], target)
            ((rows + columns) / 2 / 2).backward()
        assert weight.grad is not None
        return weight.grad

    weight = nn.Parameter(torch.empty(16, 16))
    generator = torch.Generator().manual_seed(0)
    features = {s: torch.randn(6, 16, generator=generator) for s in ("sar", "low")}
    weight.data = torch.randn(16, 16, generator=generator)
    contrastive_losses({s: x @ weight for s, x in features.items()}, torch.tensor(math.log(1 / 0.07)))[
        "sar", "low"
    ].backward()
    assert torch.allclose(gradient(through=True), weight.grad, atol=1e-5)
    assert not torch.allclose(gradient(through=False), weight.grad, atol=1e-2)


def test_temperature_is_clamped_and_can_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    features = {s: torch.randn(6, 16, generator=generator) for s in ("sar", "low")}
    for log_scale in (math.log(100) + 1.0, 80.0):
        beyond = torch.tensor(log_scale, requires_grad=True)
        loss = contrastive_losses(features, beyond)["sar", "low"]
        at_the_clamp = contrastive_losses(features, torch.tensor(math.log(100)))["sar", "low"]
        assert torch.allclose(loss, at_the_clamp, rtol=1e-4)
        loss.backward()
        # unmatched features want a lower scale; a clamp that stops the gradient would never let it go
        assert beyond.grad is not None
        assert beyond.grad > 0


def still(trainer: Pretrainer, *, bias: float = 0.0) -> Pretrainer:
    """A decoder that predicts the same patch everywhere: its loss is then a statement about the targets alone."""
    assert trainer.network.decoder is not None
    generator = torch.Generator().manual_seed(9)
    for layer in trainer.network.decoder.pixels.values():
        nn.init.zeros_(layer.weight)
        layer.bias.data = bias * torch.randn(layer.bias.shape, generator=generator)
    return trainer


def test_every_sensor_has_its_own_target_statistics() -> None:
    """One mean and deviation over all sensors' bands lets the loudest sensor silence the others."""
    views = three_views()
    views["sar"] = replace(views["sar"], pixels=100.0 * views["sar"].pixels)
    found = losses(still(three_sensors()), views)
    for name in GSD:
        assert found[f"reconstruction {name}"] == pytest.approx(1.0, abs=1e-3), "mean square of a standardised target"
    stacked = torch.cat([views["low"].pixels, views["sar"].pixels], dim=1).flatten(1)
    optical = standardised_patches(stacked)[:, : views["low"].pixels[0].numel()]
    assert optical.square().mean() < 0.01


def test_high_resolution_target_holds_what_decimation_drops() -> None:
    trainer, views = still(three_sensors(), bias=1.0), three_views()
    changed = views["high"].pixels.clone()
    changed[..., 1::2, :] *= -1.0
    changed[..., :, 1::2] *= -1.0
    other = views | {"high": replace(views["high"], pixels=changed)}
    assert torch.equal(changed[..., ::2, ::2], views["high"].pixels[..., ::2, ::2]), "decimated, both are one image"
    a, b = (losses(trainer, v)["reconstruction high"] for v in (views, other))
    assert abs(a - b) > 1e-4


@pytest.mark.parametrize("keep", [0.6, 0.25])
def test_exactly_the_masked_share_is_scored_at_every_resolution(keep: float) -> None:
    """Max-pooling the high-resolution mask scored 87 % of the cells for 40 % masked; ``keep`` is what is kept."""
    trainer, views = still(three_sensors(keep=keep)), three_views(batch=256, side_m=320.0)
    high = views["high"]
    pixels = torch.zeros_like(high.pixels)
    # sample i has texture in patch i alone: the loss counts how many of these patches are scored
    for i in range(256):
        row, col = 8 * (i // 16), 8 * (i % 16)
        pixels[i, :, row : row + 8, col : col + 8] = high.pixels[i, :, row : row + 8, col : col + 8]
    only_high = {"high": replace(high, pixels=pixels)}
    masked = 256 - round(keep * 256)
    scored = losses(trainer, only_high, 5)["reconstruction high"] * 256 * masked
    split = random_split(torch.ones(256, 256, dtype=torch.bool), keep, torch.Generator().manual_seed(5))[1]
    assert split.shape == (256, masked)
    assert scored == pytest.approx(float((split == torch.arange(256)[:, None]).sum()), rel=1e-3)
    assert scored / 256 == pytest.approx(1 - keep, abs=0.1)


# --- the run


TWO_PROCESSES = """
import os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from pretrain_worker import CONFIG, Made
from alidade.training.pretrain import pretrain
torch.set_num_threads(1)
network = pretrain(replace(CONFIG, steps=3, batch=4), Made(), Path(sys.argv[2]) / "run")
torch.save(network.state_dict(), Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pt")
"""


def test_processes_train_one_model(tmp_path: Path) -> None:
    """DDP imported but never applied: each rank trained a model of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        arguments = [sys.executable, "-c", TWO_PROCESSES, str(Path(__file__).parent), str(tmp_path)]
        processes.append(subprocess.Popen(arguments, env=environment))
    try:
        assert [p.wait(timeout=240) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    alone = pretrain(replace(CONFIG, steps=3, batch=4), Made(), tmp_path / "alone").state_dict()
    assert not all(torch.equal(first[k], alone[k]) for k in first), "the second process had a say"


def trained(folder: Path, *, steps: int = 2, **changes: float) -> dict[str, torch.Tensor]:
    pretrain(replace(CONFIG, steps=steps, **changes), Made(), folder)  # type: ignore[arg-type]
    return load_file(folder / f"step-{steps:08d}" / "model.safetensors")


def test_the_seed_of_the_recipe_decides_everything(tmp_path: Path) -> None:
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        np.random.seed(number)
        runs.append(trained(tmp_path / str(number), seed=seed))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not all(torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def moved(folder: Path, **changes: float) -> float:
    """How far the first step moves the parameter that moves farthest."""
    after = trained(folder, steps=1, weight_decay=0.0, **changes)
    before = build(replace(CONFIG, steps=1)).state_dict()
    return max(float((after[k] - before[k]).abs().max()) for k in before)


def test_the_first_step_takes_the_rate_of_the_warm_up(tmp_path: Path) -> None:
    # the first step of Adam is the learning rate, whatever the gradient
    assert moved(tmp_path / "none", warm_up=0, peak_rate=0.01) == pytest.approx(0.01, rel=0.01)
    assert moved(tmp_path / "ten", warm_up=10, peak_rate=0.01) == pytest.approx(0.001, rel=0.01)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    # Adam divides by the gradient's size plus 1e-8: only a gradient clipped far below that cannot move anything
    assert moved(tmp_path / "open", warm_up=0, peak_rate=0.01, clip=1.0) > 0.009
    assert moved(tmp_path / "shut", warm_up=0, peak_rate=0.01, clip=1e-12) < 1e-5


def test_the_command_line_has_a_patch_size(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline's jobs passed one that its command line did not have, and so could not start."""
    command = ("train", "pretrain", store, "--out", tmp_path / "run", "--steps", 1, "--batch", 4)
    assert run(monkeypatch, *command, "--patch", 4) == 0
    assert {tower.patch for tower in load_model(tmp_path / "run" / "model").config.towers} == {4}


# --- the data


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six squares of 8-bit colour and radar power; the third has no radar."""
    path = tmp_path / "store"
    views = {"rgb": replace(RGB, side=32), "sar": replace(SAR, side=32)}
    samples = []
    for number in range(6):
        made = {n: replace(make_view(spec, number), gsd_m=(10.0, 10.0)) for n, spec in views.items()}
        samples.append(sample(f"square-{number}", made if number != 2 else {"rgb": made["rgb"]}))
    with StoreWriter(path, views=views, ground_m=None) as writer:
        writer.append(samples)
    return path


def sample(name: str, views: dict[str, SampleView]) -> Sample:
    return Sample(sample_id=name, square=name, split="train", views=views)


def standardised(pixels: np.ndarray) -> bool:
    return bool(abs(pixels.mean()) < 3 and 0.1 < pixels.std() < 5)


def test_inputs_of_training_are_standardised_by_fixed_statistics(store: Path) -> None:
    """The released code fed 0 to 255."""
    tiles = TileStore.open(store)
    views = StoreBatches(tiles, split="train", patch=8, factors=(1,)).views(np.arange(6), np.random.default_rng(0))
    stored = tiles.__getitems__(range(6)).views["rgb"]
    assert not standardised(stored.pixels.astype(np.float32))
    values, valid = views["rgb"].pixels.numpy(), views["rgb"].valid.numpy()
    assert standardised(values.transpose(0, 2, 3, 1)[valid])
    norm = Normalization.for_sensor(sensor("generic-rgb"), RGB.bands)
    back = (values * np.array(norm.std)[:, None, None] + np.array(norm.mean)[:, None, None]).transpose(0, 2, 3, 1)
    # turned and mirrored, but the same numbers, whatever else is in the batch
    for i in range(6):
        numbers = stored.pixels.transpose(0, 2, 3, 1)[i][stored.valid[i]]
        assert np.array_equal(np.sort(np.round(back[i][valid[i]]), axis=0), np.sort(numbers, axis=0))


def test_a_missing_sensor_is_no_black_image(store: Path) -> None:
    """Missing tiles came as black ones: a match to learn, and a target to draw."""
    views = StoreBatches(TileStore.open(store), split="train", patch=8, factors=(1,)).views(
        np.arange(6), np.random.default_rng(0)
    )
    assert views["sar"].present.tolist() == [True, True, False, True, True, True]
    assert not views["sar"].valid[2].any()
    trainer = still(three_sensors(), bias=1.0)
    black, gone = three_views(), three_views()
    gone["high"] = without(gone["high"], 2, present=False)
    black["high"] = replace(gone["high"], valid=torch.ones_like(gone["high"].valid), present=black["high"].present)
    a, b, whole = (losses(trainer, v) for v in (gone, black, three_views()))
    assert a["contrast sar-high"] != pytest.approx(b["contrast sar-high"], rel=1e-3)
    # the loss over the three samples that have it is what remains of the loss of all four
    assert a["reconstruction high"] == pytest.approx(whole["reconstruction high"], rel=0.05)
    assert b["reconstruction high"] < 0.9 * a["reconstruction high"]


@pytest.mark.parametrize("present", [False, True], ids=["missing", "all nodata"])
def test_a_whole_step_with_a_sensor_missing_or_all_nodata(present: bool) -> None:
    """A pooled vector of nothing has length 0; to normalise it multiplied the gradient by 1e12."""

    def step(views: dict[str, View]) -> tuple[float, float]:
        trainer = three_sensors()
        loss = trainer(views, seed=0).total
        loss.backward()
        return float(loss.detach()), float(nn.utils.clip_grad_norm_(trainer.parameters(), 1.0))

    views = three_views()
    _, usual = step(views)
    views["high"] = without(views["high"], 2, present=present)
    loss, norm = step(views)
    assert math.isfinite(loss)
    assert norm < 10 * usual


def test_a_batch_in_which_nothing_has_a_sensor_trains_the_others() -> None:
    trainer, views = three_sensors(), three_views()
    for number in range(4):
        views["high"] = without(views["high"], number, present=False)
    found = trainer(views, seed=0)
    found.total.backward()
    assert found.by_name["contrast sar-high"] == found.by_name["reconstruction high"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.parameters())
    assert trainer.network.patches["low"].weight.grad.any()
    assert trainer.network.patches["sar"].weight.grad.any()


def test_the_brightest_pixels_stay_the_brightest(tmp_path: Path) -> None:
    """Saturated radar became 0: 256 does not fit into 8 bits."""
    saturated = np.full((2, 64, 64), 1500.0)
    assert np.uint8(int(np.clip(saturated.max() / 1000, 0, 1) * 256) % 256) == 0, "the fault"
    corner = Affine(10, 0, 480_000.0, 0, -10, 5_299_200.0)
    tags = {"ALIDADE_SENSOR": "sentinel-2-l2a", "ALIDADE_UNIT": "reflectance", "ALIDADE_TIME": "2024-06-01T10:00:00Z"}
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    pixels = np.random.default_rng(0).integers(500, 60_000, (2, 64, 64), dtype=np.uint16)
    pixels[:, 20:30, 20:30] = 65_535
    # two processing baselines in one store: the older numbers are raised by 1000, and the highest have no room
    write_tif(scenes / "old.tif", pixels, transform=corner, names=("B03", "B04"), tags=tags, scale_offset=(1e-4, 1e-12))
    next_to = Affine(10, 0, 480_640.0, 0, -10, 5_299_200.0)
    write_tif(scenes / "new.tif", pixels, transform=next_to, names=("B03", "B04"), tags=tags, scale_offset=(1e-4, -0.1))
    build_tiles([scenes], tmp_path / "s", square_m=640.0, min_views=1)
    tiles = TileStore.open(tmp_path / "s")
    batch = tiles.__getitems__(range(2)).views["sentinel-2-l2a"]
    old = [Path(s).name for s in tiles.index["sentinel-2-l2a.source"].to_pylist()].index("old.tif")
    assert (batch.pixels[old][:, pixels[0] == 65_535] == 65_535).all()
    assert np.array_equal(batch.pixels[old], np.minimum(pixels.astype(np.int64) + 1000, 65_535))


def test_coarser_pixels_are_means_not_every_second_pixel(tmp_path: Path) -> None:
    """A checkerboard of the finer pixels is grey; decimated it is all black or all white."""
    board = np.indices((128, 128)).sum(0) % 2
    pixels = np.where(board[None].repeat(2, 0), 3000, 1000).astype(np.uint16)
    assert np.unique(pixels[:, ::2, ::2]).tolist() == [1000], "the fault"
    tags = {"ALIDADE_SENSOR": "sentinel-2-l2a", "ALIDADE_BASELINE": "02.12"}
    place = Affine(5, 0, 480_000.0, 0, -5, 5_299_200.0)
    write_tif(tmp_path / "a.tif", pixels, transform=place, names=("B03", "B04"), tags=tags, nodata=0)
    view = BuiltView(name="s2", sensor="sentinel-2-l2a", gsd_m=10.0)
    build_tiles([tmp_path / "a.tif"], tmp_path / "s", [view], square_m=640.0)
    assert np.unique(TileStore.open(tmp_path / "s")[0].views["s2"].pixels).tolist() == [2000]
    fine = three_views()["low"]
    fine = replace(fine, pixels=torch.from_numpy(board[:32, :32]).float().expand(4, 4, 32, 32))
    assert coarser(fine, 2).pixels.unique().tolist() == [0.5]
    assert coarser(fine, 2).gsd_m == (20.0, 20.0)


def test_every_sample_is_told_the_ground_distance_of_its_own_latitude(tmp_path: Path) -> None:
    """Web Mercator tiles of one zoom measure 4.33 m at 25° north and 3.13 m at 49°; the model was told one number."""
    path, spec = tmp_path / "s", replace(RGB, side=32)
    gsd = [4.777 * math.cos(math.radians(lat)) for lat in np.linspace(25, 49, 12)]
    with StoreWriter(path, views={"rgb": spec}, ground_m=None) as writer:
        writer.append([sample(str(i), {"rgb": replace(make_view(spec, i), gsd_m=(g, g))}) for i, g in enumerate(gsd)])
    data = StoreBatches(TileStore.open(path), split="train", patch=8, factors=(1,))
    for ids in (np.arange(12), np.arange(3, 7)):
        view = data.views(ids, np.random.default_rng(0))["rgb"]
        told = np.broadcast_to(np.asarray(view.gsd_m, dtype=np.float64), (len(ids), 2))
        assert told == pytest.approx(np.array(gsd)[ids, None].repeat(2, 1), rel=0.01)


# --- what a run may meet


FULL_DISK = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pretrain_worker import CONFIG, Made
from alidade.training.pretrain import pretrain
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, room = Path(sys.argv[2]), int(sys.argv[3])
pretrain(replace(CONFIG, steps=4, checkpoint_every=2), Made(), folder, report=lambda r: r.step == 3 and
         resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY)))
"""


@pytest.mark.parametrize("room", [500, 40_000], ids=["nothing fits", "the weights do not fit"])
def test_a_full_disk_while_training_is_one_error_and_the_last_checkpoint_stays(tmp_path: Path, room: int) -> None:
    folder = tmp_path / "run"
    arguments = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(folder), str(room)]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert re.match(r"alidade\.\S+Error: .*got .*File too large.*, expected ", last), last
    assert (folder / "latest").read_text().strip() == "step-00000002"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [], "what was begun is taken away"
    network = pretrain(replace(CONFIG, steps=4, checkpoint_every=2), Made(), folder)
    alone = pretrain(replace(CONFIG, steps=4, checkpoint_every=2), Made(), tmp_path / "alone")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), alone.parameters(), strict=True))


def test_random_kills_lose_nothing() -> None:
    """Fifty kills are for a release (scripts/kill_training.py); a few are for every day."""
    script = [sys.executable, str(ROOT / "scripts" / "kill_training.py"), "--kills", "3", "--seed", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no acknowledged checkpoint lost" in " ".join(ended.stdout.split())


# --- the list


def missing(text: str) -> list[str]:
    """Tests that the table names and that do not exist."""
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    functions = {
        path: {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
        for path in {path for path, _ in named}
        if (ROOT / path).is_file()
    }
    return [f"{path}::{name}" for path, name in named if name not in functions.get(path, ())]


def test_every_fault_in_the_list_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "known-faults.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| fault", "| what"))]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row] == []
    assert missing(text) == []
    assert missing("`tests/test_known_faults.py::test_gone` `tests/gone.py::test_x`") == [
        "tests/test_known_faults.py::test_gone",
        "tests/gone.py::test_x",
    ]
