"""A small pretraining run on made images; run by test_pretrain.py in processes of their own."""

from __future__ import annotations

import argparse
import os
import signal
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
from alidade.training.loop import Report
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
    """Sixty-four smooth random images, seen at 10 m and, area-averaged, at 20 m.

    With ``holes`` every second image is known along its left edge only.
    """

    def __init__(self, poison: int | None = None, slow: float = 0.0, holes: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(64, 3, 4, 4, generator=generator)
        self.images = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        self.slow = slow
        self.known = torch.ones(64, 32, 32, dtype=torch.bool)
        if holes:
            self.known[::2, :, 12:] = False
        self.identity = f"sixty-four made images, poisoned: {poison}, with holes: {holes}"
        if poison is not None:
            self.images[poison] = torch.nan

    def __len__(self) -> int:
        return len(self.images)

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, View]:
        time.sleep(self.slow)
        chosen = torch.from_numpy(ids)
        pixels = self.images[chosen]
        fine = View(
            pixels=pixels,
            valid=self.known[chosen],
            gsd_m=(10.0, 10.0),
            present=torch.ones(len(ids), dtype=torch.bool),
            days=torch.full((len(ids),), torch.nan, dtype=torch.float64),
        )
        turned = turn({"fine": fine}, rng)["fine"]
        return {"fine": turned, "coarse": coarser(turned, 2)}


def two_towers() -> PretrainConfig:
    """Each view its own tower, and a fusion of the two: every part that a run with several processes has."""
    towers = tuple(replace(TOWER, name=name) for name in ("fine", "coarse"))
    model = replace(MODEL, towers=towers, fusion_depth=1)
    return replace(CONFIG, model=model, towers={"fine": "fine", "coarse": "coarse"}, checkpoint_every=2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--until", type=int, help="stop by SIGTERM after so many steps")
    parser.add_argument("--batch", type=int, help="samples a process; with two towers and a fusion")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--holes", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    config = CONFIG if options.batch is None else replace(two_towers(), batch=options.batch)
    config = replace(config, steps=options.steps, precision=options.precision)

    def stop(report: Report) -> None:
        if report.step == options.until:
            os.kill(os.getpid(), signal.SIGTERM)

    pretrain(config, Made(slow=options.slow, holes=options.holes), options.folder, shard=options.shard, report=stop)


if __name__ == "__main__":
    main()
