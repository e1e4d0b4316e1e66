"""Trains `alidade-tiny`: contrast between sensors and between ground resolutions, on public imagery, with no label.

    python recipes/alidade_tiny.py --data PATH [--steps 2000] [--run runs/alidade-tiny] [--out DIRECTORY]

Read from top to bottom: model, data, training, heads, saving. PATH is the public data pack: EuroSAT RGB, EuroSAT100,
UC Merced and the California pairs, train parts only; the sample scenes of this repository are added. Stopped at any
moment, the same command goes on. Measure the result with `alidade eval`; docs/guides/evaluation.md says how.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from alidade.ablation.pack_sources import Shares, pack_sources
from alidade.cli.train import TrainingBar
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Tokens
from alidade.models.weights import identity, save_model
from alidade.training.augment import View
from alidade.training.image_batches import Cut, ImageBatches
from alidade.training.pretrain import PretrainConfig, pretrain

ROOT = Path(__file__).parents[1]
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RGB = ("red", "green", "blue")
RGB_SENSORS = (
    "generic-rgb", "naip-rgb", "naip-rgbn", "sentinel-2-l2a", "sentinel-2-l1c",
    "landsat-5", "landsat-7", "landsat-8", "landsat-9",
)  # fmt: skip
SAR_SENSORS = ("display-vh", "sentinel-1-rtc", "sentinel-1-grd")
SHARES = Shares(eurosat=0.60, ucmerced=0.08, california=0.24, multispectral=0.04)
WIDTH, SHARED, SHRINKAGE, RIDGE = 192, 64, 0.03, 1.0


def model_config() -> ScaleAlibiConfig:
    """One trunk of four layers for three towers: radar (VH), 12-band optical, and RGB from 0.3 m to 90 m."""
    return ScaleAlibiConfig(
        name="alidade-tiny",
        width=WIDTH,
        heads=6,
        towers=(
            tower("sar", ("VH",), SAR_SENSORS),
            tower("optical", SENTINEL_2, ("sentinel-2-l2a", "sentinel-2-l1c")),
            tower("rgb", RGB, RGB_SENSORS),
        ),
        shared_depth=4,
        # from two patches of the finest imagery to the widest scene
        position=PositionConfig(kind="metres", length_range_m=(5.0, 20_000.0)),
        pooling="mean-std",
        mlp_head=False,
        dim=2 * WIDTH,
        tile=128,
        aligned=True,
        shared=SHARED,
    )


def tower(name: str, bands: tuple[str, ...], sensors: tuple[str, ...]) -> TowerConfig:
    """A tower with the catalogue's statistics of every sensor that it takes."""
    statistics = {s: Normalization.for_sensor(sensor(s), bands) for s in sensors}
    return TowerConfig(name=name, bands=bands, depth=4, patch=8, normalizations=statistics, stem=(48, 128))


def make_heads(network: ScaleAlibi, batches: ImageBatches) -> None:
    """Set the linear heads in closed form.

    The RGB head whitens: zero mean and (shrunk) unit covariance, so that no direction drowns the others in a cosine. A
    rotation changes no cosine, so it is chosen to put first what radar tells of RGB (reduced-rank regression, Izenman
    1975). The other sensors' heads are ridge regressions onto the RGB embedding of the same ground.
    """
    network.eval()
    drawn = [pooled(network, batches, number) for number in range(400)]
    white, offset = whitening(torch.cat([x for part in drawn for n, x in part.items() if n.startswith("rgb")]).double())
    radar = [cells for number in range(60) for cells in in_cells(network, batches, number)]
    g, f = (torch.cat(column).double() for column in zip(*radar, strict=True))
    matrix, _ = ridge(g, f @ white.T + offset)
    turn = torch.linalg.svd(matrix @ torch.linalg.cholesky(torch.cov(g.T)))[0].T
    white, offset = turn @ white, turn @ offset
    # what all ground has in common would raise every cosine between sensors alike
    offset[:SHARED] -= (f @ white.T + offset).mean(0)[:SHARED]
    fill(network, "rgb", white, offset)
    fill(network, "sar", *ridge(g, f @ white.T + offset))
    both = [part for part in drawn if "optical" in part]
    wide, three = (torch.cat([part[name] for part in both]).double() for name in ("optical", "rgb"))
    fill(network, "optical", *ridge(wide, three @ white.T + offset))


def pooled(network: ScaleAlibi, batches: ImageBatches, number: int) -> dict[str, torch.Tensor]:
    """What the heads are given for one batch, drawn as in training, by view."""
    views = batches.views(np.arange(128), np.random.default_rng((1, number)))
    return {name: network.heads[name.split()[0]].pooled(encode(network, name, view)) for name, view in views.items()}


def in_cells(network: ScaleAlibi, batches: ImageBatches, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the radar and the RGB head are given for windows of 128 px of the California pairs, whole and in cells."""
    source = next(s for s in batches.sources if s.name == "california")
    views = {name: Cut(stack=name, sizes=((128, 1),)) for name in ("sar", "rgb")}
    windows = ImageBatches([replace(source, views=views)]).views(np.arange(32), np.random.default_rng((2, number)))
    tokens = [encode(network, name, windows[name]) for name in ("sar", "rgb")]
    for across in (1, 2, 4):
        for sar, rgb in zip(*(t.cells(across) for t in tokens), strict=True):
            yield network.heads["sar"].pooled(sar), network.heads["rgb"].pooled(rgb)


@torch.no_grad()
def encode(network: ScaleAlibi, name: str, view: View) -> Tokens:
    """A view's tokens."""
    return network.run(network.embed_patches(name.split()[0], view.pixels, view.valid, view.gsd_m, view.days))


def whitening(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map that gives ``x`` ``[N, P]`` zero mean and unit covariance.

    Eigenvalues are raised by ``SHRINKAGE`` of their mean before the root, so that noise is not blown up.
    """
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    matrix = (vectors * (values + SHRINKAGE * values.mean()).rsqrt()) @ vectors.T
    return matrix, -matrix @ x.mean(0)


def ridge(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map from ``x`` to ``y`` with least squares, and ``RIDGE`` of the mean variance on the diagonal."""
    off, wanted = x - x.mean(0), y - y.mean(0)
    scatter = off.T @ off
    damping = RIDGE * scatter.diagonal().mean() * torch.eye(len(scatter), dtype=x.dtype)
    matrix = torch.linalg.solve(scatter + damping, off.T @ wanted).T
    return matrix, y.mean(0) - matrix @ x.mean(0)


@torch.no_grad()
def fill(network: ScaleAlibi, name: str, matrix: torch.Tensor, bias: torch.Tensor) -> None:
    """Put an affine map into a tower's head."""
    head = network.heads[name].layers
    head.weight.copy_(matrix)
    head.bias.copy_(bias)


def main(
    data: Annotated[Path, typer.Option(help="The public data pack.")],
    samples: Annotated[Path, typer.Option(help="Folder of sample scenes.")] = ROOT / "samples",
    run: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/alidade-tiny"),
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = ROOT / "src/alidade/weights/alidade-tiny",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=2, help="Samples a step.")] = 256,
) -> None:
    """Train, set the heads and save; prints the model's identity."""
    console, start = Console(stderr=True), time.monotonic()
    towers = {t.name: t for t in model_config().towers}
    batches = ImageBatches(pack_sources(data, towers, SHARES, samples=samples))
    config = PretrainConfig(
        model=model_config(),
        towers={"rgb fine": "rgb", "rgb coarse": "rgb", "rgb": "rgb", "sar": "sar", "optical": "optical"},
        steps=steps,
        batch=batch,
        peak_rate=1.5e-3,
        warm_up=min(200, steps // 10 + 1),
        keep=0.75,
        reconstruct_weight=0.0,
        projector=1024,
        checkpoint_every=50,
    )
    console.print(f"{len(batches):,} images in {', '.join(s.name for s in batches.sources)}")
    with TrainingBar(steps, as_json=False, hidden=False) as bar:
        network = pretrain(config, batches, run, report=bar.show)
    make_heads(network, batches)
    save_model(network, out)
    console.print(f"{identity(network)} saved in {out} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
