"""The vision transformer behind every tower: linear patches, pre-norm blocks, no class token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alidade.errors import ModelError
from alidade.models.attention import Attention, Geometry

RECOMPUTE = ("nothing", "perceptrons", "layers")
"""What a backward pass may compute once more instead of keeping it; see ``set_recompute``."""


class FeedForward(nn.Sequential):
    """Pre-norm two-layer perceptron, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Self-attention, then cross-attention when the block has it, then the perceptron; each added to its input."""

    def __init__(self, width: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.feed_forward = FeedForward(width)
        self.recompute = "nothing"

    def forward(
        self, x: Tensor, geometry: Geometry, context: Tensor | None = None, to_context: Geometry | None = None
    ) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``; ``context`` ``[B, M, D]`` with its own geometry for cross blocks."""
        if self.recompute == "layers" and torch.is_grad_enabled():
            return again(self._parts, x, geometry, context, to_context)
        return self._parts(x, geometry, context, to_context)

    def _parts(self, x: Tensor, geometry: Geometry, context: Tensor | None, to_context: Geometry | None) -> Tensor:
        x = x + self.attention(x, geometry)
        if self.cross is not None and to_context is not None:
            x = x + self.cross(x, to_context, context)
        if self.recompute == "perceptrons" and torch.is_grad_enabled():
            return x + again(self.feed_forward, x)
        out: Tensor = x + self.feed_forward(x)
        return out


def again(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """The function's value; the backward pass calls it once more, so that only its inputs are kept until then."""
    # nothing in here draws random numbers: their state need not be put back
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


def set_recompute(network: nn.Module, what: str) -> None:
    """Choose what all ``Block``s of a network compute once more in the backward pass, to save memory in training.

    Losses and gradients stay the same bit for bit. Kept of a layer's token, in multiples of its width, and the time
    of a layer's step (width 768, 614 tokens, float32, one core): 16 and 1 with ``"nothing"``, 7 and 1.10 with
    ``"perceptrons"``, 1 and 1.30 with ``"layers"``, which also makes bias tables once more.

    Raises:
        ModelError: not one of ``RECOMPUTE``.
    """
    if what not in RECOMPUTE:
        raise ModelError(
            "recompute", got=repr(what), expected=f"one of {', '.join(RECOMPUTE)}", next_step="Choose one."
        )
    for module in network.modules():
        if isinstance(module, Block):
            module.recompute = what


class Trunk(nn.Module):
    """``depth`` blocks and a final LayerNorm."""

    def __init__(self, width: int, heads: int, depth: int, *, cross: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, cross=cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, geometry: Geometry, context: Tensor | None = None, to_context: Geometry | None = None
    ) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        # held while the layers run: each would make a table of its own that nobody else holds
        tables = geometry.bias, None if to_context is None else to_context.bias
        for block in self.blocks:
            x = block(x, geometry, context, to_context)
        del tables
        out: Tensor = self.norm(x)
        return out


class PatchEmbed(nn.Linear):
    """Square patches through one linear layer, flattened, or after a few convolutions that stay inside the patch.

    Convolutions help small transformers on little data (Xiao et al. 2021, arXiv 2106.14881). Padding each patch by
    itself keeps a masked patch's pixels out of its neighbours' tokens.

    Args:
        channels: of the image.
        patch: side in pixels.
        width: of the tokens.
        stem: channels of the convolutions; see ``TowerConfig``.

    Raises:
        ModelError: the patch's side cannot be halved so often.
    """

    def __init__(self, channels: int, patch: int, width: int, stem: tuple[int, ...] = ()) -> None:
        halved = 2 ** len(stem)
        if patch % halved:
            raise ModelError(
                "stem of a tower",
                got=f"{len(stem)} convolutions for patches of {patch} px",
                expected="a patch side that halves evenly with each convolution",
                next_step="Choose fewer convolutions or another patch.",
            )
        side = patch // halved
        super().__init__((stem[-1] if stem else channels) * side * side, width)
        self.patch, self.channels = patch, channels
        self.stem: nn.Sequential | None = None
        if stem:
            layers: list[nn.Module] = []
            for before, after in pairwise((channels, *stem)):
                layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GELU()]
            self.stem = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, C, H, W]`` (sides multiples of the patch) to ``[B, N, D]``, row-major."""
        flat = patchify(pixels, self.patch)
        if self.stem is not None:
            b, n, _ = flat.shape
            squares = flat.reshape(b * n, self.channels, self.patch, self.patch)
            # oneDNN's convolutions of many small images are twice as fast with channels last
            flat = self.stem(squares.to(memory_format=torch.channels_last)).flatten(1).view(b, n, -1)
        return super().forward(flat)


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B, N, C·patch·patch]``, patches row-major, each flattened as channel, row, column."""
    b, c, h, w = pixels.shape
    cut = pixels.view(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def pad_to_patches(pixels: Tensor, valid: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Right and bottom padding to whole patches: pixels ``[B, C, H, W]`` with 0, valid ``[B, H, W]`` with False."""
    h, w = pixels.shape[-2:]
    right, bottom = -w % patch, -h % patch
    if not (right or bottom):
        return pixels, valid
    return F.pad(pixels, (0, right, 0, bottom)), F.pad(valid, (0, right, 0, bottom), value=False)


def patch_validity(valid: Tensor, patch: int) -> Tensor:
    """Which patches count: ``[B, H, W]`` bool to ``[B, N]`` bool.

    Those with at least half of their pixels real; in an image where no patch reaches half (a sliver at a scene's
    edge), those that have the most. So an image with any real pixel has a token.
    """
    share = real_share(valid, patch)
    best = share.amax(dim=1, keepdim=True)
    return (share >= best.clamp(max=0.5)) & (share > 0)


def real_share(valid: Tensor, patch: int) -> Tensor:
    """Share of real pixels in each patch: ``[B, H, W]`` bool to ``[B, N]`` float32."""
    return F.avg_pool2d(valid.to(torch.float32).unsqueeze(1), patch).flatten(1)
