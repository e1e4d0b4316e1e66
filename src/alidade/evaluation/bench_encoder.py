"""How close the encoder comes to the processor's own matrix-product rate, with CROMA-base geometry."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from alidade.evaluation.timing import Row, median_ratio, take_turns
from alidade.models.croma import BASE
from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi, initialise

SIDE = 2048
"""Side of the square matrices whose product gives the processor's rate."""


def bench_encoder(*, batch: int = 8, rounds: int = 5) -> list[Row]:
    """Rows for both CROMA-base encoders and the fusion on 120 px images.

    The matrix products, the model in the chosen compute format, and the unfused float32 form that the released code
    uses take turns; random weights, since speed does not depend on them.

    Args:
        batch: images per forward pass.
        rounds: measured rounds after one to warm up.
    """
    network = ScaleAlibi(BASE.build())
    initialise(network, seed=0)
    unfused = Model(copy.deepcopy(network), dtype=torch.float32)
    unfused.network.attention_backend = "baddbmm"
    model = Model(network)
    dtype = model.precision.dtype
    inputs = {
        "sar": torch.randn(batch, 2, 120, 120, generator=torch.Generator().manual_seed(0)),
        "optical": torch.randn(batch, 12, 120, 120, generator=torch.Generator().manual_seed(1)),
    }
    # the counter sees the products of the unfused form only: fused attention would be left out
    flops = count_flops(unfused, {name: value[:1] for name, value in inputs.items()})
    timed = take_turns(
        {
            "product": matrix_product(dtype),
            "bf16 product": matrix_product(torch.bfloat16),
            "model": lambda: model.encode_normalised(inputs, gsd_m=10.0),
            "unfused": lambda: unfused.encode_normalised(inputs, gsd_m=10.0),
        },
        rounds,
    )
    scale = batch * flops / (2 * SIDE**3)
    share = 100 * scale * median_ratio(timed["product"], timed["model"])
    bf16_share = 100 * scale * median_ratio(timed["bf16 product"], timed["model"])
    label = str(dtype).removeprefix("torch.")
    return [
        Row(name="arithmetic of one image", value=flops / 1e9, unit="GFLOP"),
        Row(name=f"matrix product, {label}", value=2 * SIDE**3 / timed["product"].median / 1e9, unit="GFLOP/s"),
        Row(
            name="matrix product, bfloat16",
            value=2 * SIDE**3 / timed["bf16 product"].median / 1e9,
            unit="GFLOP/s",
        ),
        Row(name=f"encoder, {label}, batch {batch}", value=batch / timed["model"].median, unit="img/s"),
        Row(
            name=f"encoder, share of the {label} product rate",
            value=share,
            unit="%",
            target=">= 75 %",
            ok=share >= 75,
        ),
        Row(
            name="encoder, share of the bfloat16 product rate",
            value=bf16_share,
            unit="%",
            target=">= 75 %",
            ok=bf16_share >= 75,
        ),
        Row(
            name="encoder against the unfused float32 form of the released code",
            value=median_ratio(timed["unfused"], timed["model"]),
            unit="x",
        ),
    ]


def matrix_product(dtype: torch.dtype) -> Callable[[], object]:
    """A function that multiplies two square matrices of ``SIDE`` in ``dtype``."""
    a, b = (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    return lambda: F.linear(a, b)


def count_flops(model: Model, inputs: dict[str, torch.Tensor]) -> int:
    """Floating-point operations of one forward pass, counted by torch from the shapes."""
    with FlopCounterMode(display=False) as counter:
        model.encode_normalised(inputs, gsd_m=10.0)
    total: int = counter.get_total_flops()
    return total
