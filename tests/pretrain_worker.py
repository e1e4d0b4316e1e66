"""A small pretraining run on made images; run by test_pretrain.py in processes of their own."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.positions import PositionConfig
from alidade.training.augment import View, coarser, turn
from alidade.training.pretrain import PretrainConfig, pretrain

TOWER = TowerConfig(
    name="rgb",
    bands=("red", "green", "blue"),
    depth=1,
    patch=8,
    normalizations={"generic-rgb": Normalization.for_sensor(sensor("generic-rgb"), ("red", "green", "blue"))},
)
MODEL = ScaleAlibiConfig(
    name="small",
    width=32,
    heads=4,
    towers=(TOWER,),
    position=PositionConfig(length_range_m=(5.0, 2_000.0)),
    decoder=DecoderConfig(width=32, depth=1, heads=4, wavelength_range_m=(1.0, 2_000.0)),
    mlp_head=False,
    tile=32,
)
CONFIG = PretrainConfig(
    model=MODEL, towers={"fine": "rgb", "coarse": "rgb"}, steps=12, batch=8, warm_up=2, checkpoint_every=3
)


class Made:
    """Sixty-four smooth random images, seen at 10 m and, area-averaged, at 20 m."""

    def __init__(self, poison: int | None = None, slow: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(64, 3, 4, 4, generator=generator)
        self.images = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        self.slow = slow
        if poison is not None:
            self.images[poison] = torch.nan

    def __len__(self) -> int:
        return len(self.images)

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, View]:
        time.sleep(self.slow)
        pixels = self.images[torch.from_numpy(ids)]
        fine = View(
            pixels=pixels,
            valid=torch.ones(len(ids), 32, 32, dtype=torch.bool),
            gsd_m=(10.0, 10.0),
            present=torch.ones(len(ids), dtype=torch.bool),
            days=torch.full((len(ids),), torch.nan, dtype=torch.float64),
        )
        turned = turn({"fine": fine}, rng)["fine"]
        return {"fine": turned, "coarse": coarser(turned, 2)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    pretrain(replace(CONFIG, steps=int(sys.argv[2])), Made(slow=float(sys.argv[3])), Path(sys.argv[1]))
