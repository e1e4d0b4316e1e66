"""A training step's attention computed the way the released Scale-ALiBi and CROMA code does it, to be compared with.

For benchmarks only. It shares every weight and takes the right distances (the released cross-scale table does not),
but goes their way to them: a dense table per pair of grids is repeated over the batch, permuted into a copy, and
gathered with an int64 index as large as the result; attention is two products with a softmax between. The decoder is
left as it is, in the reference's favour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from alidade.models.attention import Attention
from alidade.models.config import ScaleAlibiConfig
from alidade.models.encoder import Block, Trunk
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.tokens import Places, Tokens


@dataclass(frozen=True, kw_only=True)
class Numbered(Tokens):
    """Tokens that know which of their grid's they are.

    Attributes:
        grid: the places of the whole grid.
        ids: ``[B, K]`` of the tokens that were kept, in order.
    """

    grid: Places
    ids: Tensor

    def gather(self, ids: Tensor) -> Numbered:
        """The tokens ``ids`` of each sample, with their places and numbers."""
        kept = super().gather(ids)
        return Numbered(
            features=kept.features, places=kept.places, sensor=kept.sensor, days=kept.days, grid=self.grid, ids=ids
        )


class ReleasedWay(ScaleAlibi):
    """The network of a config with attention as described above; every token must be valid."""

    def __init__(self, config: ScaleAlibiConfig) -> None:
        super().__init__(config)
        self._tables: dict[tuple[str, str], Tensor] = {}
        self._own: dict[str, Tensor] = {}

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
        bias = self._own[tokens.sensor] = self._masked(tokens, tokens)
        x = tokens.features
        trunk = cast(Trunk, self.trunks[tokens.sensor])
        for block in blocks(trunk):
            x = x + unfused(block.attention, x, None, bias)
            x = x + block.feed_forward(x)
        return replace(tokens, features=trunk.norm(x))

    def fuse(self, parts: list[Tokens]) -> Tokens:
        """The fusion layers, each further sensor in turn."""
        query, x = parts[0], parts[0].features
        assert self.fusion is not None
        for other in parts[1:]:
            cross = self._masked(query, other)
            for block in blocks(self.fusion):
                assert block.cross is not None
                x = x + unfused(block.attention, x, None, self._own[query.sensor])
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


def unfused(attention: Attention, x: Tensor, context: Tensor | None, bias: Tensor) -> Tensor:
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
    shares = (scores + bias).softmax(dim=-1)
    mixed = torch.einsum("bhij,bhjd->bhid", shares.to(v.dtype), v)
    out: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return out
