"""Contrast over all pairs of sensors and masked reconstruction: gradients, missing sensors, processes."""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from alidade.errors import ModelError
from alidade.training.objectives import (
    contrastive_losses,
    random_split,
    reconstruction_loss,
    standardised_patches,
)

SENSORS = ("sar", "low", "high")
LOG_SCALE = torch.tensor(math.log(1 / 0.07))


def features(batch: int = 6, dim: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {s: torch.randn(batch, dim, generator=generator, requires_grad=True) for s in SENSORS}


def test_all_three_pairs_are_there_and_none_is_trivial_at_the_start() -> None:
    losses = contrastive_losses(features(), LOG_SCALE)
    assert set(losses) == {("sar", "low"), ("sar", "high"), ("low", "high")}
    # a sensor contrasted with itself would be near zero at the start
    assert all(loss > 0.5 * math.log(6) for loss in losses.values())


def test_every_pair_sends_gradients_to_both_sensors_at_initialisation() -> None:
    for pair in [("sar", "low"), ("sar", "high"), ("low", "high")]:
        values = features()
        contrastive_losses(values, LOG_SCALE)[pair].backward()
        for name in SENSORS:
            gradient = values[name].grad
            assert (gradient is not None and gradient.abs().sum() > 0) == (name in pair)


def test_loss_is_symmetric_info_nce() -> None:
    values = {k: v.detach() for k, v in features().items()}
    a, b = (nn.functional.normalize(values[s], dim=-1) for s in ("sar", "low"))
    logits = LOG_SCALE.exp() * a @ b.T
    target = torch.arange(6)
    expected = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(contrastive_losses(values, LOG_SCALE)["sar", "low"], expected, atol=1e-6)


def test_samples_without_a_sensor_are_neither_match_nor_negative() -> None:
    values = {k: v.detach() for k, v in features().items()}
    present = {s: torch.ones(6, dtype=torch.bool) for s in SENSORS}
    present["high"][[1, 4]] = False
    losses = contrastive_losses(values, LOG_SCALE, present)
    some = {k: v[[0, 2, 3, 5]] for k, v in values.items()}
    assert torch.allclose(losses["low", "high"], contrastive_losses(some, LOG_SCALE)["low", "high"], atol=1e-5)
    assert torch.allclose(losses["sar", "low"], contrastive_losses(values, LOG_SCALE)["sar", "low"], atol=1e-6)
    present["high"][:] = False
    assert contrastive_losses(values, LOG_SCALE, present)["sar", "high"] == 0


def test_one_sensor_is_not_a_contrast() -> None:
    with pytest.raises(ModelError, match="expected two or more"):
        contrastive_losses({"sar": torch.randn(2, 4)}, LOG_SCALE)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("two_process_worker.py")
    # one thread each on loopback: two processes that spin for the same cores can take minutes
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, str(worker), str(rank), str(tmp_path)], env=environment) for rank in (0, 1)
    ]
    try:
        assert [p.wait(timeout=240) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    names = runpy.run_path(str(worker))
    model = names["Towers"]()
    model(*names["batch"]()).backward()
    two = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for ours, parameter in zip(two, model.parameters(), strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-6)


def test_split_partitions_the_tokens_and_masks_invalid_ones_first() -> None:
    valid = torch.ones(5, 20, dtype=torch.bool)
    valid[:, :6] = False
    kept, masked = random_split(valid, 0.4, torch.Generator().manual_seed(0))
    assert kept.shape == (5, 8)
    assert torch.equal(torch.cat([kept, masked], 1).sort(1).values, torch.arange(20).expand(5, -1))
    assert (kept >= 6).all()
    assert not torch.equal(kept[0].sort().values, kept[1].sort().values)


def test_targets_are_standardised_per_patch() -> None:
    patches = torch.randn(2, 3, 64) * torch.tensor([1.0, 5.0, 100.0])[:, None] + 7
    target = standardised_patches(patches)
    assert torch.allclose(target.mean(-1), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(target.std(-1, unbiased=False), torch.ones(2, 3), atol=1e-3)


def test_reconstruction_scores_masked_whole_patches_only() -> None:
    patches = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    whole, masked = torch.tensor([[True, True, True, False]]), torch.tensor([[2, 3]])
    perfect = standardised_patches(patches)[:, [2, 3]].clone()
    perfect[:, 1] = 1e3
    assert reconstruction_loss(perfect, patches, whole, masked) < 1e-10
    assert reconstruction_loss(torch.zeros(1, 2, 64), patches, whole, masked) == pytest.approx(1.0, abs=1e-3)
