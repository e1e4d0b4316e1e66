"""Words of a model: a head that takes text vectors into the space of its image embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from alidade.errors import WeightsError
from alidade.imagery.atomic import atomic_write
from alidade.models.text.bank import Bank
from alidade.models.text.encoder import TextEncoder, TextError, check_texts
from alidade.models.text.loading import load_text_encoder

CONFIG, HEAD, BANK = "words.json", "words.safetensors", "bank.safetensors"


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """What words were learnt with. Saved beside the head.

    Attributes:
        encoder: name of the text encoder, for ``load_text_encoder``.
        text_identity: of that encoder; another one's vectors are refused.
        image_identity: of the model whose embeddings texts are compared with.
        text_dim: length of a text vector.
        hidden: width of the perceptron between; 0 for one linear layer.
        dim: length of an image embedding.
        prompt: the sentence that a bare class name is put into, with ``{}`` for the name.
    """

    encoder: str
    text_identity: str
    image_identity: str
    text_dim: int
    hidden: int
    dim: int
    prompt: str = "{}"


class TextHead(nn.Module):
    """Text vectors ``[N, text_dim]`` to image embeddings ``[N, dim]``: LayerNorm, then a perceptron or one layer.

    ``log_scale`` is the logarithm of what cosines are multiplied by before a softmax: learned, CLIP's start of 1 / 0.07
    (Radford et al. 2021).
    """

    def __init__(self, text_dim: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_dim)
        self.layers: nn.Module = (
            nn.Sequential(nn.Linear(text_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            if hidden
            else nn.Linear(text_dim, dim)
        )
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, vectors: Tensor) -> Tensor:
        """Embeddings ``[N, dim]``, not of unit length."""
        out: Tensor = self.layers(self.norm(vectors))
        return out


class Words:
    """A trained text head with its text encoder, and stored vectors of common words.

    Args:
        config: what it was learnt with.
        head: of the config's sizes.
        bank: vectors of the same text encoder; words in it need no language model.
        encoder: the text encoder; loaded by the config's name when a text outside the bank is first asked for.
    """

    def __init__(
        self, config: WordsConfig, head: TextHead, bank: Bank | None = None, encoder: TextEncoder | None = None
    ) -> None:
        self.config, self.head, self.bank = config, head.eval().requires_grad_(False), bank
        self._encoder = encoder

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax over classes."""
        return float(self.head.log_scale.exp())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of texts in the space of image embeddings.

        Raises:
            TextError: an empty text, or one that is not in the bank while the text encoder is not installed or is
                another than these words were learnt with.
        """
        kept = check_texts(texts)
        known = self.bank is not None and all(text in self.bank for text in kept)
        encoder = self.bank if known and self.bank is not None else self._text_encoder(kept)
        vectors = torch.from_numpy(encoder.encode(kept).vectors)
        with torch.inference_mode():
            out: NDArray[np.float32] = F.normalize(self.head(vectors), dim=-1).numpy()
        return out

    def prompted(self, names: Sequence[str]) -> list[str]:
        """Class names as the sentences that these words were learnt in."""
        return [self.config.prompt.format(name) for name in names]

    def _text_encoder(self, texts: list[str]) -> TextEncoder:
        if self._encoder is None:
            try:
                found = load_text_encoder(self.config.encoder)
                identity = found.identity
            except TextError:
                if self.bank is None:
                    raise
                # the bank's refusal names the nearest known words and how to install a text encoder
                self.bank.encode(texts)
                raise
            if identity != self.config.text_identity:
                raise TextError(
                    f"text encoder {self.config.encoder}",
                    got=identity,
                    expected=f"{self.config.text_identity}, which these words were learnt with",
                    next_step="Install that version of the encoder, or align the model anew.",
                )
            self._encoder = found
        return self._encoder

    def save(self, directory: Path) -> None:
        """Write config, head and bank beside a model's weights; each file appears whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in self.head.state_dict().items()}
        with atomic_write(directory / HEAD) as temporary:
            temporary.write_bytes(save(state))
        if self.bank is not None:
            self.bank.save(directory / BANK)
        with atomic_write(directory / CONFIG) as temporary:
            temporary.write_text(json.dumps(asdict(self.config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_words(directory: Path, image_identity: str) -> Words | None:
    """The words saved in ``directory``, or None where there are none.

    Args:
        directory: of a model.
        image_identity: of that model.

    Raises:
        WeightsError: files that are damaged, do not fit each other, or belong to another model.
        TextError: a damaged bank.
    """
    if not (directory / CONFIG).is_file():
        return None
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        if set(data) != {f.name for f in fields(WordsConfig)}:
            raise ValueError(f"keys {sorted(data)}")
        config = WordsConfig(**data)
        head = TextHead(config.text_dim, config.hidden, config.dim)
        head.load_state_dict({k: v.to(torch.float32) for k, v in load_file(directory / HEAD).items()})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"{directory}: words",
            got=f"{type(error).__name__}: {error!s:.200}",
            expected=f"{CONFIG} and {HEAD} as alidade saved them",
            next_step="Copy the directory again, or remove both files to use the model without words.",
        ) from None
    bank = Bank.load(directory / BANK) if (directory / BANK).is_file() else None
    wrong = {
        "model": (image_identity, config.image_identity),
        "bank": (bank.identity if bank else config.text_identity, config.text_identity),
    }
    for what, (got, expected) in wrong.items():
        if got != expected:
            raise WeightsError(
                f"{directory}: words of another {what}",
                got=got,
                expected=expected,
                next_step="Keep the files of one save together, or align the model anew.",
            )
    return Words(config, head, bank)
