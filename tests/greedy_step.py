"""A step whose memory is known; test_bench_train.py measures it in processes of their own, which import it here."""

from __future__ import annotations

import numpy as np
import torch


class Greedy:
    """A step that takes a known number of megabytes for a moment."""

    trainer, tokens, device, dtype = torch.nn.Identity(), 1, torch.device("cpu"), torch.float32

    def __init__(self, way: str) -> None:
        self.megabytes = int(way)

    def __call__(self) -> None:
        if self.megabytes < 0:
            raise SystemExit(3)
        np.ones(self.megabytes * 2**17).sum()

    def losses(self) -> dict[str, float]:
        return {}
