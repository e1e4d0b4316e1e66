"""Pretraining: it learns, it resumes bit for bit, and it stops with a reason."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alidade.models.weights import load_model
from alidade.training.ahead import Ahead
from alidade.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint, save_checkpoint
from alidade.training.loop import Report, make_batches, make_optimizer, sample_ids
from alidade.training.objectives import contrastive_losses
from alidade.training.pretrain import PretrainConfig, build, pretrain
from alidade.training.pretrainer import Pretrainer
from alidade.training.processes import Processes, TrainingError, whole_moments, whole_weights
from pretrain_worker import CONFIG, Made, two_towers

WORKER = Path(__file__).with_name("pretrain_worker.py")


def start(folder: Path, steps: int, *options: object, rank: int | None = None, port: int = 0) -> subprocess.Popen[str]:
    """A run in a process of its own, alone or as one of two that meet on a port."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if rank is not None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        environment |= {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(WORKER), str(folder), str(steps), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)


def ended(*processes: subprocess.Popen[str]) -> list[str]:
    """What the processes said on stderr, with their exit codes before it."""
    try:
        told = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [f"{process.returncode} {text}" for process, text in zip(processes, told, strict=True)]


def together(folder: Path, steps: int, *options: object) -> list[str]:
    """A run of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ended(*(start(folder, steps, *options, rank=rank, port=port) for rank in (0, 1)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / (folder / "latest").read_text() / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_losses_fall_and_are_reported(tmp_path: Path) -> None:
    reports: list[Report] = []
    pretrain(replace(CONFIG, steps=60, peak_rate=3e-3), Made(), tmp_path, report=reports.append)
    first, last = (np.mean([r.losses["total"] for r in part]) for part in (reports[:10], reports[-10:]))
    assert set(reports[0].losses) == {"contrast fine-coarse", "reconstruction fine", "reconstruction coarse", "total"}
    assert last < 0.8 * first
    assert reports[-1].samples_per_second > 0
    assert any((tmp_path / "log").iterdir())
    assert load_model(tmp_path / "model").config == CONFIG.model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path, precision: str) -> None:
    how = ("--precision", precision)
    (whole,) = ended(start(tmp_path / "whole", 12, *how))
    assert whole.startswith("0"), whole
    (cut,) = ended(start(tmp_path / "cut", 12, *how, "--until", 5))
    assert "a stop signal after step 5 of 12" in cut
    (rest,) = ended(start(tmp_path / "cut", 12, *how))
    assert rest.startswith("0"), rest
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_signal_from_outside_stops_a_run_in_its_middle(tmp_path: Path) -> None:
    cut = start(tmp_path, 12, "--slow", 0.3)
    while not (tmp_path / "latest").exists() and cut.poll() is None:
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    (told,) = ended(cut)
    assert not told.startswith("0 ")
    step = int(re.search(r"a stop signal after step (\d+)", told)[1])  # type: ignore[index]
    assert (tmp_path / "latest").read_text() == f"step-{step:08d}"


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_and_ends_alike(tmp_path: Path) -> None:
    assert ended(start(tmp_path / "whole", 9))[0].startswith("0")
    moments = random.Random(0)
    for _ in range(4):
        process = start(tmp_path / "cut", 9, "--slow", 0.1)
        time.sleep(moments.uniform(3.0, 6.0))
        process.kill()
        process.communicate()
    assert ended(start(tmp_path / "cut", 9))[0].startswith("0")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def trained_alone(config: PretrainConfig) -> tuple[Pretrainer, torch.optim.AdamW]:
    """What two processes must come to, by one: the contrast over both halves at once, reconstruction their mean."""
    trainer = build(config)
    optimizer = make_optimizer(trainer, config)
    halves = zip(*(make_batches(config, Made(), 0, rank, 2) for rank in (0, 1)), strict=True)
    for step, pair in enumerate(halves):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        encoded = [trainer.encode(half.views, half.seed) for half in pair]
        pooled = [trainer.pool(e.kept) for e in encoded]
        whole = {name: torch.cat([p[name] for p in pooled]) for name in pooled[0]}
        total = torch.stack(list(contrastive_losses(whole, trainer.log_scale).values())).mean()
        for half, e in zip(pair, encoded, strict=True):
            parts = [trainer.reconstruction(name, view, e) for name, view in half.views.items()]
            total = total + torch.stack(parts).mean() / 2
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainer.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    return trainer, optimizer


def moments(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    found = torch.load(folder / (folder / "latest").read_text() / "optimizer.pt", weights_only=True)
    state: dict[int, dict[str, torch.Tensor]] = found["state"]
    return state


@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["copies", "shares"])
def test_two_processes_train_as_one_does_on_both_halves(tmp_path: Path, how: tuple[str, ...]) -> None:
    told = together(tmp_path, 2, "--batch", 4, *how)
    assert all(text.startswith("0") for text in told), told
    trainer, optimizer = trained_alone(replace(two_towers(), steps=2, batch=4))
    ours, theirs = weights(tmp_path), trainer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        assert torch.allclose(ours[name], value, atol=1e-5), name
    # the moments are the gradients of both steps, which Adam's division would hide
    for i, state in optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(moments(tmp_path)[i][name], state[name], rtol=1e-3, atol=1e-7), (i, name)


def test_shares_go_on_from_a_single_process_and_the_other_way_round(tmp_path: Path) -> None:
    # the order of sums differs between one process and two: what must be equal is what each goes on from
    assert "a stop signal after step 2" in ended(start(tmp_path, 4, "--batch", 4, "--until", 2))[0]
    alone = weights(tmp_path), moments(tmp_path)
    shared = together(tmp_path, 4, "--batch", 4, "--shard", "--until", 3)
    assert all("a stop signal after step 3" in text for text in shared), shared
    assert (tmp_path / "latest").read_text() == "step-00000003"
    for name, value in weights(tmp_path).items():
        assert 0 <= (value - alone[0][name]).abs().max() < 3e-3, f"{name} went on from elsewhere"
    assert all(moments(tmp_path)[i]["step"] == alone[1][i]["step"] + 1 for i in alone[1])
    (last,) = ended(start(tmp_path, 4, "--batch", 4))
    assert last.startswith("0"), last
    assert load_model(tmp_path / "model").config == two_towers().model


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="sharding: got one process, expected several"):
        pretrain(CONFIG, Made(), tmp_path, shard=True)


def test_bfloat16_has_nearly_the_losses_and_gradients_of_float32() -> None:
    config, gradients, losses = two_towers(), [], []
    (batch, *_) = make_batches(replace(config, steps=1), Made(), 0, 0, 1)
    for precision in ("float32", "bfloat16"):
        trainer = build(config)
        with Processes(precision=precision, shard=False).autocast():
            found = trainer(batch.views, batch.seed)
        assert all(loss.dtype == torch.float32 for loss in found.by_name.values())
        found.total.backward()
        parameters = list(trainer.parameters())
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in parameters)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        losses.append({name: loss.item() for name, loss in found.by_name.items()})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0], "bfloat16 was not used"
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_heads_and_contrast_stay_in_float32() -> None:
    trainer = build(two_towers())
    formats = dict[str, torch.dtype]()

    def note(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda module, inputs, output: formats.update({name: output.dtype})

    trainer.network.heads["fine"].layers.register_forward_hook(note("head"))
    trainer.network.trunks["fine"].blocks[0].attention.qkv.register_forward_hook(note("attention"))
    (batch, *_) = make_batches(replace(two_towers(), steps=1), Made(), 0, 0, 1)
    with Processes(precision="bfloat16", shard=False).autocast():
        trainer(batch.views, batch.seed)
    assert formats == {"head": torch.float32, "attention": torch.bfloat16}


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="precision: got 'float16', expected one of float32, bfloat16"):
        pretrain(replace(CONFIG, precision="float16"), Made(), tmp_path)


def test_the_next_batch_is_made_while_the_present_one_is_used() -> None:
    def slow() -> Iterator[int]:
        for number in range(6):
            time.sleep(0.05)
            yield number

    waits = []
    with Ahead(slow()) as ahead:
        for number in range(6):
            item, waited = ahead.take()
            assert item == number
            waits.append(waited)
            time.sleep(0.1)
        with pytest.raises(EOFError):
            ahead.take()
    assert waits[0] > 0.03
    assert sorted(waits[1:])[2] < 0.02, "the thread did not work ahead"


def test_what_goes_wrong_with_a_batch_is_told_and_the_thread_ends() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("sample 7")

    before = threading.active_count()
    with Ahead(broken()) as ahead:
        assert ahead.take()[0] == 1
        with pytest.raises(KeyError, match="sample 7"):
            ahead.take()
    with pytest.raises(ZeroDivisionError), Ahead(iter(range(9))):
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_batches_depend_on_seed_step_and_process_alone() -> None:
    config = replace(two_towers(), steps=4, accumulate=2, batch=3)
    whole = list(make_batches(config, Made(), 0, 1, 2))
    assert len(whole) == 8
    for ours, theirs in zip(make_batches(config, Made(), 2, 1, 2), whole[4:], strict=True):
        assert ours.seed == theirs.seed
        assert (ours.ids == theirs.ids).all()
        assert all(torch.equal(ours.views[name].pixels, theirs.views[name].pixels) for name in ours.views)
    other = next(make_batches(config, Made(), 0, 0, 2))
    assert other.seed != whole[0].seed
    assert set(other.ids).isdisjoint(whole[0].ids)


def test_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a loss that is not finite"):
        pretrain(CONFIG, Made(poison=5), tmp_path)
    (told,) = (json.loads(p.read_text()) for p in tmp_path.glob("not-finite-*.json"))
    assert 5 in told["ids"]


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, steps=3), Made(), tmp_path)
    with pytest.raises(CheckpointError, match=r"a checkpoint of another recipe \(batch, seed differ\)"):
        pretrain(replace(CONFIG, steps=3, seed=1, batch=4), Made(), tmp_path)


def test_a_run_that_has_no_checkpoint_yet_keeps_its_folder(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        pretrain(CONFIG, Made(poison=5), tmp_path)
    with pytest.raises(CheckpointError, match=r"another recipe \(seed differs\)"):
        pretrain(replace(CONFIG, seed=1), Made(), tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.tif").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="holds something else \\(photo.tif\\)"):
        pretrain(CONFIG, Made(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.tif"]


@pytest.mark.parametrize("marker", ["", "../elsewhere", "step-1", "step-00000009"])
def test_a_marker_that_names_no_checkpoint_is_one_error(tmp_path: Path, marker: str) -> None:
    pretrain(replace(CONFIG, steps=2), Made(), tmp_path)
    (tmp_path / "latest").write_text(marker)
    with pytest.raises(CheckpointError, match="a file that cannot be read"):
        pretrain(replace(CONFIG, steps=2), Made(), tmp_path)


def test_tensors_of_another_version_are_one_error(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, steps=2), Made(), tmp_path)
    path = tmp_path / "step-00000002" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "log_scale"}, path)
    with pytest.raises(CheckpointError, match="tensors that do not fit .*log_scale"):
        pretrain(replace(CONFIG, steps=2), Made(), tmp_path)


@pytest.mark.parametrize("room", [1_000, 30_000, 200_000], ids=["weights", "moments", "later"])
def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(tmp_path: Path, room: int) -> None:
    """The kernel itself refuses to let files grow: what ``write`` then fails with comes from it, not from a mock."""
    trainer = build(CONFIG)
    optimizer = make_optimizer(trainer, CONFIG)
    trainer({"fine": Made().views(np.arange(2), np.random.default_rng(0))["fine"]}, 0).total.backward()
    optimizer.step()
    state = Checkpoint(step=1, weights=whole_weights(trainer), moments=whole_moments(optimizer))
    save_checkpoint(tmp_path, state, "{}")
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "step-00000001").iterdir()}
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        if room < max(sizes.values()):
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint(tmp_path, replace(state, step=2), "{}")
        else:
            save_checkpoint(tmp_path, replace(state, step=2), "{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    there = read_checkpoint(tmp_path, "{}")
    assert there is not None
    assert there.step == (1 if room < max(sizes.values()) else 2)
    assert same(there.weights, state.weights)
    assert not list(tmp_path.glob(".*"))


def test_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, steps=3), Made(), tmp_path)
    path = tmp_path / "step-00000003" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="Write the name of an older step"):
        pretrain(replace(CONFIG, steps=3), Made(), tmp_path)


def test_every_sample_once_an_epoch_in_a_new_order() -> None:
    ids = sample_ids(10, 4, seed=0)
    drawn = np.concatenate([next(ids) for _ in range(5)])
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert list(drawn[:10]) != list(drawn[10:])


def test_rate_rises_then_falls() -> None:
    config = replace(CONFIG, steps=100, warm_up=10, peak_rate=1.0)
    rates = [config.rate(s) for s in range(100)]
    assert np.argmax(rates) == 9
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001
