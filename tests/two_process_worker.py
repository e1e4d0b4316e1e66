"""One of two processes that compute a contrastive gradient together; run by test_objectives.py."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alidade.training.objectives import contrastive_losses

SENSORS = ("sar", "low", "high")


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({s: nn.Linear(8, 16) for s in SENSORS})
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, inputs: dict[str, torch.Tensor], present: dict[str, torch.Tensor]) -> torch.Tensor:
        pooled = {s: tower(inputs[s]) for s, tower in self.towers.items()}
        return torch.stack(list(contrastive_losses(pooled, self.log_scale, present).values())).sum()


def batch(part: slice = slice(None)) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    inputs = {s: torch.randn(8, 8, generator=generator) for s in SENSORS}
    present = {s: torch.ones(8, dtype=torch.bool) for s in SENSORS}
    present["high"][[0, 5, 6]] = False
    return {k: v[part] for k, v in inputs.items()}, {k: v[part] for k, v in present.items()}


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(Towers())
    model(*batch(slice(rank * 4, rank * 4 + 4))).backward()
    if rank == 0:
        torch.save([p.grad for p in model.module.parameters()], folder / "gradients.pt")
    # who leaves first must not take the connection away from the other; and DDP, which is part of cycles, must be gone
    # before the group is, whose threads would otherwise still run as the process ends: about 1 in 15 aborted then
    dist.barrier()
    del model
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
