"""The processes of a run: one, or several that ``torchrun`` started, with a copy (DDP) or a share (FSDP2) each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alidade.errors import AlidadeError
from alidade.models.encoder import Block

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TrainingError(AlidadeError):
    """A run that cannot begin or cannot go on."""


class Processes:
    """This process and its siblings.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``; parameters, gradients and moments are float32 in either case.
        shard: whether each process holds only its share of them (FSDP2); the weights of a layer are gathered when
            the layer runs.

    Raises:
        TrainingError: a precision that does not exist, or one process to share between.
    """

    def __init__(self, *, precision: str, shard: bool) -> None:
        if precision not in PRECISIONS:
            raise TrainingError(
                "precision",
                got=repr(precision),
                expected=f"one of {', '.join(PRECISIONS)}",
                next_step="Choose one.",
            )
        # a view's tower may be absent from a whole batch of one process
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        # left to itself Accelerate does not join the processes of torchrun where there is no accelerator
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[unused]
        )
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self._dtype, self._shard = PRECISIONS[precision], shard
        if shard and self.count == 1:
            raise TrainingError(
                "sharding",
                got="one process",
                expected="several to share the weights between",
                next_step="Start with `torchrun --nproc-per-node N --no-python alidade train pretrain ...`, "
                "or do not shard.",
            )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def prepare(self, trainer: nn.Module) -> nn.Module:
        """The module on its device, in the form to call; an optimiser is made of its parameters afterwards."""
        if not self._shard:
            prepared: nn.Module = self._accelerator.prepare(trainer)
            return prepared
        trainer.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in trainer.modules():
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh)
        fully_shard(trainer, mesh=mesh)
        return trainer

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in the run's precision."""
        # a cache of converted weights would keep whole what sharding lets go of
        return torch.autocast(
            self.device.type, self._dtype, enabled=self._dtype != torch.float32, cache_enabled=not self._shard
        )

    def any(self, here: bool) -> bool:
        """Whether it holds in any process; every process must ask."""
        if self.count == 1:
            return here
        told = torch.tensor([float(here)], device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())

    def mean(self, here: Tensor) -> Tensor:
        """The mean of all processes' values; every process must ask, with as many."""
        if self.count == 1:
            return here
        total = here.clone()
        dist.all_reduce(total)
        return total / self.count


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


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with shares put together, on the CPU; every process must ask."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def whole_moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state with shares put together, on the CPU; every process must ask."""
    found = optimizer.state_dict()
    return found | {"state": {i: {k: whole(v) for k, v in state.items()} for i, state in found["state"].items()}}


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
    """Load a whole optimiser state, each process its share where the parameters are shared."""
    parameters = list(_parameters(optimizer))
    shared = {
        i: {name: _like(value, parameters[i]) for name, value in state.items()} for i, state in moments["state"].items()
    }
    optimizer.load_state_dict(moments | {"state": shared})


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def whole(value: Tensor) -> Tensor:
    """A tensor with its shares put together, on the CPU; every process must ask."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # every process has read the same file: nothing needs to be sent
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
