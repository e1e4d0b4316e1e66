"""Attention over tokens with places. What depends on places alone is made once a batch and shared by all layers.

Backends give one result and are chosen by measurement (see docs/architecture.md): ``sdpa`` adds a dense bias inside
the fused kernel; ``baddbmm`` is faster for bfloat16 training on CPU below about 1,024 tokens; ``flex`` computes the
distance from coordinates inside the kernel (CUDA; memory O(heads + tokens)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.weak import TensorWeakRef

from alidade.errors import ModelError
from alidade.models.positions import Positions, columns
from alidade.models.tokens import Places

BACKENDS = ("sdpa", "baddbmm", "flex")
MASKED = -1e4
"""Logit of an invalid key: exp gives zero beside any real key, and a row without real keys stays finite."""


def choose_backend(device: torch.device, dtype: torch.dtype, tokens: int, training: bool) -> str:
    """The fastest backend for this case, from the measurements in docs/architecture.md."""
    if device.type == "cuda":
        return "flex"
    if dtype == torch.bfloat16 and training and tokens < 1024:
        return "baddbmm"
    return "sdpa"


class Table:
    """A dense bias that is made when it is first asked for.

    Args:
        make: makes it, the same each time.
        keep: whether it stays. Else it lives while somebody holds it (a trunk that runs, a graph that needs it for its
            backward pass), and is made again for the next who asks.
    """

    def __init__(self, make: Callable[[], Tensor], *, keep: bool) -> None:
        self._make, self._keep = make, keep
        self._kept: Tensor | None = None
        self._lent: TensorWeakRef | None = None

    def get(self) -> Tensor:
        """``[B or 1, heads, Nq, Nk]``."""
        known = self._kept if self._lent is None else self._lent()
        if known is not None:
            return known
        made = self._make()
        if self._keep:
            self._kept = made
        else:
            self._lent = TensorWeakRef(made)
        return made


@dataclass(frozen=True)
class Geometry:
    """All that attention needs to know of places, made once and used by every layer.

    Attributes:
        backend: one of ``BACKENDS``.
        table: of the bias, or None when nothing is added (or backend is flex).
        score_mod: flex attention's function of one logit, or None.
        turn_q, turn_k: rotary cosines and sines, or None.
    """

    backend: str
    table: Table | None
    score_mod: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None
    turn_q: tuple[Tensor, Tensor] | None
    turn_k: tuple[Tensor, Tensor] | None

    @property
    def bias(self) -> Tensor | None:
        """``[B or 1, heads, Nq, Nk]`` in the compute dtype, or None; hold it while several layers use it."""
        return None if self.table is None else self.table.get()


def make_geometry(
    positions: Positions,
    query: Places,
    key: Places,
    *,
    head_dim: int,
    dtype: torch.dtype,
    training: bool,
    backend: str | None = None,
) -> Geometry:
    """Geometry for queries at ``query`` and keys at ``key``.

    Raises:
        ModelError: a backend that does not exist.
    """
    name = backend or choose_backend(query.centres.device, dtype, key.valid.shape[1], training)
    if name not in BACKENDS:
        raise ModelError(
            "attention backend",
            got=repr(name),
            expected=f"one of {', '.join(BACKENDS)}",
            next_step="Choose one.",
        )
    turns = [_turn(positions.angles(p, head_dim), dtype) for p in (query, key)]
    if name == "flex":
        return Geometry(name, None, _score_mod(positions, query, key), turns[0], turns[1])
    dense = positions.elementwise(query.centres.device) is not None
    if not dense and bool(key.valid.all()):
        return Geometry(name, None, None, turns[0], turns[1])
    table = Table(partial(_bias, positions, query, key, dtype), keep=not training)
    return Geometry(name, table, None, turns[0], turns[1])


def _bias(positions: Positions, query: Places, key: Places, dtype: torch.dtype) -> Tensor:
    bias = positions.bias(query, key)
    if bias is not None and bool(key.valid.all()):
        return bias.to(dtype)
    blocked = torch.zeros(key.valid.shape, device=key.valid.device).masked_fill(~key.valid, MASKED)[:, None, None]
    whole = blocked.expand(-1, positions.heads, query.valid.shape[1], -1) if bias is None else bias + blocked
    return whole.to(dtype)


def _turn(angles: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    if angles is None:
        return None
    return angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
    if turn is None:
        return x
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _score_mod(
    positions: Positions, query: Places, key: Places
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    fn = positions.elementwise(query.centres.device)
    (qx, qy, qu, qv), (kx, ky, ku, kv) = columns(query), columns(key)
    blocked = torch.zeros(key.valid.shape, device=key.valid.device).masked_fill(~key.valid, MASKED)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score + blocked[b, j]
        if fn is None:
            return score
        return score + fn(h, (qx[b, i], qy[b, i], qu[b, i], qv[b, i]), (kx[b, j], ky[b, j], ku[b, j], kv[b, j]))

    return score_mod


_eager_flex: Callable[..., Tensor] = flex_attention


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def attend(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
    """Attention of ``q`` ``[B, H, Nq, d]`` over ``k``, ``v`` ``[B, H, Nk, d]`` with the geometry's bias."""
    q, k = _rotate(q, geometry.turn_q), _rotate(k, geometry.turn_k)
    if geometry.backend == "flex":
        flex: Callable[..., Tensor] = _compiled_flex() if q.device.type == "cuda" else _eager_flex
        return flex(q.contiguous(), k.contiguous(), v.contiguous(), score_mod=geometry.score_mod)
    if geometry.backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=geometry.bias)
    b, h, nq, d = q.shape
    keys = k.flatten(0, 1).transpose(1, 2)
    if geometry.bias is None:
        logits = torch.bmm(q.flatten(0, 1) * d**-0.5, keys)
    else:
        table = geometry.bias.expand(b, h, nq, k.shape[2]).reshape(b * h, nq, k.shape[2])
        logits = torch.baddbmm(table, q.flatten(0, 1), keys, alpha=d**-0.5)
    return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).view(b, h, nq, d)


class Attention(nn.Module):
    """Pre-norm multi-head attention; self-attention when no context is given. No bias on queries, keys, values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, geometry: Geometry, context: Tensor | None = None) -> Tensor:
        """``[B, Nq, D]`` from queries ``x`` ``[B, Nq, D]`` and keys and values of ``context`` ``[B, Nk, D]``.

        The same normalisation serves queries and context, as CROMA's cross-attention does.
        """
        x = self.norm(x)
        if context is None:
            q, k, v = (self._heads(t) for t in self.qkv(x).chunk(3, dim=-1))
        else:
            width = x.shape[-1]
            weight_q, weight_kv = torch.split(self.qkv.weight, [width, 2 * width])
            q = self._heads(F.linear(x, weight_q))
            k, v = (self._heads(t) for t in F.linear(self.norm(context), weight_kv).chunk(2, dim=-1))
        out: Tensor = self.out(attend(q, k, v, geometry).transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        return x.view(b, n, self.heads, width // self.heads).transpose(1, 2)
