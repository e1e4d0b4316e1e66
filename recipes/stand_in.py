"""Trains `alidade-standin`: a short masked-reconstruction run over the sample scenes, so that the demo has weights.

    python recipes/stand_in.py [--steps 1500] [--out src/alidade/weights/alidade-standin]

Read from top to bottom: model, data, training, whitening, saving. It has seen the 92 sample files only and no label;
it stands in until weights trained on a real corpus ship.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from alidade.imagery.files import read
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.model import three_digits
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import identity, save_model
from alidade.training.reconstruct import Batch, Scene, masked_reconstruction, random_crops

ROOT = Path(__file__).parents[1]
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RGB_SENSORS = (
    "naip-rgbn", "naip-rgb", "generic-rgb", "sentinel-2-l2a", "sentinel-2-l1c",
    "landsat-5", "landsat-7", "landsat-8", "landsat-9",
)  # fmt: skip
SEED, BATCH, KEEP, PEAK_RATE, WARM_UP, SHRINKAGE = 0, 32, 0.25, 1.5e-3, 100, 0.1


def model_config() -> ScaleAlibiConfig:
    """One trunk of six layers for three towers: radar, 12-band optical, and any RGB from 0.3 m to 90 m."""
    return ScaleAlibiConfig(
        name="alidade-standin",
        width=192,
        heads=6,
        towers=(
            tower("sar", ("VV", "VH"), ("sentinel-1-rtc", "sentinel-1-grd")),
            tower("optical", SENTINEL_2, ("sentinel-2-l2a", "sentinel-2-l1c")),
            tower("rgb", ("red", "green", "blue"), RGB_SENSORS),
        ),
        shared_depth=6,
        # from two patches of the finest imagery to the widest scene
        position=PositionConfig(kind="metres", length_range_m=(5.0, 20_000.0)),
        decoder=DecoderConfig(width=128, depth=2, heads=4, wavelength_range_m=(1.0, 20_000.0)),
        mlp_head=False,
        tile=128,
    )


def tower(name: str, bands: tuple[str, ...], sensors: tuple[str, ...]) -> TowerConfig:
    """A tower with the catalogue's statistics of every sensor that it takes."""
    statistics = {s: Normalization.for_sensor(sensor(s), bands) for s in sensors}
    return TowerConfig(name=name, bands=bands, depth=6, patch=8, normalizations=statistics)


def load_scenes(folder: Path, config: ScaleAlibiConfig) -> dict[tuple[str, float], list[Scene]]:
    """All sample scenes, normalised, once for each tower that can read them, grouped by tower and GSD."""
    groups: dict[tuple[str, float], list[Scene]] = {}
    for path in sorted(folder.rglob("*.tif")):
        raster = read(path)
        names = {b.name for b in raster.bands}
        for t in config.towers:
            statistics = t.normalizations.get(raster.sensor.id)
            if statistics is None or not set(statistics.bands) <= names:
                continue
            pixels, valid = statistics.apply(raster)
            gx, gy = raster.grid.gsd_m()
            gsd = (three_digits(gx), three_digits(gy))
            scene = Scene(tower=t.name, pixels=pixels, valid=valid, gsd_m=gsd)
            groups.setdefault((t.name, round(math.log2(raster.gsd_m), 0)), []).append(scene)
    return groups


def draw(groups: list[list[Scene]], rng: np.random.Generator) -> Batch:
    """A batch of one group: 64 or 128 px crops, as they are or area-averaged by two where scenes are large enough."""
    areas = np.array([sum(s.valid.size for s in g) for g in groups], dtype=np.float64) ** 0.5
    scenes = groups[int(rng.choice(len(groups), p=areas / areas.sum()))]
    # a batch tells one GSD: take the scenes that share the first one's
    anchor = scenes[int(rng.integers(len(scenes)))]
    alike = [s for s in scenes if s.gsd_m == anchor.gsd_m]
    largest = max(min(s.valid.shape) for s in alike)
    choices = [(side, c) for side in (64, 128) for c in (1, 2) if side * c <= largest]
    side, coarser = choices[int(rng.integers(len(choices)))]
    return random_crops(alike, side=side, coarser=coarser, count=BATCH, rng=rng)


def train(network: ScaleAlibi, groups: list[list[Scene]], steps: int, console: Console) -> None:
    """AdamW with warm-up and cosine decay, gradients clipped to 1."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    rng, generator = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)
    network.train()
    recent: list[float] = []
    for step in track(range(steps), description="training", console=console):
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
        loss = masked_reconstruction(network, draw(groups, rng), keep=KEEP, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            console.print(f"step {step + 1}: loss {np.mean(recent[-100:]):.4f}")


@torch.no_grad()
def whiten(network: ScaleAlibi, groups: list[list[Scene]], draws: int = 400) -> None:
    """Set each tower's linear head so that its mean tokens have zero mean and (shrunk) unit covariance.

    Reconstruction leaves nearly all variance in a few directions such as brightness, and every cosine near one.
    Eigenvalues are raised by ``SHRINKAGE`` of their mean before the square root, so that noise is not blown up.
    """
    network.eval()
    rng = np.random.default_rng(SEED + 1)
    seen: dict[str, list[torch.Tensor]] = {}
    for _ in range(draws):
        batch = draw(groups, rng)
        days = torch.zeros(len(batch.pixels), dtype=torch.float64)
        tokens = network.embed_patches(batch.tower, batch.pixels, batch.valid, batch.gsd_m, days)
        seen.setdefault(batch.tower, []).append(network.run(tokens).mean())
    for name, means in seen.items():
        x = torch.cat(means).double()
        mean, covariance = x.mean(0), torch.cov(x.T)
        values, vectors = torch.linalg.eigh(covariance)
        spread = (values + SHRINKAGE * values.mean()).rsqrt()
        matrix = vectors @ torch.diag(spread) @ vectors.T
        head = network.heads[name].layers
        head.weight.copy_(matrix)
        head.bias.copy_(-matrix @ mean)


def main(
    samples: Annotated[Path, typer.Option(help="Folder of sample scenes.")] = ROOT / "samples",
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = ROOT / "src/alidade/weights/alidade-standin",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1500,
) -> None:
    """Train, whiten and save; prints the model's identity."""
    console = Console()
    torch.manual_seed(SEED)
    network = ScaleAlibi(model_config())
    initialise(network, SEED)
    groups = list(load_scenes(samples, network.config).values())
    console.print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {sum(map(len, groups))} scenes")
    start = time.monotonic()
    train(network, groups, steps, console)
    whiten(network, groups)
    save_model(network, out)
    console.print(f"{identity(network)} saved in {out} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
