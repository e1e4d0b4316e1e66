"""Words of a model: a head that takes text vectors into the space of its image embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from alidade.errors import SensorError, WeightsError
from alidade.imagery.atomic import atomic_write
from alidade.imagery.bands import Sensor
from alidade.models.config import TowerConfig
from alidade.models.text.bank import Bank
from alidade.models.text.encoder import EncodedText, TextEncoder, TextError, check_texts
from alidade.models.text.loading import CAUSAL, load_text_encoder

CONFIG, HEAD, BANK = "words.json", "words.safetensors", "bank.safetensors"
HERE = "./"
"""What the name of a text encoder begins with that lies in the model's own folder."""
_LATER = ("settings", "bands")
"""Fields that words of earlier versions do not have."""


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """What words were learnt with. Saved beside the head.

    Attributes:
        encoder: name of the text encoder, for ``load_text_encoder``. One that begins with ``HERE`` (behind
            ``causal:``, where it has that) lies in the model's own folder, wherever that is.
        text_identity: of that encoder; another one's vectors are refused.
        image_identity: of the model whose embeddings texts are compared with.
        text_dim: length of a text vector.
        hidden: width of the perceptron between; 0 for one linear layer.
        dim: length of an image embedding.
        prompt: the sentence that a bare class name is put into, with ``{}`` for the name.
        settings: of the text encoder, for ``load_text_encoder``; empty for the defaults.
        bands: names of the model's towers that the images passed, each of which reads bands of its own. Empty where
            that is not known: in words of earlier versions, and for models of Hugging Face, which read red, green and
            blue.
    """

    encoder: str
    text_identity: str
    image_identity: str
    text_dim: int
    hidden: int
    dim: int
    prompt: str = "{}"
    settings: dict[str, str | int | bool | None] = field(default_factory=dict)
    bands: tuple[str, ...] = ()


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
        folder: the model's, where a text encoder of its own lies.
    """

    def __init__(
        self,
        config: WordsConfig,
        head: TextHead,
        bank: Bank | None = None,
        encoder: TextEncoder | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self.config, self.head, self.bank = config, head.eval().requires_grad_(False), bank
        self._encoder, self._folder = encoder, folder

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax over classes."""
        return float(self.head.log_scale.exp())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of texts in the space of image embeddings.

        ``encode`` tells besides which texts were longer than the text encoder reads.

        Raises:
            TextError: see ``encode``.
        """
        return self.encode(texts).vectors

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """As ``embed``, with which texts were cut; ``EncodedText.note`` says that in one line.

        Raises:
            TextError: an empty text, or one that is not in the bank while the text encoder is not installed or is
                another than these words were learnt with.
        """
        kept = check_texts(texts)
        known = self.bank is not None and all(text in self.bank for text in kept)
        encoder = self.bank if known and self.bank is not None else self._text_encoder(kept)
        found = encoder.encode(kept)
        with torch.inference_mode():
            out: NDArray[np.float32] = F.normalize(self.head(torch.from_numpy(found.vectors)), dim=-1).numpy()
        return EncodedText(vectors=out, cut=found.cut, limit=found.limit)

    def prompted(self, names: Sequence[str]) -> list[str]:
        """Class names as the sentences that these words were learnt in."""
        return [self.config.prompt.format(name) for name in names]

    def _text_encoder(self, texts: list[str]) -> TextEncoder:
        if self._encoder is None:
            try:
                found = load_text_encoder(located(self.config.encoder, self._folder), settings=self.config.settings)
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
        """Write config, head and bank beside a model's weights; each file appears whole or not at all.

        A text encoder of the model's own (``HERE``) is not written: it must lie there.
        """
        directory.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in self.head.state_dict().items()}
        with atomic_write(directory / HEAD) as temporary:
            temporary.write_bytes(save(state))
        if self.bank is not None:
            self.bank.save(directory / BANK)
        with atomic_write(directory / CONFIG) as temporary:
            temporary.write_text(json.dumps(asdict(self.config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def located(encoder: str, folder: Path | None) -> str:
    """The name of a text encoder with what lies in the model's folder at its place there.

    Raises:
        TextError: an encoder in a folder that is not known.
    """
    kind = CAUSAL if encoder.startswith(CAUSAL) else ""
    name = encoder.removeprefix(kind)
    if not name.startswith(HERE):
        return encoder
    if folder is None:
        raise TextError(
            f"text encoder {encoder}",
            got="words without a folder",
            expected="the folder of the model that it lies in",
            next_step="Load the words with their model.",
        )
    return f"{kind}{folder / name}"


def tower_of(towers: Sequence[TowerConfig], sensor: Sensor, bands: Sequence[str]) -> TowerConfig | None:
    """The first tower that reads just these bands of a sensor, by the provider's names; None when there is none."""
    for tower in towers:
        try:
            if [sensor.band(name).name for name in tower.bands] == list(bands):
                return tower
        except SensorError:
            continue
    return None


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
        config = _config(data)
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
    # absolute, as the text encoder is loaded later, maybe from another place
    return Words(config, head, bank, folder=directory.resolve())


def _config(data: dict[str, Any]) -> WordsConfig:
    """What a file says.

    Raises:
        ValueError: other keys, or values that are no settings or names of towers.
    """
    names = {f.name for f in fields(WordsConfig)}
    if not names - set(_LATER) <= set(data) <= names:
        raise ValueError(f"keys {sorted(data)}")
    settings, bands = data.get("settings", {}), data.get("bands", [])
    plain = isinstance(settings, dict) and all(isinstance(v, str | int | None) for v in settings.values())
    if not plain or not isinstance(bands, list) or not all(isinstance(name, str) for name in bands):
        raise ValueError(f"settings {settings!r:.60} and bands {bands!r:.60}")
    return WordsConfig(**(data | {"settings": settings, "bands": tuple(bands)}))
