"""Pretraining: it learns, it resumes bit for bit, and it stops with a reason."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alidade.models.weights import load_model
from alidade.training.checkpoint import CheckpointError
from alidade.training.pretrain import Report, TrainingError, pretrain, sample_ids
from pretrain_worker import CONFIG, Made

WORKER = Path(__file__).with_name("pretrain_worker.py")


def start(folder: Path, steps: int, slow: float = 0.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(steps), str(slow)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


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


def test_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", 12)
    assert whole.wait(timeout=120) == 0, whole.stderr and whole.stderr.read()
    # slow enough that the signal meets a run in its middle
    cut = start(tmp_path / "cut", 12, slow=0.2)
    while not (tmp_path / "cut" / "latest").exists():
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(timeout=60) != 0
    assert b"a stop signal after step" in (cut.stderr.read() if cut.stderr else b"")
    assert start(tmp_path / "cut", 12).wait(timeout=120) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_and_ends_alike(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 9).wait(timeout=120) == 0
    moments = random.Random(0)
    for _ in range(4):
        process = start(tmp_path / "cut", 9, slow=0.1)
        time.sleep(moments.uniform(3.0, 6.0))
        process.kill()
        process.wait()
    assert start(tmp_path / "cut", 9).wait(timeout=120) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a loss that is not finite"):
        pretrain(CONFIG, Made(poison=5), tmp_path)
    (told,) = (json.loads(p.read_text()) for p in tmp_path.glob("not-finite-*.json"))
    assert 5 in told["ids"]


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, steps=3), Made(), tmp_path)
    with pytest.raises(CheckpointError, match="a checkpoint of another recipe"):
        pretrain(replace(CONFIG, steps=3, seed=1), Made(), tmp_path)


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
