"""The pretraining objective as one module: contrast of all pairs of views, and reconstruction of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alidade.models.encoder import pad_to_patches, patchify, real_share
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Tokens, gather_places
from alidade.training.augment import View
from alidade.training.objectives import contrastive_losses, random_split, reconstruction_loss


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch, by name: ``"total"``, ``"contrast a-b"`` and ``"reconstruction a"``."""

    by_name: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.by_name["total"]


class Pretrainer(nn.Module):
    """A network with what only training needs: the temperature, and which tower each view goes through.

    Args:
        network: with a decoder when ``reconstruct_weight`` is above zero.
        towers: tower by view name. Two views may share a tower (one sensor at two GSDs).
        keep: share of patches that the encoder sees.
        contrast_weight: of the mean over pairs of views.
        reconstruct_weight: of the mean over views.
    """

    def __init__(
        self,
        network: ScaleAlibi,
        towers: dict[str, str],
        *,
        keep: float,
        contrast_weight: float,
        reconstruct_weight: float,
    ) -> None:
        super().__init__()
        self.network, self.towers, self.keep = network, towers, keep
        self.contrast_weight, self.reconstruct_weight = contrast_weight, reconstruct_weight
        # CLIP's start (Radford et al. 2021): a temperature of 0.07
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, views: dict[str, View], seed: int) -> Losses:
        """Losses of one batch; masks are drawn from ``seed``, so that a resumed run draws the same."""
        generator = torch.Generator().manual_seed(seed)
        whole, kept, masked = {}, {}, {}
        for name, view in views.items():
            tokens = self.network.embed_patches(self.towers[name], view.pixels, view.valid, view.gsd_m, view.days)
            ids, masked[name] = random_split(tokens.places.valid, self.keep, generator)
            whole[name], kept[name] = tokens, self.network.run(tokens.gather(ids))
        losses: dict[str, Tensor] = {}
        if self.contrast_weight > 0 and len(views) > 1:
            pooled = {name: self.network.pool(tokens) for name, tokens in kept.items()}
            pairs = contrastive_losses(pooled, self.log_scale, {n: v.present for n, v in views.items()})
            losses |= {f"contrast {a}-{b}": loss for (a, b), loss in pairs.items()}
        if self.reconstruct_weight > 0:
            for name, view in views.items():
                losses[f"reconstruction {name}"] = self._reconstruction(name, view, whole, kept, masked)
        return Losses(losses | {"total": self._total(losses)})

    def _reconstruction(
        self, name: str, view: View, whole: dict[str, Tokens], kept: dict[str, Tokens], masked: dict[str, Tensor]
    ) -> Tensor:
        tower = self.network.tower(self.towers[name])
        context = kept[name]
        others = [t for n, t in kept.items() if n != name and t.sensor != context.sensor]
        if others and self.network.fusion is not None:
            context = self.network.fuse([context, *others])
        predicted = self.network.reconstruct(context, gather_places(whole[name].places, masked[name]), tower.name)
        pixels, valid = pad_to_patches(view.pixels, view.valid, tower.patch)
        complete = real_share(valid, tower.patch) == 1
        return reconstruction_loss(predicted, patchify(pixels, tower.patch), complete, masked[name])

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.log_scale.device)
        for prefix, weight in (("contrast", self.contrast_weight), ("reconstruction", self.reconstruct_weight)):
            found = [loss for name, loss in losses.items() if name.startswith(prefix)]
            if found:
                total = total + weight * torch.stack(found).mean()
        return total
