"""What the ground distance costs: attention with it against attention without any bias, in time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alidade.evaluation.timing import Row, median_ratio, take_turns
from alidade.models.attention import Geometry, attend, make_geometry
from alidade.models.positions import PositionConfig
from alidade.models.precision import choose_precision
from alidade.models.tokens import grid_places

HEADS, HEAD_DIM, LAYERS = 12, 64, 12


def bench_attention(*, side: int = 32, batch: int = 2, rounds: int = 9) -> list[Row]:
    """Rows for ``side²`` tokens through the attention of ``LAYERS`` layers that share one geometry.

    As in the model: a training step makes its bias table (its masks are new), inference keeps the latest one.

    Args:
        side: tokens along one side of the image.
        batch: images.
        rounds: measured rounds after one to warm up.
    """
    dtype = choose_precision("cpu").dtype
    tokens = side * side
    ratios = {}
    for training in (True, False):
        variants = {kind: stack(kind, side, batch, dtype, training=training) for kind in ("metres", "none")}
        timed = take_turns(variants, rounds)
        ratios[training] = median_ratio(timed["metres"], timed["none"])
    return [
        Row(
            name=f"distance against no bias, forward and backward, {tokens} tokens",
            value=ratios[True],
            unit="x",
            target="<= 1.15 x",
            ok=ratios[True] <= 1.15,
        ),
        Row(
            name=f"distance against no bias, forward alone, {tokens} tokens",
            value=ratios[False],
            unit="x",
            target="<= 1.15 x",
            ok=ratios[False] <= 1.15,
        ),
        *memory_rows(side, dtype),
        *change_rows(dtype),
    ]


def geometry_of(kind: str, side: int, batch: int, dtype: torch.dtype, *, gsd_m: float, training: bool) -> Geometry:
    """The geometry of a square image of ``side²`` patches of 8 px."""
    places = grid_places(side, side, 8, (gsd_m, gsd_m), batch)
    positions = PositionConfig(kind=kind).build(HEADS)
    return make_geometry(positions, places, places, head_dim=HEAD_DIM, dtype=dtype, training=training)


def stack(kind: str, side: int, batch: int, dtype: torch.dtype, *, training: bool) -> Callable[[], None]:
    """A function that runs the attention of all layers once, with gradients when training."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, HEADS, side * side, HEAD_DIM)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_(training) for _ in range(3))

    kept = None if training else geometry_of(kind, side, batch, dtype, gsd_m=10.0, training=False)

    def run() -> None:
        geometry = kept or geometry_of(kind, side, batch, dtype, gsd_m=10.0, training=training)
        x: Tensor = v
        for _ in range(LAYERS):
            x = attend(q, k, x, geometry)
        if training:
            x.sum().backward()  # type: ignore[no-untyped-call]

    return run


def memory_rows(side: int, dtype: torch.dtype) -> list[Row]:
    """How the one table that the distance needs grows with the batch."""
    sizes = []
    for batch in (1, 32):
        bias = geometry_of("metres", side, batch, dtype, gsd_m=10.0, training=False).bias
        sizes.append(0 if bias is None else bias.element_size() * bias.nelement())
    growth = sizes[1] / sizes[0]
    return [
        Row(name=f"bias table, {side * side} tokens, all layers", value=sizes[0] / 2**20, unit="MiB"),
        Row(
            name="bias table, batch 32 against batch 1",
            value=growth,
            unit="x",
            target="= 1 x",
            ok=growth == 1,
        ),
    ]


def change_rows(dtype: torch.dtype) -> list[Row]:
    """What a new size or GSD costs, beside the nested Python loops of the released code at its own size."""

    def change(pixels: int, gsd_m: float) -> Callable[[], object]:
        return lambda: geometry_of("metres", pixels // 8, 1, dtype, gsd_m=gsd_m, training=False)

    cases = ((120, 10.0), (120, 2.5), (504, 10.0))
    variants = {f"change to {p} px at {g:g} m": change(p, g) for p, g in cases}
    timed = take_turns(variants, 3)
    rows = [
        Row(name=n, value=1e3 * t.median, unit="ms", target="< 1,000 ms", ok=t.median < 1) for n, t in timed.items()
    ]
    looped = take_turns({"loops": lambda: looped_bias(15)}, 3)["loops"]
    return [*rows, Row(name="the same for 120 px by nested loops", value=1e3 * looped.median, unit="ms")]


def looped_bias(side: int) -> Tensor:
    """Distances of all pairs by a Python loop: how the released loaders fill their table, kept for comparison."""
    points = [(i, j) for i in range(side) for j in range(side)]
    distances = [-math.dist(a, b) * 2 ** (-(h + 1) / 2) for h in range(16) for a in points for b in points]
    return torch.tensor(distances).view(1, 16, side**2, side**2)
