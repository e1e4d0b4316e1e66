"""A training step computed the way the released Scale-ALiBi and CROMA code does it, to be compared with.

For benchmarks only. Weights, objective and optimiser are ours, and so are the distances (the released cross-scale table
is wrong), so that both ways end at the same losses; every cost below is one that ``pkage/scale-alibi`` (86fa549) has,
as it has it:

- ``model.py``, ``apply_mask_to_alibi`` and ``apply_mask_to_alibi_variable_lengths``: one table per pair of grids, made
  once, is repeated over the batch, permuted into a copy, and gathered with an int64 index repeated over the heads; what
  comes out has the heads innermost in memory. Once a step for each tower, and for each cross-attention.
- ``Attention``, ``CrossAttention``: einsum, scale, sum, softmax, einsum, each an array of scores; queries, keys and
  values of a cross-attention by a product each. The decoder's attention too, without a bias.
- ``apply_mask_to_sequence``: kept tokens gathered with an int64 index repeated over the width.
- The tables of a step live until its forward pass ends; the backward pass needs none of them.

Left out, all in the reference's favour: tables copied to the device at every use, Adam without a fused kernel. It has
more only where the objective has: three fusions, one for each sensor to be reconstructed, where the released code has
one, and as many tables to gather for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alidade.models.attention import Attention, Geometry
from alidade.models.config import ScaleAlibiConfig
from alidade.models.encoder import Block, Trunk
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Places, Tokens, gather_places


@dataclass(frozen=True, kw_only=True)
class Numbered(Tokens):
    """Tokens that know which of their grid's they are.

    Attributes:
        grid: the places of the whole grid.
        ids: ``[B, K]`` of the tokens that were kept, in order.
        bias: ``[B, heads, K, K]`` among them, once their tower has run.
    """

    grid: Places
    ids: Tensor
    bias: Tensor | None = None

    def gather(self, ids: Tensor) -> Numbered:
        """The tokens ``ids`` of each sample, with their places and numbers."""
        index = ids.unsqueeze(-1).repeat(1, 1, self.features.shape[-1])
        return replace(self, features=self.features.gather(1, index), places=gather_places(self.places, ids), ids=ids)


class ReleasedWay(ScaleAlibi):
    """The network of a config with attention as described above; every token must be valid."""

    def __init__(self, config: ScaleAlibiConfig) -> None:
        super().__init__(config)
        self._tables: dict[tuple[str, str], Tensor] = {}
        if self.decoder is not None:
            width, heads = self.decoder.config.width, self.decoder.config.heads
            self.decoder.attentions = nn.ModuleList(Unfused(width, heads) for _ in self.decoder.attentions)

    def embed_patches(
        self, name: str, pixels: Tensor, valid: Tensor, gsd_m: tuple[float, float] | Tensor, days: Tensor
    ) -> Tokens:
        """Like ``ScaleAlibi.embed_patches``, numbered."""
        found = super().embed_patches(name, pixels, valid, gsd_m, days)
        ids = torch.arange(found.features.shape[1], device=pixels.device).expand(len(pixels), -1)
        return Numbered(
            features=found.features, places=found.places, sensor=name, days=days, grid=found.places.first(), ids=ids
        )

    def run(self, tokens: Tokens) -> Tokens:
        """The tower's layers over the kept tokens."""
        bias = self._masked(tokens, tokens)
        x = tokens.features
        trunk = cast(Trunk, self.trunks[tokens.sensor])
        for block in blocks(trunk):
            x = x + unfused(block.attention, x, None, bias)
            x = x + block.feed_forward(x)
        assert isinstance(tokens, Numbered)
        return replace(tokens, features=trunk.norm(x), bias=bias)

    def fuse(self, parts: list[Tokens]) -> Tokens:
        """The fusion layers, each further sensor in turn."""
        query, x = parts[0], parts[0].features
        assert self.fusion is not None
        assert isinstance(query, Numbered)
        for other in parts[1:]:
            cross = self._masked(query, other)
            for block in blocks(self.fusion):
                assert block.cross is not None
                x = x + unfused(block.attention, x, None, query.bias)
                x = x + unfused(block.cross, x, other.features, cross)
                x = x + block.feed_forward(x)
            x = self.fusion.norm(x)
        return Tokens(features=x, places=query.places, sensor="joint", days=query.days)

    def _masked(self, query: Tokens, key: Tokens) -> Tensor:
        assert isinstance(query, Numbered)
        assert isinstance(key, Numbered)
        names = query.sensor, key.sensor
        if names not in self._tables:
            table = self.positions.bias(query.grid, key.grid)
            assert table is not None
            self._tables[names] = table
        return gathered(self._tables[names], query.ids, key.ids)


def blocks(trunk: Trunk) -> list[Block]:
    """The layers of a trunk."""
    return cast(list[Block], list(trunk.blocks))


def gathered(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries ``[B, heads, R, C]`` of a table ``[1, heads, Nq, Nk]`` at rows ``[B, R]`` and columns ``[B, C]``."""
    _, heads, many, wide = table.shape
    batch = len(rows)
    flat = (rows.unsqueeze(2) * wide + columns.unsqueeze(1)).flatten(1)
    repeated = table.repeat(batch, 1, 1, 1).permute(0, 2, 3, 1).reshape(batch, many * wide, heads)
    index = flat.unsqueeze(-1).repeat(1, 1, heads)
    found = repeated.gather(1, index)
    return found.view(batch, rows.shape[1], columns.shape[1], heads).permute(0, 3, 1, 2)


class Unfused(Attention):
    """``Attention`` without a bias over valid tokens alone, as the released decoder has it."""

    def forward(self, x: Tensor, geometry: Geometry, context: Tensor | None = None) -> Tensor:
        """See ``Attention``."""
        return unfused(self, x, context, None)


def unfused(attention: Attention, x: Tensor, context: Tensor | None, bias: Tensor | None) -> Tensor:
    """What ``Attention`` returns, by scores, sum, softmax and product."""
    x = attention.norm(x)
    y = x if context is None else attention.norm(context)
    heads, width = attention.heads, x.shape[-1]
    if context is None:
        parts = attention.qkv(x).chunk(3, dim=-1)
    else:
        weights = attention.qkv.weight.chunk(3)
        parts = tuple(F.linear(part, weight) for part, weight in zip((x, y, y), weights, strict=True))
    q, k, v = (part.unflatten(-1, (heads, width // heads)).transpose(1, 2) for part in parts)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (width // heads) ** -0.5
    if bias is not None:
        scores = scores + bias
    shares = scores.softmax(dim=-1)
    mixed = torch.einsum("bhij,bhjd->bhid", shares.to(v.dtype), v)
    out: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return out
