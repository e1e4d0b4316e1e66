"""The loop that every training shares, with the smallest training there is, and the faults that were mended in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from alidade.imagery.bands import Encoding, Unit
from alidade.training import checkpoint
from alidade.training.checkpoint import DATA, CheckpointError, save_checkpoint
from alidade.training.image_batches import Cut, ImageBatches, Source, Stack
from alidade.training.loop import LoopConfig, make_batches, make_optimizer
from alidade.training.objectives import contrastive_losses
from alidade.training.pretrain import PretrainConfig, build, pretrain
from alidade.training.processes import TrainingError
from alidade.training.scalars import Scalars
from alidade.training.store_batches import StoreBatches
from alidade.training.tiles.schema import Sample, SampleView, ViewSpec
from alidade.training.tiles.store import TileStore
from alidade.training.tiles.writer import StoreWriter
from loop_worker import CONFIG, Numbers, Roots, run
from pretrain_worker import Made, two_towers

HERE = Path(__file__).parent
WORKERS = {name: HERE / f"{name}_worker.py" for name in ("loop", "pretrain")}


def together(worker: str, *arguments: object) -> list[tuple[int, str]]:
    """Exit code and last words of each of two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, str(WORKERS[worker]), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True))
    try:
        told = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, told, strict=True)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / (folder / "latest").read_text() / "model.safetensors")


def moments(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    path = folder / (folder / "latest").read_text() / "optimizer.pt"
    state: dict[int, dict[str, torch.Tensor]] = torch.load(path, weights_only=True)["state"]
    return state


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


class PowerCut(BaseException):
    """Nothing that runs can catch it, as nothing can catch ``kill -9``."""


@contextmanager
def power_cut_when(holds: Callable[[Path], bool]) -> Iterator[None]:
    """What is run inside dies when it begins to remove a checkpoint, or to write a file, for which it holds."""
    remove, write = shutil.rmtree, checkpoint.atomic_write

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if path.name.startswith("step-") and path.exists() and holds(path):
            raise PowerCut
        remove(path, ignore_errors=ignore_errors)

    def writing(path: Path) -> AbstractContextManager[Path]:
        if holds(path):
            raise PowerCut
        return write(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", removing)
        patch.setattr(checkpoint, "atomic_write", writing)
        with pytest.raises(PowerCut):
            yield


def removes_step_2(path: Path) -> bool:
    return path.name == "step-00000002"


# --- any training


def test_a_training_of_another_kind_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert not torch.equal(whole.matrix, Roots().matrix)
    assert torch.equal(whole.frozen, Roots().frozen)
    assert whole.batches == CONFIG.steps
    with power_cut_when(removes_step_2):
        run(tmp_path / "cut")
    assert (tmp_path / "cut" / "latest").read_text() == "step-00000006"
    again = run(tmp_path / "cut")
    assert again.batches == CONFIG.steps, "buffers go on too"
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_what_is_frozen_has_no_place_in_the_optimizer() -> None:
    groups = make_optimizer(Roots(), CONFIG).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(8, 4)], [(2,)]]
    assert [group["weight_decay"] for group in groups] == [CONFIG.weight_decay, 0.0]


@pytest.mark.parametrize("field", ["steps", "batch", "accumulate", "checkpoint_every", "seed"])
def test_numbers_that_train_nothing_are_refused(field: str) -> None:
    least = 0 if field == "seed" else 1
    replace(CONFIG, **{field: least})
    with pytest.raises(TrainingError, match=f"{field}: got {least - 1}, expected {least} or above"):
        replace(CONFIG, **{field: least - 1})


def test_a_recipe_is_one_flat_list_of_settings() -> None:
    """Results name runs by a hash over this text: it must not change its form."""
    config = two_towers()
    told = json.loads(config.text())
    assert isinstance(config, LoopConfig)
    assert set(told) == {
        "model", "towers", "steps", "batch", "accumulate", "peak_rate", "warm_up", "weight_decay", "clip", "keep",
        "contrast_weight", "reconstruct_weight", "projector", "precision", "seed", "checkpoint_every",
    }  # fmt: skip
    assert config.text() == json.dumps(told, indent=2, sort_keys=True)


# --- curves


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_curves_are_what_tensorboard_reads_and_a_resumed_run_rewrites_its_own_steps_only(tmp_path: Path) -> None:
    first = Scalars(tmp_path, 0)
    for step in range(1, 6):
        first.add(step, {"loss": step / 8, "rate": 0.5})
    # read while it is open: a step that was told is in the file
    assert curve(tmp_path, "loss") == [(step, step / 8) for step in range(1, 6)]
    second = Scalars(tmp_path, 3)
    second.add(4, {"loss": 7.0, "rate": 0.5})
    assert curve(tmp_path, "loss") == [(1, 0.125), (2, 0.25), (3, 0.375), (4, 7.0)]
    assert [step for step, _ in curve(tmp_path, "rate")] == [1, 2, 3, 4]
    for scalars in (first, second):
        scalars.close()


# --- faults that gave no error


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_before_the_weights_are_spoilt(tmp_path: Path) -> None:
    """Clipping divided by a norm of NaN: every weight became NaN, the loss before it was fine, and the step counted."""
    # of the fifth step's batch; an epoch is eight steps
    flat = int(next(make_batches(CONFIG, Numbers(), 4, 0, 1)).ids[0])
    with pytest.raises(TrainingError, match=r"got a gradient that is not finite \(\{'roots': \d.*expected numbers"):
        run(tmp_path, flat=flat)
    told = json.loads((tmp_path / "not-finite-step-5.json").read_text())
    assert flat in told["ids"]
    assert len(told["ids"]) == CONFIG.batch
    assert all(np.isfinite(loss) for loss in told["losses"].values()), "the loss does not tell"
    assert checkpoints(tmp_path) == [2, 4]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_with_accumulation_the_samples_of_all_its_batches_are_named(tmp_path: Path) -> None:
    """Gradients are looked at once they are added up: any batch of the step may have brought the one that is not."""
    config = replace(CONFIG, accumulate=2)
    flat = int(next(make_batches(config, Numbers(), 0, 0, 1)).ids[0])
    with pytest.raises(TrainingError, match="a gradient that is not finite"):
        run(tmp_path, config, flat=flat)
    (told,) = (json.loads(p.read_text()) for p in tmp_path.glob("not-finite-*.json"))
    assert len(told["ids"]) == 2 * CONFIG.batch
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["copies", "shares"])
def test_two_processes_stop_together_at_a_gradient_that_is_not_finite(tmp_path: Path, how: tuple[str, ...]) -> None:
    """One process met the sample; the mean over processes took its NaN to the other."""
    # of the fourth step's batch of the second process; an epoch is four steps
    flat = int(next(make_batches(CONFIG, Numbers(), 3, 1, 2)).ids[0])
    ended = together("loop", tmp_path, "--flat", flat, *how)
    for code, text in ended:
        assert code == 1, text
        assert "a gradient that is not finite" in text.strip().splitlines()[-1]
    told = {p.name: json.loads(p.read_text()) for p in tmp_path.glob("not-finite-*.json")}
    assert sorted(told) == [f"not-finite-step-4-process-{rank}.json" for rank in (0, 1)]
    assert [flat in found["ids"] for _, found in sorted(told.items())] == [False, True]
    assert checkpoints(tmp_path) == [2]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_a_run_keeps_to_its_data(tmp_path: Path) -> None:
    """A store or a split of another name was taken up without a word: the recipe says nothing of data."""
    run(tmp_path, replace(CONFIG, steps=2), identity="tiles a, split 'train'")
    with pytest.raises(CheckpointError) as refused:
        run(tmp_path, replace(CONFIG, steps=2), identity="tiles a, split 'val'")
    assert "data: got tiles a, split 'val', expected what the run was begun with: tiles a, split 'train'." in str(
        refused.value
    )
    run(tmp_path, replace(CONFIG, steps=2), identity="tiles a, split 'train'")


def test_a_run_without_a_checkpoint_keeps_to_its_data_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        run(tmp_path, flat=int(next(make_batches(CONFIG, Numbers(), 0, 0, 1)).ids[0]))
    with pytest.raises(CheckpointError, match="begun with: thirty-two rows"):
        run(tmp_path, identity="others")


def test_a_run_of_before_data_had_names_says_so_once_and_keeps_to_what_it_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole")
    with power_cut_when(removes_step_2):
        run(tmp_path / "old")
    assert (tmp_path / "old" / DATA).read_text() == "thirty-two rows"
    (tmp_path / "old" / DATA).unlink()
    with caplog.at_level(logging.WARNING):
        again = run(tmp_path / "old")
        run(tmp_path / "old")
    (record,) = caplog.records
    assert "does not say what data it began with; taken to be the present: thirty-two rows" in record.getMessage()
    assert torch.equal(again.matrix, whole.matrix)
    with pytest.raises(CheckpointError, match="begun with: thirty-two rows"):
        run(tmp_path / "old", identity="others")


def store(path: Path, *, seed: int = 0, samples: int = 4) -> TileStore:
    spec = ViewSpec(
        sensor="generic-rgb",
        bands=("R", "G", "B"),
        side=16,
        dtype="uint8",
        encodings=(Encoding(unit=Unit.DISPLAY),) * 3,
    )
    rng = np.random.default_rng(seed)
    whole = np.ones((16, 16), np.bool_)
    with StoreWriter(path, views={"rgb": spec}, ground_m=None) as writer:
        for number in range(samples):
            pixels = rng.integers(1, 255, (3, 16, 16), dtype=np.uint8)
            view = SampleView(pixels=pixels, valid=whole, gsd_m=(10.0, 10.0), time=None, source="made by code")
            split = "val" if number == 3 else "train"
            writer.append([Sample(sample_id=str(number), square=str(number), split=split, views={"rgb": view})])
    return TileStore.open(path)


def test_batches_of_a_store_are_named_by_its_bytes_and_by_what_is_drawn(tmp_path: Path) -> None:
    tiles = store(tmp_path / "a")

    def told(where: TileStore = tiles, split: str = "train", patch: int = 4, factors: tuple[int, ...] = (1, 2)) -> str:
        return StoreBatches(where, split=split, patch=patch, factors=factors).identity

    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert told() == told(TileStore.open(tmp_path / "moved"))
    others = {
        "other pixels": told(store(tmp_path / "b", seed=1)),
        "another split": told(split="val"),
        "another patch": told(patch=8),
        "other factors": told(factors=(1,)),
        "one sample more": told(store(tmp_path / "c", samples=5)),
    }
    assert told() not in others.values()
    assert len(set(others.values())) == len(others)
    assert "3 samples of split 'train'" in told()
    assert "\n" not in told()


def source(seed: int = 0, *, weight: float = 1.0, side: int = 16, gsd_m: float = 10.0, hole: bool = False) -> Source:
    pixels = np.random.default_rng(seed).normal(size=(3, 1, 16, 16)).astype(np.float16)
    valid = np.ones((3, 16, 16), np.bool_)
    valid[0, 0, 0] = not hole
    return Source(
        name="made",
        weight=weight,
        stacks={"x": Stack(pixels=pixels, valid=valid, gsd_m=gsd_m)},
        views={name: Cut(stack="x", sizes=((side, 1),)) for name in ("fine", "coarse")},
        together=False,
    )


def test_batches_of_images_are_named_by_their_numbers_and_by_how_they_are_cut() -> None:
    def told(*sources: Source) -> str:
        return ImageBatches(sources).identity

    others = [
        told(source(1)), told(source(side=8)), told(source(gsd_m=20.0)), told(source(hole=True)),
        told(source(), source()), told(source(weight=2.0), source()),
    ]  # fmt: skip
    assert told(source()) == told(source())
    assert told(source()) not in others
    assert len(set(others)) == len(others)


Terms = list[tuple[torch.Tensor, float]]


def patches_scored(known: torch.Tensor, masked: torch.Tensor) -> float:
    """How many masked patches of 8 px have no pixel that is unknown."""
    full = F.unfold(known[:, None].float(), 8, stride=8).amin(1)
    return float(full.gather(1, masked).sum())


def expected_moments(config: PretrainConfig, ranks: tuple[int, ...], join: Callable[[Terms], torch.Tensor]) -> list:
    """The first moments after a step, by one process that has all batches before it.

    ``join`` makes one reconstruction loss of the batches' (mean, number of patches).
    """
    trainer = build(config)
    optimizer = make_optimizer(trainer, config)
    world = len(ranks)
    parts = [b for rank in ranks for b in make_batches(config, Made(holes=True), 0, rank, world)]
    encoded = [trainer.encode(part.views, part.seed) for part in parts]
    pooled = [trainer.pool(e.kept) for e in encoded]
    # processes share their contrast; batches that are accumulated have one each
    groups = [pooled] if world > 1 else [[p] for p in pooled]
    joint = [{name: torch.cat([p[name] for p in group]) for name in pooled[0]} for group in groups]
    contrasts = [torch.stack(list(contrastive_losses(j, trainer.log_scale).values())).mean() for j in joint]
    views = {name: list[tuple[torch.Tensor, float]]() for name in config.towers}
    for part, e in zip(parts, encoded, strict=True):
        for name, view in part.views.items():
            scored = patches_scored(view.valid, e.masked[name])
            views[name].append((trainer.reconstruction(name, view, e), scored))
    reconstruction = torch.stack([join(terms) for terms in views.values()]).mean()
    (torch.stack(contrasts).mean() + reconstruction).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainer.parameters(), config.clip)
    optimizer.step()
    return [state["exp_avg"] for state in optimizer.state_dict()["state"].values()]


def over_all(terms: Terms) -> torch.Tensor:
    return torch.stack([mean * number for mean, number in terms]).sum() / sum(number for _, number in terms)


def mean_of_means(terms: Terms) -> torch.Tensor:
    return torch.stack([mean for mean, _ in terms]).mean()


def near(found: list, expected: list) -> bool:
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(found, expected, strict=True))


def test_two_processes_weigh_every_patch_alike_where_images_have_holes(tmp_path: Path) -> None:
    """Each process divided by its own number of patches: one with many holes had more to say about each of its few."""
    config = replace(two_towers(), steps=1, batch=4)
    ended = together("pretrain", tmp_path, 1, "--batch", 4, "--holes")
    assert [code for code, _ in ended] == [0, 0], ended
    found = [state["exp_avg"] for state in moments(tmp_path).values()]
    assert near(found, expected_moments(config, (0, 1), over_all))
    assert not near(found, expected_moments(config, (0, 1), mean_of_means)), "the fault would not be seen"


def test_accumulated_batches_weigh_every_patch_alike_where_images_have_holes(tmp_path: Path) -> None:
    config = replace(two_towers(), steps=1, batch=4, accumulate=2)
    pretrain(config, Made(holes=True), tmp_path)
    found = [state["exp_avg"] for state in moments(tmp_path).values()]
    assert near(found, expected_moments(config, (0,), over_all))
    assert not near(found, expected_moments(config, (0,), mean_of_means)), "the fault would not be seen"


def test_a_run_that_died_between_its_last_checkpoint_and_clearing_away_keeps_two(tmp_path: Path) -> None:
    """Nothing is saved after the last step, so nothing was cleared away by whoever came back for the model."""
    config = replace(CONFIG, steps=6)
    with power_cut_when(removes_step_2):
        run(tmp_path, config)
    assert (tmp_path / "latest").read_text() == "step-00000006"
    assert checkpoints(tmp_path) == [2, 4, 6]
    run(tmp_path, config)
    assert checkpoints(tmp_path) == [4, 6]


def test_a_checkpoint_that_was_never_marked_does_not_take_the_place_of_one_that_was(tmp_path: Path) -> None:
    """Killed before it was marked, step 6 counted as the newest of two for ever: step 5 stayed without a second."""
    with power_cut_when(lambda path: path.name == "latest" and (tmp_path / "step-00000006").exists()):
        run(tmp_path)
    assert (tmp_path / "latest").read_text() == "step-00000004"
    assert checkpoints(tmp_path) == [2, 4, 6]
    found = checkpoint.read_checkpoint(tmp_path, '{"roots": 1}')
    assert found is not None
    save_checkpoint(tmp_path, replace(found, step=5), '{"roots": 1}')
    assert checkpoints(tmp_path) == [4, 5]


def test_a_full_disk_is_told_in_one_line_and_no_thread_adds_to_it(tmp_path: Path) -> None:
    """The curves were written by a thread of tensorboard's, whose traceback came before the line."""
    script = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from loop_worker import run
from alidade.errors import AlidadeError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    run(Path(sys.argv[2]))
except AlidadeError as error:
    sys.exit(f"error: {error}")
"""
    # the recipe and the first steps' curves fit
    arguments = [sys.executable, "-c", script, str(HERE), str(tmp_path / "run"), "600"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'}: writing: got File too large, expected room on the disk")
    assert [step for step, _ in curve(tmp_path / "run" / "log", "rate")][:1] == [1]
