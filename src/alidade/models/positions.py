"""How attention knows where tokens are: Scale-ALiBi (distance on the ground) and the variants it is measured against.

A variant adds something to the input, to the attention logits, or turns queries and keys; it never has parameters.
Lengths are in metres and part of the model's config. ``lambda_h`` is how far head ``h`` looks: its logit falls by
one per ``lambda_h`` metres. ALiBi's slopes ``m_h`` (Press et al. 2022, arXiv 2108.12409) and CROMA's unit of 80 m
(Fuller et al. 2023, arXiv 2311.00566, 8-pixel patches at 10 m) are ``lambda_h = 80 / m_h``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alidade.errors import ModelError
from alidade.models.tokens import Places

Place = tuple[Tensor, Tensor, Tensor, Tensor]
"""``x``, ``y`` of a centre and the footprint's sides along x and y, in metres; broadcastable."""
Elementwise = Callable[[Tensor, Place, Place], Tensor]
"""``(head, query, key) -> bias``."""


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Which variant, and the ground distances its heads look over.

    Attributes:
        kind: a key of ``VARIANTS``.
        unit_m: ALiBi's distance unit in metres; used when ``length_range_m`` is not given.
        length_range_m: shortest and longest ``lambda_h`` in metres, spread evenly in the logarithm over the heads.
    """

    kind: str = "metres"
    unit_m: float = 80.0
    length_range_m: tuple[float, float] | None = None

    def build(self, heads: int) -> Positions:
        """The variant for ``heads`` attention heads.

        Raises:
            ModelError: an unknown kind, or lengths that are not positive and increasing.
        """
        if self.kind not in VARIANTS:
            raise ModelError(
                "position variant",
                got=repr(self.kind),
                expected=f"one of {', '.join(VARIANTS)}",
                next_step="Set PositionConfig.kind to one of these.",
            )
        low, high = self.length_range_m or (self.unit_m, 2 * self.unit_m)
        if not 0 < low < high:
            raise ModelError(
                "position lengths",
                got=f"unit {self.unit_m} m, range {self.length_range_m}",
                expected="positive metres, shortest before longest",
                next_step="Set PositionConfig.unit_m or length_range_m.",
            )
        return VARIANTS[self.kind](self, heads)


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slopes ``m_h`` ``[heads]``: ``2^(-8(h+1)/heads)`` for powers of two.

    For other counts: the slopes of the next lower power of two, then every second one of twice that power
    (Press et al. 2022, appendix of the released code).
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    finer = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(2 * power)]
    return torch.tensor(slopes + finer[0::2][: heads - power])


def head_lengths(config: PositionConfig, heads: int) -> Tensor:
    """``lambda_h`` in metres ``[heads]``, shortest first when a range is given."""
    if config.length_range_m is None:
        return config.unit_m / alibi_slopes(heads)
    low, high = (math.log(v) for v in config.length_range_m)
    return torch.linspace(low, high, heads).exp()


class Positions:
    """A variant that does nothing: attention sees a set of patches. The others override one or two methods."""

    def __init__(self, config: PositionConfig, heads: int) -> None:
        self.config, self.heads = config, heads

    def elementwise(self, device: torch.device) -> Elementwise | None:
        """The logit bias as a function of one query and one key, or None; used by every attention backend."""
        return None

    def input_embedding(self, places: Places, dim: int) -> Tensor | None:
        """What is added to the patch features ``[B, N, dim]``, or None."""
        return None

    def angles(self, places: Places, head_dim: int) -> Tensor | None:
        """Rotation angles ``[B, N, head_dim // 2]`` of queries and keys, or None."""
        return None

    def bias(self, query: Places, key: Places) -> Tensor | None:
        """The dense bias ``[B or 1, heads, Nq, Nk]`` float32: one table for the batch when its places are alike."""
        fn = self.elementwise(query.centres.device)
        if fn is None:
            return None
        if query.alike and key.alike:
            query, key = query.first(), key.first()
        head = torch.arange(self.heads, device=query.centres.device).view(-1, 1, 1)
        rows = [part[:, None, :, None] for part in columns(query)]
        cols = [part[:, None, None, :] for part in columns(key)]
        return fn(head, (rows[0], rows[1], rows[2], rows[3]), (cols[0], cols[1], cols[2], cols[3]))


def columns(places: Places) -> Place:
    """The four numbers of every token, ``[B, N]`` each."""
    (x, y), (fx, fy) = places.centres.unbind(-1), places.footprint.unbind(-1)
    return x, y, fx, fy


def ground_distance(q: Place, k: Place) -> Tensor:
    """Euclidean distance of token centres in metres."""
    return torch.sqrt((q[0] - k[0]).square() + (q[1] - k[1]).square())


def patch_distance(q: Place, k: Place) -> Tensor:
    """Distance on the tokens' own index grids, blind to GSD (CROMA's 2D-ALiBi)."""
    return torch.sqrt((q[0] / q[2] - k[0] / k[2]).square() + (q[1] / q[3] - k[1] / k[3]).square())


class Metres(Positions):
    """Scale-ALiBi: ``B_h(i, j) = -|c_i - c_j| / lambda_h``, the same for self, cross-sensor and cross-scale."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Minus the ground distance over the head's length."""
        lengths = head_lengths(self.config, self.heads).to(device)
        return lambda h, q, k: -ground_distance(q, k) / lengths[h]


class LogMetres(Positions):
    """``-log(1 + d / lambda_h)``: attention falls as one over distance and never underflows."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Minus the logarithm of the distance in head lengths."""
        lengths = head_lengths(self.config, self.heads).to(device)
        return lambda h, q, k: -torch.log1p(ground_distance(q, k) / lengths[h])


class SquaredMetres(Positions):
    """``-(d / lambda_h)^2 / 2``: a Gaussian window; the one form that factors exactly (rank 4)."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Minus half the squared distance in head lengths."""
        lengths = head_lengths(self.config, self.heads).to(device)
        return lambda h, q, k: -((q[0] - k[0]).square() + (q[1] - k[1]).square()) / (2 * lengths[h].square())


class Patches(Positions):
    """2D-ALiBi: ``-m_h`` times the distance in patches, whatever a patch measures on the ground."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Minus slope times index distance."""
        slopes = alibi_slopes(self.heads).to(device)
        return lambda h, q, k: -slopes[h] * patch_distance(q, k)


class HalfPatches(Positions):
    """Even heads measure in patches, odd heads in metres; each kind has its own full range of slopes."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Index distance for even heads, ground distance for odd heads."""
        many = (self.heads + 1) // 2
        slopes = alibi_slopes(many).repeat_interleave(2)[: self.heads].to(device)
        lengths = head_lengths(self.config, many).repeat_interleave(2)[: self.heads].to(device)

        def bias(h: Tensor, q: Place, k: Place) -> Tensor:
            return -torch.where(h % 2 == 0, slopes[h] * patch_distance(q, k), ground_distance(q, k) / lengths[h])

        return bias


class MetresAndScale(Positions):
    """Ground distance plus ``-n_h |log(f_i / f_j)|``: ``n_h`` are ALiBi's slopes, ``f`` mean sides of footprints."""

    def elementwise(self, device: torch.device) -> Elementwise:
        """Minus distance in head lengths, minus slope times the log-ratio of footprints."""
        lengths = head_lengths(self.config, self.heads).to(device)
        slopes = alibi_slopes(self.heads).to(device)
        return lambda h, q, k: (
            -ground_distance(q, k) / lengths[h] - slopes[h] * (torch.log(q[2] * q[3] / (k[2] * k[3])) / 2).abs()
        )


def sincos(coordinates: Tensor, dim: int, shortest: float, longest: float) -> Tensor:
    """Sines and cosines ``[B, N, dim]`` of 2-D coordinates ``[B, N, 2]`` at log-spaced wavelengths/2π."""
    quarter = dim // 4
    if quarter * 4 != dim:
        raise ModelError(
            "sin-cos positions",
            got=f"width {dim}",
            expected="a multiple of 4",
            next_step="Choose another width.",
        )
    scale = torch.logspace(math.log10(shortest), math.log10(longest), quarter, device=coordinates.device)
    angle = coordinates.unsqueeze(-1) / scale
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class SinCos(Positions):
    """Fixed sin-cos of the patch index, added to the input (MAE, He et al. 2022)."""

    def input_embedding(self, places: Places, dim: int) -> Tensor:
        """Sin-cos of index coordinates at wavelengths up to 10,000 patches."""
        return sincos(places.centres / places.footprint, dim, 1.0, 10_000.0)


class SinCosGsd(Positions):
    """Sin-cos of the index times GSD over a reference (Scale-MAE, Reed et al. 2023): metres over ``unit_m``."""

    def input_embedding(self, places: Places, dim: int) -> Tensor:
        """Sin-cos of ground coordinates in units of ``unit_m``."""
        return sincos(places.centres / self.config.unit_m, dim, 1.0, 10_000.0)


class Rope2d(Positions):
    """Axial 2-D rotary positions of the patch index (base 100, as vision transformers use)."""

    def angles(self, places: Places, head_dim: int) -> Tensor:
        """Half the angle pairs turn with x, half with y."""
        quarter = head_dim // 4
        if quarter * 4 != head_dim:
            raise ModelError(
                "rotary positions",
                got=f"head width {head_dim}",
                expected="a multiple of 4",
                next_step="Choose another number of heads.",
            )
        index = places.centres / places.footprint
        rate = 100.0 ** (-torch.arange(quarter, device=index.device) / quarter)
        return (index.unsqueeze(-1) * rate).flatten(-2)


VARIANTS: dict[str, type[Positions]] = {
    "none": Positions,
    "sincos": SinCos,
    "sincos-gsd": SinCosGsd,
    "rope": Rope2d,
    "patches": Patches,
    "metres": Metres,
    "half-patches": HalfPatches,
    "log-metres": LogMetres,
    "squared-metres": SquaredMetres,
    "metres-and-scale": MetresAndScale,
}
