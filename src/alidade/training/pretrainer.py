"""The pretraining objective as one module: contrast of all pairs of views, and reconstruction of each."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alidade.models.encoder import pad_to_patches, patch_validity, patchify, real_share
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Places, Tokens, gather_places, take
from alidade.training.augment import View
from alidade.training.objectives import Losses, contrastive_losses, random_split, reconstruction_loss


class Encoded(NamedTuple):
    """A batch after its towers, by view.

    Attributes:
        kept: encoded tokens that were kept.
        masked: ids ``[B, M]`` of the others.
        targets: where those lie.
    """

    kept: dict[str, Tokens]
    masked: dict[str, Tensor]
    targets: dict[str, Places]


class Pretrainer(nn.Module):
    """A network with what only training needs: the temperature, and which tower each view goes through.

    Under autocast towers, fusion and decoder compute in its format; pooled heads, temperature and losses in float32.

    Args:
        network: with a decoder when ``reconstruct_weight`` is above zero.
        towers: tower by view name. Two views may share a tower (one sensor at two GSDs).
        keep: share of patches that the encoder sees.
        contrast_weight: of the mean over pairs of views.
        reconstruct_weight: of the mean over views.
        projector: when above 0, contrast is drawn after a perceptron of this width that all towers share and that is
            left behind with training, so that embeddings keep what contrast would discard (Chen et al. 2020).
        seed: of the projector's initial values.
    """

    def __init__(
        self,
        network: ScaleAlibi,
        towers: dict[str, str],
        *,
        keep: float,
        contrast_weight: float,
        reconstruct_weight: float,
        projector: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.towers, self.keep = network, towers, keep
        self.contrast_weight, self.reconstruct_weight = contrast_weight, reconstruct_weight
        self.projector: nn.Module = _projector(network, projector, seed) if projector else nn.Identity()
        # CLIP's start (Radford et al. 2021): a temperature of 0.07; one row, since a scalar cannot be shared out
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, views: dict[str, View], seed: int, count: Tensor | None = None) -> Losses:
        """Losses ``"contrast a-b"``, ``"reconstruction a"`` and ``"total"`` of one batch.

        Args:
            views: the batch.
            seed: of the masks, so that a resumed run draws the same.
            count: what reconstruction's sums over patches are divided by, as ``self.count`` orders them; the patches
                of this batch when not given.
        """
        encoded = self.encode(views, seed)
        losses: dict[str, Tensor] = {}
        if self.contrast_weight > 0 and len(views) > 1:
            # an image without a valid token has no direction: normalising it would send gradients of 1e12
            present = {n: v.present & encoded.kept[n].places.valid.any(dim=1) for n, v in views.items()}
            pairs = self._contrast(self.pool(encoded.kept), present)
            losses |= {f"contrast {a}-{b}": loss for (a, b), loss in pairs.items()}
        if self.reconstruct_weight > 0:
            for name, view in views.items():
                scored = None if count is None else count[list(self.towers).index(name)]
                losses[f"reconstruction {name}"] = self.reconstruction(name, view, encoded, scored)
        return Losses(losses | {"total": self._total(losses)})

    def count(self, views: dict[str, View], seed: int) -> Tensor:
        """How many patches reconstruction scores with these masks: ``[V]`` float32, in the order of ``towers``.

        Views that are not in the batch have none.
        """
        generator = torch.Generator().manual_seed(seed)
        counts = torch.zeros(len(self.towers), device=self.log_scale.device)
        for name, view in views.items():
            patch = self.network.tower(self.towers[name]).patch
            _, valid = pad_to_patches(view.pixels, view.valid, patch)
            _, masked = random_split(patch_validity(valid, patch), self.keep, generator)
            counts[list(self.towers).index(name)] = take(real_share(valid, patch) == 1, masked).sum()
        return counts

    def encode(self, views: dict[str, View], seed: int) -> Encoded:
        """The views' tokens: a random share of each is kept, and run through the view's tower."""
        generator = torch.Generator().manual_seed(seed)
        kept, masked, targets = {}, {}, {}
        for name, view in views.items():
            tokens = self.network.embed_patches(self.towers[name], view.pixels, view.valid, view.gsd_m, view.days)
            ids, masked[name] = random_split(tokens.places.valid, self.keep, generator)
            targets[name] = gather_places(tokens.places, masked[name])
            kept[name] = self.network.run(tokens.gather(ids))
        return Encoded(kept, masked, targets)

    def pool(self, kept: dict[str, Tokens]) -> dict[str, Tensor]:
        """What contrast compares, ``[B, D]`` of each view, in float32: heads and projector decide similarity."""
        with torch.autocast(self.log_scale.device.type, enabled=False):
            return {name: self.projector(self.network.pool(tokens)) for name, tokens in kept.items()}

    def reconstruction(self, name: str, view: View, encoded: Encoded, count: Tensor | None = None) -> Tensor:
        """The loss of one view's masked patches, predicted from what was kept of all views.

        See ``reconstruction_loss`` for ``count``.
        """
        tower = self.network.tower(self.towers[name])
        context = encoded.kept[name]
        others = [t for n, t in encoded.kept.items() if n != name and t.sensor != context.sensor]
        if others and self.network.fusion is not None:
            context = self.network.fuse([context, *others])
        predicted = self.network.reconstruct(context, encoded.targets[name], tower.name)
        pixels, valid = pad_to_patches(view.pixels, view.valid, tower.patch)
        complete = real_share(valid, tower.patch) == 1
        patches = patchify(pixels, tower.patch)
        return reconstruction_loss(predicted.to(torch.float32), patches, complete, encoded.masked[name], count)

    def _contrast(self, pooled: dict[str, Tensor], present: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        with torch.autocast(self.log_scale.device.type, enabled=False):
            return contrastive_losses(pooled, self.log_scale, present)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.log_scale.device)
        for prefix, weight in (("contrast", self.contrast_weight), ("reconstruction", self.reconstruct_weight)):
            found = [loss for name, loss in losses.items() if name.startswith(prefix)]
            if found:
                total = total + weight * torch.stack(found).mean()
        return total


def _projector(network: ScaleAlibi, width: int, seed: int) -> nn.Module:
    dim = network.config.dim or network.config.width
    layers = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, 128))
    generator = torch.Generator().manual_seed(seed)
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_normal_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    return layers
