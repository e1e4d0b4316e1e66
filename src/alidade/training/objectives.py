"""What models are trained for, as plain functions of tensors: contrast between sensors, and masked reconstruction."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import ModelError
from alidade.models.tokens import take

ABSENT = -1e4
"""Logit of a sample whose sensor is missing: never a match, never a negative."""


class Losses(NamedTuple):
    """Scalars of one batch, by name; ``"total"`` is among them.

    A tuple, because what wraps a module for several processes looks for tensors in tuples and dicts only.
    """

    by_name: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.by_name["total"]


class _Gather(torch.autograd.Function):
    """All processes' rows in rank order; backward sums what every process wants of a row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (torch gives it no type)
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        ctx.rows = len(values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather_samples(values: Tensor) -> Tensor:
    """The values ``[B, ...]`` of all processes, ``[W·B, ...]``, with gradients through every part.

    Together with averaging of gradients over processes (DDP), a loss over the gathered batch has exactly the
    gradient that one process would compute on the whole batch. Gather once a step: one collective forward and one
    backward cannot meet another process's in a different order.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return gathered


def contrastive_losses(
    features: dict[str, Tensor], log_scale: Tensor, present: dict[str, Tensor] | None = None
) -> dict[tuple[str, str], Tensor]:
    """Symmetric InfoNCE (van den Oord et al. 2018) for every pair of sensors.

    Args:
        features: ``[B, D]`` by sensor, of the same ground squares in the same order; need not be unit length.
        log_scale: scalar, the logarithm of one over the temperature; clamped at ``log(100)`` as CLIP does.
        present: ``[B]`` bool by sensor, which samples have it; all when not given.

    Returns:
        One scalar per pair, the mean of both directions over the samples that have both sensors; zero when none has.

    Raises:
        ModelError: fewer than two sensors.
    """
    if len(features) < 2:
        raise ModelError(
            "contrastive loss",
            got=f"sensors {list(features)}",
            expected="two or more",
            next_step="Add a sensor.",
        )
    names = list(features)
    units = torch.stack([F.normalize(value, dim=-1) for value in features.values()], dim=1)
    ones = torch.ones(units.shape[0], device=units.device)
    there = torch.stack([ones if present is None else present[name].to(units.dtype) for name in names], dim=1)
    together = gather_samples(torch.cat([units, there.to(units.dtype).unsqueeze(-1)], dim=-1))
    unit = {name: together[:, i, :-1] for i, name in enumerate(names)}
    here = {name: together[:, i, -1] > 0.5 for i, name in enumerate(names)}
    # the gradient passes the clamp: a temperature that has reached it can come back
    scale = (log_scale + (log_scale.clamp(max=math.log(100)) - log_scale).detach()).exp()
    return {(a, b): _pair_loss(scale * unit[a] @ unit[b].T, here[a] & here[b]) for a, b in combinations(unit, 2)}


def _pair_loss(logits: Tensor, both: Tensor) -> Tensor:
    count = both.sum()
    if count == 0:
        return logits.sum() * 0
    blocked = torch.zeros_like(logits).masked_fill(~(both[:, None] & both[None, :]), ABSENT)
    target = torch.arange(len(logits), device=logits.device)
    rows = F.cross_entropy(logits + blocked, target, reduction="none")
    columns = F.cross_entropy(logits.T + blocked.T, target, reduction="none")
    return ((rows + columns) / 2 * both).sum() / count


def random_split(valid: Tensor, keep: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids to keep ``[B, K]`` and to mask ``[B, N-K]``, drawn independently for each sample.

    Args:
        valid: ``[B, N]`` bool; invalid tokens are masked first.
        keep: share of tokens to keep, ``0 < keep < 1``.
        generator: source of randomness, on the CPU.
    """
    b, n = valid.shape
    noise = torch.rand(b, n, generator=generator).to(valid.device) + (~valid).float()
    order = noise.argsort(dim=1)
    kept = min(max(round(keep * n), 1), n - 1)
    return order[:, :kept], order[:, kept:]


def standardised_patches(patches: Tensor) -> Tensor:
    """Each patch ``[..., P]`` with zero mean and unit variance: the target of reconstruction (He et al. 2022)."""
    mean = patches.mean(-1, keepdim=True)
    return (patches - mean) / (patches.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def reconstruction_loss(
    predicted: Tensor, patches: Tensor, whole: Tensor, masked: Tensor, count: Tensor | None = None
) -> Tensor:
    """Mean squared error on masked patches of one sensor at its own grid; zero where there is none to score.

    Patches with any pixel that is not real are no targets: the model would learn to predict the filling.

    Args:
        predicted: ``[B, M, P]`` from ``ScaleAlibi.reconstruct`` at the masked places.
        patches: ``[B, N, P]`` normalised pixels of all patches (``encoder.patchify``).
        whole: ``[B, N]`` bool, patches whose pixels are all real.
        masked: ``[B, M]`` ids of the masked tokens.
        count: scalar, what the sum over patches is divided by; the patches scored here when not given. Batches whose
            losses are averaged need the mean of their counts: a mean of means would weigh a patch among many holes
            more than one among few.
    """
    target = standardised_patches(take(patches, masked))
    weight = take(whole, masked).to(predicted.dtype)
    error = (predicted - target).square().mean(-1)
    scored = weight.sum() if count is None else count
    return (error * weight).sum() / torch.where(scored > 0, scored, 1.0)
