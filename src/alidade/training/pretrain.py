"""Pretraining, read from top to bottom: config, batches, one step, the loop, stopping and resuming.

Whatever is random in step ``n`` is drawn from (seed, n, process), so a run that resumes at ``n`` draws what the
uninterrupted run drew; on a CPU the two end bit for bit alike. Start several processes with ``torchrun``.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.utils.tensorboard import SummaryWriter

from alidade.errors import AlidadeError
from alidade.models.config import ScaleAlibiConfig, to_json
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import save_model
from alidade.training.augment import View
from alidade.training.checkpoint import resume, save_checkpoint
from alidade.training.pretrainer import Losses, Pretrainer


class TrainingError(AlidadeError):
    """A run that cannot go on."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A run. Saved with every checkpoint; a resumed run must have the same.

    Attributes:
        model: the network.
        towers: tower by view name.
        steps: optimiser steps.
        batch: samples per step and process, before accumulation.
        accumulate: batches whose gradients one step adds up.
        peak_rate: learning rate after warm-up; a cosine takes it to zero at the last step.
        warm_up: steps.
        weight_decay: of matrices; vectors (biases, norms, mask tokens, temperature) have none.
        clip: largest norm of the gradient.
        keep: share of patches that encoders see.
        contrast_weight: of the mean over pairs of views.
        reconstruct_weight: of the mean over views.
        seed: of everything random.
        checkpoint_every: steps.
    """

    model: ScaleAlibiConfig
    towers: dict[str, str]
    steps: int
    batch: int
    accumulate: int = 1
    peak_rate: float = 1e-3
    warm_up: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    keep: float = 0.6
    contrast_weight: float = 1.0
    reconstruct_weight: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500

    def text(self) -> str:
        """JSON, stable in its order."""
        fields = asdict(self) | {"model": json.loads(to_json(self.model))}
        return json.dumps(fields, indent=2, sort_keys=True)

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based): linear warm-up, then a half cosine."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        return self.peak_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Batches(Protocol):
    """Where batches come from: ``views`` of the samples ``ids``, augmented with ``rng``."""

    def __len__(self) -> int:
        """Number of samples."""

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, View]:
        """One batch."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a caller may show after a step: losses by name, samples per second, and the share of time without data."""

    step: int
    losses: Mapping[str, float]
    rate: float
    samples_per_second: float
    wait_share: float


def sample_ids(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of ids ``[batch]`` in a new order each epoch; an epoch's remainder opens the next."""
    epoch, rest = 0, np.empty(0, dtype=np.int64)
    while True:
        while len(rest) < batch:
            rest = np.concatenate([rest, np.random.default_rng((seed, epoch)).permutation(count)])
            epoch += 1
        yield rest[:batch]
        rest = rest[batch:]


def pretrain(
    config: PretrainConfig, data: Batches, folder: Path, *, report: Callable[[Report], None] | None = None
) -> ScaleAlibi:
    """Train, or go on training, in ``folder``; the trained network, which is also saved there as ``model/``.

    SIGTERM and SIGINT write a checkpoint and stop the run; ``kill -9`` loses the steps since the last checkpoint.

    Raises:
        TrainingError: a loss that is not finite (the batch's ids are saved beside the checkpoints), or a stop signal.
        CheckpointError: ``folder`` holds a damaged checkpoint, or one of another recipe.
    """
    # a view's tower may be absent from a whole batch of one process
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    folder.mkdir(parents=True, exist_ok=True)
    trainer = build(config)
    optimizer = make_optimizer(trainer, config)
    done = resume(folder, trainer, optimizer, config.text())
    prepared, optimizer = accelerator.prepare(trainer, optimizer)
    writer = SummaryWriter(str(folder / "log"), purge_step=done) if accelerator.is_main_process else None
    world, rank = accelerator.num_processes, accelerator.process_index
    ids = sample_ids(len(data), config.batch * config.accumulate * world, config.seed)
    for _ in range(done):
        next(ids)
    with StopSignal() as stop:
        for step in range(done, config.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            mine = np.array_split(next(ids), world)[rank]
            losses, waited = one_step(config, prepared, optimizer, accelerator, data, mine, step, folder)
            last = step + 1 == config.steps
            if accelerator.is_main_process:
                seconds = time.perf_counter() - began
                told = Report(
                    step=step + 1,
                    losses=losses,
                    rate=config.rate(step),
                    samples_per_second=len(mine) * world / seconds,
                    wait_share=waited / seconds,
                )
                log(writer, told)
                if report is not None:
                    report(told)
                if last or stop.asked or (step + 1) % config.checkpoint_every == 0:
                    save_checkpoint(folder, step + 1, trainer, optimizer, config.text())
            if stop.asked and not last:
                raise TrainingError(
                    f"{folder}: training",
                    got=f"a stop signal after step {step + 1} of {config.steps}",
                    expected="to go on",
                    next_step="The same command goes on from this step.",
                )
    if accelerator.is_main_process:
        save_model(trainer.network, folder / "model")
    return trainer.network.eval()


def build(config: PretrainConfig) -> Pretrainer:
    """The module at the start of a run."""
    network = ScaleAlibi(config.model)
    initialise(network, config.seed)
    return Pretrainer(
        network,
        config.towers,
        keep=config.keep,
        contrast_weight=config.contrast_weight,
        reconstruct_weight=config.reconstruct_weight,
    ).train()


def make_optimizer(trainer: Pretrainer, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; decay on matrices only."""
    matrices = [p for p in trainer.parameters() if p.ndim > 1]
    vectors = [p for p in trainer.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95))


def one_step(
    config: PretrainConfig,
    prepared: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    data: Batches,
    ids: np.ndarray,
    step: int,
    folder: Path,
) -> tuple[dict[str, float], float]:
    """One optimiser step over ``accumulate`` batches: mean losses by name, and seconds waited for data."""
    waited, sums = 0.0, dict[str, float]()
    for number, part in enumerate(np.array_split(ids, config.accumulate)):
        began = time.perf_counter()
        draw = (config.seed, step, number, accelerator.process_index)
        views = data.views(part, np.random.default_rng(draw))
        waited += time.perf_counter() - began
        found: Losses = prepared(views, seed=int(np.random.default_rng((*draw, 1)).integers(2**62)))
        if not bool(torch.isfinite(found.total)):
            raise _not_finite(folder, step, part, found)
        accelerator.backward(found.total / config.accumulate)
        for name, loss in found.by_name.items():
            sums[name] = sums.get(name, 0.0) + loss.item() / config.accumulate
    accelerator.clip_grad_norm_(prepared.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()
    return sums, waited


def _not_finite(folder: Path, step: int, ids: np.ndarray, found: Losses) -> TrainingError:
    path = folder / f"not-finite-step-{step + 1}.json"
    losses = {name: loss.item() for name, loss in found.by_name.items()}
    path.write_text(json.dumps({"step": step + 1, "ids": ids.tolist(), "losses": losses}), encoding="utf-8")
    return TrainingError(
        f"{folder}: step {step + 1}",
        got=f"a loss that is not finite ({losses})",
        expected="numbers",
        next_step=f"Look at the samples listed in {path}; lower peak_rate if they are sound.",
    )


def log(writer: SummaryWriter | None, told: Report) -> None:
    """The report as tensorboard scalars."""
    if writer is None:
        return
    for name, value in told.losses.items():
        writer.add_scalar(f"loss/{name}", value, told.step)
    writer.add_scalar("rate", told.rate, told.step)
    writer.add_scalar("samples per second", told.samples_per_second, told.step)
    writer.add_scalar("share of time waiting for data", told.wait_share, told.step)


class StopSignal:
    """Remembers SIGTERM and SIGINT instead of dying of them, while it is entered."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
