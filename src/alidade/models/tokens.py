"""Tokens: features that carry their place on the ground, the currency between all models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from alidade.errors import ModelError


class Places(NamedTuple):
    """Where tokens lie.

    Attributes:
        centres: ``[B, N, 2]`` float32, metres (x along image rows to the right, y down the columns) in a local
            tangent frame whose origin all sensors of one sample share.
        footprint: ``[B, N, 2]`` float32, sides (x, y) of a token's ground rectangle in metres.
        valid: ``[B, N]`` bool, whether the token saw enough real pixels.
    """

    centres: Tensor
    footprint: Tensor
    valid: Tensor

    @property
    def alike(self) -> bool:
        """Whether all samples of the batch lie at the same places, so that one bias table serves all."""
        return all(bool((part == part[:1]).all()) for part in (self.centres, self.footprint))

    def first(self) -> Places:
        """The places of the first sample, as a batch of one."""
        return Places(*(part[:1] for part in self))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Features ``[B, N, D]`` with their places. Masking a token means leaving its row out: its place goes with it.

    Attributes:
        features: ``[B, N, D]``.
        places: centres, footprints and validity of the same ``B`` and ``N``.
        sensor: the name of the tower (or ``"joint"``) that made them.
        days: ``[B]`` float64, days since 2000-01-01 UTC, NaN when the time is unknown.
    """

    features: Tensor
    places: Places
    sensor: str
    days: Tensor

    def __post_init__(self) -> None:
        b, n = self.features.shape[:2]
        shapes = (
            self.places.centres.shape,
            self.places.footprint.shape,
            self.places.valid.shape,
            self.days.shape,
        )
        if shapes != ((b, n, 2), (b, n, 2), (b, n), (b,)):
            raise ModelError(
                f"tokens of {self.sensor}: shapes",
                got=f"features {tuple(self.features.shape)} with places {[tuple(s) for s in shapes]}",
                expected="centres [B,N,2], footprint [B,N,2], valid [B,N] and days [B] for features [B,N,D]",
                next_step="Gather features and places together with Tokens.gather.",
            )

    def gather(self, ids: Tensor) -> Tokens:
        """The tokens ``ids`` ``[B, K]`` (int64) of each sample, with their places."""
        return replace(self, features=take(self.features, ids), places=gather_places(self.places, ids))

    def with_features(self, features: Tensor) -> Tokens:
        """Other features at the same places."""
        return replace(self, features=features)

    def mean(self) -> Tensor:
        """Mean over valid tokens ``[B, D]`` in float32, whatever the features are in; zero for a sample without any."""
        weight = self.places.valid.to(torch.float32).unsqueeze(-1)
        return (self.features.to(torch.float32) * weight).sum(1) / weight.sum(1).clamp(min=1)

    def std(self) -> Tensor:
        """Standard deviation over valid tokens ``[B, D]`` in float32; 0.001 for a sample with one or none."""
        weight = self.places.valid.to(torch.float32).unsqueeze(-1)
        off = (self.features.to(torch.float32) - self.mean().unsqueeze(1)) * weight
        # the root has no slope at zero: a sample of equal tokens would give NaN gradients
        return (off.square().sum(1) / weight.sum(1).clamp(min=1) + 1e-6).sqrt()

    def cells(self, across: int) -> list[Tokens]:
        """The same tokens ``across**2`` times, each time with one cell of the image valid; cells row by row.

        Cells divide the ground that the tokens' footprints cover into equal parts; a token belongs where its centre
        lies.
        """
        low = (self.places.centres - self.places.footprint / 2).amin(dim=1, keepdim=True)
        high = (self.places.centres + self.places.footprint / 2).amax(dim=1, keepdim=True)
        cell = ((self.places.centres - low) / (high - low) * across).floor().clamp(0, across - 1)
        number = cell[..., 1] * across + cell[..., 0]
        return [
            replace(self, places=self.places._replace(valid=self.places.valid & (number == n)))
            for n in range(across * across)
        ]


def take(values: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` ``[B, K]`` of ``values`` ``[B, N, ...]``."""
    return values[torch.arange(ids.shape[0], device=ids.device).unsqueeze(1), ids]


def gather_places(places: Places, ids: Tensor) -> Places:
    """The places ``ids`` ``[B, K]`` (int64) of each sample."""
    return Places(*(take(part, ids) for part in places))


def grid_places(rows: int, cols: int, patch: int, gsd_m: tuple[float, float] | Tensor, batch: int = 1) -> Places:
    """Places of a ``rows × cols`` grid of patches, row-major, all valid, with the image's centre as origin.

    Args:
        rows: patches down.
        cols: patches across.
        patch: patch side in pixels.
        gsd_m: true ground metres per pixel ``(x, y)``, of all samples, or of each: ``[B, 2]``.
        batch: number of samples.
    """
    step = patch * torch.as_tensor(gsd_m, dtype=torch.float32).reshape(-1, 1, 2)
    y = torch.arange(rows, dtype=torch.float32) - (rows - 1) / 2
    x = torch.arange(cols, dtype=torch.float32) - (cols - 1) / 2
    centres = torch.stack([x.repeat(rows), y.repeat_interleave(cols)], dim=-1) * step
    n = rows * cols
    return Places(centres.expand(batch, n, 2), step.expand(batch, n, 2), torch.ones(batch, n, dtype=torch.bool))


def concatenate(parts: list[Tokens]) -> Tokens:
    """One sequence of several sensors' tokens over the same samples."""
    first = parts[0]
    return Tokens(
        features=torch.cat([t.features for t in parts], dim=1),
        places=Places(*(torch.cat(list(column), dim=1) for column in zip(*(t.places for t in parts), strict=True))),
        sensor="+".join(t.sensor for t in parts),
        days=first.days,
    )
