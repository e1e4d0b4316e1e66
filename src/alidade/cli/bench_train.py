"""``alidade bench train``: makes the steps that ``evaluation/bench_train.py`` measures, and a run that reads tiles."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from alidade.evaluation.bench_train import OURS, RELEASED, bench_train
from alidade.evaluation.bench_train_reference import ReleasedWay
from alidade.evaluation.timing import Row
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.positions import PositionConfig
from alidade.models.precision import choose_precision
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.training.augment import View
from alidade.training.loop import Report, make_optimizer
from alidade.training.pretrain import PretrainConfig, pretrain
from alidade.training.pretrainer import Pretrainer
from alidade.training.store_batches import SIZES, StoreBatches, model_for
from alidade.training.tiles.schema import Sample, SampleView, ViewSpec
from alidade.training.tiles.store import TileStore
from alidade.training.tiles.writer import StoreWriter

PATCH, KEEP = 8, 0.6
SIDES = {"sar": 128, "low": 128, "high": 256}
"""Pixels: 256, 256 and 1,024 patches."""
GSD_M = {"sar": 10.0, "low": 10.0, "high": 5.0}


def run_bench_train(*, layers: int, batch: int, rounds: int) -> list[Row]:
    """All rows: the step both ways, and how long a small model waits for tiles.

    Args:
        layers: of the optical towers; the radar tower and the fusion have half as many.
        batch: samples of a step.
        rounds: measured rounds.
    """
    rows = bench_train(partial(TrainingStep, released_config(layers), batch), batch=batch, rounds=rounds)
    return [*rows, waiting_row()]


def released_config(layers: int) -> ScaleAlibiConfig:
    """The released sizes: width 768, 16 heads, 12, 6 and 12 layers, fusion of 6, a decoder of one layer of 512."""
    colour = Normalization.for_sensor(sensor("generic-rgb"), ("red", "green", "blue"))
    radar = Normalization.for_sensor(sensor("sentinel-1-grd"), ("VV", "VH"))
    towers = tuple(
        TowerConfig(name=name, bands=n.bands, depth=depth, patch=PATCH, normalizations={identifier: n})
        for name, identifier, n, depth in (
            ("sar", "sentinel-1-grd", radar, max(1, layers // 2)),
            ("low", "generic-rgb", colour, layers),
            ("high", "generic-rgb", colour, layers),
        )
    )
    return ScaleAlibiConfig(
        name="bench",
        width=768,
        heads=16,
        towers=towers,
        fusion_depth=max(1, layers // 2),
        position=PositionConfig(kind="metres", unit_m=80.0),
        decoder=DecoderConfig(width=512, depth=1, heads=8, wavelength_range_m=(1.0, 20_000.0)),
        tile=128,
    )


class TrainingStep:
    """A step of ``pretrain`` on made images with the same masks each time; see ``evaluation.bench_train.Step``."""

    def __init__(self, config: ScaleAlibiConfig, batch: int, way: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ours = way == OURS or self.device.type == "cuda"
        self.dtype = choose_precision(self.device.type).dtype if ours else torch.float32
        network = (ReleasedWay if way == RELEASED else ScaleAlibi)(config)
        initialise(network, seed=0)
        towers = {tower.name: tower.name for tower in config.towers}
        self.trainer = Pretrainer(network, towers, keep=KEEP, contrast_weight=1.0, reconstruct_weight=1.0)
        self.trainer.train().to(self.device)
        recipe = PretrainConfig(model=config, towers=towers, steps=1, batch=batch)
        self.clip, self.optimizer = recipe.clip, make_optimizer(self.trainer, recipe)
        generator = torch.Generator().manual_seed(0)
        self.views = {tower.name: self._view(tower, batch, generator) for tower in config.towers}
        self.tokens = batch * sum(round(KEEP * (side // PATCH) ** 2) for side in SIDES.values())

    def losses(self) -> dict[str, float]:
        """Losses of the forward pass alone, in float32."""
        with torch.no_grad():
            return {name: loss.item() for name, loss in self.trainer(self.views, seed=0).by_name.items()}

    def __call__(self) -> None:
        """Forward, backward, clipping and AdamW."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            total = self.trainer(self.views, seed=0).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.trainer.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _view(self, tower: TowerConfig, batch: int, generator: torch.Generator) -> View:
        side, gsd = SIDES[tower.name], GSD_M[tower.name]
        return View(
            pixels=torch.randn(batch, len(tower.bands), side, side, generator=generator).to(self.device),
            valid=torch.ones(batch, side, side, dtype=torch.bool, device=self.device),
            gsd_m=(gsd, gsd),
            present=torch.ones(batch, dtype=torch.bool, device=self.device),
            days=torch.full((batch,), torch.nan, dtype=torch.float64),
        )


def waiting_row(*, samples: int = 64, steps: int = 8, batch: int = 16) -> Row:
    """The share of a ``tiny`` model's step spent waiting for tiles: 128 px of 12 bands and of radar a sample."""
    with tempfile.TemporaryDirectory(prefix="alidade-bench-") as folder:
        store = made_store(Path(folder) / "tiles", samples)
        config = PretrainConfig(
            model=model_for(store, "bench", SIZES["tiny"], PATCH),
            towers={view: view for view in store.views},
            steps=steps,
            batch=batch,
            precision=str(choose_precision("cuda" if torch.cuda.is_available() else "cpu").dtype).removeprefix(
                "torch."
            ),
        )
        reports: list[Report] = []
        data = StoreBatches(store, split="train", patch=PATCH)
        pretrain(config, data, Path(folder) / "run", report=reports.append)
    # the first step waits for the first batch, once a run
    share = 100 * statistics.median(r.wait_share for r in reports[1:])
    return Row(name=f"waiting for tiles, tiny, batch {batch}", value=share, unit="%", target="<= 2 %", ok=share <= 2)


def made_store(path: Path, samples: int) -> TileStore:
    """Squares of noise in radar and 12 optical bands, 128 x 128 px each."""
    optical = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    reflectance = Encoding(unit=Unit.REFLECTANCE, scale=1e-4, offset=-0.1)
    views = {
        "s1": ViewSpec(
            sensor="sentinel-1-grd",
            bands=("VV", "VH"),
            side=128,
            dtype="float32",
            encodings=(Encoding(unit=Unit.POWER),) * 2,
        ),
        "s2": ViewSpec(
            sensor="sentinel-2-l2a", bands=optical, side=128, dtype="uint16", encodings=(reflectance,) * len(optical)
        ),
    }
    rng = np.random.default_rng(0)

    def view(name: str) -> SampleView:
        shape = (len(views[name].bands), 128, 128)
        pixels = rng.uniform(0.01, 0.3, shape).astype(np.float32) if name == "s1" else rng.integers(1, 9000, shape)
        return SampleView(
            pixels=pixels.astype(views[name].dtype),
            valid=np.ones(shape[1:], np.bool_),
            gsd_m=(10.0, 10.0),
            time=None,
            source="made by code",
        )

    with StoreWriter(path, views=views, ground_m=None) as writer:
        for number in range(samples):
            there = {name: view(name) for name in views}
            writer.append([Sample(sample_id=str(number), square=str(number), split="train", views=there)])
    return TileStore.open(path)
