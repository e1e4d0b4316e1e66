"""Large batches in little memory: a batch is embedded chunk by chunk, and each chunk once more when gradients come.

After GradCache (Gao et al. 2021, arXiv 2101.06983): contrast needs the vectors of the whole batch, but what layers
remember for their gradients is needed for one chunk at a time. Here each chunk is a checkpoint of torch's: nothing
inside of it is kept from the first pass, and the backward pass, which takes the chunks one after the other, computes
it again. Vectors and gradients are those of the whole batch at once; it costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(embed: Callable[[slice], Tensor], count: int, size: int, *, seed: int, device: torch.device) -> Tensor:
    """The vectors ``[count, D]`` of a batch.

    Args:
        embed: vectors of some rows of the batch; whatever it draws from torch's own generators (dropout) is drawn
            from ``seed`` and the chunk's number, the same again in the second pass.
        count: rows of the batch.
        size: rows of a chunk; 0 embeds the batch at once and keeps what gradients need.
        seed: of what ``embed`` draws.
        device: where it computes.
    """
    if size == 0:
        return _seeded(embed, slice(0, count), seed, device)
    parts = []
    for number, start in enumerate(range(0, count, size)):
        again = partial(_seeded, embed, slice(start, min(start + size, count)), seed + number, device)
        # each pass seeds itself: torch need not remember the state of its generators
        parts.append(checkpoint(again, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts)


def _seeded(embed: Callable[[slice], Tensor], rows: slice, seed: int, device: torch.device) -> Tensor:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return embed(rows)
