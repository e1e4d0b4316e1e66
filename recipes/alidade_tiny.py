"""Trains `alidade-tiny`: contrast between sensors and between ground resolutions, on public imagery, with no label.

    python recipes/alidade_tiny.py --data PATH [--steps 2000] [--run runs/alidade-tiny] [--out DIRECTORY]

Read from top to bottom: model, data, training, heads, saving. PATH is the public data pack: EuroSAT RGB, EuroSAT100,
UC Merced and the California pairs, train parts only; the sample scenes of this repository are added. Stopped at any
moment, the same command goes on. Measure the result with `alidade eval`; docs/guides/evaluation.md says how.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
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
WIDTH, SHARED, SHRINKAGE, RIDGE, DAMPING, LIGHT = 192, 16, 0.03, 1.0, 0.1, 0.5
CELLS = 8
"""Cells across a window of 128 px between sensors; on five folds of the California scenes, 8 found more than 4."""
Affine = tuple[torch.Tensor, torch.Tensor]
"""A matrix ``[K, P]`` and an offset ``[K]``."""


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


def with_heads(trained: ScaleAlibi, batches: ImageBatches) -> ScaleAlibi:
    """The trained network with patch features and with linear heads in closed form.

    The first ``SHARED`` numbers of an embedding are what radar and RGB tell each other of a patch before attention:
    canonical correlation (Hotelling 1936) of the patch features of cells over the same ground, each less the mean of
    its window, under strong changes of light and contrast: what shifts a whole image is another season, place or
    sensor. The others are the encoded tokens of RGB, whitened (zero mean, shrunk unit covariance), so that no direction
    drowns the others in a cosine; the other sensors' are ridge regressions onto those of the same ground.
    """
    network = ScaleAlibi(replace(trained.config, patch_features=True))
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith("heads.")}
    network.load_state_dict(network.state_dict() | kept)
    network.eval()
    drawn = [pooled(network, batches, number) for number in range(400)]
    rgb = Halves.of(torch.cat([x for part in drawn for name, x in part.items() if name.startswith("rgb")]))
    ground = [in_cells(network, batches, number) for number in range(60)]
    radar, seen = (torch.cat(column) for column in zip(*ground, strict=True))
    pattern = [Halves.of((x - x.mean(1, keepdim=True)).flatten(0, 1)).patches for x in (radar, seen)]
    matrices = canonical(*pattern)
    radar_cells, seen_cells = (Halves.of(x.flatten(0, 1)) for x in (radar, seen))
    to_radar, to_rgb = (
        (matrix, -matrix @ cells.patches.mean(0))
        for matrix, cells in zip(matrices, (radar_cells, seen_cells), strict=True)
    )
    # half as long as the others, so that neighbours of one sensor are found by what is encoded (chosen on EuroSAT val)
    length = 0.5 * apply(to_rgb, rgb.patches).var(0).mean().rsqrt()
    to_radar, to_rgb = ((length * matrix, length * offset) for matrix, offset in (to_radar, to_rgb))
    white = whitening(rgb.encoded)
    fill(network, "rgb", white, to_rgb)
    fill(network, "sar", ridge(radar_cells.encoded, apply(white, seen_cells.encoded)), to_radar)
    both = [part for part in drawn if "optical" in part]
    wide, three = (Halves.of(torch.cat([part[name] for part in both])) for name in ("optical", "rgb"))
    first = ridge(wide.patches, apply(to_rgb, three.patches))
    fill(network, "optical", ridge(wide.encoded, apply(white, three.encoded)), first)
    return network


@dataclass(frozen=True)
class Halves:
    """What a head is given, ``[N, 2 WIDTH]`` each: mean and deviation of encoded tokens, and of patch features."""

    encoded: torch.Tensor
    patches: torch.Tensor

    @classmethod
    def of(cls, pooled: torch.Tensor) -> Halves:
        """From ``[N, 4 WIDTH]`` as ``Head.pooled`` orders it: both means, then both deviations."""
        mean, mean_own, std, std_own = pooled.double().split(WIDTH, dim=1)
        return cls(torch.cat([mean, std], 1), torch.cat([mean_own, std_own], 1))


def pooled(network: ScaleAlibi, batches: ImageBatches, number: int) -> dict[str, torch.Tensor]:
    """What the heads are given for one batch, drawn as in training, by view."""
    views = batches.views(np.arange(128), np.random.default_rng((1, number)))
    return {name: network.heads[name.split()[0]].pooled(encode(network, name, view)) for name, view in views.items()}


def in_cells(network: ScaleAlibi, batches: ImageBatches, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the radar and the RGB head are given for the cells of 32 California windows, ``[32, CELLS², P]``."""
    source = next(s for s in batches.sources if s.name == "california")
    views = {name: Cut(stack=name, sizes=((128, 1),), jitter=LIGHT) for name in ("sar", "rgb")}
    windows = ImageBatches([replace(source, views=views)]).views(np.arange(32), np.random.default_rng((2, number)))
    tokens = {name: encode(network, name, windows[name]).cells(CELLS) for name in ("sar", "rgb")}
    sar, rgb = (torch.stack([network.heads[n].pooled(cell) for cell in cells], 1) for n, cells in tokens.items())
    return sar, rgb


@torch.no_grad()
def encode(network: ScaleAlibi, name: str, view: View) -> Tokens:
    """A view's tokens."""
    return network.run(network.embed_patches(name.split()[0], view.pixels, view.valid, view.gsd_m, view.days))


def apply(to: Affine, x: torch.Tensor) -> torch.Tensor:
    """``x`` ``[N, P]`` mapped to ``[N, K]``."""
    return x @ to[0].T + to[1]


def whitening(x: torch.Tensor) -> Affine:
    """To the strongest directions of ``x``, as many as ``SHARED`` leaves, with zero mean and unit variance.

    Eigenvalues are raised by ``SHRINKAGE`` of their mean before the root, so that noise is not blown up.
    """
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    matrix = ((values + SHRINKAGE * values.mean()).rsqrt() * vectors)[:, SHARED:].T
    return matrix, -matrix @ x.mean(0)


def ridge(x: torch.Tensor, y: torch.Tensor) -> Affine:
    """From ``x`` to ``y`` with least squares, and ``RIDGE`` of the mean variance on the diagonal."""
    off, wanted = x - x.mean(0), y - y.mean(0)
    scatter = off.T @ off
    damping = RIDGE * scatter.diagonal().mean() * torch.eye(len(scatter), dtype=x.dtype)
    matrix = torch.linalg.solve(scatter + damping, off.T @ wanted).T
    return matrix, y.mean(0) - matrix @ x.mean(0)


def canonical(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices ``[SHARED, P]`` to the directions that agree most, those that agree more counting more.

    Features are standardised one by one, and covariances raised by ``DAMPING`` of their mean variance.
    """
    scales = [(v.std(0) + 1e-6).reciprocal() for v in (x, y)]
    a, b = ((v - v.mean(0)) * scale for v, scale in zip((x, y), scales, strict=True))
    roots = []
    for v in (a, b):
        values, vectors = torch.linalg.eigh(torch.cov(v.T))
        roots.append((vectors * (values + DAMPING * values.mean()).rsqrt()) @ vectors.T)
    left, agreement, right = torch.linalg.svd(roots[0] @ (a.T @ b / len(a)) @ roots[1])
    weight = agreement[:SHARED].sqrt()
    sides = (left[:, :SHARED], right[:SHARED].T)
    first, second = ((s.unsqueeze(1) * r @ side * weight).T for s, r, side in zip(scales, roots, sides, strict=True))
    return first, second


@torch.no_grad()
def fill(network: ScaleAlibi, name: str, encoded: Affine, patches: Affine) -> None:
    """Put both affine maps into a tower's head, that of patch features first."""
    head = network.heads[name].layers
    blank = torch.zeros(SHARED, WIDTH), torch.zeros(len(encoded[0]), WIDTH)
    (mean, std), (mean_own, std_own) = (to[0].split(WIDTH, dim=1) for to in (encoded, patches))
    first = torch.cat([blank[0], mean_own, blank[0], std_own], dim=1)
    second = torch.cat([mean, blank[1], std, blank[1]], dim=1)
    head.weight.copy_(torch.cat([first, second]))
    head.bias.copy_(torch.cat([patches[1], encoded[1]]))


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
    network = with_heads(network, batches)
    save_model(network, out)
    console.print(f"{identity(network)} saved in {out} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
