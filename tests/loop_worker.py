"""The smallest training that the loop can run; run by test_training_loop.py in processes of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from alidade.training.loop import LoopConfig, train
from alidade.training.objectives import Losses
from alidade.training.processes import Processes

CONFIG = LoopConfig(steps=8, batch=4, warm_up=2, checkpoint_every=2)


class Numbers:
    """Thirty-two rows of four numbers; in the row ``flat`` all are zero."""

    def __init__(self, flat: int | None = None, identity: str = "thirty-two rows") -> None:
        self.rows = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        self.identity = identity
        if flat is not None:
            self.rows[flat] = 0

    def __len__(self) -> int:
        return len(self.rows)

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"rows": self.rows[torch.from_numpy(ids)]}


class Roots(nn.Module):
    """Roots of what a matrix makes of the rows: finite everywhere, with a slope that is not where a row is zero."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(8, 4, generator=generator))
        self.scale = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer("batches", torch.zeros(1))

    def forward(self, views: dict[str, torch.Tensor], seed: int) -> Losses:
        self.batches += 1
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(8, generator=generator)
        loss = ((views["rows"] @ self.matrix.T).abs().sqrt() * weights).mean() * self.scale.sum()
        return Losses({"roots": loss, "total": loss})


def run(
    folder: Path,
    config: LoopConfig = CONFIG,
    *,
    flat: int | None = None,
    shard: bool = False,
    identity: str = "thirty-two rows",
) -> Roots:
    """Train in the folder."""
    module = Roots()
    processes = Processes(precision=config.precision, shard=shard)
    train(module, config, Numbers(flat, identity), folder, recipe='{"roots": 1}', processes=processes)
    return module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--flat", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.folder, flat=options.flat, shard=options.shard)


if __name__ == "__main__":
    main()
