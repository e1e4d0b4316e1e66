"""What is compared: one frozen config, from which every variant's model and training run are made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from alidade.ablation.nested import INNER, OUTER
from alidade.ablation.pack_sources import Shares
from alidade.errors import ModelError
from alidade.evaluation.features import digest
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.positions import VARIANTS, PositionConfig
from alidade.training.pretrain import PretrainConfig

REFERENCE = "metres"
"""The variant that the others are compared with: the default of the house."""
UNTRAINED = "untrained"
"""The reference variant's network at its initial values, measured like the others."""
PATCH = 8
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RGB = ("red", "green", "blue")
TOWERS = {
    "sar": (("VH",), ("display-vh",)),
    "optical": (SENTINEL_2, ("sentinel-2-l1c",)),
    "rgb": (RGB, ("generic-rgb", "sentinel-2-l1c")),
    # the wider, coarser view of nested ground; the first tower that takes a sensor is the one that is measured
    "context": (RGB, ("generic-rgb",)),
}
VIEWS = {
    "rgb fine": "rgb",
    "rgb coarse": "rgb",
    "rgb": "rgb",
    "sar": "sar",
    "optical": "optical",
    INNER: "rgb",
    OUTER: "context",
}


SHARES = Shares(eurosat=0.4, ucmerced=0.2, california=0.3, multispectral=0.1)


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """The setting that all variants share. The defaults suit one processor core and about a minute a run.

    Attributes:
        variants: keys of ``positions.VARIANTS``.
        seeds: how many; seed ``s`` gives initial values, data order and masks, the same for all variants.
        steps, batch, keep, peak_rate: of training; see ``PretrainConfig``.
        width, depth, heads: of the trunk that all towers share.
        lengths_m: shortest and longest ``lambda_h`` of the variants that have such.
        unit_m: what ``sincos-gsd`` counts ground metres in: 8 px patches at Scale-MAE's reference of 1 m.
        shares: of the batches; ``nested`` is the share of two nested scales, taken off all others.
        labels: training images of EuroSAT RGB for nearest neighbours and probe, drawn by class.
        queries: its validation images that are reported on, drawn by class.
        aerial_labels: training images of UC Merced; its whole validation part is reported on.

    Raises:
        ModelError: an unknown variant, one named twice, none, or no seed.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 5
    steps: int = 200
    batch: int = 64
    keep: float = 0.5
    peak_rate: float = 2e-3
    width: int = 96
    depth: int = 3
    heads: int = 4
    lengths_m: tuple[float, float] = (5.0, 1250.0)
    unit_m: float = 8.0
    shares: Shares = SHARES
    nested: float = 0.2
    labels: int = 2000
    queries: int = 1000
    aerial_labels: int = 210

    def __post_init__(self) -> None:
        unknown = [v for v in self.variants if v not in VARIANTS]
        if unknown or not self.variants or len(set(self.variants)) != len(self.variants) or self.seeds < 1:
            raise ModelError(
                "bias ablation",
                got=f"variants {', '.join(self.variants) or 'none'}; {self.seeds} seeds",
                expected=f"different ones of {', '.join(VARIANTS)}, and a seed or more",
                next_step="Name some of these with --variants.",
            )

    def hash(self) -> str:
        """Twelve hex digits of all that variants and seeds share; results of equal hash can be compared."""
        own = replace(self, variants=(REFERENCE,), seeds=1)
        training = json.loads(own.training(REFERENCE, 0).text())
        return digest(json.dumps({"ablation": asdict(own), "training": training}, sort_keys=True))

    def model(self, variant: str) -> ScaleAlibiConfig:
        """The network of a variant; between variants only ``position.kind`` differs."""
        return ScaleAlibiConfig(
            name="bias-ablation",
            width=self.width,
            heads=self.heads,
            towers=tuple(_tower(name, self.depth) for name in TOWERS),
            shared_depth=self.depth,
            fusion_depth=1,
            position=PositionConfig(kind=variant, unit_m=self.unit_m, length_range_m=self.lengths_m),
            decoder=DecoderConfig(width=64, depth=1, heads=4, wavelength_range_m=(1.0, 2000.0)),
            pooling="mean-std",
            mlp_head=False,
            dim=2 * self.width,
            tile=64,
            aligned=True,
        )

    def training(self, variant: str, seed: int) -> PretrainConfig:
        """The run of a variant and seed: contrast of views and masked reconstruction, equally weighted."""
        return PretrainConfig(
            model=self.model(variant),
            towers=VIEWS,
            steps=self.steps,
            batch=self.batch,
            peak_rate=self.peak_rate,
            warm_up=max(1, self.steps // 10),
            keep=self.keep,
            seed=seed,
        )


def _tower(name: str, depth: int) -> TowerConfig:
    bands, sensors = TOWERS[name]
    statistics = {s: Normalization.for_sensor(sensor(s), bands) for s in sensors}
    return TowerConfig(name=name, bands=bands, depth=depth, patch=PATCH, normalizations=statistics)
