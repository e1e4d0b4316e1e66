"""Spectral distillation: the loss is the paper's, only the student learns, and a run resumes and divides exactly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from torch.nn import functional as F
from typer.testing import CliRunner

from alidade.cli.train_distill import pack_names, register_distill, teacher_names
from alidade.errors import AlidadeError, ModelError
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.croma import CromaSize, load_croma
from alidade.models.model import Model
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import identity, load_model, save_model
from alidade.training.augment import View
from alidade.training.distill import DistillConfig, build, distill, lone_tower
from alidade.training.distill_batches import GLOBAL, LOCAL, STUDENT, CropBatches, Crops, SourceSquares, StoreSquares
from alidade.training.distiller import distillation, sharpened
from alidade.training.image_batches import Cut, Source, Stack
from alidade.training.loop import make_batches
from alidade.training.processes import TrainingError
from alidade.training.teachers import CallableTeacher, DistillError, TowerTeacher, reading
from alidade.training.tiles.store import TileStore

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "data" / "croma_parity"
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
CROPS = Crops(local_views=2, jitter=0.0)
CONFIG = DistillConfig(steps=6, batch=4, warm_up=2, sharpen_steps=4, checkpoint_every=2, peak_rate=3e-3)


def tower(name: str, bands: tuple[str, ...], sensors: tuple[str, ...]) -> TowerConfig:
    statistics = {s: Normalization.for_sensor(sensor(s), bands) for s in sensors}
    return TowerConfig(name=name, bands=bands, depth=1, patch=8, normalizations=statistics)


def make_network(seed: int = 0) -> ScaleAlibi:
    config = ScaleAlibiConfig(
        name="three-towers",
        width=32,
        heads=4,
        towers=(
            tower("sar", ("VV", "VH"), ("sentinel-1-grd",)),
            tower("optical", SENTINEL_2, ("sentinel-2-l2a",)),
            tower("rgb", ("red", "green", "blue"), ("generic-rgb", "sentinel-2-l2a")),
        ),
        shared_depth=1,
        position=PositionConfig(length_range_m=(5.0, 2_000.0)),
        mlp_head=False,
        tile=32,
        aligned=True,
    )
    network = ScaleAlibi(config)
    initialise(network, seed)
    return network.eval()


def make_source(name: str = "made", *also: str, holes: bool = False, seed: int = 0) -> Source:
    """Smooth random images of 12 bands whose 3rd to 1st are the RGB; ``also``: further stacks, of radar."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(12, 12, 4, 4, generator=generator)
    wide = F.interpolate(coarse, scale_factor=8, mode="bilinear").numpy().astype(np.float16)
    valid = np.ones((12, 32, 32), dtype=np.bool_)
    if holes:
        valid[::3, :, 10:] = False
        valid[[1, 4, 6]] = False
    blank = ~valid[:, None]
    bands = {"optical": wide, "rgb": wide[:, [3, 2, 1]], "sar": wide[:, 7:9]}
    stacks = {
        n: Stack(pixels=np.where(blank, np.float16(0), bands[n]), valid=valid, gsd_m=10.0)
        for n in ("rgb", *(also or ("optical",)))
    }
    cuts = {n: Cut(stack=n, sizes=((32, 1),)) for n in stacks}
    return Source(name=name, weight=1.0, stacks=stacks, views=cuts, together=True)


def make_data(*sources: Source, crops: Crops = CROPS) -> CropBatches:
    found = [SourceSquares(s) for s in sources or (make_source(),)]
    return CropBatches(found, crops, patch=8)


def optical() -> TowerTeacher:
    return TowerTeacher(Model(make_network(7), dtype=torch.float32), "optical")


def sar() -> TowerTeacher:
    return TowerTeacher(Model(make_network(8), dtype=torch.float32), "sar")


def first_batch(data: CropBatches, count: int = 4) -> dict[str, View]:
    return data.views(np.arange(count), np.random.default_rng(3))


def loop_loss(
    student: torch.Tensor,
    pooled: torch.Tensor,
    centre: torch.Tensor,
    temperatures: tuple[float, float],
    seen: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """L_SRD as it is written down: one sample, one pair of views at a time."""
    out = []
    for i in range(student.shape[1]):
        total, pairs = torch.zeros((), dtype=student.dtype), 0
        for v in range(len(student)):
            for u in range(len(pooled)):
                if not (seen[v, i] and known[u, i]):
                    continue
                q = torch.exp((pooled[u, i] - centre) / temperatures[1])
                p = torch.exp(student[v, i] / temperatures[0])
                total = total - (q / q.sum() * torch.log(p / p.sum())).sum()
                pairs += 1
        out.append(total / max(pairs, 1))
    return torch.stack(out)


@pytest.mark.parametrize("holes", [False, True])
def test_loss_is_the_double_loop_over_views(holes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, pooled = (torch.randn(n, 5, 7, generator=generator, dtype=torch.float64) for n in (6, 2))
    centre = torch.randn(7, generator=generator, dtype=torch.float64)
    seen = torch.rand(6, 5, generator=generator) > (0.4 if holes else -1)
    known = torch.rand(2, 5, generator=generator) > (0.4 if holes else -1)
    found = distillation(student, sharpened(pooled, centre, 0.07), 0.1, seen, known)
    assert torch.allclose(found, loop_loss(student, pooled, centre, (0.1, 0.07), seen, known), rtol=1e-12)


def test_module_computes_that_loss_for_each_teacher_and_adds_them_by_weight() -> None:
    data = make_data(make_source("both", "optical", "sar", holes=True))
    config = replace(CONFIG, weights={"sar": 0.25}, student_temperature=0.2, teacher_temperature=(0.05, 0.5))
    teachers = [optical(), sar()]
    distiller = build(config, data, make_network(), teachers).eval()
    generator = torch.Generator().manual_seed(0)
    for bridge in distiller.bridges:
        bridge.centre.copy_(0.1 * torch.randn(bridge.centre.shape, generator=generator))
    distiller.steps += 1
    views = first_batch(data, 6)
    losses = distiller(views, seed=0).by_name
    parts = [distiller._embed(views[name], n) for name, n in ((GLOBAL, 2), (LOCAL, 2))]
    embedding, seen = (torch.cat(column) for column in zip(*parts, strict=True))
    total = 0.0
    for number, (teacher, weight) in enumerate(((teachers[0], 1.0), (teachers[1], 0.25))):
        view, bridge = views[teacher.name], distiller.bridges[number]
        pooled = teacher(view.pixels, view.valid, view.gsd_m).view(2, 6, 32)
        known = view.present.view(2, 6)
        each = loop_loss(bridge(embedding), pooled, bridge.centre, (0.2, 0.1625), seen, known)
        both = seen.any(0) & known.any(0)
        assert 0 < both.sum() < 6
        expected = each[both].mean().item()
        assert losses[f"distillation {teacher.name}"].item() == pytest.approx(expected, rel=1e-4)
        assert losses[f"distillation {teacher.name}"] > losses[f"entropy {teacher.name}"] > 0
        total += weight * expected
    assert losses["total"].item() == pytest.approx(total, rel=1e-4)


def test_centres_follow_their_teachers_once_a_step_and_rest_without_them() -> None:
    data = make_data(make_source("both", "optical", "sar", holes=True))
    teachers = [optical(), sar()]
    distiller = build(replace(CONFIG, accumulate=2, momentum=0.8), data, make_network(), teachers)
    batches = [data.views(np.arange(4), np.random.default_rng(n)) for n in range(4)]
    for number, views in enumerate(batches):
        distiller({k: v for k, v in views.items() if k != "sar"}, seed=0)
        assert distiller.steps.item() == (number + 1) // 2
    centre = torch.zeros(32)
    for pair in (batches[:2], batches[2:]):
        told = [(teachers[0](v.pixels, v.valid, v.gsd_m), v.present) for v in (views["optical"] for views in pair)]
        mean = torch.cat([pooled[present] for pooled, present in told]).mean(0)
        centre = 0.8 * centre + 0.2 * mean
    assert torch.allclose(distiller.bridges[0].centre, centre, atol=1e-6)
    assert not distiller.bridges[1].centre.any()
    distiller.eval()(batches[0], seed=0)
    assert distiller.steps.item() == 2


def test_teachers_sharpen_less_from_step_to_step() -> None:
    distiller = build(CONFIG, make_data(), make_network(), [optical()])
    found = []
    for step in (0, 1, 2, 4, 9):
        distiller.steps.fill_(step)
        found.append(distiller.temperature.item())
    assert found == pytest.approx([0.04, 0.0475, 0.055, 0.07, 0.07])


@pytest.mark.parametrize("learns", ["tower", "head"])
def test_only_the_student_learns(tmp_path: Path, learns: str) -> None:
    start, teacher = make_network(), optical()
    before = identity(start), identity(teacher._network)
    data = make_data()
    distiller = build(replace(CONFIG, learns=learns), data, start, [teacher])
    distiller(first_batch(data), seed=0).total.backward()
    moved = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, p in distiller.named_parameters() if p.requires_grad}
    assert ("network.patches.rgb.weight" in moved) == (learns == "tower")
    assert {"network.heads.rgb.layers.weight", "bridges.0.linear.weight"} <= moved
    assert all(p.grad is None for p in teacher._network.parameters())
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"network", "bridges", "steps"}
    network = distill(replace(CONFIG, learns=learns), data, tmp_path, network=start, teachers=[teacher])
    assert (identity(start), identity(teacher._network)) == before
    rgb, patches = "heads.rgb.layers.weight", "patches.rgb.weight"
    assert not torch.equal(network.state_dict()[rgb], start.state_dict()[rgb])
    assert torch.equal(network.state_dict()[patches], start.state_dict()[patches]) == (learns == "head")
    saved = load_model(tmp_path / "model")
    assert [t.name for t in saved.config.towers] == ["rgb"]
    assert not saved.config.aligned


def test_student_learns_what_its_teacher_says_of_each_image() -> None:
    data = make_data(crops=Crops(global_views=1, local_views=0, global_share=(1.0, 1.0), jitter=0.0))
    config = replace(CONFIG, sharpen_steps=1, teacher_temperature=(0.07, 0.07))
    teacher = optical()
    distiller = build(config, data, make_network(), [teacher])
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-2)
    for step in range(80):
        views = data.views(np.arange(12), np.random.default_rng(step))
        optimizer.zero_grad()
        losses = distiller(views, seed=0)
        losses.total.backward()
        optimizer.step()
    view = views["optical"]
    target = sharpened(teacher(view.pixels, view.valid, view.gsd_m), distiller.bridges[0].centre, 0.07)
    entropy = torch.special.entr(target).sum(1).mean()
    # the best that a student could do who says the same of all images
    blind = torch.special.entr(target.mean(0)).sum() - entropy
    assert losses.total - losses.by_name["entropy optical"] < 0.6 * blind


def test_the_lone_tower_embeds_as_it_did() -> None:
    network = make_network()
    alone = lone_tower(network, "rgb", "alone")
    pixels = {"rgb": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    found = [Model(n, dtype=torch.float32).encode_normalised(pixels, gsd_m=10).pooled["rgb"] for n in (network, alone)]
    assert torch.equal(*found)
    with pytest.raises(ModelError, match="'thermal', expected one of sar, optical, rgb"):
        lone_tower(network, "thermal", "alone")


def test_penalty_keeps_the_student_near_its_start(tmp_path: Path) -> None:
    near = []
    for weight in (0.0, 100.0):
        config = replace(CONFIG, steps=12, keep_weight=weight)
        student = distill(config, make_data(), tmp_path / str(weight), network=make_network(), teachers=[optical()])
        view = first_batch(make_data())[GLOBAL]
        found = [
            Model(n, dtype=torch.float32).encode_normalised({"rgb": view.pixels}, gsd_m=10).pooled["rgb"]
            for n in (lone_tower(make_network(), "rgb", "x"), student)
        ]
        near.append(F.cosine_similarity(*found).mean().item())
    assert near[1] > near[0] + 0.01


def test_without_teacher_the_student_has_its_own_contrast(tmp_path: Path) -> None:
    told = list[set[str]]()
    config = replace(CONFIG, contrast_weight=1.0, steps=2)
    distill(
        config, make_data(), tmp_path, network=make_network(), teachers=[], report=lambda r: told.append(set(r.losses))
    )
    assert told == [{"contrast", "total"}] * 2


def test_stopped_run_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    data = make_data(make_source("both", "optical", "sar"))
    config = replace(CONFIG, keep_weight=0.5, contrast_weight=0.5, accumulate=2)

    def go(folder: str, until: int | None = None) -> None:
        def stop(report: object) -> None:
            if getattr(report, "step", 0) == until:
                os.kill(os.getpid(), signal.SIGTERM)

        distill(
            config, data, tmp_path / folder, network=make_network(), teachers=[optical(), sar()], report=stop
        )  # fmt: skip

    go("whole")
    with pytest.raises(TrainingError, match="a stop signal after step 3 of 6"):
        go("cut", until=3)
    go("cut")
    whole, cut = (load_file(tmp_path / f / "step-00000006" / "model.safetensors") for f in ("whole", "cut"))
    assert whole["steps"].item() == 6
    assert whole["bridges.0.centre"].any()
    assert whole["bridges.1.centre"].any()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(AlidadeError, match="another recipe"):
        distill(config, data, tmp_path / "cut", network=make_network(1), teachers=[optical(), sar()])


def two_process_config() -> tuple[DistillConfig, CropBatches]:
    # sides are drawn for each process: here there is one to draw
    crops = replace(CROPS, global_share=(0.5625, 0.5625), local_share=(0.0625, 0.0625))
    data = make_data(make_source("both", "optical", "sar", holes=True), crops=crops)
    return replace(CONFIG, contrast_weight=0.5, keep_weight=0.5, steps=3), data


def test_two_processes_come_to_what_one_comes_to(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in (0, 1):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, __file__, str(tmp_path)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    # meanwhile one process, with both halves in one batch
    config, data = two_process_config()
    distiller = build(config, data, make_network(), [optical(), sar()])
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in distiller.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in distiller.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    halves = zip(*(make_batches(config, data, 0, rank, 2) for rank in (0, 1)), strict=True)
    uneven = 0
    for step, pair in enumerate(halves):
        counts = [distiller.count(half.views, 0) for half in pair]
        uneven += not torch.equal(*counts)
        views = {name: joined(pair[0].views[name], pair[1].views[name], config.batch) for name in pair[0].views}
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        distiller(views, seed=0).total.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    assert uneven, "halves with as many samples prove less"
    try:
        told = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], told
    found = load_file(tmp_path / "step-00000003" / "model.safetensors")
    for name, value in distiller.state_dict().items():
        assert torch.allclose(found[name], value, atol=2e-5), name


def joined(a: View, b: View, batch: int) -> View:
    """The same crop of both halves' samples side by side."""

    def side_by_side(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.unflatten(0, (-1, batch)), y.unflatten(0, (-1, batch))], dim=1).flatten(0, 1)

    parts = {n: side_by_side(getattr(a, n), getattr(b, n)) for n in ("pixels", "valid", "present", "days")}
    return View(gsd_m=a.gsd_m, **parts)


def test_crops_are_parts_of_the_square_and_teachers_see_all_of_it() -> None:
    number = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    # whole numbers below 2,048: half precision tells all of them apart
    pixels = np.broadcast_to(np.stack([number, number + 1024])[:, None], (2, 3, 32, 32)).astype(np.float16)
    stacks = {
        n: Stack(pixels=pixels, valid=np.ones((2, 32, 32), dtype=np.bool_), gsd_m=10.0) for n in ("rgb", "optical")
    }
    cuts = {n: Cut(stack=n, sizes=((32, 1),)) for n in stacks}
    source = Source(name="s", weight=1.0, stacks=stacks, views=cuts, together=True)
    data = make_data(source, crops=Crops(global_views=2, local_views=3, teacher_views=2, jitter=0.0))
    sides = set()
    for seed in range(20):
        views = data.views(np.array([1, 0]), np.random.default_rng(seed))
        for name, count, low, high in ((GLOBAL, 2, 16, 32), (LOCAL, 3, 8, 16), ("optical", 2, 32, 32)):
            view = views[name]
            side = view.valid.shape[-1]
            sides.add((name, side))
            assert view.pixels.shape == (2 * count, 3, side, side)
            assert low <= side <= high
            assert side % 8 == 0
            assert view.gsd_m == (10.0, 10.0)
            for row, crop in enumerate(view.pixels[:, 0].numpy()):
                square = pixels[(1, 0)[row % 2], 0].astype(np.float32)
                at = np.argwhere(np.isin(square, crop))
                (top, left), (bottom, right) = at.min(0), at.max(0)
                assert (bottom - top, right - left) == (side - 1, side - 1)
                part = square[top : bottom + 1, left : right + 1]
                turned = [np.rot90(p, k) for k in range(4) for p in (part, part[:, ::-1])]
                assert any(np.array_equal(crop, t) for t in turned)
    assert len(sides) > 4
    again = data.views(np.array([1, 0]), np.random.default_rng(19))
    assert all(torch.equal(views[name].pixels, again[name].pixels) for name in views)


def test_crops_without_a_valid_pixel_do_not_count() -> None:
    data = make_data(make_source(holes=True))
    views = data.views(np.arange(12), np.random.default_rng(0))
    for name, count in ((GLOBAL, 2), (LOCAL, 2), ("optical", 2)):
        assert torch.equal(views[name].present, views[name].valid.flatten(1).any(1))
        assert not views[name].present.view(count, 12)[:, 1].any()
    assert not views[LOCAL].present.view(2, 12)[:, ::3].all()


def test_batches_of_several_sets_come_from_one_at_a_time() -> None:
    data = make_data(make_source("a"), make_source("b", "sar"))
    found = [frozenset(data.views(np.arange(4), np.random.default_rng(seed))) for seed in range(20)]
    assert set(found) == {frozenset({GLOBAL, LOCAL, "optical"}), frozenset({GLOBAL, LOCAL, "sar"})}
    assert data.teachers == {"optical", "sar"}
    assert data.identity != make_data(make_source("a"), make_source("b", "sar", seed=1)).identity
    assert data.identity != make_data(make_source("a"), make_source("b", "sar"), crops=Crops()).identity


def test_an_alidade_tower_teaches_what_it_embeds() -> None:
    model = Model(make_network(7), dtype=torch.float32)
    pixels = torch.randn(3, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model.encode_normalised({"optical": pixels}, gsd_m=10.0).pooled["optical"]
    valid = torch.ones(3, 32, 32, dtype=torch.bool)
    long = TowerTeacher(model, "optical", unit_length=False)
    assert torch.equal(long(pixels, valid, (10.0, 10.0)), expected)
    unit = TowerTeacher(model, "optical")
    assert torch.allclose(unit(pixels, valid, (10.0, 10.0)), F.normalize(expected, dim=-1))
    assert unit.bands == SENTINEL_2
    assert len({long.identity, unit.identity, optical().identity, sar().identity}) == 3
    encoded = model.encode_normalised({"optical": pixels}, gsd_m=10.0).tokens["optical"]
    mean = TowerTeacher(model, "optical", pool="tokens")
    assert torch.allclose(mean(pixels, valid, (10.0, 10.0)), F.normalize(encoded.features.mean(1), dim=-1), atol=1e-6)
    assert mean.dim == 32
    assert mean.identity != unit.identity
    with pytest.raises(DistillError, match="pooling of a teacher: got 'max', expected one of embedding, tokens"):
        TowerTeacher(model, "optical", pool="max")


def test_croma_teaches(tmp_path: Path) -> None:
    size = CromaSize(name="croma-tiny", width=64, sar_depth=2, optical_depth=3, fusion_depth=2)
    model = Model(load_croma(PARITY / "croma_tiny.pt", size), dtype=torch.float32)
    teachers = [TowerTeacher(model, name) for name in ("optical", "sar")]
    assert [t.bands for t in teachers] == [SENTINEL_2, ("VV", "VH")]
    assert [t.dim for t in teachers] == [64, 64]
    data = make_data(make_source("both", "optical", "sar"))
    told: list[dict[str, float]] = []
    distill(
        replace(CONFIG, steps=2), data, tmp_path, network=make_network(), teachers=teachers,
        report=lambda r: told.append(dict(r.losses)),
    )  # fmt: skip
    assert {"distillation optical", "distillation sar"} <= set(told[-1])
    assert np.isfinite(list(told[-1].values())).all()


def plugin(function: Callable[..., torch.Tensor], dim: int = 12) -> CallableTeacher:
    how = Normalization.for_sensor(sensor("sentinel-2-l2a"), SENTINEL_2, "two-sigma")
    return CallableTeacher(
        function=function, name="optical", identity="means", dim=dim, normalizations={"sentinel-2-l2a": how}
    )


def test_any_function_with_a_band_list_teaches(tmp_path: Path) -> None:
    asked = []

    def means(pixels: torch.Tensor, valid: torch.Tensor, gsd_m: object) -> torch.Tensor:
        asked.append((tuple(pixels.shape[1:]), tuple(valid.shape[1:]), gsd_m))
        return pixels.mean(dim=(2, 3))

    teacher = plugin(means)
    assert teacher.bands == SENTINEL_2
    distill(replace(CONFIG, steps=2), make_data(), tmp_path, network=make_network(), teachers=[teacher])
    assert asked == [((12, 32, 32), (32, 32), (10.0, 10.0))] * 2


def test_what_a_teacher_cannot_do_is_one_line(tmp_path: Path) -> None:
    def tokens(pixels: torch.Tensor, valid: torch.Tensor, gsd_m: object) -> torch.Tensor:
        return pixels.flatten(2)

    with pytest.raises(DistillError, match=r"teacher optical: vectors: got shape \(8, 12, 1024\) for 8 images"):
        distill(CONFIG, make_data(), tmp_path, network=make_network(), teachers=[plugin(tokens)])
    with pytest.raises(DistillError, match="0 sensors"):
        replace(plugin(tokens), normalizations={})
    with pytest.raises(DistillError, match=r"bands of sentinel-2-l2a: got no B01, B09 among .*expected B01, B02"):
        reading("teacher optical", optical().normalizations, "sentinel-2-l2a",
                [b for b in SENTINEL_2 if b not in ("B01", "B09")])  # fmt: skip
    with pytest.raises(DistillError, match="teacher sar: sensor: got sentinel-2-l2a, expected one of sentinel-1-grd"):
        reading("teacher sar", sar().normalizations, "sentinel-2-l2a", SENTINEL_2)


@pytest.mark.parametrize(
    ("config", "teachers", "message"),
    [
        ({}, ["sar"], "images for teacher sar: got optical"),
        ({}, ["optical", "optical"], "teachers: got optical, optical"),
        ({}, [], "no teacher and no contrast"),
        ({"weights": {"thermal": 1.0}}, ["optical"], "weights of teachers: got thermal"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, config: dict[str, object], teachers: list[str], message: str
) -> None:
    made = {"optical": optical, "sar": sar}
    with pytest.raises(DistillError, match=message):
        distill(
            replace(CONFIG, **config), make_data(), tmp_path, network=make_network(),
            teachers=[made[name]() for name in teachers],
        )  # fmt: skip


def test_squares_that_no_teacher_sees_are_refused_unless_contrast_uses_them(tmp_path: Path) -> None:
    data = make_data(make_source("a"), make_source("radar", "sar"))
    with pytest.raises(DistillError, match="squares that teach nothing: got radar"):
        distill(CONFIG, data, tmp_path, network=make_network(), teachers=[optical()])
    distill(replace(CONFIG, contrast_weight=1.0), data, tmp_path, network=make_network(), teachers=[optical()])


@pytest.mark.parametrize(
    "wrong",
    [
        {"learns": "all"},
        {"momentum": 1.0},
        {"student_temperature": 0.0},
        {"teacher_temperature": (0.04, -0.1)},
        {"sharpen_steps": 0},
        {"keep_weight": -1.0},
        {"weights": {"sar": -0.5}},
    ],
)
def test_config_refuses_what_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(DistillError):
        replace(CONFIG, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"global_views": 0}, {"local_share": (0.5, 0.1)}, {"global_share": (0.5, 1.5)}, {"factors": ()}]
)
def test_crops_refuse_what_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(DistillError, match="crops"):
        replace(CROPS, **wrong)


def test_sources_without_the_students_stack_are_refused() -> None:
    with pytest.raises(DistillError, match=r"source made: got stacks rgb, optical .*student's stack 'thermal'"):
        SourceSquares(make_source(), student="thermal")
    with pytest.raises(DistillError, match="squares of 64 px"):
        SourceSquares(make_source(), side=64)
    with pytest.raises(DistillError, match="got none"):
        CropBatches([], CROPS, patch=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BigEarthNet squares that Sentinel-1 and Sentinel-2 both cover."""
    from alidade.cli import build as application

    out = tmp_path_factory.mktemp("tiles") / "store"
    command = ["tiles", "build", ROOT / "samples/sentinel-1", ROOT / "samples/sentinel-2", "--out", out]
    views = ["--square", 640, "--view", "s1=sentinel-1-grd", "--view", "s2=sentinel-2-l2a"]
    done = CliRunner().invoke(application(), [str(part) for part in command + views])
    assert done.exit_code == 0, done.output
    return out


def test_a_stores_views_go_to_those_who_can_read_them(store: Path) -> None:
    tiles, teachers = TileStore.open(store), [optical(), sar()]
    how = make_network().tower("rgb").normalizations
    squares = StoreSquares(tiles, split="train", student=how, teachers=teachers)
    assert squares.teachers == {"optical", "sar"}
    found = squares.draw(np.arange(4), np.random.default_rng(0))
    assert {name: view.pixels.shape[1] for name, view in found.items()} == {STUDENT: 3, "optical": 12, "sar": 2}
    # the student's red is the teacher's B04: one image, one normalisation
    assert torch.allclose(found[STUDENT].pixels[:, 0], found["optical"].pixels[:, SENTINEL_2.index("B04")])
    views = CropBatches([squares], CROPS, patch=8).views(np.arange(4), np.random.default_rng(0))
    losses = build(CONFIG, CropBatches([squares], CROPS, patch=8), make_network(), teachers)(views, seed=0)
    assert torch.isfinite(losses.total)


def test_a_store_without_the_bands_is_refused_by_their_names(store: Path) -> None:
    tiles = TileStore.open(store)
    how = make_network().tower("rgb").normalizations
    lacking = {"sentinel-2-l2a": Normalization.for_sensor(sensor("sentinel-1-grd"), ("VV",))}
    teacher = replace(plugin(lambda pixels, valid, gsd_m: pixels), normalizations=lacking)
    with pytest.raises(DistillError, match=r"teacher optical: bands of sentinel-2-l2a: got no VV among B01, B02"):
        StoreSquares(tiles, split="train", student=how, teachers=[teacher])
    with pytest.raises(DistillError, match=r"view for the student: got s1 \(sentinel-1-grd\), s2 .* a view of gen"):
        StoreSquares(tiles, split="train", student={"generic-rgb": how["generic-rgb"]}, teachers=[])
    with pytest.raises(DistillError, match="but no s3"):
        StoreSquares(tiles, split="train", student=how, teachers=[], student_view="s3")
    with pytest.raises(DistillError, match="none in split 'dev'"):
        StoreSquares(tiles, split="dev", student=how, teachers=[])


def test_command_distils_from_a_store_and_goes_on(store: Path, tmp_path: Path) -> None:
    save_model(make_network(), tmp_path / "start")
    app = typer.Typer()
    register_distill(app)
    app.callback()(lambda: None)

    def run(*more: object) -> str:
        command = ["distill", store, "--out", tmp_path / "run", "--student", tmp_path / "start", "--steps", 3]
        sizes = ["--batch", 4, "--local-views", 1, "--precision", "float32"]
        done = CliRunner().invoke(app, [str(part) for part in [*command, *sizes, *more]])
        return f"{done.exit_code} {done.output} {done.exception}"

    assert run("--teacher", "optical,sar").startswith("0 "), run("--teacher", "optical,sar")
    assert run("--teacher", "optical,sar").startswith("0 ")
    assert "another recipe" in run("--teacher", "optical")
    student = load_model(tmp_path / "run" / "model")
    assert student.config.name == "my-student"
    assert (tmp_path / "run" / "step-00000003").is_dir()
    assert run("--teacher", "none", "--out", tmp_path / "alone").startswith("0 ")
    assert "tower: got 'thermal'" in run("--teacher", "thermal")
    assert "--squares" not in run("--teacher", "optical,", "--out", tmp_path / "x")


def test_options_are_read() -> None:
    assert teacher_names("none") == ()
    assert teacher_names("optical, sar") == ("optical", "sar")
    for wrong in ("", "none,sar", "optical,"):
        with pytest.raises(AlidadeError, match="--teacher"):
            teacher_names(wrong)
    assert pack_names(None, ()) == ("optical", "sar")
    assert pack_names(None, ("sar",)) == ("sar",)
    assert pack_names("optical", ()) == ("optical",)
    with pytest.raises(AlidadeError, match="got thermal"):
        pack_names(None, ("thermal",))


def main() -> None:
    torch.set_num_threads(1)
    config, data = two_process_config()
    distill(config, data, Path(sys.argv[1]), network=make_network(), teachers=[optical(), sar()])


if __name__ == "__main__":
    main()
