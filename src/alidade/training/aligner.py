"""The alignment objective as one module: an image tower, a text tower, the head between, and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alidade.models.encoder import pad_to_patches, patch_validity
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.text.causal import CausalEncoder
from alidade.models.text.sentence import SentenceEncoder
from alidade.models.vision import VisionEncoder
from alidade.models.words import TextHead
from alidade.training.align_losses import infonce, pair, siglip
from alidade.training.augment import View
from alidade.training.grad_cache import in_chunks
from alidade.training.loop import Views
from alidade.training.objectives import Losses, random_split

LOSSES = ("infonce", "siglip")
IMAGE, TEXT, CAPTION = "image", "text", "caption"
"""Names in a batch: image vectors or a ``View``; text vectors, unless the text tower is adapted; sentence numbers."""


class ImageTower(nn.Module):
    """A tower of a network that learns, with some of the patches left out.

    Args:
        network: what the tower belongs to.
        tower: its name.
        keep: share of patches that it sees (Li et al. 2023, arXiv 2212.00794); 1 for all.
    """

    def __init__(self, network: ScaleAlibi, tower: str, *, keep: float) -> None:
        super().__init__()
        self.network, self.tower, self.keep = network, tower, keep

    def draw(self, view: View, seed: int) -> Tensor | None:
        """Which patches each image keeps, ``[B, K]``; None when all stay."""
        if self.keep == 1:
            return None
        patch = self.network.tower(self.tower).patch
        _, valid = pad_to_patches(view.pixels, view.valid, patch)
        kept, _ = random_split(patch_validity(valid, patch), self.keep, torch.Generator().manual_seed(seed))
        return kept

    def forward(self, view: View, kept: Tensor | None) -> Tensor:
        """Pooled features ``[B, D]`` float32, not of unit length."""
        tokens = self.network.embed_patches(self.tower, view.pixels, view.valid, view.gsd_m, view.days)
        encoded = self.network.run(tokens if kept is None else tokens.gather(kept))
        with torch.autocast(encoded.features.device.type, enabled=False):
            return self.network.pool(encoded)


class VisionTower(nn.Module):
    """A vision model of Hugging Face that learns; it is shown red, green and blue from 0 to 1.

    Args:
        encoder: nobody else's: its module changes.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.module: nn.Module = encoder.module
        self.encoder = encoder

    def draw(self, view: View, seed: int) -> None:
        """All patches stay."""

    def forward(self, view: View, kept: None) -> Tensor:
        """Vectors ``[B, D]`` float32, not of unit length."""
        # a change of light may have gone beyond white and black
        return self.encoder.look(view.pixels.clamp(0, 1)).vectors


class TextTower(nn.Module):
    """A text encoder that learns.

    Args:
        encoder: nobody else's: its module changes.
        sentences: by number.
    """

    def __init__(self, encoder: SentenceEncoder | CausalEncoder, sentences: Sequence[str]) -> None:
        super().__init__()
        self.module: nn.Module = encoder.module
        self.encoder, self.sentences = encoder, tuple(sentences)

    def forward(self, numbers: Tensor) -> Tensor:
        """Vectors ``[N, D]`` float32 of the sentences with these numbers."""
        return self.encoder.vectors([self.sentences[i] for i in numbers.tolist()])


class Aligner(nn.Module):
    """What alignment trains. What is frozen is left out of its state: checkpoints hold what was learned.

    Under autocast towers compute in its format; pooled heads, text head, temperature and losses in float32.

    Args:
        head: from text vectors to image embeddings, with the temperature; SigLIP's starts at a scale of 10.
        loss: one of ``LOSSES``.
        image: the tower that learns; None when batches bring image vectors.
        text: the tower that learns; None when batches bring text vectors.
        chunk: samples that a tower that learns embeds at a time, see ``grad_cache``; 0 for all.
    """

    def __init__(
        self,
        head: TextHead,
        *,
        loss: str,
        image: ImageTower | VisionTower | None = None,
        text: TextTower | None = None,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.head, self.image, self.text, self.chunk = head, image, text, chunk
        self.bias: nn.Parameter | None = None
        if loss == "siglip":
            # both starts are the paper's: with so many more strangers than matches the bias keeps first steps small
            nn.init.constant_(head.log_scale, math.log(10))
            self.bias = nn.Parameter(torch.tensor([-10.0]))
        self.register_state_dict_post_hook(_leave_out_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_in_frozen)  # type: ignore[no-untyped-call]

    def forward(self, views: Views, seed: int) -> Losses:
        """Losses of one batch, ``"total"`` among them; see ``align_losses``.

        Args:
            views: ``IMAGE``, ``CAPTION`` and, with a frozen text tower, ``TEXT``.
            seed: of patches left out and of dropout, so that a resumed run draws the same.
        """
        image = self.embed_images(views[IMAGE], seed)
        caption = _tensor(views[CAPTION])
        text = _tensor(views[TEXT]) if self.text is None else self.embed_texts(self.text, caption, seed)
        with torch.autocast(image.device.type, enabled=False):
            paired = pair(image.float(), self.head(text.float()), caption)
            if self.bias is None:
                return Losses(infonce(paired, self.head.log_scale))
            return Losses(siglip(paired, self.head.log_scale, self.bias))

    def embed_images(self, images: View | Tensor, seed: int) -> Tensor:
        """``[B, D]``."""
        if isinstance(images, Tensor):
            return images
        if self.image is None:
            raise TypeError("images without an image tower")
        tower, kept = self.image, self.image.draw(images, seed)

        def embed(rows: slice) -> Tensor:
            found: Tensor = tower(_rows(images, rows), None if kept is None else kept[rows])
            return found

        return in_chunks(embed, len(images.present), self.chunk, seed=seed, device=images.pixels.device)

    def embed_texts(self, tower: TextTower, caption: Tensor, seed: int) -> Tensor:
        """``[B, T]``; each sentence is read once, however many samples have it."""
        numbers, where = caption.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        # chunks of images have seeds from `seed` on
        start = (seed + 2**31) % 2**63
        found = in_chunks(
            lambda rows: tower(numbers[rows]), len(numbers), self.chunk, seed=start, device=caption.device
        )
        return found[where]


def _tensor(value: View | Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError("a view where a batch has a tensor")
    return value


def _rows(view: View, rows: slice) -> View:
    gsd = view.gsd_m[rows] if isinstance(view.gsd_m, Tensor) else view.gsd_m
    return replace(
        view,
        pixels=view.pixels[rows],
        valid=view.valid[rows],
        gsd_m=gsd,
        present=view.present[rows],
        days=view.days[rows],
    )


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _put_in_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    state.update({prefix + name: value for name, value in _frozen(module).items()})
