"""The loop that every training shares: batches, steps, rates, reports, checkpoints, stopping and resuming.

A training is a module that gives ``Losses`` for a batch and a seed, a ``LoopConfig`` and ``Data``; ``train`` does the
rest. Whatever is random in step ``n`` is drawn from (seed, n, process), so a run that resumes at ``n`` draws what the
uninterrupted run drew; on a CPU the two end bit for bit alike. Start several processes with ``torchrun``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alidade.training.ahead import Ahead
from alidade.training.augment import View
from alidade.training.checkpoint import Checkpoint, begin_run, check_run, fit, read_checkpoint, save_checkpoint
from alidade.training.objectives import Losses
from alidade.training.processes import (
    Processes,
    StopSignal,
    TrainingError,
    load_moments,
    whole,
    whole_moments,
    whole_weights,
)
from alidade.training.scalars import Scalars

Views = Mapping[str, View | Tensor]
"""What a module is given of a batch: images, and whatever else there is of its samples, by name."""
Count = Callable[..., Tensor]
"""How many things the means of a batch's losses are over, ``[K]``, from its views and seed; see ``train``."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train, whatever is trained. A training's own config adds what it needs to these fields.

    Attributes:
        steps: optimiser steps.
        batch: samples per step and process, before accumulation.
        accumulate: batches whose gradients one step adds up.
        peak_rate: learning rate after warm-up; a cosine takes it to zero at the last step.
        warm_up: steps.
        weight_decay: of matrices; vectors (biases, norms, mask tokens, temperature) have none.
        clip: largest norm of the gradient.
        precision: of matrix products under autocast, ``"float32"`` or ``"bfloat16"``; parameters, moments, pooled
            heads and losses are float32 in either.
        seed: of everything random, 0 or above.
        checkpoint_every: steps.

    Raises:
        TrainingError: a number below 1, or a seed below 0.
    """

    steps: int
    batch: int
    accumulate: int = 1
    peak_rate: float = 1e-3
    warm_up: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    precision: str = "float32"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "checkpoint_every": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise TrainingError(
                    name, got=getattr(self, name), expected=f"{low} or above", next_step="Choose another number."
                )

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based): linear warm-up, then a half cosine."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        return self.peak_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Data(Protocol):
    """What batches are drawn from."""

    @property
    def identity(self) -> str:
        """One line that changes with the samples and with how they are drawn; a run keeps to it."""

    def __len__(self) -> int:
        """Number of samples."""

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> Views:
        """A batch of the samples ``ids``, augmented with ``rng``."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass takes: the ids of its samples, their views, and the seed of whatever it draws."""

    ids: NDArray[np.int64]
    views: Views
    seed: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a caller may show after a step: losses by name, samples per second, and the share of time without data.

    With several processes the losses are those of the first one's batches.
    """

    step: int
    losses: Mapping[str, float]
    rate: float
    samples_per_second: float
    wait_share: float


def train(
    module: nn.Module,
    config: LoopConfig,
    data: Data,
    folder: Path,
    *,
    recipe: str,
    processes: Processes,
    count: Count | None = None,
    report: Callable[[Report], None] | None = None,
) -> None:
    """Train a module in place, or go on training it, in ``folder``.

    SIGTERM and SIGINT write a checkpoint and stop the run; ``kill -9`` loses the steps since the last checkpoint.

    Args:
        module: in training mode; called with ``(views, seed=...)`` of a batch it returns ``Losses``. What has no
            gradient is left as it is.
        config: how.
        data: where batches come from; a thread of its own asks for them.
        folder: of the run; a run that is resumed there must have the same recipe and data.
        recipe: everything that decides what is trained and how, as JSON.
        processes: this one and its siblings.
        count: for losses that are means over a number that differs from batch to batch. The counts of all batches of
            a step are averaged, and the module is called with ``(views, seed=..., count=...)`` to divide its sums by
            that average: the step then has the gradient of one batch that holds all samples.
        report: called after each step, in the first process.

    Raises:
        TrainingError: a loss or a gradient that is not finite (the samples' ids are saved beside the checkpoints), a
            stop signal, or a disk that takes no more. The checkpoint before stays.
        CheckpointError: ``folder`` holds a damaged checkpoint, or one of another recipe or other data.
    """
    identity = data.identity
    with writing(folder):
        if processes.first:
            begin_run(folder, recipe, identity)
        else:
            check_run(folder, recipe, identity)
    begun = read_checkpoint(folder, recipe)
    if begun is not None:
        fit(begun, lambda: module.load_state_dict(begun.weights), folder)
    prepared = processes.prepare(module)
    optimizer = make_optimizer(module, config)
    if begun is not None:
        fit(begun, lambda: load_moments(optimizer, begun.moments), folder)
    done = 0 if begun is None else begun.step
    stepper = Stepper(
        config=config, module=prepared, optimizer=optimizer, processes=processes, folder=folder, count=count
    )
    steps = in_groups(make_batches(config, data, done, processes.rank, processes.count), config.accumulate)
    with StopSignal() as stop, open_log(folder, done, processes) as log, Ahead(steps) as ahead:
        for step in range(done, config.steps):
            began = time.perf_counter()
            batches, waited = ahead.take()
            losses = stepper.step(step, batches)
            seconds = time.perf_counter() - began
            told = Report(
                step=step + 1,
                losses=losses,
                rate=config.rate(step),
                samples_per_second=config.batch * config.accumulate * processes.count / seconds,
                wait_share=waited / seconds,
            )
            if log is not None:
                with writing(folder):
                    log.add(told.step, scalars(told))
            if processes.first and report is not None:
                report(told)
            last, stopped = step + 1 == config.steps, processes.any(stop.asked)
            if last or stopped or (step + 1) % config.checkpoint_every == 0:
                # shares are put together by all processes; one writes
                now = Checkpoint(step=step + 1, weights=whole_weights(module), moments=whole_moments(optimizer))
                if processes.first:
                    with writing(folder):
                        save_checkpoint(folder, now, recipe)
            if stopped and not last:
                raise TrainingError(
                    f"{folder}: training",
                    got=f"a stop signal after step {step + 1} of {config.steps}",
                    expected="to go on",
                    next_step="The same command goes on from this step.",
                )


def make_optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over what has gradients; decay on matrices only."""
    learning = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # fused: one pass over weights and moments, where torch's default takes ten
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95), fused=True)


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Makes optimiser steps; ``module`` as ``Processes.prepare`` gives it, the others as ``train`` takes them."""

    config: LoopConfig
    module: nn.Module
    optimizer: torch.optim.Optimizer
    processes: Processes
    folder: Path
    count: Count | None

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step over the batches: mean losses by name.

        Raises:
            TrainingError: a loss or the gradient is not finite in any process; no weight has changed.
        """
        views = [on_device(batch.views, self.processes.device) for batch in batches]
        shared = self._counts(views, batches)
        sums = dict[str, float]()
        for batch, seen in zip(batches, views, strict=True):
            with self.processes.autocast():
                found: Losses = self.module(seen, seed=batch.seed, **shared)
            losses = {name: loss.item() for name, loss in found.by_name.items()}
            if self.processes.any(not math.isfinite(losses["total"])):
                raise self._not_finite(step, "a loss", [batch], losses)
            (found.total / len(batches)).backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss / len(batches)
        norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip))
        if self.processes.any(not bool(norm.isfinite())):
            raise self._not_finite(step, "a gradient", batches, sums)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    @torch.no_grad()
    def _counts(self, views: Sequence[Views], batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.count is None:
            return {}
        counts = [self.count(seen, batch.seed) for seen, batch in zip(views, batches, strict=True)]
        return {"count": self.processes.mean(torch.stack(counts).mean(0))}

    def _not_finite(self, step: int, what: str, batches: Sequence[Batch], losses: Mapping[str, float]) -> TrainingError:
        # contrast has all processes' samples in it: each tells its own
        which = "" if self.processes.count == 1 else f"-process-{self.processes.rank}"
        path = self.folder / f"not-finite-step-{step + 1}{which}.json"
        ids = np.concatenate([batch.ids for batch in batches])
        told = {"step": step + 1, "what": what, "ids": ids.tolist(), "losses": dict(losses)}
        with writing(self.folder):
            path.write_text(json.dumps(told), encoding="utf-8")
        return TrainingError(
            f"{self.folder}: step {step + 1}",
            got=f"{what} that is not finite ({told['losses']})",
            expected="numbers",
            next_step=f"Look at the samples listed in {path}; lower peak_rate if they are sound.",
        )


def on_device(views: Views, device: torch.device) -> dict[str, View | Tensor]:
    """The views' tensors where the model is; ``days`` are facts, not input, and stay."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return {
        name: there(view)
        if isinstance(view, Tensor)
        else replace(view, pixels=there(view.pixels), valid=there(view.valid), present=there(view.present))
        for name, view in views.items()
    }


def sample_ids(count: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless batches of ids ``[batch]`` in a new order each epoch; an epoch's remainder opens the next."""
    epoch, rest = 0, np.empty(0, dtype=np.int64)
    while True:
        while len(rest) < batch:
            rest = np.concatenate([rest, np.random.default_rng((seed, epoch)).permutation(count)])
            epoch += 1
        yield rest[:batch]
        rest = rest[batch:]


def make_batches(config: LoopConfig, data: Data, done: int, rank: int, world: int) -> Iterator[Batch]:
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


def in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """So many batches at a time."""
    while group := list(islice(batches, size)):
        yield group


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
def open_log(folder: Path, done: int, processes: Processes) -> Iterator[Scalars | None]:
    """The run's curves in the first process; what lies there of steps after ``done`` is hidden."""
    if not processes.first:
        yield None
        return
    with writing(folder):
        log = Scalars(folder / "log", done)
    try:
        yield log
    finally:
        log.close()


def scalars(told: Report) -> dict[str, float]:
    """The report as curves, by name."""
    return {f"loss/{name}": value for name, value in told.losses.items()} | {
        "rate": told.rate,
        "samples per second": told.samples_per_second,
        "share of time waiting for data": told.wait_share,
    }
