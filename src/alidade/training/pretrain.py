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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from alidade.models.config import ScaleAlibiConfig, to_json
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import save_model
from alidade.training.ahead import Ahead
from alidade.training.augment import View
from alidade.training.checkpoint import Checkpoint, begin_run, fit, read_checkpoint, save_checkpoint
from alidade.training.pretrainer import Losses, Pretrainer
from alidade.training.processes import Processes, TrainingError, load_moments, whole_moments, whole_weights


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
        projector: width of the training-only perceptron before contrast; 0 for none. See ``Pretrainer``.
        precision: of matrix products in encoders, fusion and decoder, ``"float32"`` or ``"bfloat16"``; parameters,
            moments, pooled heads and losses are float32 in either.
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
    projector: int = 0
    precision: str = "float32"
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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass takes: the ids of its samples, their views, and the seed of its masks."""

    ids: np.ndarray
    views: dict[str, View]
    seed: int


def make_batches(config: PretrainConfig, data: Batches, done: int, rank: int, world: int) -> Iterator[Batch]:
    """The batches of process ``rank`` from step ``done`` on, ``accumulate`` to a step."""
    ids = sample_ids(len(data), config.batch * config.accumulate * world, config.seed)
    for step in range(config.steps):
        mine = np.array_split(next(ids), world)[rank]
        if step < done:
            continue
        for number, part in enumerate(np.array_split(mine, config.accumulate)):
            draw = (config.seed, step, number, rank)
            views = data.views(part, np.random.default_rng(draw))
            yield Batch(ids=part, views=views, seed=int(np.random.default_rng((*draw, 1)).integers(2**62)))


def pretrain(
    config: PretrainConfig,
    data: Batches,
    folder: Path,
    *,
    shard: bool = False,
    report: Callable[[Report], None] | None = None,
) -> ScaleAlibi:
    """Train, or go on training, in ``folder``; the trained network, which is also saved there as ``model/``.

    SIGTERM and SIGINT write a checkpoint and stop the run; ``kill -9`` loses the steps since the last checkpoint.

    Args:
        config: what to train, and how.
        data: where batches come from; a thread of its own asks for them.
        folder: of the run; a run that is resumed there must have the same config.
        shard: whether each of several processes holds only its share of weights and moments (FSDP2). Checkpoints
            are whole either way: a run may go on with another number of processes.
        report: called after each step, in the first process.

    Raises:
        TrainingError: a loss that is not finite (the batch's ids are saved beside the checkpoints), a stop signal, or
            a disk that takes no more (the checkpoint before stays).
        CheckpointError: ``folder`` holds a damaged checkpoint, or one of another recipe.
    """
    processes = Processes(precision=config.precision, shard=shard)
    with writing(folder):
        if processes.first:
            begin_run(folder, config.text())
    trainer = build(config)
    begun = read_checkpoint(folder, config.text())
    if begun is not None:
        fit(begun, lambda: trainer.load_state_dict(begun.weights), folder)
    prepared = processes.prepare(trainer)
    optimizer = make_optimizer(trainer, config)
    if begun is not None:
        fit(begun, lambda: load_moments(optimizer, begun.moments), folder)
    done = 0 if begun is None else begun.step
    batches = make_batches(config, data, done, processes.rank, processes.count)
    with StopSignal() as stop, open_log(folder, done, processes) as writer, Ahead(batches) as ahead:
        for step in range(done, config.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            losses, waited = one_step(config, prepared, optimizer, processes, ahead, step, folder)
            seconds = time.perf_counter() - began
            told = Report(
                step=step + 1,
                losses=losses,
                rate=config.rate(step),
                samples_per_second=config.batch * config.accumulate * processes.count / seconds,
                wait_share=waited / seconds,
            )
            if writer is not None:
                with writing(folder):
                    log(writer, told)
            if processes.first and report is not None:
                report(told)
            last, stopped = step + 1 == config.steps, processes.any(stop.asked)
            if last or stopped or (step + 1) % config.checkpoint_every == 0:
                # shares are put together by all processes; one writes
                now = Checkpoint(step=step + 1, weights=whole_weights(trainer), moments=whole_moments(optimizer))
                if processes.first:
                    with writing(folder):
                        save_checkpoint(folder, now, config.text())
            if stopped and not last:
                raise TrainingError(
                    f"{folder}: training",
                    got=f"a stop signal after step {step + 1} of {config.steps}",
                    expected="to go on",
                    next_step="The same command goes on from this step.",
                )
    network = whole_network(config, trainer) if shard else trainer.network
    if processes.first:
        with writing(folder):
            save_model(network, folder / "model")
    return network.eval()


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
        projector=config.projector,
        seed=config.seed,
    ).train()


def make_optimizer(trainer: Pretrainer, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; decay on matrices only."""
    matrices = [p for p in trainer.parameters() if p.ndim > 1]
    vectors = [p for p in trainer.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # fused: one pass over weights and moments, where torch's default takes ten
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95), fused=True)


def whole_network(config: PretrainConfig, trainer: Pretrainer) -> ScaleAlibi:
    """The network of a trainer whose weights are shared out, put together; every process must ask."""
    network, prefix = ScaleAlibi(config.model), "network."
    weights = whole_weights(trainer)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return network


def one_step(
    config: PretrainConfig,
    prepared: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    ahead: Ahead[Batch],
    step: int,
    folder: Path,
) -> tuple[dict[str, float], float]:
    """One optimiser step over ``accumulate`` batches: mean losses by name, and seconds waited for data."""
    waited, sums = 0.0, dict[str, float]()
    for _ in range(config.accumulate):
        batch, seconds = ahead.take()
        waited += seconds
        views = {name: on_device(view, processes.device) for name, view in batch.views.items()}
        with processes.autocast():
            found: Losses = prepared(views, seed=batch.seed)
        if processes.any(not bool(torch.isfinite(found.total))):
            raise _not_finite(folder, step, batch.ids, found, processes)
        (found.total / config.accumulate).backward()  # type: ignore[no-untyped-call]
        for name, loss in found.by_name.items():
            sums[name] = sums.get(name, 0.0) + loss.item() / config.accumulate
    torch.nn.utils.clip_grad_norm_(prepared.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()
    return sums, waited


def on_device(view: View, device: torch.device) -> View:
    """The view's tensors where the model is; ``days`` are facts, not input, and stay."""
    pixels, valid, present = (t.to(device, non_blocking=True) for t in (view.pixels, view.valid, view.present))
    return replace(view, pixels=pixels, valid=valid, present=present)


def _not_finite(folder: Path, step: int, ids: np.ndarray, found: Losses, processes: Processes) -> TrainingError:
    # contrast has all processes' samples in it: each tells its own
    which = "" if processes.count == 1 else f"-process-{processes.rank}"
    path = folder / f"not-finite-step-{step + 1}{which}.json"
    losses = {name: loss.item() for name, loss in found.by_name.items()}
    with writing(folder):
        path.write_text(json.dumps({"step": step + 1, "ids": ids.tolist(), "losses": losses}), encoding="utf-8")
    return TrainingError(
        f"{folder}: step {step + 1}",
        got=f"a loss that is not finite ({losses})",
        expected="numbers",
        next_step=f"Look at the samples listed in {path}; lower peak_rate if they are sound.",
    )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell in one line that the folder takes no more.

    Raises:
        TrainingError: in place of an ``OSError`` inside the block.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder}: writing",
            got=error.strerror or str(error),
            expected="room on the disk and permission to write",
            next_step="See to both, or name another folder; the same command goes on from the last checkpoint.",
        ) from None


@contextmanager
def open_log(folder: Path, done: int, processes: Processes) -> Iterator[SummaryWriter | None]:
    """Tensorboard's writer in the first process; what lies there of steps after ``done`` is hidden."""
    if not processes.first:
        yield None
        return
    with writing(folder):
        writer = SummaryWriter(str(folder / "log"), purge_step=done)
    try:
        yield writer
    finally:
        with writing(folder):
            writer.close()


def log(writer: SummaryWriter, told: Report) -> None:
    """The report as tensorboard scalars."""
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
