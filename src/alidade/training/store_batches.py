"""Batches of a tile store for pretraining: normalised, turned, and each view at a coarseness of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch

from alidade.errors import AlidadeError
from alidade.imagery.normalize import Normalization
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.positions import PositionConfig
from alidade.training.augment import View, coarser, turn
from alidade.training.tiles.schema import Header
from alidade.training.tiles.store import TileStore, ViewBatch, normalise


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, heads and layers of a model."""

    width: int
    heads: int
    depth: int


SIZES = {
    "tiny": Size(width=192, heads=6, depth=12),
    "small": Size(width=384, heads=12, depth=12),
    "base": Size(width=768, heads=16, depth=12),
}


def model_for(store: TileStore, name: str, size: Size, patch: int) -> ScaleAlibiConfig:
    """A model with one tower per view of the store, named after it, and fusion where there are several."""
    towers = []
    for view, spec in store.views.items():
        bands = tuple(spec.bands[i] for i in spec.measured)
        statistics = {spec.sensor: Normalization.for_sensor(spec.the_sensor(), bands)}
        towers.append(TowerConfig(name=view, bands=bands, depth=size.depth, patch=patch, normalizations=statistics))
    return ScaleAlibiConfig(
        name=name,
        width=size.width,
        heads=size.heads,
        towers=tuple(towers),
        fusion_depth=2 if len(towers) > 1 else 0,
        position=PositionConfig(kind="metres", length_range_m=(5.0, 20_000.0)),
        decoder=DecoderConfig(width=size.width // 2, depth=2, heads=4, wavelength_range_m=(1.0, 20_000.0)),
        mlp_head=False,
        tile=max(spec.side for spec in store.views.values()),
        aligned=len(towers) > 1,
    )


class StoreBatches:
    """The samples of one split; see ``pretrain.Batches``.

    Args:
        store: aligned tiles.
        split: which samples.
        patch: of the towers; a view is never made so coarse that fewer than 4 x 4 patches are left.
        factors: area-averaging factors to draw from, each view its own. The GSD is told truthfully.

    Raises:
        AlidadeError: the split has no samples, or a view is too small for the patch.
    """

    def __init__(self, store: TileStore, *, split: str, patch: int, factors: tuple[int, ...] = (1, 2, 4)) -> None:
        self.store, self.split, self.patch, self.factors = store, split, patch, factors
        self.ids = store.select(split=split)
        for name, spec in store.views.items():
            if 2 * patch > spec.side:
                raise AlidadeError(
                    f"{store.path}: view {name} of {spec.side} px",
                    got=f"a patch of {patch} px",
                    expected=f"one of at most {spec.side // 2} px: of two patches a side, some can be masked",
                    next_step="Choose a smaller --patch, or build larger tiles.",
                )
        if not len(self.ids):
            raise AlidadeError(
                f"{store.path}: samples to train on",
                got=f"none in split {split!r}",
                expected="a split with samples",
                next_step="Look at `alidade tiles info`, and name a split with --split.",
            )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @property
    def identity(self) -> str:
        """See ``loop.Data``: the bytes that the store holds, wherever it lies, and what is drawn from them."""
        header = Header(views=self.store.views, ground_m=self.store.ground_m).to_json()
        files = [[*shard.files.items()] for shard in self.store.shards]
        tiles = hashlib.sha256(json.dumps([header, files]).encode()).hexdigest()[:12]
        factors = ", ".join(map(str, self.factors))
        return f"tiles {tiles}, {len(self)} samples of split {self.split!r}, patch {self.patch}, coarser by {factors}"

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, View]:
        """One batch, every view of the store."""
        found = self.store.__getitems__(self.ids[ids]).views
        views = turn({name: self._view(name, batch) for name, batch in found.items()}, rng)
        return {name: coarser(view, int(rng.choice(self._fitting(view)))) for name, view in views.items()}

    def _fitting(self, view: View) -> list[int]:
        side = view.valid.shape[-1]
        return [f for f in self.factors if side % f == 0 and side // f >= 4 * self.patch] or [1]

    def _view(self, name: str, batch: ViewBatch) -> View:
        pixels, valid = normalise(self.store.views[name], batch.pixels, batch.valid)
        # squares at other latitudes have other true GSDs; a sample that is absent has none, and needs a number
        gsd = torch.from_numpy(np.where(batch.present[:, None], batch.gsd_m, 1.0).astype(np.float32))
        return View(
            pixels=torch.from_numpy(pixels),
            valid=torch.from_numpy(valid),
            gsd_m=gsd,
            present=torch.from_numpy(batch.present),
            days=torch.from_numpy(batch.days),
        )
