"""Model: a network with its sensors. Rasters in, tokens or unit vectors out; normalisation cannot be skipped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError, RasterError, SensorError
from alidade.imagery.bands import Sensor
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import GENERIC_PREFIX
from alidade.models.config import TowerConfig
from alidade.models.precision import Precision, choose_precision
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Tokens
from alidade.models.weights import identity
from alidade.models.words import Words

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MAX_TOKENS = 4096
"""Largest grid that ``encode`` takes at once: a dense bias of 16 heads is then 1 GB."""


@dataclass(frozen=True)
class Encoded:
    """What ``encode_normalised`` returns: tokens and pooled features ``[B, D]`` by tower name, and ``"joint"``."""

    tokens: dict[str, Tokens]
    pooled: dict[str, Tensor]


@dataclass(frozen=True)
class _Prepared:
    tower: str
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    gsd_m: tuple[float, float]
    days: float


class Model:
    """A network ready for rasters. Made by ``alidade.load``.

    Attributes:
        identity: name and hash of the weights; archives remember it.
        precision: the compute dtype and why it was chosen.
        network: the ``ScaleAlibi`` underneath, for training and experiments.
        words: what takes texts into the space of its embeddings; None for a model that knows no words.
    """

    def __init__(
        self,
        network: ScaleAlibi,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        words: Words | None = None,
    ) -> None:
        # the identity is taken in float32, before the cast: it names the space, not the number format
        self.identity = identity(network)
        self.words = words
        self.precision = choose_precision(device) if dtype is None else Precision(dtype, "asked for")
        self.network = network.to(device).cast(self.precision.dtype).eval().requires_grad_(False)

    def __repr__(self) -> str:
        return f"Model({self.identity}, {self.precision.dtype}, dim={self.dim}, tile={self.tile})"

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.network.config.dim or self.network.config.width

    @property
    def tile(self) -> int:
        """Preferred tile side in pixels; any other size works too."""
        return self.network.config.tile

    @property
    def tile_range(self) -> tuple[int, int]:
        """Smallest and largest tile side in pixels: one patch, and ``MAX_TOKENS`` patches of every tower."""
        patches = [t.patch for t in self.towers]
        return max(patches), math.isqrt(MAX_TOKENS) * min(patches)

    @property
    def aligned(self) -> bool:
        """Whether vectors of different sensors can be compared."""
        return self.network.config.aligned

    @property
    def towers(self) -> tuple[TowerConfig, ...]:
        """The model's ways in: their bands and the sensors they take."""
        return self.network.config.towers

    def bands_for(self, sensor: Sensor, available: Sequence[str]) -> tuple[str, ...]:
        """The provider's names of the bands this model reads from a file of ``sensor`` that has ``available`` bands.

        Raises:
            SensorError: no tower takes this sensor with these bands.
        """
        tower, _ = self._tower_for(sensor, available)
        return tuple(sensor.band(name).name for name in tower.bands)

    def encode(self, raster: Raster) -> Tokens:
        """Tokens ``[1, N, D]`` of one raster of any size and GSD.

        Raises:
            SensorError: the model has no tower for these bands.
            RasterError: the raster has no valid pixel.
            ModelError: the raster is larger than ``MAX_TOKENS`` patches; cut it into tiles.
        """
        return self._encode([self._prepare(raster)])

    def embed(
        self, rasters: Raster | Iterable[Raster], *, batch_size: int = 16, cells: int = 1, shared: bool = False
    ) -> NDArray[np.float32]:
        """One unit vector per raster, ``[N, cells²·D]`` float32; rasters of equal kind, size and GSD share a batch.

        Images with holes have a bias table each, so they are batched apart and in smaller batches.

        Args:
            rasters: one, or several in any order; all are held in memory.
            batch_size: most rasters computed at once.
            cells: parts across and down that are pooled apart, row by row. One part describes what there is, more
                also where: for finding the very same ground again, seen in the same orientation.
            shared: only what sensors share (``config.shared`` numbers a cell), to compare different sensors.

        Raises:
            ModelError: a batch size or a number of cells below 1.
            The errors of ``encode``; the first raster that fails stops the call.
        """
        if batch_size < 1:
            raise ModelError("batch size", got=batch_size, expected="1 or more", next_step="Choose another.")
        items = [self._prepare(r) for r in ([rasters] if isinstance(rasters, Raster) else rasters)]
        if cells < 1:
            raise ModelError("cells", got=cells, expected="1 or more", next_step="Choose another.")
        out = np.zeros((len(items), cells * cells * self._length(shared)), dtype=np.float32)
        groups: dict[tuple[str, tuple[int, ...], tuple[float, float], bool], list[int]] = {}
        for index, item in enumerate(items):
            whole = bool(item.valid.all())
            groups.setdefault((item.tower, item.pixels.shape, item.gsd_m, whole), []).append(index)
        for (*_, whole), group in groups.items():
            step = batch_size if whole else min(batch_size, self._most_tables(items[group[0]]))
            for start in range(0, len(group), step):
                part = group[start : start + step]
                with torch.inference_mode():
                    out[part] = self.pool_cells(self._encode([items[i] for i in part]), cells, shared).cpu().numpy()
        return out

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors ``[N, D]`` float32 of sentences, to be compared with ``embed``'s by cosine.

        Raises:
            ModelError: the model knows no words.
            TextError: see ``Words.embed``.
        """
        if self.words is None:
            raise ModelError(
                f"{self.network.config.name}: text",
                got="a model without words",
                expected="one whose image embeddings were aligned with a text encoder",
                next_step="Use alidade-tiny, or align this model with `alidade train align`.",
            )
        return self.words.embed(texts)

    def pool_cells(self, tokens: Tokens, cells: int, shared: bool = False) -> Tensor:
        """One unit vector per image, ``[B, cells²·D]`` float32: its cells' embeddings row by row, one after the other.

        Cells keep their lengths, so that a cell like all others says less than one that stands out. Between sensors
        (``shared``) the mean of an image's cells is taken off each: light, season and place shift whole images.

        Args:
            tokens: of ``encode``.
            cells: across and down.
            shared: see ``embed``.
        """
        with torch.inference_mode():
            parts = torch.stack([self.network.pool(cell).float() for cell in tokens.cells(cells)], dim=1)
            parts = parts[..., : self._length(shared)]
            if shared and cells > 1:
                parts = parts - parts.mean(dim=1, keepdim=True)
            return F.normalize(parts.flatten(1), dim=-1)

    def _length(self, shared: bool) -> int:
        return (self.network.config.shared or self.dim) if shared else self.dim

    def encode_normalised(
        self, inputs: dict[str, Tensor], *, gsd_m: float, valid: dict[str, Tensor] | None = None
    ) -> Encoded:
        """Tokens and pooled features of tensors that the caller has already normalised.

        This is the call to compare implementations with; for imagery use ``encode`` and ``embed``, which normalise
        from declared units.

        Args:
            inputs: ``[B, C, H, W]`` by tower name (CROMA: ``"sar"`` with VV, VH and ``"optical"`` with 12 bands).
                Two or more towers also give ``"joint"`` when the model has a fusion encoder; its queries are the
                first tower of the model's config.
            gsd_m: true ground metres per pixel of all inputs.
            valid: ``[B, H, W]`` bool by tower name; all pixels are valid when not given.

        Returns:
            Tokens and pooled features (sensor heads of the mean token; joint: the plain mean token).

        Raises:
            ModelError: no input, an unknown tower, other channels or shapes, a value that is not finite at a valid
                pixel, or a GSD that is not a positive number.
        """
        self._check_normalised(inputs, gsd_m, valid or {})
        tokens: dict[str, Tokens] = {}
        with torch.inference_mode():
            for name in (t.name for t in self.towers if t.name in inputs):
                pixels = inputs[name].to(self.network.device)
                mask = (valid or {}).get(name, torch.ones(pixels[:, 0].shape, dtype=torch.bool))
                days = torch.full((pixels.shape[0],), float("nan"), dtype=torch.float64)
                tokens[name] = self._run(name, pixels, mask.to(pixels.device), (gsd_m, gsd_m), days)
            pooled = {name: self.network.pool(t) for name, t in tokens.items()}
            if len(tokens) > 1 and self.network.fusion is not None:
                tokens["joint"] = self.network.fuse(list(tokens.values()))
                pooled["joint"] = tokens["joint"].mean()
        return Encoded(tokens, pooled)

    def _check_normalised(self, inputs: dict[str, Tensor], gsd_m: float, valid: dict[str, Tensor]) -> None:
        for name in [*inputs, *valid]:
            self.network.tower(name)
        if not inputs or not (math.isfinite(gsd_m) and gsd_m > 0) or not set(valid) <= set(inputs):
            raise ModelError(
                f"{self.network.config.name}: normalised input",
                got=f"towers {list(inputs)}, masks of {list(valid)}, GSD {gsd_m} m",
                expected="at least one tower's tensor, masks of given towers only, and a positive GSD in metres",
                next_step="See Model.encode_normalised.",
            )
        for name, pixels in inputs.items():
            self.network.check_channels(name, pixels)
            mask = valid.get(name, torch.ones(pixels[:, 0].shape, dtype=torch.bool))
            seen = pixels.isfinite().all(dim=1)
            if mask.shape != seen.shape or not bool((seen | ~mask.to(seen.device)).all()):
                raise ModelError(
                    f"{self.network.config.name}: input of tower {name}",
                    got=f"a mask of shape {tuple(mask.shape)}, and {int((~seen).sum())} pixels that are not finite",
                    expected=f"a mask [B, H, W] of shape {tuple(seen.shape)} that excludes such pixels",
                    next_step="Set them to 0 and mark them invalid in `valid`.",
                )

    def _most_tables(self, item: _Prepared) -> int:
        patch = self.network.tower(item.tower).patch
        tokens = -(-item.valid.shape[0] // patch) * -(-item.valid.shape[1] // patch)
        return int(max(1, MAX_TOKENS**2 // (4 * tokens**2)))

    def _tower_for(self, sensor: Sensor, available: Sequence[str]) -> tuple[TowerConfig, Normalization]:
        for tower in self.towers:
            try:
                names = [sensor.band(name).name for name in tower.bands]
            except SensorError:
                continue
            if not set(names) <= set(available):
                continue
            if sensor.id in tower.normalizations:
                return tower, tower.normalizations[sensor.id]
            if sensor.id.startswith(GENERIC_PREFIX) and "sentinel-2-l2a" in tower.normalizations:
                method = tower.normalizations["sentinel-2-l2a"].method
                return tower, Normalization.for_sensor(sensor, tower.bands, method)
        takes = "; ".join(f"{t.name}: {', '.join(t.bands)} of {', '.join(t.normalizations)}" for t in self.towers)
        raise SensorError(
            f"{self.network.config.name}: no tower for this imagery",
            got=f"{sensor.id} with bands {', '.join(available)}",
            expected=takes,
            next_step="Give a file with these bands, or choose another model with --model.",
        )

    def _prepare(self, raster: Raster) -> _Prepared:
        tower, normalization = self._tower_for(raster.sensor, [b.name for b in raster.bands])
        patches = -(-raster.pixels.shape[1] // tower.patch) * -(-raster.pixels.shape[2] // tower.patch)
        if patches > MAX_TOKENS:
            raise ModelError(
                f"{raster.source}: size",
                got=f"{raster.pixels.shape[1]} x {raster.pixels.shape[2]} px, {patches} patches",
                expected=f"at most {MAX_TOKENS} patches at once",
                next_step=f"Cut it into tiles of {self.tile} px (Raster.crop, or `alidade embed`).",
            )
        pixels, valid = normalization.apply(raster)
        if not valid.any():
            raise RasterError(
                f"{raster.source}: pixels",
                got="no valid pixel (all nodata, NaN or masked)",
                expected="some imagery",
                next_step="Check the nodata value with `alidade inspect`, or leave the file out.",
            )
        gx, gy = raster.grid.gsd_m()
        days = (raster.time - EPOCH).total_seconds() / 86_400 if raster.time else float("nan")
        return _Prepared(tower.name, pixels, valid, (three_digits(gx), three_digits(gy)), days)

    def _encode(self, items: Sequence[_Prepared]) -> Tokens:
        device = self.network.device
        pixels = torch.from_numpy(np.stack([i.pixels for i in items])).to(device)
        valid = torch.from_numpy(np.stack([i.valid for i in items])).to(device)
        days = torch.tensor([i.days for i in items], dtype=torch.float64)
        with torch.inference_mode():
            return self._run(items[0].tower, pixels, valid, items[0].gsd_m, days)

    def _run(self, name: str, pixels: Tensor, valid: Tensor, gsd_m: tuple[float, float], days: Tensor) -> Tokens:
        return self.network.run(self.network.embed_patches(name, pixels, valid, gsd_m, days))


def three_digits(value: float) -> float:
    """``value`` to three significant digits.

    Neighbouring tiles of one scene differ in true GSD by parts in a thousand; told to three digits (0.5 % at worst)
    they share one bias table and one batch.
    """
    return float(f"{value:.3g}")
