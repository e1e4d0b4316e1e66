"""Which number format to compute in, chosen once, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from alidade.errors import ModelError


@dataclass(frozen=True)
class Precision:
    """A compute dtype and why it was chosen."""

    dtype: torch.dtype
    reason: str


@lru_cache(maxsize=8)
def choose_precision(device: str) -> Precision:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere.

    On processors without such instructions bfloat16 is emulated and several times slower than float32.
    """
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "this GPU computes bfloat16 natively")
        return Precision(torch.float32, "this GPU has no native bfloat16")
    flags = processor_flags()
    native = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "svebf16"})
    if native:
        return Precision(torch.bfloat16, f"this processor computes bfloat16 natively ({', '.join(native)})")
    return Precision(torch.float32, "this processor has no bfloat16 instructions")


def processor_flags() -> frozenset[str]:
    """Instruction sets of the first processor as Linux lists them; empty elsewhere, which means float32."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def check_device(device: str, dtype: torch.dtype | None) -> None:
    """Refuse what cannot compute here.

    Raises:
        ModelError: an unknown or absent device, or a dtype other than float32 and bfloat16.
    """
    there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in there and not (device == "cuda" and len(there) > 1):
        raise ModelError(
            "device", got=repr(device), expected=f"one of {', '.join(there)}", next_step="Choose one that is there."
        )
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ModelError(
            "dtype", got=dtype, expected="torch.float32 or torch.bfloat16", next_step="Leave it out to have it chosen."
        )
