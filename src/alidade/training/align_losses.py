"""What aligns images with sentences: contrast over all pairs of a batch, in which equal sentences are no strangers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alidade.training.objectives import gather_samples

_LOW = 20
"""Bits of a sentence's number that one column carries: float32 is exact up to 24."""


class Paired(NamedTuple):
    """The samples of all processes, in rank order.

    Attributes:
        image: unit vectors ``[N, D]``.
        text: unit vectors ``[N, D]`` of each image's sentence.
        same: ``[N, N]`` bool, whether two samples have the same sentence.
    """

    image: Tensor
    text: Tensor
    same: Tensor


def pair(image: Tensor, text: Tensor, caption: Tensor) -> Paired:
    """This process's samples together with those of its siblings, by one collective; gradients reach all of them.

    Args:
        image: ``[B, D]``, of any length.
        text: ``[B, D]``, of any length.
        caption: ``[B]`` int64 from 0 to 2^44, equal where sentences are equal, in all processes alike.
    """
    units = [F.normalize(image, dim=-1), F.normalize(text, dim=-1)]
    number = torch.stack([caption >> _LOW, caption & (2**_LOW - 1)], dim=-1)
    together = gather_samples(torch.cat([*units, number.to(units[0].dtype)], dim=-1))
    dim = image.shape[1]
    told = together[:, 2 * dim :].detach()
    same = (told[:, None] == told[None, :]).all(dim=-1)
    return Paired(together[:, :dim], together[:, dim : 2 * dim], same)


def scale_of(log_scale: Tensor) -> Tensor:
    """One over the temperature, at most 100 as CLIP has it; the gradient passes the limit, so that it can come back."""
    return (log_scale + (log_scale.clamp(max=math.log(100)) - log_scale).detach()).exp()


def infonce(paired: Paired, log_scale: Tensor) -> dict[str, Tensor]:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021) of cosines over a learned temperature.

    An image's target is shared equally among all samples of the batch with its very sentence, and so is a sentence's:
    with class words for captions most strangers of a plain batch would be of the same class. Where all sentences
    differ it is the plain loss.

    Returns:
        ``"image to text"``, ``"text to image"`` and ``"total"``, the mean of both.
    """
    logits = scale_of(log_scale) * paired.image @ paired.text.T
    target = paired.same / paired.same.sum(dim=1, keepdim=True)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"image to text": to_text, "text to image": to_image, "total": (to_text + to_image) / 2}


def siglip(paired: Paired, log_scale: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Pairwise sigmoid loss (Zhai et al. 2023, arXiv 2303.15343): each pair is a match or none, by itself.

    Every image with every sample that has its very sentence is a match.

    Returns:
        ``"pairs"`` and ``"total"``, the same: the sum over all pairs divided by the number of samples.
    """
    logits = scale_of(log_scale) * paired.image @ paired.text.T + bias
    sign = paired.same.to(logits.dtype) * 2 - 1
    loss = -F.logsigmoid(sign * logits).sum() / len(logits)
    return {"pairs": loss, "total": loss}
